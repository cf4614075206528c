//! Which environment variables end at the worker: job hosts and jobs get what it was started with, less these.

use std::ffi::OsStr;

/// What the names of lrts' own variables begin with. They lead to keys and daemons, and choose what a process is.
pub const OWN_PREFIX: &str = "LRTS_";

/// Variables that are for the daemon alone, and why.
const WITHHELD: [(&str, &[&str]); 4] = [
    (
        "systemd's word with its service: a job could declare the worker ready, hung or ended",
        &[
            "NOTIFY_SOCKET",
            "WATCHDOG_PID",
            "WATCHDOG_USEC",
            "MAINPID",
            "MANAGERPID",
            "SYSTEMD_EXEC_PID",
            "INVOCATION_ID",
            "JOURNAL_STREAM",
            "MEMORY_PRESSURE_WATCH",
            "MEMORY_PRESSURE_WRITE",
        ],
    ),
    (
        "descriptors that a job doesn't have: its numbers are other things",
        &["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID", "FDSTORE"],
    ),
    (
        "the service's own directories, with its key and its state in them",
        &[
            "CREDENTIALS_DIRECTORY",
            "STATE_DIRECTORY",
            "CACHE_DIRECTORY",
            "RUNTIME_DIRECTORY",
            "LOGS_DIRECTORY",
            "CONFIGURATION_DIRECTORY",
        ],
    ),
    (
        "agents that sign, decrypt and unlock for whoever started the worker from a shell",
        &["SSH_AUTH_SOCK", "SSH_AGENT_PID", "GPG_AGENT_INFO", "DBUS_SESSION_BUS_ADDRESS"],
    ),
];

/// Whether a job host and its jobs don't get the variable of this name from their worker. A job that needs one of them
/// nonetheless is given it by its options, those of lrts aside.
pub fn is_withheld(name: &OsStr) -> bool {
    is_own(name) || WITHHELD.iter().any(|(_, names)| names.iter().any(|&withheld| name == withheld))
}

/// Whether the variable of this name is lrts' own.
pub fn is_own(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(OWN_PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_daemons_alone_is_withheld() {
        for name in
            ["LRTS_KEYS", "LRTS_", "NOTIFY_SOCKET", "LISTEN_FDS", "CREDENTIALS_DIRECTORY", "SSH_AUTH_SOCK"]
        {
            assert!(is_withheld(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "HOME", "LANG", "LRTS", "MY_LRTS_KEYS", "LD_LIBRARY_PATH", "notify_socket", ""] {
            assert!(!is_withheld(OsStr::new(name)), "{name}");
        }
    }
}
