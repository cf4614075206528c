//! What a job keeps for its next attempt, in memory that it shares with its host.
//!
//! The job makes one memfd with room for three states. It writes each state into a buffer that is neither the newest nor
//! claimed by the host, and then makes that one the newest by a single store: a copy and a few stores, no system call, and a
//! crash anywhere leaves the state before. The host reads by descriptor, so that a job's death takes nothing with it. Neither
//! ever waits for the other. The file is sparse: only pages that were written take memory.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use lrts_core::limits::{CHECKPOINT_BYTES, INLINE_BODY_BYTES};
use lrts_core::notices::NoticeSocket;
use lrts_core::protocol::host::Payload;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::notices::FromJob;

/// One is the newest, one may be claimed by the host, one is to be written.
const BUFFERS: usize = 3;

/// Size of the header; buffers follow it.
const HEADER_BYTES: usize = 4096;

const FILE_BYTES: usize = HEADER_BYTES + BUFFERS * CHECKPOINT_BYTES;

/// How often the host claims a buffer, and how often it copies a claimed one: a buffer that was being written when it was
/// claimed is not written again.
const CLAIMS: usize = 4;
const COPIES: usize = 4;

/// Bytes that the host copies at once.
const COPY_BYTES: usize = 128 * 1024;

#[derive(Debug)]
#[repr(C)]
struct Header {
    /// The newest state's number, from 1, and in the last two bits its buffer; 0 before the first. By the job.
    newest: AtomicU64,
    /// One more than the buffer that the host is reading, or 0. By the host.
    claim: AtomicU64,
    buffers: [Buffer; BUFFERS],
}

#[derive(Debug)]
#[repr(C)]
struct Buffer {
    /// Twice the number of the state in it; odd while it is being written.
    stamp: AtomicU64,
    length: AtomicU64,
}

const _: () = assert!(size_of::<Header>() <= HEADER_BYTES && BUFFERS <= 1 << INDEX_BITS);

const INDEX_BITS: u32 = 2;

const NEWEST: u64 = std::mem::offset_of!(Header, newest) as u64;
const CLAIM: u64 = std::mem::offset_of!(Header, claim) as u64;

fn stamp_offset(index: usize) -> u64 {
    (std::mem::offset_of!(Header, buffers) + index * size_of::<Buffer>()) as u64
}

fn length_offset(index: usize) -> u64 {
    stamp_offset(index) + std::mem::offset_of!(Buffer, length) as u64
}

const fn buffer_offset(index: usize) -> usize {
    HEADER_BYTES + index * CHECKPOINT_BYTES
}

fn index_of(newest: u64) -> usize {
    (newest & ((1 << INDEX_BITS) - 1)) as usize
}

/// The job's end.
pub(crate) struct Checkpoints {
    /// What an earlier attempt has left.
    earlier: Option<&'static [u8]>,
    /// To the host; none in a detached context.
    socket: Option<Arc<NoticeSocket>>,
    own: Mutex<Option<Writer>>,
}

impl Checkpoints {
    pub(crate) fn new(earlier: Option<&'static [u8]>, socket: Option<Arc<NoticeSocket>>) -> Self {
        Self { earlier, socket, own: Mutex::default() }
    }

    /// Keeps a state of at most [`CHECKPOINT_BYTES`]. Once it returns, the host has it.
    ///
    /// # Errors
    ///
    /// Those of `memfd_create(2)`, `mmap(2)` and, where the host is dead, `sendmsg(2)`.
    pub(crate) fn keep(&self, state: &[u8]) -> io::Result<()> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = &mut *own {
            writer.write(state);
            return Ok(());
        }
        let (mut writer, memory) = Writer::create()?;
        writer.write(state);
        if let Some(socket) = &self.socket {
            socket.send_notice(&FromJob::Checkpoints, &[memory.as_fd()])?;
        }
        *own = Some(writer);
        Ok(())
    }

    /// Shows the newest state, this attempt's or an earlier one's, to `read`.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.as_ref().map(Writer::newest).or(self.earlier).map(read)
    }
}

/// The memory as the job has mapped it. It has at least one state once `create`'s caller has written it.
struct Writer {
    start: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone; the host reaches the memory by descriptor.
#[expect(unsafe_code, reason = "the mapping is a pointer")]
unsafe impl Send for Writer {}

impl Writer {
    fn create() -> io::Result<(Self, OwnedFd)> {
        let memory = memfd_create(c"lrts-checkpoint", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let memory = File::from(memory);
        memory.set_len(FILE_BYTES as u64)?;
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, of memory that can't shrink away.
        #[expect(unsafe_code, reason = "mmap is unsafe")]
        let start = unsafe { mmap(None, FILE_LENGTH, protection, MapFlags::MAP_SHARED, &memory, 0)? };
        Ok((Self { start: start.cast() }, memory.into()))
    }

    fn write(&mut self, state: &[u8]) {
        let index = self.begin();
        // SAFETY: the buffer lies within the mapping and has room for any state; nobody reads it by address meanwhile.
        #[expect(unsafe_code, reason = "shared memory is reached by address")]
        unsafe {
            assert!(state.len() <= CHECKPOINT_BYTES, "a state within its buffer");
            self.start
                .add(buffer_offset(index))
                .copy_from_nonoverlapping(NonNull::from_ref(state).cast(), state.len());
        }
        self.publish(index, state.len());
    }

    /// Chooses a buffer and marks it as being written.
    fn begin(&mut self) -> usize {
        let header = self.header();
        let newest = header.newest.load(Ordering::Relaxed);
        // Against the host's: it claims, then looks which state is the newest. Either it sees the last one or its claim is
        // seen here.
        fence(Ordering::SeqCst);
        let claim = header.claim.load(Ordering::Relaxed);
        let is_free =
            |index: &usize| (newest == 0 || *index != index_of(newest)) && *index as u64 + 1 != claim;
        let index = (0..BUFFERS).find(is_free).expect("of three buffers at most two are taken");
        let stamp = &header.buffers[index].stamp;
        stamp.store(stamp.load(Ordering::Relaxed) | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        index
    }

    /// Makes a written buffer the newest.
    fn publish(&mut self, index: usize, length: usize) {
        let header = self.header();
        let number = (header.newest.load(Ordering::Relaxed) >> INDEX_BITS) + 1;
        let buffer = &header.buffers[index];
        buffer.length.store(length as u64, Ordering::Relaxed);
        buffer.stamp.store(number << 1, Ordering::Release);
        header.newest.store(number << INDEX_BITS | index as u64, Ordering::Release);
    }

    fn newest(&self) -> &[u8] {
        let index = index_of(self.header().newest.load(Ordering::Relaxed));
        let length = self.header().buffers[index].length.load(Ordering::Relaxed) as usize;
        assert!(length <= CHECKPOINT_BYTES, "a state within its buffer");
        // SAFETY: the buffer lies within the mapping; it is written by `write` alone, which needs `&mut self`.
        #[expect(unsafe_code, reason = "shared memory is reached by address")]
        unsafe {
            NonNull::slice_from_raw_parts(self.start.add(buffer_offset(index)), length).as_ref()
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping begins with the header, is aligned to a page and lives as long as this borrow; a header is made
        // of atomics, for which any bytes are valid.
        #[expect(unsafe_code, reason = "shared memory is reached by address")]
        unsafe {
            self.start.cast().as_ref()
        }
    }
}

const FILE_LENGTH: NonZeroUsize = NonZeroUsize::new(FILE_BYTES).expect("there are buffers");

impl Drop for Writer {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `create` with this length, and borrows of it have ended.
        #[expect(unsafe_code, reason = "munmap is unsafe")]
        let unmapped = unsafe { munmap(self.start.cast(), FILE_BYTES) };
        unmapped.expect("a mapping of our own can be unmapped");
    }
}

/// The host's end of a job's checkpoints. It trusts nothing in them.
#[derive(Debug)]
pub(super) struct Reader {
    memory: File,
    /// Number of the state that the present worker was sent last.
    sent: u64,
}

/// A state as a notice carries it: with the memfd that travels along, if it is large.
pub(super) type Snapshot = (Payload, Option<OwnedFd>);

impl Reader {
    /// Takes over what a job has sent.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is no memory for checkpoints.
    pub(super) fn new(memory: OwnedFd) -> io::Result<Self> {
        // Any other file could make its reader wait.
        let seals = fcntl(&memory, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
        let memory = File::from(memory);
        let is_ours = seals.is_ok_and(|seals| seals.contains(SealFlag::F_SEAL_SHRINK))
            && memory.metadata()?.len() == FILE_BYTES as u64;
        if is_ours { Ok(Self { memory, sent: 0 }) } else { Err(invalid()) }
    }

    /// The newest state's number, 0 if there is none.
    pub(super) fn number(&self) -> u64 {
        self.word(NEWEST).unwrap_or(0) >> INDEX_BITS
    }

    /// A worker comes that hasn't been sent anything.
    pub(super) fn forget_sent(&mut self) {
        self.sent = 0;
    }

    /// The newest state, unless it was sent already.
    ///
    /// # Errors
    ///
    /// As [`snapshot`](Self::snapshot).
    pub(super) fn news(&mut self) -> io::Result<Option<Snapshot>> {
        if self.number() == self.sent {
            return Ok(None);
        }
        let (number, snapshot) = self.snapshot()?;
        self.sent = number;
        Ok(Some(snapshot))
    }

    /// A copy of the newest state, and its number.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is none, `WouldBlock` if it is changing too fast, which a stopped job's doesn't; those of
    /// `memfd_create(2)` for a large one.
    pub(super) fn snapshot(&self) -> io::Result<(u64, Snapshot)> {
        self.claimed(|offset, length| {
            if length <= INLINE_BODY_BYTES {
                return Ok((Payload::Inline(self.copy(offset, length)?), None));
            }
            let copy = snapshot_memory()?;
            let mut buffer = vec![0; COPY_BYTES];
            let mut done = 0;
            while done < length {
                let part = &mut buffer[..COPY_BYTES.min(length - done)];
                self.memory.read_exact_at(part, offset + done as u64)?;
                copy.write_all_at(part, done as u64)?;
                done += part.len();
            }
            Ok((Payload::Descriptor { bytes: length as u64 }, Some(copy.into())))
        })
    }

    /// The newest state's bytes.
    ///
    /// # Errors
    ///
    /// As [`snapshot`](Self::snapshot).
    pub(super) fn bytes(&self) -> io::Result<Vec<u8>> {
        self.claimed(|offset, length| self.copy(offset, length)).map(|(_, bytes)| bytes)
    }

    fn copy(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.memory.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Calls `copy` with place and length of a state that is no older than the newest is now, and that isn't written to
    /// meanwhile.
    fn claimed<T>(&self, mut copy: impl FnMut(u64, usize) -> io::Result<T>) -> io::Result<(u64, T)> {
        let mut result = Err(io::ErrorKind::WouldBlock.into());
        for _ in 0..CLAIMS {
            let newest = self.word(NEWEST)?;
            if newest == 0 {
                return Err(io::ErrorKind::NotFound.into());
            }
            let index = index_of(newest);
            if index >= BUFFERS {
                return Err(invalid());
            }
            self.memory.write_all_at(&(index as u64 + 1).to_ne_bytes(), CLAIM)?;
            fence(Ordering::SeqCst);
            result = self.unchanged(index, &mut copy);
            if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                break;
            }
        }
        self.memory.write_all_at(&0u64.to_ne_bytes(), CLAIM)?;
        result
    }

    fn unchanged<T>(
        &self,
        index: usize,
        copy: &mut impl FnMut(u64, usize) -> io::Result<T>,
    ) -> io::Result<(u64, T)> {
        for _ in 0..COPIES {
            let stamp = self.word(stamp_offset(index))?;
            if !stamp.is_multiple_of(2) {
                std::thread::yield_now();
                continue;
            }
            let length = self.word(length_offset(index))?;
            let length = usize::try_from(length).ok().filter(|&length| length <= CHECKPOINT_BYTES);
            let copied = copy(buffer_offset(index) as u64, length.ok_or_else(invalid)?)?;
            if self.word(stamp_offset(index))? == stamp {
                return Ok((stamp >> 1, copied));
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn word(&self, offset: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, offset)?;
        fence(Ordering::SeqCst);
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// A large state as a snapshot.
///
/// # Errors
///
/// Those of `memfd_create(2)`.
pub(super) fn in_memory(state: &[u8]) -> io::Result<Snapshot> {
    let memory = snapshot_memory()?;
    memory.write_all_at(state, 0)?;
    Ok((Payload::Descriptor { bytes: state.len() as u64 }, Some(memory.into())))
}

fn snapshot_memory() -> io::Result<File> {
    Ok(File::from(memfd_create(c"lrts-snapshot", MFdFlags::MFD_CLOEXEC)?))
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no memory for checkpoints")
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn pair() -> (Writer, Reader) {
        let (writer, memory) = Writer::create().unwrap();
        (writer, Reader::new(memory).unwrap())
    }

    #[test]
    fn the_newest_state_is_read_and_sent_once() {
        let (mut writer, mut reader) = pair();
        assert_eq!(reader.snapshot().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(reader.news().unwrap().is_none());
        for state in [&b"one"[..], b"", b"three", b"four"] {
            writer.write(state);
            assert_eq!(writer.newest(), state);
            assert_eq!(reader.bytes().unwrap(), state);
        }
        assert_eq!(reader.number(), 4);
        assert_eq!(reader.news().unwrap().unwrap().0, Payload::Inline(b"four".to_vec()));
        assert!(reader.news().unwrap().is_none());
        reader.forget_sent();
        assert!(reader.news().unwrap().is_some());
    }

    #[test]
    fn a_large_state_travels_in_memory_of_its_own() {
        let (mut writer, reader) = pair();
        let state: Vec<u8> = (0..CHECKPOINT_BYTES).map(|index| (index / 1_000) as u8).collect();
        writer.write(&state);
        let (number, (payload, memory)) = reader.snapshot().unwrap();
        writer.write(b"next");
        assert_eq!((number, payload), (1, Payload::Descriptor { bytes: CHECKPOINT_BYTES as u64 }));
        let mut copy = vec![0; CHECKPOINT_BYTES];
        File::from(memory.unwrap()).read_exact_at(&mut copy, 0).unwrap();
        assert!(copy == state);
    }

    #[test]
    fn a_job_that_dies_as_it_writes_leaves_the_state_before() {
        let (mut writer, reader) = pair();
        let index = writer.begin();
        assert_eq!(reader.bytes().unwrap_err().kind(), io::ErrorKind::NotFound);
        writer.publish(index, 0);
        writer.write(b"whole");
        let torn = writer.begin();
        assert_ne!(buffer_offset(torn), buffer_offset(index_of(reader.word(NEWEST).unwrap())));
        assert_eq!(reader.bytes().unwrap(), b"whole");
    }

    #[test]
    fn a_claimed_buffer_is_not_written() {
        let (mut writer, reader) = pair();
        writer.write(b"claimed");
        let bytes = reader.claimed(|offset, length| {
            (0..100).for_each(|_| writer.write(b"another"));
            reader.copy(offset, length)
        });
        assert_eq!(bytes.unwrap(), (1, b"claimed".to_vec()));
        assert_eq!(reader.bytes().unwrap(), b"another");
    }

    #[test]
    fn whatever_a_job_writes_the_host_survives_it() {
        let (mut writer, reader) = pair();
        writer.write(b"x");
        for (newest, stamp, length) in [(7, 0, 0), (4, 0, u64::MAX), (4, 1, 1)] {
            let header = writer.header();
            header.newest.store(newest, Ordering::Relaxed);
            header.buffers[0].stamp.store(stamp, Ordering::Relaxed);
            header.buffers[0].length.store(length, Ordering::Relaxed);
            assert!(reader.snapshot().is_err());
        }
        assert!(Reader::new(tempfile::tempfile().unwrap().into()).is_err());
    }

    #[test]
    fn a_reader_never_sees_half_of_a_state_nor_an_older_one() {
        const ROUNDS: u64 = 200_000;
        let (mut writer, reader) = pair();
        writer.write(&[0; 8]);
        thread::scope(|scope| {
            let job = scope.spawn(move || {
                for round in 1..=ROUNDS {
                    let state = round.to_ne_bytes().repeat(1 + round as usize % 600);
                    writer.write(&state);
                }
                writer
            });
            let (mut last, mut reads) = (0, 0);
            while !job.is_finished() || reads == 0 {
                let Ok(state) = reader.bytes() else { continue };
                let words = state.as_chunks::<8>().0;
                assert!(words.iter().all(|word| *word == words[0]));
                let round = u64::from_ne_bytes(words[0]);
                assert!(round >= last);
                (last, reads) = (round, reads + 1);
            }
            let writer = job.join().unwrap();
            assert_eq!(reader.bytes().unwrap(), writer.newest());
            assert!(reads > 0);
        });
    }
}
