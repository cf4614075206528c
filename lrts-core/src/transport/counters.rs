//! How often a server has turned a peer away, by why: what an operator looks at when somebody knocks who shouldn't.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::hello::RefusalKind;

/// Why a peer was refused, or its connection closed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cause {
    /// Its protocol version is another one.
    Version,
    /// Its role has no business here, or isn't its key's.
    Role,
    /// There were as many connections as the server can hold.
    Full,
    /// It came while the server was ending.
    ShuttingDown,
    /// A newer connection has taken its place.
    Superseded,
    /// It broke the protocol, or exceeded a bound.
    Protocol,
    /// Its key is not accepted, or not the one that it should have.
    Keys,
    /// It asked for what belongs to another user.
    Owner,
    /// It asked for more than may be kept.
    Limit,
    /// It connected and didn't say hello in time.
    NoHello,
    /// Nothing was heard of it for too long.
    Silent,
    /// It took none of its messages for too long.
    Stalled,
    /// More messages waited for it than may.
    QueueFull,
    /// The server failed to serve it, which is a fault of lrts.
    Fault,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Cause; 14] = [
        Cause::Version,
        Cause::Role,
        Cause::Full,
        Cause::ShuttingDown,
        Cause::Superseded,
        Cause::Protocol,
        Cause::Keys,
        Cause::Owner,
        Cause::Limit,
        Cause::NoHello,
        Cause::Silent,
        Cause::Stalled,
        Cause::QueueFull,
        Cause::Fault,
    ];

    /// The name in `lrts status --json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Version => "version",
            Cause::Role => "role",
            Cause::Full => "full",
            Cause::ShuttingDown => "shutting_down",
            Cause::Superseded => "superseded",
            Cause::Protocol => "protocol",
            Cause::Keys => "keys",
            Cause::Owner => "owner",
            Cause::Limit => "limit",
            Cause::NoHello => "no_hello",
            Cause::Silent => "silent",
            Cause::Stalled => "stalled",
            Cause::QueueFull => "queue_full",
            Cause::Fault => "fault",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<RefusalKind> for Cause {
    fn from(kind: RefusalKind) -> Self {
        match kind {
            RefusalKind::Version => Cause::Version,
            RefusalKind::Role => Cause::Role,
            RefusalKind::Full => Cause::Full,
            RefusalKind::ShuttingDown => Cause::ShuttingDown,
            RefusalKind::Superseded => Cause::Superseded,
            RefusalKind::Protocol => Cause::Protocol,
            RefusalKind::Keys => Cause::Keys,
            RefusalKind::Owner => Cause::Owner,
            RefusalKind::Limit => Cause::Limit,
        }
    }
}

/// One number for each cause, since the server's start. Any thread may count.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; Cause::ALL.len()]);

impl Counters {
    /// Counts one more.
    pub(crate) fn count(&self, cause: impl Into<Cause>) {
        self.0[cause.into() as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often it was so far.
    pub fn of(&self, cause: Cause) -> u64 {
        self.0[cause as usize].load(Ordering::Relaxed)
    }

    /// All of them, in the order of [`Cause::ALL`].
    pub fn snapshot(&self) -> Vec<(Cause, u64)> {
        Cause::ALL.into_iter().map(|cause| (cause, self.of(cause))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_a_number_of_its_own() {
        let counters = Counters::default();
        for (times, cause) in Cause::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| counters.count(cause));
        }
        counters.count(RefusalKind::Version);
        let counted: Vec<u64> = counters.snapshot().into_iter().map(|(_, count)| count).collect();
        assert_eq!(counted, [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
        assert_eq!(counters.of(Cause::Fault), 13);
    }
}
