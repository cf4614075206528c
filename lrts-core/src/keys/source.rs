//! Where a key comes from: a file that may change while it is used.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::file::check_private;
use super::{KeyFile, KeyRing, KeysError, key_file_name};
use crate::transport::Role;

/// A key file, or the one for a role in a keys directory. Clones share what was loaded.
#[derive(Clone)]
pub struct KeySource {
    path: PathBuf,
    role: Role,
    loaded: Arc<Mutex<Option<Loaded>>>,
}

struct Loaded {
    stamp: Stamp,
    ring: Arc<KeyRing>,
    /// How often a file was read.
    version: u64,
}

/// Tells one state of a file from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
    modified: (i64, i64),
}

impl KeySource {
    /// The key for this role at a path: of a key file, or of a keys directory.
    pub fn new(path: impl Into<PathBuf>, role: Role) -> Self {
        Self { path: path.into(), role, loaded: Arc::default() }
    }

    /// What it was made with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that it comes from, as far as that can be told.
    pub fn file_path(&self) -> PathBuf {
        if self.path.is_dir() { self.path.join(key_file_name(self.role)) } else { self.path.clone() }
    }

    /// What it is a key for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The key as it is now: read again only if the file has changed.
    ///
    /// # Errors
    ///
    /// [`KeysError`]; of these, [`KeysError::Missing`] is worth waiting for.
    pub fn current(&self) -> Result<Arc<KeyRing>, KeysError> {
        let path = self.file()?;
        let missing = |error: io::Error| {
            if error.kind() == io::ErrorKind::NotFound {
                KeysError::Missing { path: path.clone(), role: self.role }
            } else {
                KeysError::io(&path)(error)
            }
        };
        let stamp = Stamp::of(&fs::metadata(&path).map_err(missing)?);
        let mut loaded = self.lock();
        if let Some(loaded) = &*loaded
            && loaded.stamp == stamp
        {
            return Ok(loaded.ring.clone());
        }
        let file = KeyFile::read(&path)?;
        let malformed = |reason| KeysError::Malformed { path: path.clone(), reason };
        let ring = Arc::new(KeyRing::new(file).map_err(malformed)?);
        let role = ring.identity().role;
        if role != self.role {
            return Err(KeysError::OtherRole { path, role, wanted: self.role });
        }
        // Changed while it was read: its stamp is older, so it is read again next time.
        let version = loaded.as_ref().map_or(0, |loaded| loaded.version) + 1;
        *loaded = Some(Loaded { stamp, ring: ring.clone(), version });
        Ok(ring)
    }

    /// The same; while the file can't be used, the key that was loaded before.
    ///
    /// # Errors
    ///
    /// [`KeysError`] if none was loaded before.
    pub fn current_or_last(&self) -> Result<Arc<KeyRing>, KeysError> {
        self.current().or_else(|error| self.lock().as_ref().map(|loaded| loaded.ring.clone()).ok_or(error))
    }

    /// Tells one state of the key from another: counts how often it was read, after looking whether it must be read again.
    pub fn version(&self) -> u64 {
        // Whoever needs the key hears what is wrong with it.
        let _ = self.current();
        self.lock().as_ref().map_or(0, |loaded| loaded.version)
    }

    fn file(&self) -> Result<PathBuf, KeysError> {
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => {
                let file = self.path.join(key_file_name(self.role));
                match check_private(&self.path, &metadata) {
                    // A directory without keys is somebody else's affair: nobody is asked to change its mode.
                    Err(_) if matches!(file.try_exists(), Ok(false)) => {
                        Err(KeysError::Missing { path: file, role: self.role })
                    }
                    checked => checked.map(|()| file),
                }
            }
            Ok(_) => Ok(self.path.clone()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(KeysError::Missing { path: self.path.clone(), role: self.role })
            }
            Err(error) => Err(KeysError::io(&self.path)(error)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Loaded>> {
        self.loaded.lock().expect("nothing panics while it holds this lock")
    }
}

impl std::fmt::Debug for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySource")
            .field("path", &self.path)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}
