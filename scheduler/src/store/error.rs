//! What can be wrong with a store, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use lrts_core::private_dir::PrivateDirError;

/// Why a scheduler's state can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Others could have their programs run in this scheduler's name, or read what its jobs are given.
    #[error(transparent)]
    NotPrivate(PrivateDirError),
    /// This user may not write there.
    #[error("state directory `{}` can't be written to: run the scheduler as its owner, or give another directory", path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its content was not written by a scheduler. Nothing was changed.
    #[error("`{}` holds something else than a scheduler's state: give an empty directory, or one that isn't there yet", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// Another version of the scheduler wrote it. Nothing was changed.
    #[error("state directory `{}` has format `{found}`, this scheduler reads format {known}: run the version that wrote it, or give another directory", path.display())]
    OtherFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: String,
        /// The format that this version reads and writes.
        known: u32,
    },
    /// Another scheduler has it.
    #[error("state directory `{}` belongs to a scheduler that is running: end that one, or give another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// There was a store in it, and there is none now.
    #[error(
        "the store of state directory `{}` was removed: put it back, or remove the directory to begin with nothing; jobs that \
         are running were not stopped",
        path.display()
    )]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// What was written is not what is read.
    #[error(
        "the scheduler's state is damaged: restore it from a copy, or move it away to start with nothing"
    )]
    Damaged(#[source] Damage),
    /// There is no room to open it.
    #[error("the disk of `{}` is full: make room, nothing is lost", path.display())]
    DiskFull {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system says no.
    #[error("cannot use `{}`", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// What an error of the system means for this directory or file.
    pub(crate) fn from_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) {
            Self::NotWritable { path, source }
        } else if is_full(&source) {
            Self::DiskFull { path, source }
        } else {
            Self::Io { path, source }
        }
    }

    /// What is wrong with a directory that has to be private.
    pub(crate) fn from_private_dir(error: PrivateDirError) -> Self {
        if let PrivateDirError::Io { path, source } = error {
            return Self::from_io(&path, source);
        }
        Self::NotPrivate(error)
    }

    /// What an error of the database means for its file.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the database has more kinds of errors than matter here"
    )]
    pub(crate) fn from_redb(path: &Path, error: impl Into<redb::Error>) -> Self {
        match error.into() {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => {
                Self::InUse { path: path.to_owned() }
            }
            // Invalid data is how the database says that a file is none of its own.
            redb::Error::Io(source) if source.kind() != io::ErrorKind::InvalidData => {
                Self::from_io(path, source)
            }
            error => Self::Damaged(Damage::Database { file: path.to_owned(), source: error.into() }),
        }
    }
}

/// Whether it will go away once there is room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Where the disk gave back something else than was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// In a row of the database.
    #[error("row {key} of table `{table}` is not what was written")]
    Row {
        /// The table.
        table: &'static str,
        /// The row.
        key: String,
    },
    /// In a file of bodies.
    #[error("`{}` is not what was written, at offset {offset}", file.display())]
    Segment {
        /// The file.
        file: PathBuf,
        /// Where the damaged body begins, or where the file ends too early.
        offset: u64,
    },
    /// In the database's own structure.
    #[error("`{}` is not what was written", file.display())]
    Database {
        /// The file.
        file: PathBuf,
        /// What the database found.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a body can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// There is none (any more).
    #[error("the store has no such body")]
    Missing,
    /// It isn't what was written.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The system says no.
    #[error("cannot read from the store")]
    Io(#[from] io::Error),
}
