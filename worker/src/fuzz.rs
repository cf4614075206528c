//! For fuzzers, see `lrts_core::fuzz`: what a worker finds in its state directory.

use lrts_core::fuzz::{Input, Target, round_trip};
use lrts_core::ids::{AttemptId, SessionId};
use lrts_core::spool;

use crate::hosts::{HostRecord, LeftEnd, Notes};
use crate::state_dir;

/// The targets of this crate.
pub const TARGETS: &[Target] = &[("worker_files", worker_files)];

/// One file of a state directory: a byte says which.
pub fn worker_files(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.byte() % 5 {
        0 => {
            round_trip::<HostRecord>(input.rest());
        }
        1 => {
            let notes = input.rest();
            assert_eq!(Notes::decode(notes).is_some(), round_trip::<Notes>(notes));
        }
        2 => {
            let attempt = AttemptId { job: SessionId(input.number()).job(input.number()), attempt: 1 };
            let Some(notices) = spool::split(input.rest()) else { return };
            if let Ok(end) = LeftEnd::of(attempt, &notices) {
                assert_eq!(end.ended.attempt, attempt);
            }
        }
        3 => {
            if let Some(secret) = state_dir::parse_secret(&String::from_utf8_lossy(input.rest())) {
                let again = state_dir::parse_secret(&secret.to_hex());
                assert!(again.is_some_and(|again| again.worker() == secret.worker()));
            }
        }
        _ => {
            if let Some(store) = state_dir::parse_store(&String::from_utf8_lossy(input.rest())) {
                assert_eq!(state_dir::parse_store(&format!("{store:016x}\n")), Some(store));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lrts_core::fuzz::{Script, check_corpora, keep};
    use lrts_core::protocol::codec::encode;
    use lrts_core::protocol::host::{FromHost, Output, Payload};
    use lrts_core::protocol::progress::{BarNumbers, BarRecord, BarText};
    use lrts_core::protocol::worker::AttemptEnd;
    use lrts_core::spec::BundleRef;
    use lrts_core::status::{Failure, FailureKind};

    use super::*;

    #[test]
    fn what_is_kept_for_fuzzers_does_no_harm() {
        keep("worker_files", files());
        check_corpora(TARGETS);
    }

    fn files() -> Vec<Vec<u8>> {
        let attempt = AttemptId { job: SessionId(5).job(17), attempt: 1 };
        let bundle = BundleRef::Installed("tools".into());
        let process = crate::hosts::Process::of(std::process::id()).unwrap();
        let record = HostRecord { bundle, process, boot_id: "c0ffee".into() };
        let notes = Notes {
            application: "nightly".parse().unwrap(),
            owner: Some("ann".parse().unwrap()),
            service: "mult".into(),
            slots: 2,
            exclusive: true,
            store: 77,
            progress_rtt_test: Duration::from_secs(10),
        };
        let bar = BarRecord { index: 0, text: BarText::default(), numbers: BarNumbers::default() };
        let notices = [
            FromHost::Held { attempt, notes: encode(&notes).into(), run: None },
            FromHost::Checkpoint { attempt, state: Payload::Inline(vec![4]) },
            FromHost::Bars { attempt, bars: vec![bar] },
            FromHost::Output { attempt, stderr: true, text: b"last words".to_vec() },
            FromHost::Ended {
                attempt,
                end: AttemptEnd::Failed(Failure::new(FailureKind::Crashed, "killed by signal 11")),
                output: Output::Spool { bytes: 5 << 20 },
                ran: Duration::from_secs(1),
                peak_memory_bytes: 1 << 20,
                region: None,
            },
        ];
        let notices = notices.map(|notice| encode(&notice));
        let end = |notices: &[bytes::Bytes]| {
            let script = Script::new().byte(2).number(attempt.job.session.0).number(attempt.job.sequence);
            script.rest(&spool::join(notices))
        };
        let file = |kind, content: &[u8]| Script::new().byte(kind).rest(content);
        let files = [
            file(0, &encode(&record)),
            file(1, &encode(&notes)),
            end(&notices),
            end(&notices[..4]),
            end(&notices[4..]),
            file(3, format!("{}\n", "2a".repeat(32)).as_bytes()),
            file(3, format!("+{}", "2a".repeat(32)).as_bytes()),
            file(4, b"ffffffffffffffff\n"),
            file(4, b"\xff"),
        ];
        files.map(Script::bytes).into()
    }
}
