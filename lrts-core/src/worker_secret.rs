//! How workers under one shared key are told apart.
//!
//! A worker draws a secret once and keeps it in its state directory. Its id is a digest of the secret, and it shows the secret
//! to the scheduler whenever it registers: nobody else can register under that id, although everybody may see it. Nothing has
//! to be remembered for that, so it holds across restarts of both.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::WorkerId;
use crate::limits::WORKER_SECRET_BYTES;

/// What only one worker knows. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerSecret(#[serde(with = "serde_bytes")] [u8; WORKER_SECRET_BYTES]);

impl WorkerSecret {
    /// A new one from the operating system.
    pub fn random() -> Self {
        let mut bytes = [0; WORKER_SECRET_BYTES];
        getrandom::fill(&mut bytes).expect("the kernel's random source works once the system has booted");
        Self(bytes)
    }

    /// A secret of these bytes.
    pub fn from_bytes(bytes: [u8; WORKER_SECRET_BYTES]) -> Self {
        Self(bytes)
    }

    /// The id of the worker that has it.
    pub fn worker(&self) -> WorkerId {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"lrts worker of ");
        hasher.update(&self.0);
        WorkerId::from_digest(hasher.finalize())
    }

    /// As 64 hexadecimal digits, for the state directory.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for WorkerSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkerSecret")
    }
}

/// A text that is no secret. It isn't repeated here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a worker's secret has 64 hexadecimal digits")]
pub struct ParseSecretError;

impl FromStr for WorkerSecret {
    type Err = ParseSecretError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 2 * WORKER_SECRET_BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseSecretError);
        }
        let mut bytes = [0; WORKER_SECRET_BYTES];
        for (byte, at) in bytes.iter_mut().zip((0..text.len()).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| ParseSecretError)?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_one_id_and_another_secret_another() {
        let secret = WorkerSecret::random();
        assert_eq!(secret.worker(), secret.clone().worker());
        assert_ne!(secret.worker(), WorkerSecret::random().worker());
        // A worker keeps its id over upgrades.
        assert_eq!(WorkerSecret::from_bytes([7; 32]).worker().to_string(), "509637019a8d315c");
    }

    #[test]
    fn a_secret_is_read_back_and_never_shown() {
        let secret = WorkerSecret::random();
        assert_eq!(secret.to_hex().parse(), Ok(secret.clone()));
        assert_eq!(format!("{secret:?}"), "WorkerSecret");
        for text in ["", "7", &"g".repeat(64), &"ü".repeat(32), &"+1".repeat(32), &"0".repeat(66)] {
            assert_eq!(text.parse::<WorkerSecret>(), Err(ParseSecretError), "{text}");
        }
    }
}
