//! The task that looks after one host, from its start to its end.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use lrts_core::limits::{BARS_PER_ATTEMPT, CHECKPOINT_BYTES, INLINE_BODY_BYTES};
use lrts_core::notices::AsyncNoticeSocket;
use lrts_core::protocol::codec;
use lrts_core::protocol::host::{FromHost, Payload, StartAttempt, ToHost};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::protocol::worker::AttemptEnd;
use lrts_core::spec::{BundleRef, JobOptions};
use lrts_core::status::{Failure, FailureKind};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::process::Child;
use tokio::sync::mpsc;
use tracing::{Instrument, debug, info_span, warn};

use super::adopt::{Adopted, HOLDS_SINCE, adopt};
use super::events::Events;
use super::introduce::Introduced;
use super::process::Process;
use super::record::{HostRecord, remove_files};
use super::session::kill_session;
use super::start::{StartError, Started, describe, last_words, start};
use super::{Command, Family, HostEnded, HostEvent, HostNumber, Job};
use crate::bundles::{Lease, Program};
use crate::cgroup;
use crate::state_dir::StateDir;

/// How long a program may take to its Welcome. `host_services!` is the first thing in its `main`.
const WELCOME_TIME: Duration = Duration::from_secs(20);

/// How long a host may take to end once its connection is closed. It kills its jobs first.
const FAREWELL_TIME: Duration = Duration::from_secs(4);

/// How often it is looked whether a process has ended that isn't the worker's child.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The first version of hosts that knows of leases, limits, checkpoints, and the order to end.
const KNOWS_LIMITS_SINCE: u16 = 2;

/// What all hosts of a worker have in common.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(super) state: Arc<StateDir>,
    pub(super) family: Family,
    /// Of this boot of the machine.
    pub(super) boot_id: String,
    /// Between terminate and kill.
    pub(super) grace: Duration,
    /// How long hosts wait for another worker.
    pub(super) orphan_grace: Duration,
}

#[cfg(test)]
impl Surroundings {
    /// Those of a worker that does nothing else.
    pub(super) fn alone(state: StateDir) -> Self {
        Self {
            state: Arc::new(state),
            family: Family::new(false),
            boot_id: "this boot".to_owned(),
            grace: Duration::from_secs(2),
            orphan_grace: Duration::ZERO,
        }
    }
}

/// Where a host comes from.
#[derive(Debug)]
pub(super) enum Origin {
    /// To be started.
    New(Program),
    /// Started by an earlier run of the worker. While it lives, the cache keeps its program.
    Earlier { record: HostRecord, _lease: Option<Lease> },
}

/// One host, as its task and the fleet know it.
#[derive(Debug)]
pub(super) struct HostTask {
    pub(super) number: HostNumber,
    pub(super) bundle: BundleRef,
    /// Its process, once there is one.
    pub(super) process: Arc<OnceLock<Process>>,
    pub(super) around: Arc<Surroundings>,
}

/// Starts or finds a host and carries commands and events until it is told to end, or until it dies. If nobody commands it any
/// more, it is left alone.
pub(super) async fn run_host(
    task: HostTask,
    origin: Origin,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<(HostNumber, HostEvent)>,
) {
    let number = task.number;
    let events = Events::new(number, events);
    let span = info_span!("host", number);
    let last = attend(&task, &origin, commands, &events).instrument(span).await;
    let last = match last {
        Last::LeftAlone => return,
        Last::Wanted => None,
        Last::News(event) => Some(event),
    };
    remove_files(&task.around.state, number);
    if let Some(event) = last {
        events.send(event).await;
    }
    // Only now: while the host lived, the cache had to keep the file.
    drop(origin);
}

/// How a host's task ends.
enum Last {
    /// The worker leaves, and the host goes on.
    LeftAlone,
    /// The host has ended as it was told to.
    Wanted,
    /// The host is gone.
    News(HostEvent),
}

/// Why a connection isn't used any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Done {
    /// The host was told to end.
    End,
    /// Nobody commands.
    LeftAlone,
    /// It has ended.
    Broken,
}

async fn attend(
    task: &HostTask,
    origin: &Origin,
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: &Events,
) -> Last {
    let HostTask { number, bundle, process, around } = task;
    let (mut child, introduced, held) = match origin {
        Origin::New(program) => {
            let started = |started| process.set(started).expect("a task has one process");
            match start(*number, program, bundle, around, WELCOME_TIME, started).await {
                Ok(Started { child, introduced }) => (Some(child), introduced, Vec::new()),
                Err(error) => {
                    bury(around, process.get().copied()).await;
                    return Last::News(match error {
                        StartError::Refused(reason) => HostEvent::Refused { reason },
                        StartError::Unavailable(reason) => HostEvent::Died { reason },
                    });
                }
            }
        }
        Origin::Earlier { record, .. } => match adopt(*number, record.process, around).await {
            Some(Adopted { introduced, held }) => (None, introduced, held),
            None => {
                bury(around, Some(record.process)).await;
                return Last::News(HostEvent::Gone);
            }
        },
    };
    let Introduced { mut socket, version, arena, .. } = introduced;
    events.take_over(&held);
    events.send(HostEvent::Ready { arena, held }).await;
    let process = process.get().copied();
    // Only such a host goes on without a connection, and takes another.
    let lasting = process.filter(|_| version >= HOLDS_SINCE && !around.orphan_grace.is_zero());
    let wanted_end = loop {
        match converse(&socket, version, &mut commands, around, events).await {
            Done::End => break true,
            Done::LeftAlone => return Last::LeftAlone,
            Done::Broken => {}
        }
        let Some(process) = lasting else { break false };
        let Some(Adopted { introduced, held }) = adopt(*number, process, around).await else { break false };
        socket = introduced.socket;
        events.resume(&held).await;
    };
    drop(socket);
    let status = match &mut child {
        Some(child) => reap(child).await,
        None => wait_for_end(process).await,
    };
    bury(around, process).await;
    if wanted_end {
        return Last::Wanted;
    }
    events.tell_left(around.state.spool()).await;
    let words = last_words(&around.state.host_log(*number));
    let pid = process.map_or(0, |process| process.pid);
    Last::News(HostEvent::Died { reason: format!("its job host (process {pid}) died with {status}{words}") })
}

/// Carries commands and events over one connection.
async fn converse(
    socket: &AsyncNoticeSocket,
    version: u16,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    around: &Surroundings,
    events: &Events,
) -> Done {
    let mut reading = pin!(read_notices(socket, events));
    // Both go on side by side.
    tokio::select! {
        trouble = &mut reading => {
            debug!(%trouble, "job host has closed its connection");
            Done::Broken
        }
        result = write_commands(socket, version, commands, around, events) => match result {
            Ok(done) => done,
            Err(error) => {
                debug!(%error, "job host takes no commands any more");
                // What it has said of its jobs still counts.
                let _ = tokio::time::timeout(FAREWELL_TIME, reading).await;
                Done::Broken
            }
        },
    }
}

/// Waits for the end of a host that is the worker's child, and brings it about if it takes too long.
async fn reap(child: &mut Child) -> String {
    let status = match tokio::time::timeout(FAREWELL_TIME, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            warn!("job host doesn't end by itself and is killed");
            match child.kill().await {
                Ok(()) => child.wait().await,
                Err(error) => Err(error),
            }
        }
    };
    status.map_or_else(|error| error.to_string(), describe)
}

/// The same for a host of an earlier run, whose status its new parent gets.
async fn wait_for_end(process: Option<Process>) -> String {
    let is_alive = || process.is_some_and(Process::is_alive);
    let gone = async || {
        while is_alive() {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    };
    if tokio::time::timeout(FAREWELL_TIME, gone()).await.is_err() {
        warn!("job host doesn't end by itself and is killed");
        process.inspect(|process| process.kill());
        let _ = tokio::time::timeout(FAREWELL_TIME, gone()).await;
    }
    "a status that only its parent knows".to_owned()
}

/// Kills what a host that is gone has left behind.
async fn bury(around: &Arc<Surroundings>, process: Option<Process>) {
    let around = around.clone();
    let bury = move || {
        if let Some(process) = process {
            around.family.remove(process.pid);
            kill_session(process);
        }
        around.family.kill_orphans();
        if let Some(process) = process {
            cgroup::remove_jobs(Path::new(cgroup::ROOT), process.pid);
        }
    };
    let _ended_with_the_runtime = tokio::task::spawn_blocking(bury).await;
}

/// What the host has said of an attempt ahead of its end.
#[derive(Default)]
pub(super) struct Partial {
    bars: Vec<BarRecord>,
    stdout: Option<Vec<u8>>,
    stderr: Option<Vec<u8>>,
}

/// Returns what ended the connection.
async fn read_notices(socket: &AsyncNoticeSocket, events: &Events) -> String {
    let mut partial = BTreeMap::new();
    loop {
        let packet = match socket.receive().await {
            Ok(Some(packet)) => packet,
            Ok(None) => return "closed".to_owned(),
            // A descriptor for which this process had no room, for example. The host is as well as before.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                warn!(%error, "notice of a job host is ignored");
                continue;
            }
            Err(error) => return error.to_string(),
        };
        let event = match packet.decode() {
            Ok(FromHost::Checkpoint { attempt, state }) => {
                match read_checkpoint(state, packet.descriptors).await {
                    Ok(state) => Some(HostEvent::Checkpoint { attempt, state }),
                    Err(error) => {
                        warn!(%attempt, %error, "checkpoint can't be read");
                        None
                    }
                }
            }
            Ok(notice) => collect(notice, &mut partial),
            Err(error) => {
                warn!(%error, "notice of a job host is ignored");
                None
            }
        };
        if let Some(event) = event {
            events.send(event).await;
        }
    }
}

/// A small checkpoint travels in the notice, a large one as shared memory.
async fn read_checkpoint(state: Payload, descriptors: Vec<OwnedFd>) -> io::Result<Bytes> {
    let bytes = match state {
        Payload::Inline(bytes) => return Ok(bytes.into()),
        Payload::Descriptor { bytes } => bytes,
    };
    let length = usize::try_from(bytes).ok().filter(|&length| length <= CHECKPOINT_BYTES);
    let length = length.ok_or_else(|| io::Error::other(format!("it has {bytes} bytes")))?;
    let memory = descriptors.into_iter().next().ok_or_else(|| io::Error::other("it did not travel along"))?;
    let read = move || -> io::Result<Bytes> {
        let mut content = vec![0; length];
        // At a place, since the descriptor's own position is shared with the host.
        File::from(memory).read_exact_at(&mut content, 0)?;
        Ok(content.into())
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Puts the pieces of an attempt's end together.
pub(super) fn collect(notice: FromHost, partial: &mut BTreeMap<AttemptId, Partial>) -> Option<HostEvent> {
    match notice {
        // Said once already, by a host that was found, or by a new one that has nothing.
        FromHost::Welcome { .. } | FromHost::Held { .. } | FromHost::AllHeld => None,
        // Their memory has to be read first.
        FromHost::Checkpoint { .. } => None,
        FromHost::Began { attempt, pid, region } => Some(HostEvent::Began { attempt, pid, region }),
        FromHost::Bars { attempt, bars } => {
            let known = &mut partial.entry(attempt).or_default().bars;
            let room = (BARS_PER_ATTEMPT as usize).saturating_sub(known.len());
            known.extend(bars.into_iter().take(room));
            None
        }
        FromHost::Output { attempt, stderr, text } => {
            let known = partial.entry(attempt).or_default();
            *(if stderr { &mut known.stderr } else { &mut known.stdout }) = Some(text);
            None
        }
        FromHost::OutputDone { attempt } => {
            let known = partial.remove(&attempt).unwrap_or_default();
            let texts = known.stdout.zip(known.stderr);
            Some(HostEvent::OutputRead { attempt, texts })
        }
        FromHost::Ended { attempt, end, output, ran, peak_memory_bytes, region } => {
            let known = partial.remove(&attempt).unwrap_or_default();
            Some(HostEvent::Ended(Box::new(HostEnded {
                attempt,
                end,
                output,
                ran,
                peak_memory_bytes,
                region,
                stdout: known.stdout.unwrap_or_default(),
                stderr: known.stderr.unwrap_or_default(),
                bars: known.bars,
            })))
        }
    }
}

/// Returns why there are no more commands.
async fn write_commands(
    socket: &AsyncNoticeSocket,
    version: u16,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    around: &Surroundings,
    events: &Events,
) -> io::Result<Done> {
    let knows_limits = version >= KNOWS_LIMITS_SINCE;
    while let Some(command) = commands.recv().await {
        let notice = match command {
            Command::Start(job) if !knows_limits && has_limits(&job.options) => {
                events.send(HostEvent::Ended(Box::new(unlimited(job.attempt)))).await;
                continue;
            }
            Command::Start(job) => {
                events.give(job.attempt);
                start_attempt(socket, *job, around, events).await?;
                continue;
            }
            Command::Stop { attempt, grace } => ToHost::Stop { attempt, grace },
            Command::Confirm { attempt } => ToHost::Confirm { attempt },
            Command::RenewLeases { until } if knows_limits => ToHost::RenewLeases { until: until.as_nanos() },
            Command::ReadCheckpoint { attempt } if knows_limits => ToHost::ReadCheckpoint { attempt },
            Command::RenewLeases { .. } | Command::ReadCheckpoint { .. } => continue,
            Command::ReleaseRegion { region } => ToHost::ReleaseRegion { region },
            Command::ReadOutput { attempt } => ToHost::ReadOutput { attempt },
            Command::End => {
                if knows_limits {
                    // One that doesn't hear it ends with the connection, or is killed.
                    let _ = socket.send(&ToHost::End, &[]).await;
                }
                return Ok(Done::End);
            }
        };
        socket.send(&notice, &[]).await?;
    }
    Ok(Done::LeftAlone)
}

async fn start_attempt(
    socket: &AsyncNoticeSocket,
    job: Job,
    around: &Surroundings,
    events: &Events,
) -> io::Result<()> {
    let Job { attempt, execution, service, options, payload, checkpoint, lease_until, notes } = job;
    let directory = around.state.working_directory(attempt);
    // One system call on a local disk: not worth another thread.
    let made = DirBuilder::new().mode(0o700).create(&directory);
    let prepared = match made {
        Ok(()) => bodies(payload, checkpoint).await,
        Err(error) => Err(error),
    };
    let (payload, checkpoint, memory) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let reason = format!("the worker cannot prepare it: {error}");
            events
                .send(HostEvent::Ended(Box::new(HostEnded::without_run(
                    attempt,
                    AttemptEnd::Lost { reason },
                ))))
                .await;
            return Ok(());
        }
    };
    let notice = ToHost::Start(StartAttempt {
        attempt,
        execution,
        service,
        payload,
        directory,
        spool_file: around.state.spool().path(attempt),
        env: options.get_env().to_vec(),
        checkpoint,
        grace: around.grace,
        run_timeout: options.get_run_timeout(),
        progress_timeout: options.get_progress_timeout(),
        memory_limit: options.get_memory_limit(),
        lease_until: lease_until.map(Moment::as_nanos),
        notes: codec::encode(&notes).to_vec(),
    });
    let memory: Vec<BorrowedFd<'_>> = memory.iter().map(AsFd::as_fd).collect();
    socket.send(&notice, &memory).await
}

/// Payload and checkpoint as they travel, and their memory in this order.
async fn bodies(
    payload: Bytes,
    checkpoint: Option<Bytes>,
) -> io::Result<(Payload, Option<Payload>, Vec<File>)> {
    let (payload, memory) = body(payload).await?;
    let mut memory = Vec::from_iter(memory);
    let checkpoint = match checkpoint {
        None => None,
        Some(checkpoint) => {
            let (checkpoint, more) = body(checkpoint).await?;
            memory.extend(more);
            Some(checkpoint)
        }
    };
    Ok((payload, checkpoint, memory))
}

/// Whether the options ask for something that a host of the first version doesn't do.
fn has_limits(options: &JobOptions) -> bool {
    options.is_exclusive()
        || options.get_run_timeout().is_some()
        || options.get_progress_timeout().is_some()
        || options.get_memory_limit().is_some()
}

/// The end of an attempt whose program is too old for its options.
fn unlimited(attempt: AttemptId) -> HostEnded {
    let text = "the program was built with an lrts that knows no exclusive jobs and no limits of time and memory: build it \
                with the lrts that the cluster runs";
    HostEnded::without_run(attempt, AttemptEnd::Failed(Failure::new(FailureKind::Bundle, text)))
}

/// A small body travels in the notice, a large one as shared memory.
async fn body(bytes: Bytes) -> io::Result<(Payload, Option<File>)> {
    if bytes.len() <= INLINE_BODY_BYTES {
        return Ok((Payload::Inline(bytes.to_vec()), None));
    }
    let write = move || -> io::Result<(Payload, Option<File>)> {
        let mut memory = File::from(memfd_create("lrts-body", MFdFlags::MFD_CLOEXEC)?);
        memory.write_all(&bytes)?;
        Ok((Payload::Descriptor { bytes: bytes.len() as u64 }, Some(memory)))
    };
    tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use lrts_core::ids::SessionId;
    use lrts_core::notices::NoticeSocket;
    use lrts_core::protocol::host::Output;
    use lrts_core::protocol::progress::{BarNumbers, BarText};

    use super::super::Notes;
    use super::*;

    fn attempt(sequence: u64) -> AttemptId {
        AttemptId { job: SessionId(1).job(sequence), attempt: 1 }
    }

    fn bars(from: u32, count: u32) -> Vec<BarRecord> {
        let record = |index| BarRecord { index, text: BarText::default(), numbers: BarNumbers::default() };
        (from..from + count).map(record).collect()
    }

    #[test]
    fn an_attempts_end_comes_together_from_its_notices() {
        let mut partial = BTreeMap::new();
        let say = |sequence, stderr, text: &str| FromHost::Output {
            attempt: attempt(sequence),
            stderr,
            text: text.as_bytes().to_vec(),
        };
        let ended = FromHost::Ended {
            attempt: attempt(1),
            end: AttemptEnd::Finished,
            output: Output::Inline(vec![1]),
            ran: Duration::from_secs(1),
            peak_memory_bytes: 7,
            region: Some(2),
        };
        assert!(collect(say(1, false, "half"), &mut partial).is_none());
        assert!(collect(say(2, false, "other"), &mut partial).is_none());
        assert!(collect(say(1, false, "out"), &mut partial).is_none());
        assert!(collect(say(1, true, "err"), &mut partial).is_none());
        assert!(collect(FromHost::Bars { attempt: attempt(1), bars: bars(0, 200) }, &mut partial).is_none());
        assert!(collect(FromHost::Bars { attempt: attempt(1), bars: bars(200, 9) }, &mut partial).is_none());
        let Some(HostEvent::Ended(ended)) = collect(ended, &mut partial) else { panic!("no end") };
        assert_eq!((ended.stdout, ended.stderr), (b"out".to_vec(), b"err".to_vec()));
        assert_eq!(ended.bars, bars(0, 209));
        assert_eq!(partial.len(), 1);
    }

    #[test]
    fn answers_to_a_look_at_the_output_say_whether_the_attempt_is_there() {
        let mut partial = BTreeMap::new();
        let look = |partial: &mut _| match collect(FromHost::OutputDone { attempt: attempt(1) }, partial) {
            Some(HostEvent::OutputRead { texts, .. }) => texts,
            other => panic!("{other:?}"),
        };
        assert_eq!(look(&mut partial), None);
        for stderr in [false, true] {
            collect(FromHost::Output { attempt: attempt(1), stderr, text: vec![8] }, &mut partial);
        }
        assert_eq!(look(&mut partial), Some((vec![8], vec![8])));
    }

    #[test]
    fn a_host_cannot_fill_the_workers_memory_with_bars() {
        let mut partial = BTreeMap::new();
        for from in 0..20 {
            collect(FromHost::Bars { attempt: attempt(1), bars: bars(from * 100, 100) }, &mut partial);
        }
        assert_eq!(partial[&attempt(1)].bars.len(), BARS_PER_ATTEMPT as usize);
    }

    #[tokio::test]
    async fn a_host_of_the_version_before_takes_attempts_without_limits_and_hears_no_new_word() {
        let directory = tempfile::tempdir().unwrap();
        let around = Surroundings::alone(StateDir::open(Some(directory.path())).unwrap());
        let (worker, host) = NoticeSocket::pair().unwrap();
        let (commander, mut commands) = mpsc::unbounded_channel();
        let (sender, mut told) = mpsc::channel(8);
        let job = |sequence, options| Job {
            attempt: attempt(sequence),
            execution: 1,
            service: "service".to_owned(),
            options,
            payload: Bytes::new(),
            checkpoint: None,
            lease_until: None,
            notes: Notes {
                application: "test".parse().unwrap(),
                owner: None,
                service: "service".to_owned(),
                slots: 1,
                exclusive: false,
                store: 1,
                progress_rtt_test: Duration::ZERO,
            },
        };
        let limited = JobOptions::new().run_timeout(Duration::from_secs(60));
        let all = [
            Command::Start(Box::new(job(1, limited))),
            Command::RenewLeases { until: Moment::now() },
            Command::ReadCheckpoint { attempt: attempt(2) },
            Command::Start(Box::new(job(2, JobOptions::new()))),
            Command::End,
        ];
        for command in all {
            commander.send(command).unwrap();
        }
        let worker = AsyncNoticeSocket::new(worker).unwrap();
        let done = write_commands(&worker, 1, &mut commands, &around, &Events::new(1, sender)).await.unwrap();
        assert_eq!(done, Done::End);
        drop(worker);
        let Some((1, HostEvent::Ended(ended))) = told.recv().await else { panic!("no end") };
        let AttemptEnd::Failed(failure) = ended.end else { panic!("{:?}", ended.end) };
        assert_eq!((ended.attempt, failure.kind), (attempt(1), FailureKind::Bundle));
        assert!(failure.message.contains("build it"), "{}", failure.message);
        let heard = host.receive().unwrap().unwrap().decode().unwrap();
        let ToHost::Start(start) = heard else { panic!("{heard:?}") };
        assert_eq!(start.attempt, attempt(2));
        assert!(host.receive().unwrap().is_none(), "nothing but that");
    }

    #[tokio::test]
    async fn large_bodies_travel_as_shared_memory() {
        let (small, none) = body(vec![1; INLINE_BODY_BYTES].into()).await.unwrap();
        assert_eq!(small, Payload::Inline(vec![1; INLINE_BODY_BYTES]));
        assert!(none.is_none());
        let content: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
        let (large, memory) = body(content.clone().into()).await.unwrap();
        assert_eq!(large, Payload::Descriptor { bytes: 3_000_000 });
        let (mut memory, mut read) = (memory.unwrap(), Vec::new());
        memory.rewind().unwrap();
        memory.read_to_end(&mut read).unwrap();
        assert!(read == content);
    }
}
