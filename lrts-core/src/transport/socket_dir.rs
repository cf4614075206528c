//! Private places for ipc sockets.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::socket::{Backlog, listen};

use crate::private_dir::PrivateDir;

/// Bits that make a directory more than private.
const NOT_PRIVATE: u32 = 0o077;

/// A new private directory for sockets, removed with all in it when dropped.
#[derive(Debug)]
pub struct SocketDir(PrivateDir);

impl SocketDir {
    /// Makes one under `$XDG_RUNTIME_DIR`, if that is a directory of this user's own, else under the directory for temporary
    /// files.
    ///
    /// # Errors
    ///
    /// If it can't be made.
    pub fn create() -> io::Result<Self> {
        let parent = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute() && check_private(path).is_ok())
            .unwrap_or_else(std::env::temp_dir);
        PrivateDir::create(&parent, "sockets").map(Self)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

fn check_private(path: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    check_metadata(&metadata)
}

fn check_metadata(metadata: &std::fs::Metadata) -> io::Result<()> {
    if !metadata.is_dir() || metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a directory of this user's own"));
    }
    if metadata.mode() & NOT_PRIVATE != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "open to other users; its mode must be 0700",
        ));
    }
    Ok(())
}

/// A path for one ipc socket in a private directory; the file is removed when this is dropped.
///
/// The path leads through the open directory's descriptor, since a socket's own path may have 107 bytes at most.
#[derive(Debug)]
pub(crate) struct SocketPath {
    /// Keeps the descriptor in the path valid.
    _directory: File,
    path: PathBuf,
}

impl SocketPath {
    /// Chooses a path that no other socket of this process has.
    pub(crate) fn within(directory: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let directory =
            File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC).open(directory)?;
        check_metadata(&directory.metadata()?)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/proc/self/fd/{}/{}-{number}", directory.as_raw_fd(), std::process::id()).into();
        Ok(Self { _directory: directory, path })
    }

    /// Listens there.
    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        // A process of the same number may have left its file behind.
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&self.path)?;
        // Many peers may come at once; a full backlog would refuse them.
        listen(&listener, Backlog::MAXALLOWABLE)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        // May be gone already: the zeromq crate removes the file of a socket it closes.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{DirBuilder, Permissions};
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

    use super::*;

    #[test]
    fn sockets_go_with_their_paths() {
        let dir = SocketDir::create().unwrap();
        let before = std::fs::read_dir(dir.path()).unwrap().count();
        let socket = SocketPath::within(dir.path()).unwrap();
        let _listener = socket.listen().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before + 1);
        drop(socket);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), before);
    }

    #[test]
    fn sockets_fit_into_directories_with_long_paths() {
        let dir = SocketDir::create().unwrap();
        let deep = dir.path().join("d".repeat(200));
        DirBuilder::new().mode(0o700).create(&deep).unwrap();
        let socket = SocketPath::within(&deep).unwrap();
        let _listener = socket.listen().unwrap();
        std::os::unix::net::UnixStream::connect(socket.path()).unwrap();
    }

    #[test]
    fn an_open_directory_is_refused() {
        let dir = SocketDir::create().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        assert_eq!(SocketPath::within(dir.path()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
