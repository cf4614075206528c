//! Every bound in one place: what a peer may send, a job may print, a queue may hold.
//!
//! A bound that is exceeded gives a typed error to an honest peer and a closed connection to a hostile one; nothing is
//! allocated on an announcement alone.

use std::time::Duration;

/// Longest application id, in bytes.
pub const APPLICATION_ID_BYTES: usize = 64;

/// Largest payload or result of one job, in bytes: 1 GiB.
pub const BODY_BYTES: u64 = 1 << 30;

/// Longest label of a job, in bytes.
pub const LABEL_BYTES: usize = 256;

/// Longest service name, in bytes.
pub const SERVICE_NAME_BYTES: usize = 128;

/// Most services of one bundle.
pub const SERVICES_PER_BUNDLE: usize = 1_024;

/// Most environment variables that a job's options may set, and their most bytes in all.
pub const ENV_VARIABLES: usize = 256;
/// See [`ENV_VARIABLES`].
pub const ENV_BYTES: usize = 32 * 1024;

/// Most slots that a worker may offer or a job may take.
pub const SLOTS: u32 = 4_096;

/// Bars that one attempt may start. A bar that is started beyond it counts nowhere and is not shown.
pub const BARS_PER_ATTEMPT: u32 = 1_000;

/// Longest description, message and unit of a bar, in bytes; longer text is cut at a character's start.
pub const BAR_DESCRIPTION_BYTES: usize = 120;
/// See [`BAR_DESCRIPTION_BYTES`].
pub const BAR_MESSAGE_BYTES: usize = 120;
/// See [`BAR_DESCRIPTION_BYTES`].
pub const BAR_UNIT_BYTES: usize = 16;

/// What is kept of each of a job's stdout and stderr: the last 64 KiB.
pub const OUTPUT_BYTES: usize = 64 * 1024;

/// How many of the last lines of stderr a crash's message quotes, and their most bytes.
pub const FAILURE_OUTPUT_LINES: usize = 10;
/// See [`FAILURE_OUTPUT_LINES`].
pub const FAILURE_OUTPUT_BYTES: usize = 2_048;

/// Longest message of a failure, in bytes; longer text is cut.
pub const FAILURE_MESSAGE_BYTES: usize = 16 * 1024;

/// A body up to this size travels inside messages between job process, host and worker; a larger one as a memfd (in) or a
/// spool file (out), since a SOCK_SEQPACKET socket refuses large packets.
pub const INLINE_BODY_BYTES: usize = 32 * 1024;

/// Largest notice between job process, host and worker. SOCK_SEQPACKET takes somewhat under 208 KiB as one packet.
pub const NOTICE_BYTES: usize = 96 * 1024;

/// Final bars in one notice from the host; an attempt with more sends several.
pub const BARS_PER_NOTICE: usize = 200;

/// Largest bundle, in bytes: 2 GiB.
pub const BUNDLE_BYTES: u64 = 2 << 30;

/// One piece of a bundle under way, in bytes before compression.
pub const BUNDLE_CHUNK_BYTES: usize = 1 << 20;

/// Most jobs in one submit message, and the most bytes of their payloads in all unless it is a single job.
pub const SUBMIT_JOBS: usize = 1_000;
/// See [`SUBMIT_JOBS`].
pub const SUBMIT_BYTES: usize = 4 << 20;

/// Jobs and payload bytes that a client sends before it waits for the scheduler to accept some.
pub const SEND_WINDOW_JOBS: usize = 100_000;
/// See [`SEND_WINDOW_JOBS`].
pub const SEND_WINDOW_BYTES: usize = 256 << 20;

/// Results, and their bytes, that a client holds for streams that haven't asked for them yet.
pub const RESULT_WINDOW: u32 = 1_024;
/// See [`RESULT_WINDOW`].
pub const RESULT_WINDOW_BYTES: u64 = 32 << 20;

/// How often an application is told how many of its jobs are queued, running, done and failed.
pub const TOTALS_INTERVAL: Duration = Duration::from_millis(100);

/// A service whose jobs take less than this on average may be sent ahead of a free slot.
pub const PREFETCH_RUN_TIME: Duration = Duration::from_secs(1);

/// Default number of times that a job's process may die before the job is parked.
pub const CRASH_LIMIT: u32 = 3;

/// Backoff before a retry: doubles from the first to the second, with jitter.
pub const RETRY_BACKOFF_MIN: Duration = Duration::from_secs(1);
/// See [`RETRY_BACKOFF_MIN`].
pub const RETRY_BACKOFF_MAX: Duration = Duration::from_secs(60);

/// The grace period between terminate and kill, where `--grace` doesn't say otherwise.
pub const GRACE: Duration = Duration::from_secs(10);
