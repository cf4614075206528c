//! What became of an attempt, from all that is known of it once its process is gone.

use lrts_core::protocol::host::Output;
use lrts_core::protocol::worker::{AttemptEnd, LEASE_ENDED};
use lrts_core::status::{Failure, FailureKind};
use nix::sys::signal::Signal;

use super::notices::Done;
use super::tail::last_lines;

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// All that is known of an ended process.
#[derive(Debug)]
pub(super) struct Evidence<'a> {
    /// Its last notice, if it came to that.
    pub(super) done: Option<Done>,
    /// The last panic of the job's thread, caught or not.
    pub(super) panic: Option<String>,
    /// How the process ended.
    pub(super) exit: Exit,
    /// The limit that it was ended for.
    pub(super) exceeded: Option<Failure>,
    /// Whether it was to stop.
    pub(super) stopped: bool,
    /// Whether it was killed because no worker had come.
    pub(super) abandoned: bool,
    /// Whether its watchdog has ended it.
    pub(super) lease_ended: bool,
    /// Whether the kernel has killed processes for want of memory meanwhile.
    pub(super) out_of_memory: bool,
    /// The end of its stderr.
    pub(super) stderr: &'a [u8],
}

/// How the attempt ended, and its output.
pub(super) fn verdict(evidence: Evidence<'_>) -> (AttemptEnd, Output) {
    let by_itself = matches!(evidence.exit, Exit::Code(_));
    let end = match (evidence.done, evidence.exceeded) {
        // A result that is there counts, even if the order to stop was under way.
        (Some(Done::Finished(output)), _) if by_itself => return (AttemptEnd::Finished, output),
        (_, Some(failure)) => AttemptEnd::Failed(failure),
        _ if evidence.stopped => AttemptEnd::Stopped,
        // Its watchdog kills its other processes first, of which it may have died in any way.
        _ if evidence.lease_ended => AttemptEnd::Lost { reason: LEASE_ENDED.to_owned() },
        _ if evidence.abandoned && !by_itself => AttemptEnd::Lost { reason: "no worker came".to_owned() },
        (Some(Done::Failed(failure)), _) if by_itself => AttemptEnd::Failed(failure),
        (Some(Done::Lost { reason }), _) if by_itself => AttemptEnd::Lost { reason },
        _ if evidence.out_of_memory && evidence.exit == Exit::Signal(libc::SIGKILL) => AttemptEnd::Lost {
            reason: "killed by signal 9 (SIGKILL) while the machine was out of memory".to_owned(),
        },
        _ => AttemptEnd::Failed(match evidence.panic {
            // A panic that the program can't unwind from: `panic = "abort"`, or one within another.
            Some(message) if evidence.exit == Exit::Signal(libc::SIGABRT) => {
                Failure::new(FailureKind::Panic, message)
            }
            _ => Failure::new(FailureKind::Crashed, crash_message(evidence.exit, evidence.stderr)),
        }),
    };
    (end, Output::default())
}

fn crash_message(exit: Exit, stderr: &[u8]) -> String {
    let mut message = match exit {
        Exit::Code(code) => format!("exited with code {code} without a result"),
        Exit::Signal(number) => match Signal::try_from(number) {
            Ok(signal) => format!("killed by signal {number} ({signal})"),
            Err(_) => format!("killed by signal {number}"),
        },
    };
    let lines = last_lines(stderr);
    if !lines.is_empty() {
        message.push_str("; last lines of stderr:\n");
        message.push_str(&lines);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(done: Option<Done>, exit: Exit) -> Evidence<'static> {
        Evidence {
            done,
            panic: None,
            exit,
            exceeded: None,
            stopped: false,
            abandoned: false,
            lease_ended: false,
            out_of_memory: false,
            stderr: b"",
        }
    }

    fn finished() -> Option<Done> {
        Some(Done::Finished(Output::Inline(vec![1])))
    }

    fn failure(kind: FailureKind, message: &str) -> AttemptEnd {
        AttemptEnd::Failed(Failure::new(kind, message))
    }

    #[test]
    fn a_value_counts_even_if_the_order_to_stop_was_under_way() {
        let (end, output) = verdict(Evidence { stopped: true, ..evidence(finished(), Exit::Code(0)) });
        assert_eq!((end, output), (AttemptEnd::Finished, Output::Inline(vec![1])));
    }

    #[test]
    fn a_process_that_dies_over_its_last_notice_has_crashed() {
        let (end, output) = verdict(evidence(finished(), Exit::Signal(libc::SIGSEGV)));
        assert_eq!(end, failure(FailureKind::Crashed, "killed by signal 11 (SIGSEGV)"));
        assert_eq!(output, Output::default());
    }

    #[test]
    fn whatever_a_stopped_job_does_it_was_stopped() {
        let error = || Some(Done::Failed(Failure::new(FailureKind::Error, "cancelled")));
        for (done, exit) in [(error(), Exit::Code(0)), (None, Exit::Signal(9)), (None, Exit::Code(3))] {
            let (end, _) = verdict(Evidence { stopped: true, out_of_memory: true, ..evidence(done, exit) });
            assert_eq!(end, AttemptEnd::Stopped);
        }
    }

    #[test]
    fn a_limit_counts_unless_there_is_a_value() {
        let limit = || Some(Failure::new(FailureKind::TimedOut, "ran too long"));
        let limited = |done, exit| {
            verdict(Evidence { exceeded: limit(), stopped: true, lease_ended: true, ..evidence(done, exit) })
                .0
        };
        assert_eq!(limited(finished(), Exit::Code(0)), AttemptEnd::Finished);
        let error = Some(Done::Failed(Failure::new(FailureKind::Error, "cancelled")));
        for (done, exit) in [(error, Exit::Code(0)), (None, Exit::Signal(9)), (finished(), Exit::Signal(9))] {
            assert_eq!(limited(done, exit), failure(FailureKind::TimedOut, "ran too long"));
        }
    }

    #[test]
    fn nobody_is_charged_for_a_lease_that_ended() {
        let error = || Some(Done::Failed(Failure::new(FailureKind::Error, "broken pipe")));
        let end = |done, exit| verdict(Evidence { lease_ended: true, ..evidence(done, exit) }).0;
        for (done, exit) in [(None, Exit::Signal(9)), (None, Exit::Signal(11)), (error(), Exit::Code(0))] {
            assert_eq!(end(done, exit), AttemptEnd::Lost { reason: "its lease ended".to_owned() });
        }
        assert_eq!(end(finished(), Exit::Code(0)), AttemptEnd::Finished);
    }

    #[test]
    fn what_a_job_did_before_its_host_gave_up_counts() {
        let end = |done, exit| verdict(Evidence { abandoned: true, ..evidence(done, exit) }).0;
        assert_eq!(end(None, Exit::Signal(9)), AttemptEnd::Lost { reason: "no worker came".to_owned() });
        assert_eq!(end(finished(), Exit::Code(0)), AttemptEnd::Finished);
        assert!(matches!(end(None, Exit::Code(3)), AttemptEnd::Failed(_)));
    }

    #[test]
    fn deaths_are_told_apart() {
        let end = |exit, panic: Option<&str>, out_of_memory| {
            let panic = panic.map(str::to_owned);
            verdict(Evidence { panic, out_of_memory, stderr: b"one\ntwo\n", ..evidence(None, exit) }).0
        };
        let crashed = |message: &str| {
            failure(FailureKind::Crashed, &format!("{message}; last lines of stderr:\none\ntwo"))
        };
        assert_eq!(end(Exit::Code(3), None, false), crashed("exited with code 3 without a result"));
        assert_eq!(end(Exit::Signal(9), None, false), crashed("killed by signal 9 (SIGKILL)"));
        assert_eq!(end(Exit::Signal(40), None, false), crashed("killed by signal 40"));
        assert!(matches!(end(Exit::Signal(9), None, true), AttemptEnd::Lost { .. }));
        assert_eq!(end(Exit::Signal(11), None, true), crashed("killed by signal 11 (SIGSEGV)"));
        let panicked = failure(FailureKind::Panic, "oops at a.rs:1");
        assert_eq!(end(Exit::Signal(6), Some("oops at a.rs:1"), false), panicked);
        assert_eq!(end(Exit::Code(3), Some("caught"), false), crashed("exited with code 3 without a result"));
    }
}
