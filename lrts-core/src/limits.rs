//! Every bound in one place: what a peer may send, a job may print, a queue may hold.
//!
//! A bound that is exceeded gives a typed error to an honest peer and a closed connection to a hostile one; nothing is
//! allocated on an announcement alone.

use std::time::Duration;

/// Longest application id, in bytes.
pub const APPLICATION_ID_BYTES: usize = 64;

/// Longest name of a key's user, in bytes.
pub const USER_NAME_BYTES: usize = 64;

/// Largest payload or result of one job, in bytes: 1 GiB.
pub const BODY_BYTES: u64 = 1 << 30;

/// Longest label of a job, in bytes.
pub const LABEL_BYTES: usize = 256;

/// Longest key of a job, in bytes.
pub const KEY_BYTES: usize = 256;

/// Largest checkpoint of a job, in bytes: 16 MiB.
pub const CHECKPOINT_BYTES: usize = 16 << 20;

/// A checkpoint goes from its host to the scheduler this much later at the latest.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);

/// Smallest memory limit of a job, in bytes: less than 1 MiB holds no process.
pub const MEMORY_LIMIT_MIN: u64 = 1 << 20;

/// How often the memory of a job's processes is measured where no cgroup limits it.
pub const MEMORY_SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

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

/// Bars in one message to or from the progress server, and its most bytes.
pub const BARS_PER_BATCH: usize = 2_048;
/// See [`BARS_PER_BATCH`].
pub const BATCH_BYTES: usize = 2 << 20;

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

/// Largest notice between job process, host and worker: a payload, a checkpoint and an environment, each of its largest size.
/// SOCK_SEQPACKET takes somewhat under 208 KiB as one packet.
pub const NOTICE_BYTES: usize = 160 * 1024;

/// Final bars in one notice from the host; an attempt with more sends several.
pub const BARS_PER_NOTICE: usize = 200;

/// Largest bundle, in bytes: 2 GiB.
pub const BUNDLE_BYTES: u64 = 2 << 30;

/// One piece of a bundle under way, in bytes before compression.
pub const BUNDLE_CHUNK_BYTES: usize = 1 << 20;

/// Most bytes of a piece that each compressed byte may stand for: 1 MiB of zeros takes about 40.
pub const BUNDLE_RATIO: usize = 1 << 15;

/// Pieces, in bytes before compression, that wait for the scheduler's disk: of one user never more than what is left of it. What comes
/// beyond it is asked for again.
pub const BUNDLE_BACKLOG_BYTES: usize = 64 << 20;

/// The programs that applications of one user need at a time take one part in so many of the scheduler's room at most: what is needed is
/// never deleted to make room.
pub const BUNDLE_STORE_SHARES: u64 = 2;

/// If a program isn't complete so long after an application was asked for it, the next one that has it is asked as well; of a user of
/// whom several were asked, after so many times as long. What nothing was added to for so long makes room for others.
pub const UPLOAD_STALL: Duration = Duration::from_secs(30);

/// What a bundle takes of the scheduler's room at least, in bytes: it bounds how many there are.
pub const BUNDLE_ROOM_MIN: u64 = 64 * 1024;

/// Most jobs in one submit message, and the most bytes of their payloads in all unless it is a single job.
pub const SUBMIT_JOBS: usize = 1_000;
/// See [`SUBMIT_JOBS`].
pub const SUBMIT_BYTES: usize = 4 << 20;

/// Jobs and payload bytes that a client sends before it waits for the scheduler to accept some.
pub const SEND_WINDOW_JOBS: usize = 100_000;
/// See [`SEND_WINDOW_JOBS`].
pub const SEND_WINDOW_BYTES: usize = 256 << 20;

/// Jobs in one answer to an application that asks which jobs it has.
pub const LISTED_RANGES: usize = 10_000;

/// What is done at a time about an application's questions which jobs it has and how they ended: jobs that are looked at, answers,
/// and bytes of results. More follows as soon as no more than that waits for the peer.
pub const ANSWER_JOBS: usize = 10_000;
/// See [`ANSWER_JOBS`].
pub const ANSWERS: usize = 4_096;
/// See [`ANSWER_JOBS`].
pub const ANSWER_BYTES: u64 = 32 << 20;

/// Ranges of jobs in an application's questions that wait meanwhile. Whoever asks for more is parted from.
pub const WAITING_RANGES: usize = 1 << 20;

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

/// How long the attempts of a lost worker stay open: if it isn't heard of for this long, they are closed.
pub const ORPHAN_GRACE: Duration = Duration::from_hours(24);

/// Most slots and attempts ahead of them, hence most attempts in a worker's inventory but for a few that are just being confirmed.
pub const ATTEMPTS_AHEAD: usize = 8_192;

/// Most installed bundles of a worker, and the longest name of one, in bytes.
pub const INSTALLED_BUNDLES: usize = 1_024;
/// See [`INSTALLED_BUNDLES`].
pub const BUNDLE_NAME_BYTES: usize = 128;

/// Longest target of a platform and longest id of a machine's boot, in bytes.
pub const PLATFORM_BYTES: usize = 128;
/// See [`PLATFORM_BYTES`].
pub const BOOT_ID_BYTES: usize = 64;

/// Bytes of the secret in a worker's state directory.
pub const WORKER_SECRET_BYTES: usize = 32;

/// Ranges of sequences in one message that names jobs.
pub const JOB_SET_RANGES: usize = 10_000;

/// What the options of one submit may come to, as MessagePack, in values and bytes; the last ones may exceed it.
pub const SUBMIT_OPTION_VALUES: usize = 30_000;
/// See [`SUBMIT_OPTION_VALUES`].
pub const SUBMIT_OPTION_BYTES: usize = 1 << 20;

/// Outputs of jobs that commands may be waiting for at a time, and bytes of them that may wait for one command.
pub const OUTPUTS_ASKED: usize = 64;
/// See [`OUTPUTS_ASKED`].
pub const OUTPUT_WAITING_BYTES: usize = 4 << 20;

/// Rows in one answer to a command.
pub const ROWS: usize = 500;

// --- what an application may keep at the scheduler ---

/// Applications that a scheduler remembers, and those of them that one user owns. A program that is started without an
/// application id is another application each time. Even if it has ended well, it is remembered for as long as results are:
/// until then nothing that it submitted may run again, and who asks is told what was taken. So a user may start one each minute
/// for the seven days that this is unless an operator says otherwise.
pub const APPLICATIONS: usize = 50_000;
/// See [`APPLICATIONS`].
pub const APPLICATIONS_PER_USER: usize = 12_000;

/// Programs that all applications have, and those of one user.
pub const BUNDLES: usize = 100_000;
/// See [`BUNDLES`].
pub const BUNDLES_PER_USER: usize = 20_000;

/// Starts of one application that are remembered, with the services of all of their programs.
pub const SESSIONS_PER_APPLICATION: usize = 20_000;
/// See [`SESSIONS_PER_APPLICATION`].
pub const SERVICES_PER_APPLICATION: usize = 100_000;

/// Jobs of one application that haven't ended, and the bytes of their payloads: 640 MB of memory, and 1 TiB of disk.
pub const JOBS_PER_APPLICATION: u64 = 10_000_000;
/// See [`JOBS_PER_APPLICATION`].
pub const PAYLOAD_BYTES_PER_APPLICATION: u64 = 1 << 40;

/// Ended jobs that a scheduler remembers. At it, the oldest of whoever has most are forgotten before their time, those that have no
/// result, or none that has yet to be taken, first. One takes 220 bytes of memory and the message of its failure, so all take 5 GB
/// where few have failed. Twice as many as an application may have waiting, so that one that fetches its results last loses none.
pub const ENDED_JOBS: u64 = 20_000_000;

/// Jobs with a key of one application that are remembered.
pub const KEYS_PER_APPLICATION: u64 = 1_000_000;

// --- bars at the progress server ---

/// Bars in all. At it, attempts that nobody reports any more make room, oldest first; without any, new bars are not shown.
pub const BARS: usize = 200_000;

/// Attempts that one progress subprocess may report at a time, and bars that it may start for them; those beyond are not shown.
pub const ATTEMPTS_PER_REPORTER: usize = 2 * SLOTS as usize;
/// See [`ATTEMPTS_PER_REPORTER`].
pub const BARS_PER_REPORTER: usize = 64_000;

/// Attempts that all progress subprocesses together may report.
pub const REPORTED_ATTEMPTS: usize = 200_000;

/// Attempts that nobody reports any more and whose bars are kept; the oldest go first.
pub const RESTING_ATTEMPTS: usize = 10_000;

// --- heads of messages, by who says them ---

/// What a head may hold. It is looked at before anything is made of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeadBounds {
    /// Most bytes.
    pub bytes: usize,
    /// Most MessagePack values, keys and containers among them.
    pub values: usize,
}

/// A submit of 1,000 different jobs with keys and options has 47,000 values and 1.5 MB.
pub const FROM_APPLICATION: HeadBounds = HeadBounds { bytes: 2 << 20, values: 50_000 };

/// [`LISTED_RANGES`] ranges, each of a service of its own, have 100,000 values and 2 MB; 1,000 bars 32,000.
pub const TO_APPLICATION: HeadBounds = HeadBounds { bytes: 4 << 20, values: 1 << 17 };

/// An inventory of [`SLOTS`] and [`ATTEMPTS_AHEAD`] attempts has 200,000 values and 1.2 MB.
pub const FROM_WORKER: HeadBounds = HeadBounds { bytes: 4 << 20, values: 1 << 19 };

/// Attempts to forget, at most a whole inventory of them, have 4 values each.
pub const TO_WORKER: HeadBounds = HeadBounds { bytes: 1 << 20, values: 1 << 17 };

/// The longest command line names 110,000 jobs of 3 values each.
pub const FROM_COMMAND: HeadBounds = HeadBounds { bytes: 4 << 20, values: 1 << 19 };

/// [`ROWS`] rows have 28 values each, and reasons of up to [`FAILURE_MESSAGE_BYTES`].
pub const TO_COMMAND: HeadBounds = HeadBounds { bytes: HEAD_BYTES, values: 1 << 19 };

/// [`BARS_PER_BATCH`] bars, each of an application of its own, have 90,000 values.
pub const BATCH: HeadBounds = HeadBounds { bytes: BATCH_BYTES, values: 1 << 17 };

/// [`BARS_PER_NOTICE`] bars have 6,500 values, [`ENV_VARIABLES`] variables 800.
pub const TO_HOST: HeadBounds = HeadBounds { bytes: NOTICE_BYTES, values: 1 << 14 };

/// A notice on the disk has its attempt's checkpoint in it.
pub const FROM_HOST: HeadBounds = HeadBounds { bytes: NOTICE_BYTES + CHECKPOINT_BYTES, values: 1 << 14 };

/// Numbers and names.
pub const SHORT_HEAD: HeadBounds = HeadBounds { bytes: 1_024, values: 64 };

/// How deep values may lie within others, in messages and in what is kept on disk. Messages need half of it.
pub const VALUE_DEPTH: usize = 16;

// --- keys ---

/// Largest key file, in bytes, and its most sections.
pub const KEY_FILE_BYTES: usize = 256 * 1024;
/// See [`KEY_FILE_BYTES`].
pub const KEY_FILE_SECTIONS: usize = 64;

/// How often a server looks whether its keys have changed; it does so at each handshake too.
pub const KEYS_INTERVAL: Duration = Duration::from_secs(1);

/// How long a new authority is valid, and the most for which a key may be: 30 years.
pub const AUTHORITY_VALIDITY: Duration = Duration::from_hours(30 * 365 * 24);

/// How long a key is valid unless asked for otherwise: 10 years.
pub const KEY_VALIDITY: Duration = Duration::from_hours(10 * 365 * 24);

/// How far the clocks of two machines may be apart: keys are valid since so long before they were made, and stay on record at
/// least for so long after they have expired.
pub const CLOCK_SKEW: Duration = Duration::from_hours(24);

/// Most keys that an authority and the one before it may have issued. Expired keys make room.
pub const ISSUED_KEYS: usize = 100_000;

/// Keys beyond these that a keys directory may make for itself: its own must be replaced, by `rotate` and `revoke`, when there is no
/// room for others.
pub const RESERVED_KEYS: usize = 100;

/// Longest line of the index of issued keys, in bytes.
pub const ISSUED_KEY_LINE_BYTES: usize = 512;

/// Most revoked keys on record: their lists must leave room in [`KEY_FILE_BYTES`]. Expired keys make room.
pub const REVOKED_KEYS: usize = 6_000;

// --- transport ---

/// Largest head of a message, in bytes: 16 MiB.
pub const HEAD_BYTES: usize = 16 << 20;

/// Largest body of one message: a payload or result of the largest size, and room for what travels beside it (output, bars).
pub const MESSAGE_BODY_BYTES: usize = BODY_BYTES as usize + (16 << 20);

/// A message flagged as urgent up to this size overtakes others; a larger one travels as a normal one.
pub const URGENT_BYTES: usize = 64 * 1024;

/// Messages travel in pieces of at most this size, so that none of them occupies the line for long.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Bytes of normal messages that a peer may send before the receiver has granted more. Bounds what waits in sockets, hence
/// how long an urgent message is held up: 34 ms on a line of 1 Gbit/s.
pub const WINDOW_BYTES: u64 = 4 << 20;

/// Normal messages that a peer may send before the receiver's consumer has taken some.
pub const WINDOW_MESSAGES: u32 = 4_096;

/// Urgent messages that a peer may send before the receiver's consumer has taken some.
pub const WINDOW_URGENT: u32 = 64;

/// What a server queues for one peer beyond what is under way, in messages and bytes. A peer that needs more is disconnected.
/// A message that starts below the bound is always taken, whatever its size.
pub const PEER_QUEUE_MESSAGES: usize = 1 << 17;
/// See [`PEER_QUEUE_MESSAGES`].
pub const PEER_QUEUE_BYTES: usize = 1 << 30;

/// What a link queues before `send` waits, in messages and bytes.
pub const LINK_QUEUE_MESSAGES: usize = 1_024;
/// See [`LINK_QUEUE_MESSAGES`].
pub const LINK_QUEUE_BYTES: usize = 8 << 20;

/// A peer that has let its queued messages wait this long without taking any is disconnected.
pub const STALL: Duration = Duration::from_secs(30);

/// Interval of the transport's pings, unless a server's configuration says otherwise.
pub const PING_INTERVAL: Duration = Duration::from_secs(2);

/// Pings of a peer that may come at once, as what has gathered while a machine stood still does, and how many in an interval after
/// that. Their answers are under no credit: of a peer that takes none they gather in the ROUTER, so they must be few.
pub const PINGS_AT_ONCE: u32 = 64;
/// See [`PINGS_AT_ONCE`].
pub const PINGS_PER_INTERVAL: u32 = 4;

/// A connection that was silent for this many ping intervals is dropped.
pub const SILENT_INTERVALS: u32 = 4;

/// Time from the TCP connection to the peer's accepted HELLO. Whoever has to wait for others' breaches has as long for that, and
/// it again from its end on.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// How long a peer that was told goodbye or refused may take to hang up by itself.
pub const FAREWELL_TIME: Duration = Duration::from_secs(1);

/// How long a link or a server that closes waits for queued messages to leave.
pub const FLUSH_TIME: Duration = Duration::from_secs(2);

/// Backoff between a link's attempts to connect: doubles from the first to the second, with jitter.
pub const CONNECT_BACKOFF_MIN: Duration = Duration::from_millis(50);
/// See [`CONNECT_BACKOFF_MIN`].
pub const CONNECT_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Bytes that a client may send before its TLS handshake is complete. A key's part has under 4 KiB: a hello, at most two
/// certificates, a signature.
pub const TLS_HANDSHAKE_BYTES: usize = 16 * 1024;

/// Frames in one ZMTP message, bytes in one such message in all, and bytes in the handshake's command.
pub const WIRE_FRAMES: usize = 16;
/// See [`WIRE_FRAMES`].
pub const WIRE_MESSAGE_BYTES: u64 = CHUNK_BYTES as u64 + 4_096;
/// See [`WIRE_FRAMES`].
pub const WIRE_COMMAND_BYTES: usize = 1_024;

/// Bytes of a message to a server before it has welcomed the peer: HELLO has two texts, and less than 32 bytes beside them. The
/// rest is room for what later versions may say in it.
pub const WIRE_HELLO_BYTES: u64 = 1_024;
const _: () = assert!(HELLO_ID_BYTES + HELLO_HOST_BYTES + 32 <= WIRE_HELLO_BYTES as usize);

/// Longest id and host name in a HELLO, longest text of a refusal or goodbye, in bytes.
pub const HELLO_ID_BYTES: usize = 64;
/// See [`HELLO_ID_BYTES`].
pub const HELLO_HOST_BYTES: usize = 255;
/// See [`HELLO_ID_BYTES`].
pub const FAREWELL_BYTES: usize = 1_024;

/// Open files that are no peers, and descriptors that each peer takes: bounds the connections of a server.
pub const RESERVED_FILES: u64 = 200;
/// See [`RESERVED_FILES`].
pub const FILES_PER_PEER: u64 = 3;

/// Connections of strangers, in all and from one address: of peers that have shown no accepted key yet or wait to come in with it, and
/// without keys of those that haven't been welcomed yet. The oldest makes room for a newer one. In all they have at most a quarter of
/// the server's connections.
pub const STRANGERS: usize = 1_024;
/// See [`STRANGERS`].
pub const STRANGERS_PER_ADDRESS: usize = 256;

/// From so many breaches of the protocol on by holders of a key at one address, each within [`BREACH_TIME`] of the one before,
/// newcomers with this key from there wait. A HELLO in a role that the key is not for is one of them.
pub const BREACHES: u32 = 8;

/// How long a breach of the protocol is remembered, and the longest time for which others wait for it.
pub const BREACH_TIME: Duration = Duration::from_mins(1);

/// How long newcomers wait for each breach, see [`BREACHES`]; then they come in one after another, so far apart.
pub const BREACH_PAUSE: Duration = Duration::from_secs(1);
/// See [`BREACH_PAUSE`].
pub const BREACH_SPACING: Duration = Duration::from_millis(10);

/// Keys and addresses whose breaches are remembered at a time.
pub const BREACH_KEYS: usize = 10_000;

/// A server checks the keys of connected peers anew at this interval, since they expire, and whenever its own file changes.
pub const KEYS_CHECK_INTERVAL: Duration = Duration::from_mins(10);

/// Connections beyond a server's bound that are still answered, with a refusal; any more are closed at once.
pub const REFUSAL_CONNECTIONS: usize = 16;

/// While more than this waits for an application, in messages or bytes, a server grants it nothing: it must take what it asked
/// for before it may ask on. More than [`RESULT_WINDOW_BYTES`], so that one that takes its results is always heard.
pub const WAITING_MESSAGES: usize = 1 << 14;
/// See [`WAITING_MESSAGES`]. A command asks one question, so it needs no more.
pub const WAITING_ANSWERS: usize = 256;

/// See [`WAITING_MESSAGES`].
pub const WAITING_BYTES: usize = 48 << 20;

/// Questions of one connection that a server has not begun to answer. A command asks one.
pub const QUESTIONS: usize = 16;
