//! What a user asked for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::environment;
use crate::ids::BundleDigest;
use crate::limits::{
    BUNDLE_NAME_BYTES, CRASH_LIMIT, ENV_BYTES, ENV_VARIABLES, KEY_BYTES, LABEL_BYTES, MEMORY_LIMIT_MIN, SLOTS,
};

/// How one job is to be run. Built with [`JobOptions::new`] and the methods named after what they set.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct JobOptions {
    label: String,
    priority: i32,
    slots: u32,
    retries: u32,
    crash_limit: u32,
    env: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_timeout: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress_timeout: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    exclusive: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl Default for JobOptions {
    fn default() -> Self {
        Self {
            label: String::new(),
            priority: 0,
            slots: 1,
            retries: 0,
            crash_limit: CRASH_LIMIT,
            env: Vec::new(),
            run_timeout: None,
            progress_timeout: None,
            memory_limit: None,
            exclusive: false,
            key: None,
        }
    }
}

/// Options that no job can have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOptions {
    /// The label is too long.
    #[error("label of {bytes} bytes: at most {LABEL_BYTES} are allowed")]
    Label {
        /// Its length.
        bytes: usize,
    },
    /// No slots, or more than any worker may have.
    #[error("{slots} slots for one job: 1 to {SLOTS} are allowed")]
    Slots {
        /// As asked for.
        slots: u32,
    },
    /// No process may die, not even the first.
    #[error(
        "a crash limit of 0: at least 1 is needed, which parks the job when its process dies for the first time"
    )]
    CrashLimit,
    /// Too many environment variables, or too long ones.
    #[error(
        "{variables} environment variables of {bytes} bytes in all: at most {ENV_VARIABLES} of {ENV_BYTES} bytes are allowed"
    )]
    Env {
        /// How many.
        variables: usize,
        /// Names and values in all.
        bytes: usize,
    },
    /// An empty key, or one that is too long.
    #[error("key of {bytes} bytes: 1 to {KEY_BYTES} are allowed")]
    Key {
        /// Its length.
        bytes: usize,
    },
    /// A time limit that every job exceeds.
    #[error("a {which} of zero: every job would exceed it")]
    TimeLimit {
        /// Which limit.
        which: &'static str,
    },
    /// A memory limit that no process keeps.
    #[error("a memory limit of {bytes} bytes: at least {MEMORY_LIMIT_MIN} are needed")]
    MemoryLimit {
        /// As asked for.
        bytes: u64,
    },
    /// A name that no environment variable can have, or one of lrts' own.
    #[error(
        "environment variable `{name}`: a name is not empty, has no `=` and no zero byte, and doesn't start with LRTS_"
    )]
    EnvName {
        /// As given.
        name: String,
    },
}

impl JobOptions {
    /// The defaults: no label, priority 0, one slot, no retries, a crash limit of 3, no limits of time and memory, no key.
    pub fn new() -> Self {
        Self::default()
    }

    /// A text that `lrts jobs` and bars show beside the service's name. At most [`LABEL_BYTES`] bytes.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Jobs of a higher priority run first; among equal ones the first scheduled does. Orders the jobs of one application;
    /// applications share slots equally.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// How many of a worker's slots the job takes while it runs.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.slots = slots;
        self
    }

    /// How many times the job is run again after a returned error or a panic.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// How many of the job's processes may die before it is parked for good. At least 1.
    #[must_use]
    pub fn crash_limit(mut self, deaths: u32) -> Self {
        self.crash_limit = deaths;
        self
    }

    /// Sets an environment variable for the job's process.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// How long one execution of the job may run. One that runs longer is stopped as by a cancel, and the job has timed out.
    #[must_use]
    pub fn run_timeout(mut self, limit: Duration) -> Self {
        self.run_timeout = Some(limit);
        self
    }

    /// How long one execution may go without progress: no bar of it moves and it keeps no checkpoint. One that exceeds it is
    /// stopped as by a cancel, and the job has timed out.
    #[must_use]
    pub fn progress_timeout(mut self, limit: Duration) -> Self {
        self.progress_timeout = Some(limit);
        self
    }

    /// The job never runs twice at once, not even while a worker is cut off: its process ends when the worker's lease does,
    /// and only then it is placed again. Without this a worker that was cut off goes on with its jobs, and the attempt that
    /// has come further when it is back is the one that counts.
    #[must_use]
    pub fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// How much memory the job's processes may take together, in bytes. Beyond it they are killed and the job ends or is run
    /// again as out of memory, which counts as a death of its process. At least 1 MiB.
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Names the job within its application: scheduling the same key again gives the same job, from another process too. At
    /// most [`KEY_BYTES`] bytes.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The label; empty if none.
    pub fn get_label(&self) -> &str {
        &self.label
    }

    /// The priority.
    pub fn get_priority(&self) -> i32 {
        self.priority
    }

    /// The slots.
    pub fn get_slots(&self) -> u32 {
        self.slots
    }

    /// The retries.
    pub fn get_retries(&self) -> u32 {
        self.retries
    }

    /// The crash limit.
    pub fn get_crash_limit(&self) -> u32 {
        self.crash_limit
    }

    /// The environment variables, in the order they were set.
    pub fn get_env(&self) -> &[(String, String)] {
        &self.env
    }

    /// The limit of one execution's time.
    pub fn get_run_timeout(&self) -> Option<Duration> {
        self.run_timeout
    }

    /// The limit of one execution's time without progress.
    pub fn get_progress_timeout(&self) -> Option<Duration> {
        self.progress_timeout
    }

    /// The limit of memory, in bytes.
    pub fn get_memory_limit(&self) -> Option<u64> {
        self.memory_limit
    }

    /// Whether it never runs twice at once.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive
    }

    /// The key.
    pub fn get_key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Takes the key out: it is one job's, and what is left is shared by all jobs that are alike.
    pub fn take_key(&mut self) -> Option<String> {
        self.key.take()
    }

    /// Whether all values are within their bounds. Checked by the client before it sends and by the scheduler again.
    ///
    /// # Errors
    ///
    /// The first value that isn't.
    pub fn validate(&self) -> Result<(), InvalidOptions> {
        if self.label.len() > LABEL_BYTES {
            return Err(InvalidOptions::Label { bytes: self.label.len() });
        }
        if self.slots == 0 || self.slots > SLOTS {
            return Err(InvalidOptions::Slots { slots: self.slots });
        }
        if self.crash_limit == 0 {
            return Err(InvalidOptions::CrashLimit);
        }
        if let Some(key) = &self.key
            && (key.is_empty() || key.len() > KEY_BYTES)
        {
            return Err(InvalidOptions::Key { bytes: key.len() });
        }
        for (which, limit) in [("run_timeout", self.run_timeout), ("progress_timeout", self.progress_timeout)]
        {
            if limit.is_some_and(|limit| limit.is_zero()) {
                return Err(InvalidOptions::TimeLimit { which });
            }
        }
        if let Some(bytes) = self.memory_limit.filter(|&bytes| bytes < MEMORY_LIMIT_MIN) {
            return Err(InvalidOptions::MemoryLimit { bytes });
        }
        let bytes = self.env.iter().map(|(name, value)| name.len() + value.len()).sum();
        if self.env.len() > ENV_VARIABLES || bytes > ENV_BYTES {
            return Err(InvalidOptions::Env { variables: self.env.len(), bytes });
        }
        for (name, value) in &self.env {
            let bad_name =
                name.is_empty() || name.contains(['=', '\0']) || environment::is_own(name.as_ref());
            if bad_name || value.contains('\0') {
                return Err(InvalidOptions::EnvName { name: name.clone() });
            }
        }
        Ok(())
    }
}

/// A job of a submit that has a key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeyedJob {
    /// Which job of the submit, counted from 0.
    pub index: u32,
    /// Its key.
    pub key: String,
    /// A digest of its service's name and its payload, see [`content_digest`]: the same key with another digest is a conflict.
    pub digest: u64,
}

/// The digest that tells whether two jobs of one key are the same: of the service's name, a zero byte and the payload.
pub fn content_digest(service: &str, payload: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(service.as_bytes()).update(&[0]).update(payload);
    u64::from_be_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a digest has 32 bytes"))
}

/// Which executable runs an application's jobs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum BundleRef {
    /// One that was uploaded, by digest.
    Shipped(BundleDigest),
    /// One that the worker's operator installed under this name (`lrts worker --bundle NAME=PATH`).
    Installed(String),
}

/// Whether a program can be installed under this name: one that could be a file's in whatever directory, and stays on its line.
pub fn is_bundle_name(name: &str) -> bool {
    let is_file_name = !matches!(name, "" | "." | "..") && !name.contains('/');
    is_file_name && name.len() <= BUNDLE_NAME_BYTES && !name.chars().any(char::is_control)
}

/// What becomes of an application's jobs when its connection has ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum OnDisconnect {
    /// They go on and their results are kept. The default where an application id was given.
    Keep,
    /// They are cancelled once the application has been away this long. The default, with one hour, where no id was given.
    CancelAfter(Duration),
}

/// What a machine can start: the target triple's architecture, system and C library, and that library's version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Platform {
    /// For example `x86_64-linux-gnu`.
    pub target: String,
    /// For example `(2, 36)`; none where the C library isn't glibc.
    pub glibc: Option<(u32, u32)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_installed_programs_lead_nowhere_else() {
        for name in
            ["tools", "tools-1.2", "my tools", "...", ".tools", "wörk", &"x".repeat(BUNDLE_NAME_BYTES)]
        {
            assert!(is_bundle_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "/",
            "a/b",
            "../a",
            "a\0",
            "a\n",
            "\x1b[2J",
            "\u{9b}A",
            &"x".repeat(BUNDLE_NAME_BYTES + 1),
        ] {
            assert!(!is_bundle_name(name), "{name:?}");
        }
    }

    #[test]
    fn options_out_of_bounds_are_refused_by_name() {
        assert_eq!(JobOptions::new().env("A", "1").label("x").validate(), Ok(()));
        let refused = |options: JobOptions| options.validate().unwrap_err().to_string();
        assert!(refused(JobOptions::new().label("x".repeat(257))).contains("257"));
        assert!(refused(JobOptions::new().slots(0)).contains("0 slots"));
        assert!(refused(JobOptions::new().crash_limit(0)).contains("crash limit"));
        assert!(refused(JobOptions::new().key("")).contains("key of 0"));
        assert!(refused(JobOptions::new().run_timeout(Duration::ZERO)).contains("run_timeout"));
        assert!(refused(JobOptions::new().progress_timeout(Duration::ZERO)).contains("progress_timeout"));
        assert!(refused(JobOptions::new().memory_limit(5)).contains("memory limit of 5"));
        assert!(refused(JobOptions::new().env("LRTS_KEYS", "x")).contains("LRTS_KEYS"));
        assert!(refused(JobOptions::new().env("A=B", "x")).contains("A=B"));
        assert!(refused(JobOptions::new().env("A", "x".repeat(ENV_BYTES))).contains("1 environment"));
    }
}
