//! What host, job and the programs that a job starts get from those before them.

use std::process::Command;

use nix::unistd::Pid;

use crate::services::{Inherited, Look, descriptors};
use crate::worker::{LONG, Worker, attempt, start, value};

/// Variables that the host is started with and no job is to see.
const SECRETS: [&str; 6] = [
    "LRTS_KEYS",
    "LRTS_SCHEDULER",
    "NOTIFY_SOCKET",
    "CREDENTIALS_DIRECTORY",
    "SSH_AUTH_SOCK",
    "INVOCATION_ID",
];

/// A worker whose host was started with descriptors 7 and 9 open, and with variables that are not for jobs.
fn careless(threads: bool) -> Worker {
    Worker::with_host(LONG, |listener| {
        let mut command = Command::new("sh");
        let script = "exec 7</dev/zero 9>>/dev/zero; exec \"$0\"";
        command.args(["-c", script]).arg(std::env::current_exe().unwrap());
        for name in SECRETS {
            command.env(name, "secret");
        }
        command.env("HARMLESS", "yes");
        start(command, listener, threads)
    })
}

fn kinds(descriptors: &[(i32, String)]) -> Vec<&str> {
    descriptors.iter().map(|(_, target)| target.split(':').next().unwrap_or_default()).collect()
}

#[test]
fn a_forked_job_has_its_streams_and_its_socket() {
    let mut worker = careless(false);
    assert!(worker.forks);
    let (host, seen) = look(&mut worker);
    assert_eq!(seen.descriptors.last().unwrap().0, 3);
    // Its streams, then an event for ended children, a poll, the listener and the worker, the job that runs, and the arena.
    let mut held = kinds(&host[3..]);
    held.sort_unstable();
    let wanted = ["/memfd", "anon_inode", "anon_inode", "pipe", "pipe", "socket", "socket", "socket"];
    assert_eq!(held, wanted, "{host:?}");
}

#[test]
fn a_spawned_job_has_its_streams_and_its_socket() {
    let mut worker = careless(true);
    assert!(!worker.forks);
    look(&mut worker);
}

fn look(worker: &mut Worker) -> (Vec<(i32, String)>, Inherited) {
    // Another job is there meanwhile, whose descriptors are its own business.
    let other = worker.start(1, &crate::services::Await);
    worker.until_ready(other);
    let seen: Inherited = value(worker.run(2, &Look));
    assert_eq!(kinds(&seen.descriptors), ["/dev/null", "pipe", "pipe", "socket"], "{:?}", seen.descriptors);
    assert_eq!(kinds(&seen.of_program), ["/dev/null", "pipe", "pipe"], "{:?}", seen.of_program);
    for (descriptors, what) in [(&seen.descriptors, "job"), (&seen.of_program, "program")] {
        let standard: Vec<_> = descriptors.iter().map(|(number, _)| *number).take(3).collect();
        assert_eq!(standard, [0, 1, 2], "{what}");
    }

    let name = |(name, _): &(String, String)| name.clone();
    let names: Vec<_> = seen.environment.iter().map(name).collect();
    assert!(!names.iter().any(|name| SECRETS.contains(&&**name) || name.starts_with("LRTS_")), "{names:?}");
    for (name, value) in [("HARMLESS", "yes"), ("GREETING", "hello")] {
        assert!(seen.environment.contains(&(name.to_owned(), value.to_owned())), "{:?}", seen.environment);
    }
    assert!(!seen.environment.iter().any(|(_, value)| value.contains("secret")));
    assert!(!seen.command_line.contains("secret"));
    (descriptors(Pid::from_raw(worker.host.id().cast_signed())), seen)
}

#[test]
fn a_jobs_options_choose_no_mode() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        worker.start_with(1, &Look, |start| {
            start.env =
                vec![("LRTS_MODE".to_owned(), "application".to_owned()), ("A".to_owned(), "1".to_owned())];
        });
        let seen: Inherited = value(worker.end(attempt(1)));
        let set =
            |name: &str| seen.environment.iter().find(|(set, _)| set == name).map(|(_, value)| &**value);
        assert_eq!((set("A"), set("LRTS_MODE")), (Some("1"), None));
    }
}

#[test]
fn a_host_closes_what_it_had_for_a_job_that_has_ended() {
    let mut worker = Worker::new();
    let host = Pid::from_raw(worker.host.id().cast_signed());
    let _: Inherited = value(worker.run(1, &Look));
    let idle = descriptors(host);
    for sequence in 2..=4 {
        let _: Inherited = value(worker.run(sequence, &Look));
    }
    assert_eq!(descriptors(host).len(), idle.len(), "{idle:?}");
}
