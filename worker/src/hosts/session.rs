//! What a job host leaves that was killed. Its jobs die with it, but not the programs that they have started: those are found
//! by their session, which a host has for itself.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How many times they are looked for: one may start another in the meantime.
const ROUNDS: u32 = 10;

/// Kills the processes of a session whose leader is gone. As long as there is one, the kernel gives the session's number to
/// nobody else. A process that has made a session of its own is not found.
pub(super) fn kill_session(leader: u32) {
    for _ in 0..ROUNDS {
        let members = members(leader);
        if members.is_empty() {
            return;
        }
        for member in members {
            // It may have ended by itself.
            let _ = kill(member, Signal::SIGKILL);
        }
    }
}

/// The processes of a session, zombies aside.
fn members(leader: u32) -> Vec<Pid> {
    // Number 0 is the session of whatever was started outside a container.
    if leader == 0 {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| session_of(*pid) == Some(leader)).map(Pid::from_raw).collect()
}

/// The session of a process that is no zombie.
fn session_of(pid: i32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may contain anything, but it is the last thing in parentheses.
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    let (state, _parent, _group, session) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if matches!(state, "Z" | "X") { None } else { session.parse().ok() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::time::Duration;

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
        let left: i32 = line.trim().parse().unwrap();
        let session = leader.id();
        assert_eq!(session_of(left), Some(session));
        leader.kill().unwrap();
        assert_eq!(leader.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));

        kill_session(session);
        assert_ne!(session_of(std::process::id().cast_signed()), Some(session));
        let start = Moment::now();
        while session_of(left).is_some() {
            assert!(start.elapsed() < Duration::from_secs(30), "still there");
            std::thread::yield_now();
        }
        assert!(members(0).is_empty());
    }
}
