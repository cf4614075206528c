//! Temporary directories that nobody else can enter and that don't stay behind, not even after `kill -9`.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What all of them are called; the purpose and a random number follow.
const PREFIX: &str = "lrts-";

/// Locked by the owner as long as it lives: without that, the directory is a leftover.
const LOCK: &str = "lock";

/// A new directory of mode 0700, removed with all in it when dropped.
///
/// Those whose owner was killed are removed by whoever makes the next one beside them.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
    _lock: File,
}

impl PrivateDir {
    /// Makes one in `parent`, called after its purpose.
    ///
    /// # Errors
    ///
    /// If it can't be made.
    pub fn create(parent: &Path, purpose: &str) -> io::Result<Self> {
        remove_leftovers(parent);
        loop {
            let path = parent.join(format!("{PREFIX}{purpose}-{:016x}", crate::ids::random_u64()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    // Locked before it has its name, so that nobody takes it for a leftover in between.
                    let unnamed = path.join("new");
                    let lock = File::create(&unnamed)?;
                    lock.lock()?;
                    std::fs::rename(&unnamed, path.join(LOCK))?;
                    return Ok(Self { path, _lock: lock });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        // Somebody may have cleaned up before; otherwise the next one made here removes it.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes this user's directories whose owner is gone. What can't be looked at or removed stays.
fn remove_leftovers(parent: &Path) {
    let own = nix::unistd::geteuid().as_raw();
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
            && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == own);
        let unlocked = |lock: File| lock.try_lock().is_ok();
        if ours && File::open(entry.path().join(LOCK)).is_ok_and(unlocked) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Where lrts keeps a user's state: `$XDG_STATE_HOME/lrts`, else `~/.local/state/lrts`. None if neither variable names an
/// absolute path.
pub fn state_home(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(home.join("lrts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_private_and_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let directory = PrivateDir::create(parent.path(), "tests").unwrap();
        assert_eq!(std::fs::metadata(directory.path()).unwrap().mode() & 0o777, 0o700);
        std::fs::write(directory.path().join("file"), "").unwrap();
        drop(directory);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn leftovers_go_and_others_stay() {
        let parent = tempfile::tempdir().unwrap();
        let alive = PrivateDir::create(parent.path(), "alive").unwrap();
        let killed = PrivateDir::create(parent.path(), "killed").unwrap();
        let path = killed.path.clone();
        let lock = killed._lock.try_clone().unwrap();
        std::mem::forget(killed);
        let stranger = parent.path().join("lrts-stranger");
        std::fs::create_dir(&stranger).unwrap();
        lock.unlock().unwrap();

        let _next = PrivateDir::create(parent.path(), "next").unwrap();

        assert!(!path.exists(), "its owner is gone");
        assert!(alive.path().exists() && stranger.exists());
    }

    #[test]
    fn the_state_home_follows_the_environment() {
        let with = |set: &'static [(&str, &str)]| {
            let variable =
                |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            state_home(variable)
        };
        assert_eq!(with(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]).unwrap(), Path::new("/s/lrts"));
        assert_eq!(with(&[("HOME", "/h")]).unwrap(), Path::new("/h/.local/state/lrts"));
        assert_eq!(with(&[("XDG_STATE_HOME", "relative")]), None);
    }
}
