//! The processes of a job: its own and all below it, whatever groups and sessions they have made for themselves.
//!
//! Job and host adopt orphans, so whoever a job's process starts stays below it while it lives, and comes to the host once it
//! has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::AttemptId;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, SysconfVar, getpgid, sysconf};

use super::kernel;

/// How long an end waits for processes that were killed. One that sleeps where no signal reaches it holds up no result.
pub(super) const STRAY_WAIT: Duration = Duration::from_secs(2);

/// The children of a process, the ended ones too.
pub(super) fn children(parent: Pid) -> Vec<Pid> {
    let mut children = Vec::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { return children };
    for task in tasks.flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw));
    }
    children
}

/// All processes below this one.
fn descendants(root: Pid) -> BTreeSet<Pid> {
    parents(root).into_keys().collect()
}

/// All processes below this one, with their parents.
fn parents(root: Pid) -> BTreeMap<Pid, Pid> {
    let mut found = BTreeMap::new();
    let mut unseen = vec![root];
    while let Some(parent) = unseen.pop() {
        for pid in children(parent) {
            // A number may show twice while a process changes its parent.
            if found.insert(pid, parent).is_none() {
                unseen.push(pid);
            }
        }
    }
    found
}

/// Signals a job's process, its group, and all processes below it that have left the group. Each is told once, since a second
/// SIGTERM often means more. The job is unreaped, so its number is nobody else's; it may have ended just now.
pub(super) fn signal(job: Pid, signal: Signal) {
    let mut others = descendants(job);
    others.insert(job);
    others.retain(|&pid| getpgid(Some(pid)) != Ok(job));
    // The group as a whole, so that nobody in it escapes by a fork.
    let _ = killpg(job, signal);
    for pid in others {
        let _ = kill(pid, signal);
    }
}

/// Kills the calling process and all processes below it.
pub(super) fn kill_own() {
    for pid in descendants(Pid::this()) {
        let _ = kill(pid, Signal::SIGKILL);
    }
    let _ = kill(Pid::this(), Signal::SIGKILL);
}

/// Memory of a job's processes together, in bytes: what is resident and their own. Shared memory and mapped files don't count.
///
/// An upper bound that is found quickly: what copies of a process have in common counts for each of them.
pub(super) fn memory(job: Pid) -> u64 {
    descendants(job).into_iter().chain([job]).map(own_bytes).sum()
}

/// The same as [`memory`], but what several processes have in common counts once. Takes a while for large processes.
pub(super) fn exact_memory(job: Pid) -> u64 {
    // Between vfork and exec a child has its parent's memory.
    let below = parents(job).into_iter().filter(|&(pid, parent)| !kernel::have_same_memory(pid, parent));
    let pids = below.map(|(pid, _)| pid).chain([job]);
    pids.map(|pid| proportional_bytes(pid).unwrap_or_else(|| own_bytes(pid))).sum()
}

fn own_bytes(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut numbers = text.split_ascii_whitespace().skip(1).map_while(|number| number.parse::<u64>().ok());
    let (resident, shared) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|bytes| u64::try_from(bytes).ok());
    resident.saturating_sub(shared) * page.unwrap_or(4096)
}

/// A process's own memory, each page divided by the number of those that have it; none before Linux 5.4.
fn proportional_bytes(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

/// What ended jobs have left behind, and which of their ends wait for it to be gone.
#[derive(Default)]
pub(super) struct Strays {
    /// Adopted and killed, not yet reaped.
    known: BTreeSet<Pid>,
    waiting: BTreeMap<AttemptId, Waiting>,
}

struct Waiting {
    processes: BTreeSet<Pid>,
    until: Moment,
}

impl Strays {
    /// Processes were reaped, jobs' among them. `adopted` are the host's present children less its jobs.
    ///
    /// Returns those that are to be killed. What comes from a killed stray, its children, is waited for by whoever waited
    /// for it.
    pub(super) fn adopt(
        &mut self,
        ended: &[AttemptId],
        reaped: &BTreeSet<Pid>,
        adopted: BTreeSet<Pid>,
        now: Moment,
    ) -> Vec<Pid> {
        self.known.retain(|pid| !reaped.contains(pid));
        let fresh: Vec<Pid> = adopted.difference(&self.known).copied().collect();
        for waiting in self.waiting.values_mut() {
            let before = waiting.processes.len();
            waiting.processes.retain(|pid| !reaped.contains(pid));
            if waiting.processes.len() < before {
                waiting.processes.extend(&fresh);
            }
        }
        for attempt in ended {
            let processes = fresh.iter().copied().collect();
            self.waiting.insert(*attempt, Waiting { processes, until: now + STRAY_WAIT });
        }
        self.known.extend(&fresh);
        fresh
    }

    /// The attempts whose processes are all gone, or have been waited for long enough. Each is returned once.
    pub(super) fn gone(&mut self, now: Moment) -> Vec<AttemptId> {
        let is_gone = |waiting: &Waiting| waiting.processes.is_empty() || waiting.until <= now;
        self.waiting.extract_if(.., |_, waiting| is_gone(waiting)).map(|(attempt, _)| attempt).collect()
    }

    /// Whether this attempt's end still waits.
    pub(super) fn waits(&self, attempt: AttemptId) -> bool {
        self.waiting.contains_key(&attempt)
    }

    /// When to ask again for those that are [`gone`](Self::gone).
    pub(super) fn next(&self) -> Option<Moment> {
        self.waiting.values().map(|waiting| waiting.until).min()
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::ids::SessionId;

    use super::*;

    fn attempt(sequence: u64) -> AttemptId {
        AttemptId { job: SessionId(1).job(sequence), attempt: 1 }
    }

    fn pids<const N: usize>(numbers: [i32; N]) -> BTreeSet<Pid> {
        numbers.map(Pid::from_raw).into()
    }

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert!(children(Pid::this()).contains(&pid) && descendants(Pid::this()).contains(&pid));
        assert!(!kernel::have_same_memory(pid, Pid::this()));
        assert!(kernel::have_same_memory(Pid::this(), Pid::this()));
        let (roughly, exactly) = (memory(Pid::this()), exact_memory(Pid::this()));
        assert!((100_000..=roughly + (1 << 20)).contains(&exactly), "{exactly} of {roughly}");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children(Pid::this()).contains(&pid));
    }

    #[test]
    fn an_end_waits_for_strays_and_for_what_they_leave() {
        let (mut strays, now) = (Strays::default(), Moment::from_nanos(1));
        assert!(strays.adopt(&[attempt(1)], &pids([10]), pids([]), now).is_empty());
        assert_eq!(strays.gone(now), [attempt(1)]);

        // Two of one job; a second job ends meanwhile and isn't held up by them.
        assert_eq!(strays.adopt(&[attempt(2)], &pids([20]), pids([21, 22]), now).len(), 2);
        assert!(strays.gone(now).is_empty() && strays.waits(attempt(2)));
        assert!(strays.adopt(&[attempt(3)], &pids([30]), pids([21, 22]), now).is_empty());
        assert_eq!(strays.gone(now), [attempt(3)]);

        // The first one's child is adopted as it dies.
        let fresh = strays.adopt(&[], &pids([21]), pids([22, 23]), now);
        assert_eq!(fresh, [Pid::from_raw(23)]);
        strays.adopt(&[], &pids([22]), pids([23]), now);
        assert!(strays.gone(now).is_empty());
        strays.adopt(&[], &pids([23]), pids([]), now);
        assert_eq!(strays.gone(now), [attempt(2)]);
        assert_eq!((strays.next(), strays.waits(attempt(2))), (None, false));
    }

    #[test]
    fn a_stray_that_cannot_be_killed_is_waited_for_once_and_not_for_ever() {
        let (mut strays, now) = (Strays::default(), Moment::from_nanos(1));
        strays.adopt(&[attempt(1)], &pids([10]), pids([11]), now);
        assert_eq!(strays.next(), Some(now + STRAY_WAIT));
        assert!(strays.gone(now).is_empty());
        assert_eq!(strays.gone(now + STRAY_WAIT), [attempt(1)]);
        assert!(strays.adopt(&[attempt(2)], &pids([20]), pids([11]), now).is_empty());
        assert_eq!(strays.gone(now), [attempt(2)]);
    }
}
