//! The file by which workers find a host.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// A host's socket in the worker's directory.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: another host's socket may come to have the same path.
    identity: (u64, u64),
}

impl SocketFile {
    /// The one at this path, if there is any. A worker that has said another path than an absolute one, or none, can't be
    /// helped: its host is never gone.
    pub(super) fn find(path: PathBuf) -> Option<Self> {
        let metadata = path.is_absolute().then(|| fs::symlink_metadata(&path))?.ok()?;
        Some(Self { identity: identity(&metadata), path })
    }

    /// Whether no worker finds this host any more. A disk that doesn't answer is no proof of it.
    pub(super) fn is_gone(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) => identity(&metadata) != self.identity,
            Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_gone_once_its_file_is_removed_or_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let [path, other] = ["host", "other"].map(|name| directory.path().join(name));
        fs::write(&path, "").unwrap();
        fs::write(&other, "").unwrap();
        let file = SocketFile::find(path.clone()).unwrap();
        assert!(!file.is_gone());
        fs::rename(&other, &path).unwrap();
        assert!(file.is_gone());
        let file = SocketFile::find(path.clone()).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(file.is_gone());
        assert!(SocketFile::find(path).is_none() && SocketFile::find(PathBuf::new()).is_none());
    }
}
