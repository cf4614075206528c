//! The machine that the worker runs on.

use std::fs;

/// What tells it apart.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Its name.
    pub(crate) host: String,
    /// The kernel's id of this boot.
    pub(crate) boot_id: String,
}

impl Machine {
    /// This one. A kernel that hides its names leaves them empty, which no peer minds.
    pub(crate) fn current() -> Self {
        let read = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
            text.trim().to_owned()
        };
        Self { host: read("hostname"), boot_id: read("random/boot_id") }
    }
}
