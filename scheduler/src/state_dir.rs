//! The scheduler's state directory: private, for one scheduler at a time, and recognised as such before anything is written.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lrts_core::private_dir::{self, PrivateDir, file_options};

use crate::store::{DurableStore, StoreError};

/// The format of all that is in the directory. A version that would misread what another one wrote has another number.
const FORMAT: u32 = 1;

/// The file that makes a directory a scheduler's, and says its format.
const MARKER: &str = "lrts-scheduler-state";

/// Locked while a scheduler runs.
const LOCK: &str = "scheduler.lock";

/// The store.
const STORE: &str = "store";

/// The programs of applications.
const BUNDLES: &str = "bundles";

/// What the marker says before the format's number.
const MARKER_TEXT: &str = "state of an lrts scheduler, format ";

/// The directory of one scheduler.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Whether it has no marker yet.
    new: bool,
    /// The lock goes with the process. A temporary directory needs none.
    _lock: Option<File>,
    /// Removed at the end.
    _temporary: Option<PrivateDir>,
}

impl StateDir {
    /// Opens and locks this directory, which is made if it isn't there; without one, a temporary directory that is removed at
    /// the end. A directory that holds something else is left as it is, and so is one whose store is gone: a new store would
    /// have workers stop jobs that it doesn't know.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn open(path: Option<PathBuf>) -> Result<Self, StoreError> {
        let Some(path) = path else {
            let parent = std::env::temp_dir();
            let temporary = PrivateDir::create(&parent, "scheduler");
            let temporary = temporary.map_err(|source| StoreError::from_io(&parent, source))?;
            let path = temporary.path().to_owned();
            return Ok(Self { path, new: false, _lock: None, _temporary: Some(temporary) });
        };
        let failed = |source| StoreError::from_io(&path, source);
        private_dir::find(&path).map_err(StoreError::from_private_dir)?;
        let new = !check_marker(&path)?;
        // Only now: one that is something else is left as it is.
        private_dir::close(&path).map_err(StoreError::from_private_dir)?;
        let lock = file_options().open(path.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        if !new && !DurableStore::is_in(&path.join(STORE)).map_err(failed)? {
            return Err(StoreError::Missing { path });
        }
        Ok(Self { path, new, _lock: Some(lock), _temporary: None })
    }

    /// The store is there: from now on the directory is a scheduler's.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn mark(&self) -> Result<(), StoreError> {
        let marked = if self.new { write_marker(&self.path) } else { Ok(()) };
        marked.map_err(|source| StoreError::from_io(&self.path, source))
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the store.
    pub(crate) fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// The directory of bundles.
    pub(crate) fn bundles(&self) -> PathBuf {
        self.path.join(BUNDLES)
    }
}

/// Whether the directory is a scheduler's already; otherwise it is empty.
fn check_marker(directory: &Path) -> Result<bool, StoreError> {
    let failed = |source| StoreError::from_io(directory, source);
    match fs::read(directory.join(MARKER)) {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            let Some(found) = text.trim_end().strip_prefix(MARKER_TEXT) else {
                return Err(StoreError::Foreign { path: directory.to_owned() });
            };
            if found != FORMAT.to_string() {
                let (path, found) = (directory.to_owned(), found.to_owned());
                return Err(StoreError::OtherFormat { path, found, known: FORMAT });
            }
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let names = fs::read_dir(directory).map_err(failed)?.map(|entry| Ok(entry?.file_name()));
            let names: Vec<OsString> = names.collect::<io::Result<_>>().map_err(failed)?;
            // What a first start that was cut short has left, what schedulers had before their jobs were durable, and what
            // file systems have at their root.
            let locked = names.iter().any(|name| name == LOCK);
            let own = |name: &OsString| {
                name == LOCK
                    || *name == *part()
                    || name == "lost+found"
                    || (locked && (name == BUNDLES || name == STORE))
            };
            if names.iter().all(own) {
                Ok(false)
            } else {
                Err(StoreError::Foreign { path: directory.to_owned() })
            }
        }
        Err(error) => Err(failed(error)),
    }
}

/// The marker before it is whole.
fn part() -> String {
    format!("{MARKER}.part")
}

/// Comes last, and whole: from then on the directory is a scheduler's.
fn write_marker(directory: &Path) -> io::Result<()> {
    let part = directory.join(part());
    let mut file = file_options().truncate(true).open(&part)?;
    writeln!(file, "{MARKER_TEXT}{FORMAT}")?;
    file.sync_all()?;
    fs::rename(part, directory.join(MARKER))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::store::Store;

    fn open(path: &Path) -> Result<StateDir, StoreError> {
        StateDir::open(Some(path.to_owned()))
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names(path: &Path) -> Vec<String> {
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_missing_directory_is_made_and_found_again() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("deep/state");
        let state = open(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(LOCK)), 0o600);
        let identity = DurableStore::open(&state.store()).unwrap().identity();
        drop(state);
        // The first start was cut short before the marker.
        let state = open(&path).unwrap();
        state.mark().unwrap();
        drop(state);
        let state = open(&path).unwrap();
        assert_eq!(DurableStore::open(&state.store()).unwrap().identity(), identity);
    }

    #[test]
    fn a_store_that_was_removed_is_not_begun_anew() {
        let home = tempfile::tempdir().unwrap();
        let state = open(home.path()).unwrap();
        drop(DurableStore::open(&state.store()).unwrap());
        state.mark().unwrap();
        let store = state.store();
        drop(state);
        let missing = || matches!(open(home.path()), Err(StoreError::Missing { .. }));
        fs::write(store.join("records.redb"), "").unwrap();
        assert!(missing(), "it is empty");
        fs::remove_file(store.join("records.redb")).unwrap();
        assert!(missing());
        fs::remove_dir_all(&store).unwrap();
        assert!(missing());
        assert!(!store.exists(), "nothing was made");
    }

    #[test]
    fn leftovers_of_schedulers_are_no_obstacle() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(BUNDLES)).unwrap();
        assert!(matches!(open(home.path()), Err(StoreError::Foreign { .. })), "these may be anybody's");
        fs::write(home.path().join(LOCK), "").unwrap();
        fs::write(home.path().join(part()), "state of").unwrap();
        open(home.path()).unwrap();
    }

    #[test]
    fn what_is_something_else_is_refused_and_left_alone() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("thesis.tex"), "").unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(open(home.path()), Err(StoreError::Foreign { .. })));
        assert_eq!(names(home.path()), ["thesis.tex"]);
        assert_ne!(mode(home.path()), 0o700);

        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join(MARKER), format!("{MARKER_TEXT}7\n")).unwrap();
        let error = open(other.path()).unwrap_err();
        assert!(matches!(&error, StoreError::OtherFormat { found, .. } if found == "7"), "{error}");
        assert_eq!(names(other.path()), [MARKER]);
    }

    #[test]
    fn a_directory_has_one_scheduler_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let first = open(home.path()).unwrap();
        assert!(matches!(open(home.path()), Err(StoreError::InUse { .. })));
        drop(first);
        open(home.path()).unwrap();
    }

    #[test]
    fn a_directory_that_others_read_is_closed_to_them() {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        open(home.path()).unwrap();
        assert_eq!(mode(home.path()), 0o700);
    }

    #[test]
    fn a_directory_that_others_write_to_is_refused() {
        let home = tempfile::tempdir().unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(open(home.path()), Err(StoreError::NotPrivate(_))));
        assert!(names(home.path()).is_empty());
    }

    #[test]
    fn a_temporary_directory_goes_at_the_end() {
        let state = StateDir::open(None).unwrap();
        let path = state.path().to_owned();
        assert!(path.exists());
        drop(state);
        assert!(!path.exists());
    }
}
