//! Notices between processes of one machine: SOCK_SEQPACKET sockets whose packets carry descriptors.
//!
//! One notice is one packet, so a reader never sees half of one and a writer that dies leaves no torn one behind. A packet is
//! bounded by [`NOTICE_BYTES`]; larger things travel as memfds or files.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect,
    listen, recv, recvmsg, sendmsg, setsockopt, socket, socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::limits::NOTICE_BYTES;
use crate::protocol::codec;

/// Most descriptors in one notice.
const DESCRIPTORS: usize = 4;

/// Most descriptors that the kernel takes in one packet, whoever sends it: `SCM_MAX_FD`.
const SENT_DESCRIPTORS: usize = 253;

/// A received packet and its descriptors.
#[derive(Debug)]
pub struct Packet {
    /// What was sent.
    pub bytes: Vec<u8>,
    /// Descriptors that came with it, closed on exec.
    pub descriptors: Vec<OwnedFd>,
}

impl Packet {
    /// Decodes the notice.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is no such notice.
    pub fn decode<T: DeserializeOwned>(&self) -> io::Result<T> {
        codec::decode_local(&self.bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// One end of a connection. Closed on exec; whether calls wait is the descriptor's own setting.
#[derive(Debug)]
pub struct NoticeSocket(OwnedFd);

impl NoticeSocket {
    /// Two connected ends whose calls wait.
    ///
    /// # Errors
    ///
    /// Those of `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (left, right) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self::from(left), Self::from(right)))
    }

    /// Connects to a [`NoticeListener`]. Calls on the new socket wait.
    ///
    /// # Errors
    ///
    /// Those of `connect(2)`; nobody listens: `ConnectionRefused`, no such socket: `NotFound`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        with_short_path(path, |address| connect(fd.as_raw_fd(), address))?;
        Ok(Self::from(fd))
    }

    /// Sends one packet with descriptors.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the socket doesn't wait and its buffer is full; `BrokenPipe` if the other end is closed (never a
    /// signal); `InvalidInput` if the packet is larger than [`NOTICE_BYTES`] or has too many descriptors.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.is_empty() || bytes.len() > NOTICE_BYTES || descriptors.len() > DESCRIPTORS {
            let text = format!("a notice of {} bytes with {} descriptors", bytes.len(), descriptors.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        loop {
            match sendmsg::<()>(
                self.0.as_raw_fd(),
                &[IoSlice::new(bytes)],
                rights,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Encodes and sends one notice with descriptors.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn send_notice<T: Serialize>(&self, notice: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(&codec::encode(notice), descriptors)
    }

    /// Receives one packet; none once the other end is closed. Only one thread may receive at a time.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the socket doesn't wait and there is none. `InvalidData` for a packet over [`NOTICE_BYTES`], with more
    /// descriptors than any notice has, or with some for which this process has no room: it is gone, the next one will be heard.
    pub fn receive(&self) -> io::Result<Option<Packet>> {
        // Looked at first: in a host that has just forked, room for the largest would cost 40 page faults.
        let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        let length = patiently(|| recv(self.0.as_raw_fd(), &mut [], look))?;
        if length == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; length.min(NOTICE_BYTES)];
        // Room for all that may come: what a sender adds beyond a notice's own has to be closed here.
        let mut control = cmsg_space!([RawFd; SENT_DESCRIPTORS]);
        let flags = patiently(|| {
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut buffers, Some(&mut control), flags)?;
            Ok(message.flags)
        })?;
        let descriptors = take_descriptors(&control);
        let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
        if flags.contains(MsgFlags::MSG_TRUNC) || descriptors.len() > DESCRIPTORS {
            return invalid("an oversized notice");
        }
        if flags.contains(MsgFlags::MSG_CTRUNC) {
            return invalid("a notice with descriptors for which there was no room");
        }
        Ok(Some(Packet { bytes, descriptors }))
    }

    /// Whether calls wait.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)`.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let mut flags = OFlag::from_bits_retain(fcntl(&self.0, FcntlArg::F_GETFL)?);
        flags.set(OFlag::O_NONBLOCK, nonblocking);
        fcntl(&self.0, FcntlArg::F_SETFL(flags))?;
        Ok(())
    }
}

/// Calls until it is neither interrupted nor told of a reset: the other end was closed before it had read everything. That is
/// said once, ahead of what it had sent, a job's result for example.
fn patiently<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(nix::Error::EINTR | nix::Error::ECONNRESET) => {}
            done => return Ok(done?),
        }
    }
}

/// Takes over the descriptors of a packet, given the control buffer that it was received with, which was all zeros before.
///
/// nix shows none of a list that was cut short, but the kernel has opened the descriptors at its start.
#[expect(unsafe_code, reason = "descriptors arrive as bare numbers")]
fn take_descriptors(control: &[u8]) -> Vec<OwnedFd> {
    // SAFETY: the buffer has room for a header and more, and any bytes make one.
    let header = unsafe { control.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
        return Vec::new();
    }
    #[allow(clippy::unnecessary_cast, reason = "it has another type with musl")]
    let end = header.cmsg_len as usize;
    // One list of them is all that comes, however they were sent, since these sockets ask for nothing else.
    let (numbers, _) = control[size_of::<libc::cmsghdr>()..end].as_chunks();
    let numbers = numbers.iter().map(|&bytes| RawFd::from_ne_bytes(bytes));
    // SAFETY: the kernel has just made these descriptors for this process; nobody else knows them.
    numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

impl From<OwnedFd> for NoticeSocket {
    /// Takes over a descriptor, for example the one that a process was started with.
    fn from(fd: OwnedFd) -> Self {
        // The kernel grants what it may; a smaller buffer only makes a sender wait earlier.
        let _ = setsockopt(&fd, sockopt::SndBuf, &(4 * NOTICE_BYTES));
        Self(fd)
    }
}

impl From<NoticeSocket> for OwnedFd {
    fn from(socket: NoticeSocket) -> Self {
        socket.0
    }
}

impl AsFd for NoticeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for NoticeSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Where processes connect to.
#[derive(Debug)]
pub struct NoticeListener(OwnedFd);

impl NoticeListener {
    /// Listens at `path`, which must not exist. Its directory decides who may connect.
    ///
    /// # Errors
    ///
    /// Those of `bind(2)`.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        with_short_path(path, |address| bind(fd.as_raw_fd(), address))?;
        listen(&fd, Backlog::new(8)?)?;
        Ok(Self(fd))
    }

    /// The next connection. Calls on it wait, whatever the listener does.
    ///
    /// # Errors
    ///
    /// Those of `accept(2)`; `WouldBlock` if the listener doesn't wait and nobody is there.
    pub fn accept(&self) -> io::Result<NoticeSocket> {
        let raw = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: accept4 has just made this descriptor; nobody else knows it.
        #[expect(unsafe_code, reason = "nix returns accepted descriptors as bare numbers")]
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(NoticeSocket::from(fd))
    }
}

impl From<OwnedFd> for NoticeListener {
    /// Takes over a listening descriptor, for example the one that a process was started with.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<NoticeListener> for OwnedFd {
    fn from(listener: NoticeListener) -> Self {
        listener.0
    }
}

impl AsFd for NoticeListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Calls with an address that leads to `path` through its directory's descriptor: socket addresses end at 107 bytes, paths
/// don't.
fn with_short_path(path: &Path, call: impl FnOnce(&UnixAddr) -> nix::Result<()>) -> io::Result<()> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    let invalid =
        || io::Error::new(io::ErrorKind::InvalidInput, format!("`{}` names no socket", path.display()));
    let name = path.file_name().ok_or_else(invalid)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let directory = open(directory, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    call(&UnixAddr::new(&short)?)?;
    Ok(())
}

/// A [`NoticeSocket`] on tokio.
#[derive(Debug)]
pub struct AsyncNoticeSocket(AsyncFd<NoticeSocket>);

impl AsyncNoticeSocket {
    /// Takes over a socket; its calls don't wait any more. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)` and `epoll_ctl(2)`.
    pub fn new(socket: NoticeSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // SAFETY: the socket owns its descriptor, always names the same one and is not reachable for change from outside.
        #[expect(unsafe_code, reason = "tokio asks for a promise that the descriptor stays open")]
        let registered = unsafe { AsyncFd::register(socket) };
        Ok(Self(registered.map_err(io::Error::from)?))
    }

    /// Sends one notice with descriptors; waits for room. Cancelling it sends nothing.
    ///
    /// # Errors
    ///
    /// As [`NoticeSocket::send`].
    pub async fn send<T: Serialize>(&self, notice: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = codec::encode(notice);
        self.0.async_io(Interest::WRITABLE, |socket| socket.send(&bytes, descriptors)).await
    }

    /// Receives one packet; none once the other end is closed. Cancelling it loses nothing.
    ///
    /// # Errors
    ///
    /// As [`NoticeSocket::receive`].
    pub async fn receive(&self) -> io::Result<Option<Packet>> {
        self.0.async_io(Interest::READABLE, NoticeSocket::receive).await
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;

    /// How often this process has a file open.
    fn times_open(file: &File) -> usize {
        let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let own = inode(file.metadata().unwrap());
        // Those of other tests come and go meanwhile.
        let opened = fs::read_dir("/proc/self/fd").unwrap().flatten();
        opened.filter(|entry| fs::metadata(entry.path()).is_ok_and(|metadata| inode(metadata) == own)).count()
    }

    /// Sends a notice with the file so many times, however many a notice may have.
    fn send_times(socket: &NoticeSocket, file: &File, times: usize) {
        let raw = vec![file.as_raw_fd(); times];
        let (rights, bytes) = ([ControlMessage::ScmRights(&raw)], [IoSlice::new(b"files")]);
        sendmsg::<()>(socket.as_raw_fd(), &bytes, &rights, MsgFlags::MSG_NOSIGNAL, None).unwrap();
    }

    #[test]
    fn notices_arrive_whole_with_their_descriptors() {
        let (left, right) = NoticeSocket::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        left.send(&vec![7; NOTICE_BYTES], &[file.as_fd()]).unwrap();
        left.send_notice(&"second", &[]).unwrap();

        let packet = right.receive().unwrap().unwrap();
        assert_eq!(packet.bytes, vec![7; NOTICE_BYTES]);
        let mut received = std::fs::File::from(packet.descriptors.into_iter().next().unwrap());
        let mut text = String::new();
        received.rewind().unwrap();
        received.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(right.receive().unwrap().unwrap().decode::<String>().unwrap(), "second");

        drop(left);
        assert!(right.receive().unwrap().is_none());
        assert_eq!(right.send(b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn what_was_sent_arrives_even_if_the_sender_ended_with_something_unread() {
        let (host, job) = NoticeSocket::pair().unwrap();
        host.send_notice(&"cancel", &[]).unwrap();
        job.send_notice(&"result", &[]).unwrap();
        drop(job);
        assert_eq!(host.receive().unwrap().unwrap().decode::<String>().unwrap(), "result");
        assert!(host.receive().unwrap().is_none());
    }

    #[test]
    fn oversized_notices_are_refused_by_the_sender() {
        let (left, _right) = NoticeSocket::pair().unwrap();
        let error = left.send(&vec![0; NOTICE_BYTES + 1], &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn oversized_notices_are_refused_by_the_receiver_who_hears_the_next_one() {
        let (left, right) = NoticeSocket::pair().unwrap();
        let sent = nix::sys::socket::send(left.as_raw_fd(), &[0; NOTICE_BYTES + 1], MsgFlags::empty());
        assert_eq!(sent.unwrap(), NOTICE_BYTES + 1);
        left.send_notice(&"second", &[]).unwrap();
        assert_eq!(right.receive().unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(right.receive().unwrap().unwrap().decode::<String>().unwrap(), "second");
    }

    #[test]
    fn too_many_descriptors_are_closed_and_the_next_notice_is_heard() {
        let (left, right) = NoticeSocket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        for times in [DESCRIPTORS + 1, 2 * DESCRIPTORS, SENT_DESCRIPTORS] {
            send_times(&left, &file, times);
            left.send_notice(&"second", &[]).unwrap();
            assert_eq!(right.receive().unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(times_open(&file), 1);
            assert_eq!(right.receive().unwrap().unwrap().decode::<String>().unwrap(), "second");
        }
        send_times(&left, &file, DESCRIPTORS);
        assert_eq!(right.receive().unwrap().unwrap().descriptors.len(), DESCRIPTORS);
        assert_eq!(times_open(&file), 1);
    }

    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn process_with_a_full_table() {
        let (left, right) = NoticeSocket::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        let mut others: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        // No room at all, then some.
        for _ in 0..2 {
            send_times(&left, &file, DESCRIPTORS);
            left.send_notice(&"second", &[]).unwrap();
            assert_eq!(right.receive().unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(right.receive().unwrap().unwrap().decode::<String>().unwrap(), "second");
            others.truncate(others.len() - DESCRIPTORS / 2);
        }
        assert_eq!(times_open(&file), 1);
    }

    #[test]
    fn descriptors_without_room_for_all_are_closed_and_the_next_notice_is_heard() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "notices::tests::process_with_a_full_table", "--nocapture", "--ignored"])
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.contains("1 passed"), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn sockets_bind_below_long_paths() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("socket");
        let listener = NoticeListener::bind(&path).unwrap();
        let client = NoticeSocket::connect(&path).unwrap();
        let server = listener.accept().unwrap();
        client.send(b"hi", &[]).unwrap();
        assert_eq!(server.receive().unwrap().unwrap().bytes, b"hi");
        let missing = NoticeSocket::connect(&deep.join("other")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn asynchronous_ends_wait_for_each_other() {
        let (left, right) = NoticeSocket::pair().unwrap();
        let (left, right) = (AsyncNoticeSocket::new(left).unwrap(), AsyncNoticeSocket::new(right).unwrap());
        let reader = tokio::spawn(async move {
            let mut count = 0;
            while let Some(packet) = right.receive().await.unwrap() {
                assert_eq!(packet.decode::<u32>().unwrap(), count);
                count += 1;
            }
            count
        });
        for number in 0..1_000u32 {
            left.send(&number, &[]).await.unwrap();
        }
        drop(left);
        assert_eq!(reader.await.unwrap(), 1_000);
    }
}
