//! The worker's state directory: its secret, its bundles, and what its hosts and jobs keep on disk while they run.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lrts_core::ids::{AttemptId, WorkerId};
use lrts_core::private_dir::{self, PrivateDirError, file_options, state_home};
use lrts_core::spool::Spool;
use lrts_core::worker_secret::WorkerSecret;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Workers that may share one state home.
const WORKERS_PER_HOME: usize = 1_000;

/// Why there is no state directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateDirError {
    /// Another worker has it.
    #[error(
        "state directory `{}` belongs to a worker that is running: give this one another --state-dir",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// There is nowhere to put it.
    #[error("no state directory: neither XDG_STATE_HOME nor HOME is set; give one with --state-dir")]
    NoHome,
    /// Others could have their programs run in this worker's name, or read what its jobs keep.
    #[error(transparent)]
    NotPrivate(#[from] PrivateDirError),
    /// Its secret can't be read.
    #[error("`{}` holds no worker's secret: delete it, and the worker is a new one", path.display())]
    BadSecret {
        /// The file.
        path: PathBuf,
    },
    /// Others may read its secret, so they could take its place.
    #[error("`{}` can be read by others: `chmod 600` it, or delete it, and the worker is a new one", path.display())]
    LooseSecret {
        /// The file.
        path: PathBuf,
    },
    /// The system says no.
    #[error("cannot use `{}` as state directory", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A locked state directory. The lock goes with the process.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    secret: WorkerSecret,
    spool: Spool,
    _lock: Flock<File>,
}

impl StateDir {
    /// Opens and locks this directory, or the first unlocked `worker-N` of the user's state home. What an earlier run has left
    /// there of hosts and attempts stays: some of it may be running. Waits for the disk.
    ///
    /// # Errors
    ///
    /// [`StateDirError`].
    pub(crate) fn open(wanted: Option<&Path>) -> Result<Self, StateDirError> {
        if let Some(path) = wanted {
            return Self::open_at(path);
        }
        let home = state_home(|name| std::env::var_os(name)).ok_or(StateDirError::NoHome)?;
        Self::open_first_of(&home)
    }

    fn open_first_of(home: &Path) -> Result<Self, StateDirError> {
        let mut last = None;
        for number in 1..=WORKERS_PER_HOME {
            match Self::open_at(&home.join(format!("worker-{number}"))) {
                Err(error @ StateDirError::Locked { .. }) => last = Some(error),
                other => return other,
            }
        }
        Err(last.expect("at least one was tried"))
    }

    fn open_at(path: &Path) -> Result<Self, StateDirError> {
        let failed = |source| StateDirError::Io { path: path.to_owned(), source };
        private_dir::make(path)?;
        // Hosts are given these paths and have another current directory.
        let path = fs::canonicalize(path).map_err(failed)?;
        let failed = |source| StateDirError::Io { path: path.clone(), source };
        let file = file_options().open(path.join("lock")).map_err(failed)?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(StateDirError::Locked { path }),
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        for name in ["work", "hosts", "bundles"] {
            private_dir::make(&path.join(name))?;
        }
        let spool = Spool::open(path.join("spool"))?;
        remove_halves(&path.join("bundles")).map_err(failed)?;
        let secret = read_or_make_secret(&path)?;
        Ok(Self { path, secret, spool, _lock: lock })
    }

    /// The worker's id, the same over restarts.
    pub(crate) fn worker(&self) -> WorkerId {
        self.secret.worker()
    }

    /// What proves that the worker is the one of this id.
    pub(crate) fn secret(&self) -> &WorkerSecret {
        &self.secret
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fetched bundles.
    pub(crate) fn bundles(&self) -> PathBuf {
        self.path.join("bundles")
    }

    /// Large results.
    pub(crate) fn spool(&self) -> &Spool {
        &self.spool
    }

    /// The store of the scheduler that the worker has last registered with, if there was one.
    pub(crate) fn last_store(&self) -> Option<u64> {
        let text = fs::read_to_string(self.path.join("store")).ok()?;
        u64::from_str_radix(text.trim(), 16).ok()
    }

    /// Writes down which store the scheduler has.
    ///
    /// # Errors
    ///
    /// Those of `write(2)` and `rename(2)`.
    pub(crate) fn keep_store(&self, store: u64) -> io::Result<()> {
        let part = self.path.join("store.part");
        private_dir::write(&part, format!("{store:016x}\n"))?;
        fs::rename(part, self.path.join("store"))
    }

    /// Sockets, logs and records of job hosts.
    pub(crate) fn hosts(&self) -> PathBuf {
        self.path.join("hosts")
    }

    /// The socket of a job host.
    pub(crate) fn host_socket(&self, number: u32) -> PathBuf {
        self.path.join("hosts").join(format!("{number}.sock"))
    }

    /// Where a job host is written down.
    pub(crate) fn host_record(&self, number: u32) -> PathBuf {
        self.path.join("hosts").join(format!("{number}.host"))
    }

    /// What a job host and its program print.
    pub(crate) fn host_log(&self, number: u32) -> PathBuf {
        self.path.join("hosts").join(format!("{number}.log"))
    }

    /// The working directory of an attempt.
    pub(crate) fn working_directory(&self, attempt: AttemptId) -> PathBuf {
        self.path.join("work").join(format!("{}.{}", attempt.job, attempt.attempt))
    }

    /// The working directories that there are.
    ///
    /// # Errors
    ///
    /// Those of `readdir(3)`.
    pub(crate) fn working_directories(&self) -> io::Result<Vec<AttemptId>> {
        let mut attempts = Vec::new();
        for entry in fs::read_dir(self.path.join("work"))? {
            let name = entry?.file_name();
            attempts.extend(name.to_str().and_then(|name| {
                let (job, attempt) = name.rsplit_once('.')?;
                Some(AttemptId { job: job.parse().ok()?, attempt: attempt.parse().ok()? })
            }));
        }
        Ok(attempts)
    }
}

/// Deletes what only a running worker could go on with: half of a bundle.
fn remove_halves(bundles: &Path) -> io::Result<()> {
    for entry in fs::read_dir(bundles)? {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == "part") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn read_or_make_secret(directory: &Path) -> Result<WorkerSecret, StateDirError> {
    let path = directory.join("secret");
    let failed = |source| StateDirError::Io { path: directory.to_owned(), source };
    match fs::read_to_string(&path) {
        Ok(text) => {
            if fs::metadata(&path).map_err(failed)?.mode() & 0o077 != 0 {
                return Err(StateDirError::LooseSecret { path });
            }
            text.trim().parse().map_err(|_| StateDirError::BadSecret { path })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let secret = WorkerSecret::random();
            let part = directory.join("secret.part");
            let mut file = file_options().truncate(true).open(&part).map_err(failed)?;
            writeln!(file, "{}", secret.to_hex()).and_then(|()| file.sync_all()).map_err(failed)?;
            fs::rename(part, path).map_err(failed)?;
            Ok(secret)
        }
        Err(source) => Err(failed(source)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_secret_and_what_may_be_running_stay() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state");
        let state = StateDir::open(Some(&path)).unwrap();
        let worker = state.worker();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for name in ["work", "hosts", "spool", "bundles"] {
            assert_eq!(fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777, 0o700, "{name}");
        }
        for name in ["secret", "lock"] {
            assert_eq!(fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        fs::create_dir_all(state.path().join("work/1.1/deep")).unwrap();
        fs::write(state.host_socket(3), "").unwrap();
        fs::write(state.bundles().join("abc.part"), "").unwrap();
        fs::write(state.bundles().join("abc"), "").unwrap();
        drop(state);

        let state = StateDir::open(Some(&path)).unwrap();
        assert_eq!(state.worker(), worker);
        assert_eq!(fs::metadata(path.join("secret")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(state.path().join("work/1.1/deep").exists() && state.host_socket(3).exists());
        assert!(!state.bundles().join("abc.part").exists());
        assert!(state.bundles().join("abc").exists());
    }

    #[test]
    fn the_store_and_the_working_directories_are_found_again() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(home.path())).unwrap();
        assert_eq!(state.last_store(), None);
        state.keep_store(7).unwrap();
        state.keep_store(u64::MAX).unwrap();
        assert_eq!(state.last_store(), Some(u64::MAX));
        let attempt = AttemptId { job: lrts_core::ids::SessionId(5).job(2), attempt: 3 };
        fs::create_dir(state.working_directory(attempt)).unwrap();
        fs::create_dir(state.path().join("work/other")).unwrap();
        assert_eq!(state.working_directories().unwrap(), [attempt]);
    }

    #[test]
    fn a_directory_has_one_worker_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let first = StateDir::open_first_of(home.path()).unwrap();
        let second = StateDir::open_first_of(home.path()).unwrap();
        assert!(first.path().ends_with("worker-1") && second.path().ends_with("worker-2"));
        assert_ne!(first.worker(), second.worker());
        let error = StateDir::open(Some(first.path())).unwrap_err();
        assert!(matches!(error, StateDirError::Locked { .. }), "{error}");
        drop(first);
        assert!(StateDir::open_first_of(home.path()).unwrap().path().ends_with("worker-1"));
    }

    #[test]
    fn directories_of_others_and_secrets_that_are_none_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let secret = home.path().join("secret");
        drop(StateDir::open(Some(home.path())).unwrap());
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(StateDir::open(Some(home.path())), Err(StateDirError::LooseSecret { .. })));
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&secret, "nonsense").unwrap();
        assert!(matches!(StateDir::open(Some(home.path())), Err(StateDirError::BadSecret { .. })));
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(StateDir::open(Some(home.path())), Err(StateDirError::NotPrivate(_))));
    }
}
