//! Who may connect, and as what: keys, the certificates in them, and the directory where they are kept.
//!
//! A cluster has an *authority*, which vouches for *keys*. Each key is a private key with a certificate that names a role, a
//! user and the key's id. What one party needs travels as one *key file*, see [`KeyFile`]; a *keys directory* has one for each
//! role, and, only where keys are made, the authority itself. Both sides of every connection check the other's certificate
//! against the authorities in their own file.
//!
//! Key files are read again when they change, so that keys are rotated and revoked without a restart: at each handshake, and
//! by servers once in [`KEYS_INTERVAL`](crate::limits::KEYS_INTERVAL), which then check every connected peer anew.

#[cfg(feature = "authority")]
mod authority;
#[cfg(feature = "authority")]
mod directory;
mod error;
mod file;
mod home;
mod identity;
#[cfg(feature = "authority")]
mod index;
mod ring;
mod source;
#[cfg(all(test, feature = "authority"))]
mod verify;

use std::path::PathBuf;

use crate::transport::Role;

#[cfg(feature = "authority")]
pub use self::authority::{Authority, AuthorityId};
#[cfg(feature = "authority")]
pub use self::directory::{KeysDirectory, Rotation, ensure, login_name};
pub use self::error::KeysError;
pub use self::file::KeyFile;
pub use self::home::keys_home;
pub(crate) use self::identity::tls_server_name;
pub use self::identity::{Identity, KeyId};
#[cfg(feature = "authority")]
pub use self::index::{Index, IssuedKey};
pub use self::ring::{KeyRefusal, KeyRing};
pub use self::source::KeySource;

/// How a side secures its connections.
#[derive(Clone, Debug)]
pub enum Security {
    /// TLS 1.3 with the key in this file or directory.
    Keys(KeySource),
    /// Not at all: whoever reaches the other side can read, change and say everything.
    Insecure,
}

impl Security {
    /// By the key for a role in this file or directory; insecure without one.
    pub fn new(keys: Option<PathBuf>, role: Role) -> Self {
        keys.map_or(Self::Insecure, |path| Self::Keys(KeySource::new(path, role)))
    }
}

/// The name of a role in certificates, file names and command lines: one lower-case word.
pub fn role_word(role: Role) -> &'static str {
    match role {
        Role::Scheduler => "scheduler",
        Role::ProgressServer => "progress-server",
        Role::Worker => "worker",
        Role::Client => "client",
        Role::Admin => "admin",
    }
}

/// The name of a role's key file in a keys directory.
pub fn key_file_name(role: Role) -> String {
    format!("{}.pem", role_word(role))
}

/// The role that [`role_word`] calls so.
pub fn role_of_word(word: &str) -> Option<Role> {
    ROLES.into_iter().find(|&role| role_word(role) == word)
}

/// All roles, in the order in which they are shown.
pub const ROLES: [Role; 5] = [Role::Scheduler, Role::ProgressServer, Role::Worker, Role::Client, Role::Admin];
