//! The task that looks after one host, from its start to its end.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::ids::AttemptId;
use lrts_core::limits::{BARS_PER_ATTEMPT, INLINE_BODY_BYTES};
use lrts_core::notices::AsyncNoticeSocket;
use lrts_core::protocol::host::{FromHost, Output, Payload, StartAttempt, ToHost};
use lrts_core::protocol::progress::BarRecord;
use lrts_core::protocol::worker::AttemptEnd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::process::Child;
use tokio::sync::mpsc;
use tracing::{Instrument, debug, info_span, warn};

use super::session::kill_session;
use super::start::{StartError, Started, describe, last_words, start};
use super::{Command, HostEnded, HostEvent, HostNumber, Job};
use crate::bundles::Program;
use crate::state_dir::StateDir;

/// How long a program may take to its Welcome. `host_services!` is the first thing in its `main`.
const WELCOME_TIME: Duration = Duration::from_secs(20);

/// How long a host may take to end once its connection is closed. It kills its jobs first.
const FAREWELL_TIME: Duration = Duration::from_secs(4);

/// Starts a host and carries commands and events until the commands end, which ends the host, or until it dies.
pub(crate) async fn run_host(
    number: HostNumber,
    program: Program,
    state: Arc<StateDir>,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<(HostNumber, HostEvent)>,
) {
    let events = Events { number, sender: events };
    let span = info_span!("host", number);
    let last = attend(number, &program, &state, commands, &events).instrument(span).await;
    if let Some(event) = last {
        events.send(event).await;
    }
    // Only now: while the host lived, the cache had to keep the file.
    drop(program);
    let _never_made = std::fs::remove_file(state.host_socket(number));
    let _never_made = std::fs::remove_file(state.host_log(number));
}

/// Where a host's events go.
struct Events {
    number: HostNumber,
    sender: mpsc::Sender<(HostNumber, HostEvent)>,
}

impl Events {
    async fn send(&self, event: HostEvent) {
        // A worker that has ended doesn't listen any more.
        let _ = self.sender.send((self.number, event)).await;
    }
}

/// Returns the host's last event, if its end is news.
async fn attend(
    number: HostNumber,
    program: &Program,
    state: &StateDir,
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: &Events,
) -> Option<HostEvent> {
    let Started { mut child, pid, socket, arena } = match start(number, program, state, WELCOME_TIME).await {
        Ok(started) => started,
        Err(StartError::Refused(reason)) => return Some(HostEvent::Refused { reason }),
        Err(StartError::Unavailable(reason)) => return Some(HostEvent::Died { reason }),
    };
    events.send(HostEvent::Ready { arena }).await;
    let wanted_end = {
        let reading = read_notices(&socket, events);
        let writing = write_commands(&socket, &mut commands, state, events);
        let mut reading = pin!(reading);
        // Both go on side by side.
        tokio::select! {
            trouble = &mut reading => {
                debug!(pid, %trouble, "job host has closed its connection");
                false
            }
            result = writing => match result {
                Ok(()) => true,
                Err(error) => {
                    debug!(pid, %error, "job host takes no commands any more");
                    // What it has said of its jobs still counts.
                    let _ = tokio::time::timeout(FAREWELL_TIME, reading).await;
                    false
                }
            },
        }
    };
    drop(socket);
    let status = reap(&mut child).await;
    // A host that was killed leaves what its jobs have started.
    let _ended_with_the_runtime = tokio::task::spawn_blocking(move || kill_session(pid)).await;
    if wanted_end {
        return None;
    }
    let words = last_words(&state.host_log(number));
    Some(HostEvent::Died { reason: format!("its job host (process {pid}) died with {status}{words}") })
}

/// Waits for the host's end, and brings it about if it takes too long.
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

/// What the host has said of an attempt ahead of its end.
#[derive(Default)]
struct Partial {
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
            Err(error) => return error.to_string(),
        };
        let notice = match packet.decode() {
            Ok(notice) => notice,
            Err(error) => return error.to_string(),
        };
        if let Some(event) = collect(notice, &mut partial) {
            events.send(event).await;
        }
    }
}

/// Puts the pieces of an attempt's end together.
fn collect(notice: FromHost, partial: &mut BTreeMap<AttemptId, Partial>) -> Option<HostEvent> {
    match notice {
        // Said once already.
        FromHost::Welcome { .. } => None,
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

/// Ends well with the commands.
async fn write_commands(
    socket: &AsyncNoticeSocket,
    commands: &mut mpsc::UnboundedReceiver<Command>,
    state: &StateDir,
    events: &Events,
) -> io::Result<()> {
    while let Some(command) = commands.recv().await {
        let notice = match command {
            Command::Start(job) => {
                start_attempt(socket, *job, state, events).await?;
                continue;
            }
            Command::Stop { attempt, grace } => ToHost::Stop { attempt, grace },
            Command::Confirm { attempt } => ToHost::Confirm { attempt },
            Command::ReleaseRegion { region } => ToHost::ReleaseRegion { region },
            Command::ReadOutput { attempt } => ToHost::ReadOutput { attempt },
        };
        socket.send(&notice, &[]).await?;
    }
    Ok(())
}

async fn start_attempt(
    socket: &AsyncNoticeSocket,
    job: Job,
    state: &StateDir,
    events: &Events,
) -> io::Result<()> {
    let attempt = job.attempt;
    let directory = state.working_directory(attempt);
    // One system call on a local disk: not worth another thread.
    let made = DirBuilder::new().mode(0o700).create(&directory);
    let prepared = match made {
        Ok(()) => payload(job.payload).await,
        Err(error) => Err(error),
    };
    let (payload, memory) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            events.send(HostEvent::Ended(Box::new(unprepared(attempt, &error)))).await;
            return Ok(());
        }
    };
    let notice = ToHost::Start(StartAttempt {
        attempt,
        execution: job.execution,
        service: job.service,
        payload,
        directory,
        spool_file: state.spool().path(attempt),
        env: job.env,
    });
    let memory: Vec<BorrowedFd<'_>> = memory.iter().map(AsFd::as_fd).collect();
    socket.send(&notice, &memory).await
}

/// A small payload travels in the notice, a large one as shared memory.
async fn payload(bytes: Bytes) -> io::Result<(Payload, Option<File>)> {
    if bytes.len() <= INLINE_BODY_BYTES {
        return Ok((Payload::Inline(bytes.to_vec()), None));
    }
    let write = move || -> io::Result<(Payload, Option<File>)> {
        let mut memory = File::from(memfd_create("lrts-payload", MFdFlags::MFD_CLOEXEC)?);
        memory.write_all(&bytes)?;
        Ok((Payload::Descriptor { bytes: bytes.len() as u64 }, Some(memory)))
    };
    tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
}

/// The end of an attempt that this machine has no room for.
fn unprepared(attempt: AttemptId, error: &io::Error) -> HostEnded {
    HostEnded {
        attempt,
        end: AttemptEnd::Lost { reason: format!("the worker cannot prepare it: {error}") },
        output: Output::default(),
        ran: Duration::ZERO,
        peak_memory_bytes: 0,
        region: None,
        stdout: Vec::new(),
        stderr: Vec::new(),
        bars: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use lrts_core::ids::SessionId;
    use lrts_core::protocol::progress::{BarNumbers, BarText};

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
    async fn large_payloads_travel_as_shared_memory() {
        let (small, none) = payload(vec![1; INLINE_BODY_BYTES].into()).await.unwrap();
        assert_eq!(small, Payload::Inline(vec![1; INLINE_BODY_BYTES]));
        assert!(none.is_none());
        let content: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
        let (large, memory) = payload(content.clone().into()).await.unwrap();
        assert_eq!(large, Payload::Descriptor { bytes: 3_000_000 });
        let (mut memory, mut read) = (memory.unwrap(), Vec::new());
        memory.rewind().unwrap();
        memory.read_to_end(&mut read).unwrap();
        assert!(read == content);
    }
}
