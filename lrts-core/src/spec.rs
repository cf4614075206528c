//! What a user asked for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ids::BundleDigest;
use crate::limits::{CRASH_LIMIT, ENV_BYTES, ENV_VARIABLES, LABEL_BYTES, SLOTS};

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
    /// The defaults: no label, priority 0, one slot, no retries, a crash limit of 3.
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
        let bytes = self.env.iter().map(|(name, value)| name.len() + value.len()).sum();
        if self.env.len() > ENV_VARIABLES || bytes > ENV_BYTES {
            return Err(InvalidOptions::Env { variables: self.env.len(), bytes });
        }
        for (name, value) in &self.env {
            let bad_name = name.is_empty() || name.contains(['=', '\0']) || name.starts_with("LRTS_");
            if bad_name || value.contains('\0') {
                return Err(InvalidOptions::EnvName { name: name.clone() });
            }
        }
        Ok(())
    }
}

/// Which executable runs an application's jobs.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum BundleRef {
    /// One that was uploaded, by digest.
    Shipped(BundleDigest),
    /// One that the worker's operator installed under this name (`lrts worker --bundle NAME=PATH`).
    Installed(String),
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
    fn options_out_of_bounds_are_refused_by_name() {
        assert_eq!(JobOptions::new().env("A", "1").label("x").validate(), Ok(()));
        let refused = |options: JobOptions| options.validate().unwrap_err().to_string();
        assert!(refused(JobOptions::new().label("x".repeat(257))).contains("257"));
        assert!(refused(JobOptions::new().slots(0)).contains("0 slots"));
        assert!(refused(JobOptions::new().crash_limit(0)).contains("crash limit"));
        assert!(refused(JobOptions::new().env("LRTS_KEYS", "x")).contains("LRTS_KEYS"));
        assert!(refused(JobOptions::new().env("A=B", "x")).contains("A=B"));
        assert!(refused(JobOptions::new().env("A", "x".repeat(ENV_BYTES))).contains("1 environment"));
    }
}
