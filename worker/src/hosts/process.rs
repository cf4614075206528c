//! A process that may be somebody else's child: its number and when it started, which together name it for good.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A process of this boot of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: u32,
    /// When it started, in the kernel's clock ticks since boot.
    started: u64,
}

impl Process {
    /// The one that has this number now; none if there is none, or it has ended and is not reaped.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = Stat::of(pid)?;
        (!stat.is_dead).then_some(Self { pid, started: stat.started })
    }

    /// Whether it runs, or is stopped.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Kills it, if it is there.
    pub(crate) fn kill(self) {
        if self.is_alive() {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

/// Some of what the kernel tells of a process, see proc_pid_stat(5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stat {
    /// Whether it has ended and is not reaped.
    pub(super) is_dead: bool,
    pub(super) parent: u32,
    pub(super) session: u32,
    started: u64,
}

impl Stat {
    pub(super) fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The program's name may contain anything, but it is the last thing in parentheses.
        let fields: Vec<_> = stat.rsplit(") ").next()?.split_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            is_dead: matches!(*fields.first()?, "Z" | "X"),
            parent: u32::try_from(number(1)?).ok()?,
            session: u32::try_from(number(3)?).ok()?,
            started: number(19)?,
        })
    }
}

/// The numbers of all processes.
pub(super) fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_of_its_number() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.is_alive());
        let other = Process { started: process.started + 1, ..process };
        assert!(!other.is_alive());
        other.kill();
        assert!(child.try_wait().unwrap().is_none(), "the other one was meant");
        process.kill();
        assert!(child.wait().unwrap().code().is_none());
        assert!(!process.is_alive() && Process::of(process.pid).is_none());
    }

    #[test]
    fn names_of_programs_confuse_nobody() {
        let stat = Stat::parse("7 (a) S (b) Z 5 7 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345 0").unwrap();
        assert_eq!(stat, Stat { is_dead: true, parent: 5, session: 9, started: 12345 });
        assert_eq!(Stat::parse("nonsense"), None);
    }
}
