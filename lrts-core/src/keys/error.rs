//! What can be wrong with keys.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use super::role_word;
use crate::private_dir::PrivateDirError;
use crate::transport::Role;

/// Keys that can't be used. The message says what mends it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// Nothing there yet: worth waiting for.
    #[error(
        "no key for the role {role} in {}: on the scheduler's machine its first start makes one for its own user; for another \
         machine or user run `lrts keys export --role {} FILE` there, copy the file here and name it by --keys or LRTS_KEYS",
        path.display(), role_word(*role)
    )]
    Missing {
        /// The key file that was looked for.
        path: PathBuf,
        /// What it is wanted for.
        role: Role,
    },
    /// Neither `--keys`, `LRTS_KEYS`, nor a home directory.
    #[error("no place for keys: set LRTS_KEYS, XDG_CONFIG_HOME or HOME to an absolute path, or give --keys")]
    NoHome,
    /// Others than its owner may read or change it.
    #[error("{} is open to other users (mode {mode:04o}): run `chmod {mend} {}`", path.display(), path.display())]
    Loose {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode that it must have.
        mend: &'static str,
    },
    /// It belongs to another user.
    #[error("{} belongs to another user (id {owner}): run `chown {uid} {}` as root", path.display(), path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs this process.
        uid: u32,
    },
    /// Others could put other keys in the place of those that are made there.
    #[error(transparent)]
    Replaceable(PrivateDirError),
    /// It can't be read or written.
    #[error("cannot use the keys in {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It isn't what a key file must be.
    #[error("{} is no key file: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It is a key of another role.
    #[error(
        "{} is a key for the role {role}, and one for the role {wanted} is needed: make one by `lrts keys export --role {} FILE` where the keys are made",
        path.display(), role_word(*wanted)
    )]
    OtherRole {
        /// The file.
        path: PathBuf,
        /// Its role.
        role: Role,
        /// What it was to be used for.
        wanted: Role,
    },
    /// Keys are made elsewhere.
    #[error(
        "no keys are made in {}: run this where the scheduler was started first, as its user, or name its keys directory by --keys",
        path.display()
    )]
    NoAuthority {
        /// The directory or file that was named.
        path: PathBuf,
    },
    /// What keys are made from is damaged.
    #[error(
        "{} is broken: {reason}; put back a copy of it, or remove all that is beside it too and let the scheduler make new keys",
        path.display()
    )]
    Broken {
        /// The authority's file, or its record of keys.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The authority has as many keys on record as it may have.
    #[error(
        "{limit} keys are {state}, and no more may be: run `lrts keys rotate`, give new keys to other machines, then run \
         `lrts keys rotate --drop-old`"
    )]
    Full {
        /// What those keys are: issued, or revoked.
        state: &'static str,
        /// The most there may be.
        limit: usize,
    },
    /// A key or certificate can't be made.
    #[error("cannot make a key")]
    Make(#[source] Box<dyn Error + Send + Sync>),
}

impl KeysError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl From<PrivateDirError> for KeysError {
    fn from(error: PrivateDirError) -> Self {
        match error {
            PrivateDirError::Io { path, source } => Self::Io { path, source },
            PrivateDirError::Writable { .. }
            | PrivateDirError::OfAnother { .. }
            | PrivateDirError::LinkOfAnother { .. } => Self::Replaceable(error),
        }
    }
}
