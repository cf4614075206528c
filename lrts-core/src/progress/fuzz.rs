use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::arena::Arena;
use super::is_bounded;
use super::record::{HEADER_BYTES, RECORD_BYTES};
pub(crate) use super::reporter::{Answer, Order};
use super::scan::{Scanner, Updates};
use crate::clock::Moment;
use crate::fuzz::Input;
use crate::ids::{AttemptId, SessionId};
use crate::limits::{BARS_PER_ATTEMPT, BARS_PER_BATCH, BATCH_BYTES};
use crate::protocol::codec;
use crate::protocol::progress::{FromReporter, OwnedApplication};

const NOW: Moment = Moment::from_nanos(1 << 40);

/// A job's region, into which the job writes what it likes, while the reporter and the host read it.
pub fn arena(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let arena = Arena::create(1).expect("an arena of a region");
    let descriptor = arena.descriptor().try_clone_to_owned().expect("a free descriptor");
    let mut scanner = Scanner::default();
    scanner.add_arena(0, &descriptor).expect("an arena");
    let attempt = AttemptId { job: SessionId(1).job(1), attempt: 1 };
    let application = OwnedApplication { owner: None, application: "fuzz".parse().expect("a valid id") };
    scanner.watch((0, 0), attempt, application.clone(), Duration::from_secs(10)).expect("a region");
    let memory = File::from(descriptor);
    while !input.is_empty() {
        let place = match input.byte() {
            0 => u64::from(input.byte()),
            _ => {
                (HEADER_BYTES + usize::from(input.byte()) * RECORD_BYTES) as u64 + u64::from(input.byte()) * 4
            }
        };
        memory.write_all_at(input.part(), place).expect("memory");
        for round in 0.. {
            let (updates, more) = scanner.changes(NOW);
            check(updates);
            assert!(round < 2, "a region has no more bars than two batches");
            if !more {
                break;
            }
        }
        arena.handles_cancel(0).and_then(|_| arena.lease_ended(0)).expect("a region");
    }
    let before = arena.fingerprint(0).expect("a region");
    assert_eq!(arena.fingerprint(0).expect("a region"), before);
    let bars = arena.final_bars(0, NOW).expect("a region");
    assert!(bars.len() <= BARS_PER_ATTEMPT as usize);
    assert!(
        bars.iter().all(|bar| bar.numbers.closed && bar.index < BARS_PER_ATTEMPT && is_bounded(&bar.text))
    );
    let ended = scanner.unwatch((0, 0), attempt, NOW).expect("it is watched");
    assert!(ended.updates.iter().all(|update| update.numbers.closed));
    check(vec![(application, ended.updates)]);
    // What was told once may be gone from the memory since.
    assert!(ended.had_bars || bars.is_empty());
}

/// Whether updates may be sent.
fn check(applications: Updates) {
    let bars = || applications.iter().flat_map(|(_, updates)| updates);
    assert!(bars().count() <= BARS_PER_BATCH);
    for bar in bars() {
        assert!(bar.text.as_ref().is_none_or(is_bounded));
        assert!(i64::try_from(bar.numbers.position).is_ok());
    }
    assert!(codec::encode(&FromReporter::Batch { applications }).len() <= BATCH_BYTES);
}
