//! Finding a host again, of an earlier run or after a connection that broke: connect, Hello and Welcome, and what it has.

use std::io;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::protocol::host::FromHost;
use tracing::{info, warn};

use super::introduce::{Introduced, Introduction, connect, introduce};
use super::process::Process;
use super::record::Notes;
use super::supervise::Surroundings;
use super::{HeldJob, HostNumber};

/// How often it is looked whether a silent host lives.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// After this time without an answer it is worth a line in the log.
const SILENCE: Duration = Duration::from_secs(5);

/// A host may hang up on a newcomer for want of a descriptor, or before it has said anything because another one comes; so it is
/// tried again so often, so long apart.
pub(super) const TRIES: u32 = 100;
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// The oldest version of hosts that say what they have, and wait for another worker. Spoken to in an older one, a host would
/// keep what it has to itself.
pub(super) const HOLDS_SINCE: u16 = 2;

/// A host that was found.
pub(super) struct Adopted {
    pub(super) introduced: Introduced,
    pub(super) held: Vec<HeldJob>,
}

/// Finds the host and asks it what it has; none if it is gone. Waits for as long as its process lives: it may be stopped.
pub(super) async fn adopt(number: HostNumber, process: Process, around: &Surroundings) -> Option<Adopted> {
    for _ in 0..TRIES {
        if !process.is_alive() {
            return None;
        }
        match while_alive(process, ask(number, around)).await? {
            Ok(adopted) => {
                info!(pid = process.pid, attempts = adopted.held.len(), "job host adopted");
                return Some(adopted);
            }
            Err(Introduction::Broken) => tokio::time::sleep(PAUSE).await,
            Err(Introduction::Wrong(reason)) => {
                warn!(pid = process.pid, reason, "job host can't be adopted and is killed");
                process.kill();
                return None;
            }
        }
    }
    warn!(pid = process.pid, "job host takes no connection and is killed");
    process.kill();
    None
}

/// What `work` comes to; none once the process is dead.
async fn while_alive<T>(process: Process, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let started = Moment::now();
    let mut is_said = false;
    loop {
        if let Ok(result) = tokio::time::timeout(LOOK_INTERVAL, &mut work).await {
            return Some(result);
        }
        if !process.is_alive() {
            return None;
        }
        if !is_said && started.elapsed() >= SILENCE {
            is_said = true;
            warn!(pid = process.pid, "job host doesn't answer; its attempts are waited for");
        }
    }
}

async fn ask(number: HostNumber, around: &Surroundings) -> Result<Adopted, Introduction> {
    let path = around.state.host_socket(number);
    let socket = connect(&path).await.map_err(|_| Introduction::Broken)?;
    let introduced = introduce(socket, &path, HOLDS_SINCE, around.orphan_grace).await?;
    let held = read_held(&introduced).await.map_err(|error| {
        if error.kind() == io::ErrorKind::InvalidData {
            Introduction::Wrong(format!("it said nonsense instead of what it has: {error}"))
        } else {
            Introduction::Broken
        }
    })?;
    Ok(Adopted { introduced, held })
}

async fn read_held(introduced: &Introduced) -> io::Result<Vec<HeldJob>> {
    let mut held = Vec::new();
    loop {
        let packet = introduced.socket.receive().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match packet.decode()? {
            FromHost::Held { attempt, notes, run } => {
                held.push(HeldJob { attempt, notes: Notes::decode(&notes), run });
            }
            FromHost::AllHeld => return Ok(held),
            other @ (FromHost::Welcome { .. }
            | FromHost::Checkpoint { .. }
            | FromHost::Began { .. }
            | FromHost::Bars { .. }
            | FromHost::Output { .. }
            | FromHost::OutputDone { .. }
            | FromHost::Ended { .. }) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{other:?}")));
            }
        }
    }
}
