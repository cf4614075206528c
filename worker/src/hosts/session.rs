//! What a job host leaves that was killed. Its jobs die with it, but not the programs that they have started: those are found
//! by their session, which a host has for itself.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::process::{self, Process, Stat};

/// How many times, and how long apart, they are looked for: one may start another in the meantime, and none is gone at once.
const ROUNDS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Kills the processes of a host's session. As long as there is one, the kernel gives the session's number to nobody else. A
/// process that has made a session of its own is not found. Waits for their end for a while.
pub(super) fn kill_session(host: Process) {
    // The number is another process's by now, if the host and all of its session are long gone.
    if Process::of(host.pid).is_some_and(|process| process != host) {
        return;
    }
    for _ in 0..ROUNDS {
        let members = members(host.pid);
        if members.is_empty() {
            return;
        }
        for member in members {
            // It may have ended by itself.
            let _ = kill(member, Signal::SIGKILL);
        }
        std::thread::sleep(PAUSE);
    }
}

/// The processes of a session, zombies aside.
fn members(leader: u32) -> Vec<Pid> {
    // Number 0 is the session of whatever was started outside a container.
    if leader == 0 {
        return Vec::new();
    }
    process::all()
        .filter(|&pid| session_of(pid) == Some(leader))
        .map(|pid| Pid::from_raw(pid.cast_signed()))
        .collect()
}

/// The session of a process that is no zombie.
fn session_of(pid: u32) -> Option<u32> {
    Stat::of(pid).filter(|stat| !stat.is_dead).map(|stat| stat.session)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use lrts_core::clock::Moment;

    use super::*;

    #[test]
    fn the_programs_of_a_session_end_after_their_leader() {
        // Not being a group's leader, `setsid` makes the session without another fork.
        let script = "sleep 600 & echo $!; exec sleep 600";
        let mut leader = Command::new("setsid")
            .args(["sh", "-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(leader.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        let left: u32 = line.trim().parse().unwrap();
        let session = leader.id();
        let host = Process::of(session).unwrap();
        assert_eq!(session_of(left), Some(session));
        leader.kill().unwrap();
        assert_eq!(leader.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));

        kill_session(host);
        assert_ne!(session_of(std::process::id()), Some(session));
        let start = Moment::now();
        while session_of(left).is_some() {
            assert!(start.elapsed() < Duration::from_secs(30), "still there");
            std::thread::yield_now();
        }
        assert!(members(0).is_empty());
    }
}
