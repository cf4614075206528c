//! What a worker keeps of attempts until the scheduler has it for good.

use bytes::Bytes;
use lrts_core::protocol::codec;
use lrts_core::protocol::host::{FromHost, Output, Payload, ToHost};
use lrts_core::protocol::worker::{AttemptEnd, FromWorker, ToWorker};
use lrts_core::spool::{self, Spool};

use crate::fake::{FakeHost, Notes, finished, running};
use crate::found::{HOUR, left_host};
use crate::jobs::wait;
use crate::support::{Scheduler, Worker, attempt, installed, until};

fn checkpoint(sequence: u64, state: &[u8]) -> FromHost {
    FromHost::Checkpoint { attempt: attempt(sequence), state: Payload::Inline(state.to_vec()) }
}

async fn checkpoint_told(scheduler: &mut Scheduler, sequence: u64, state: &'static [u8]) {
    let told = (FromWorker::Checkpoint { attempt: attempt(sequence) }, Bytes::from_static(state));
    assert_eq!(scheduler.next().await, told);
}

/// A worker that has adopted the host, which runs attempts 1 and 2.
async fn adopted() -> (Scheduler, Worker, FakeHost) {
    let (directory, mut host) = left_host();
    let mut scheduler = Scheduler::start().await;
    let worker = Worker::start_in(directory, &scheduler, 3, HOUR);
    host.meet(&[(1, Notes::new(), running(77)), (2, Notes::new(), running(78))]).await;
    scheduler.register(Vec::new()).await;
    for sequence in [1, 2] {
        assert_eq!(host.next().await.0, ToHost::ReadCheckpoint { attempt: attempt(sequence) });
    }
    (scheduler, worker, host)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checkpoint_of_an_attempt_that_ends_unregistered_goes_ahead_of_its_end() {
    let (mut scheduler, _worker, mut host) = adopted().await;
    host.say(&checkpoint(1, b"first")).await;
    checkpoint_told(&mut scheduler, 1, b"first").await;
    scheduler.disconnect();
    // The scheduler may not have received the one that was sent.
    for sequence in [1, 2] {
        assert_eq!(host.next().await.0, ToHost::ReadCheckpoint { attempt: attempt(sequence) });
    }
    scheduler.next_registration().await;
    for notice in [checkpoint(1, b"first"), checkpoint(1, b"second"), finished(attempt(1))] {
        host.say(&notice).await;
    }
    // Answered once the end is known.
    scheduler.send(&ToWorker::FetchOutput { request: 1, attempt: attempt(1) }, Bytes::new());
    assert_eq!(scheduler.next().await.0, FromWorker::Output { request: 1, bytes: Some((0, 0)) });
    scheduler.answer(crate::support::STORE, Vec::new());
    checkpoint_told(&mut scheduler, 1, b"second").await;
    scheduler.ended(1).await;

    scheduler.disconnect();
    scheduler.register(Vec::new()).await;
    checkpoint_told(&mut scheduler, 1, b"second").await;
    scheduler.ended(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_keeps_its_copy_of_an_end_until_the_scheduler_has_it() {
    let (mut scheduler, _worker, mut host) = adopted().await;
    host.say(&finished(attempt(1))).await;
    scheduler.ended(1).await;
    host.say(&finished(attempt(1))).await;
    // What comes behind it has arrived, so it has too.
    host.say(&checkpoint(2, b"state")).await;
    checkpoint_told(&mut scheduler, 2, b"state").await;
    scheduler.order(3, installed(), "wait", &wait());
    scheduler.confirm(1);
    let mut orders = Vec::new();
    while orders.last() != Some(&ToHost::Confirm { attempt: attempt(1) }) {
        orders.push(host.next_order().await);
    }
    let starts = orders.iter().position(|order| matches!(order, ToHost::Start(_)));
    assert!(starts.is_some(), "nothing is confirmed before the scheduler has: {orders:?}");
    let releases = orders.iter().filter(|order| matches!(order, ToHost::ReleaseRegion { .. })).count();
    assert!(releases <= 1, "{orders:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_cannot_be_read_now_is_read_later_and_holds_nobody_up() {
    let (mut scheduler, worker, host) = adopted().await;
    let path = Spool::open(worker.state.join("spool")).unwrap().path(attempt(1));
    // Reading it is an error that may pass.
    std::fs::create_dir(&path).unwrap();
    let FromHost::Ended { attempt: ended, end, ran, .. } = finished(attempt(1)) else { unreachable!() };
    let output = Output::Spool { bytes: 5 };
    let end = FromHost::Ended { attempt: ended, end, output, ran, peak_memory_bytes: 1, region: None };
    host.say(&end).await;
    host.say(&finished(attempt(2))).await;
    scheduler.ended(2).await;
    std::fs::remove_dir(&path).unwrap();
    // As whoever else writes there: whole or not at all.
    std::fs::write(path.with_extension("part"), "large").unwrap();
    std::fs::rename(path.with_extension("part"), &path).unwrap();
    let (ended, [output, ..]) = scheduler.ended(1).await;
    assert_eq!((ended.end, &output[..]), (AttemptEnd::Finished, &b"large"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_results_cannot_be_written_down_is_left_to_keep_them() {
    let (mut scheduler, worker, mut host) = adopted().await;
    host.say(&finished(attempt(1))).await;
    scheduler.ended(1).await;
    std::fs::remove_dir(worker.state.join("spool")).unwrap();
    worker.shutdown.request_at_once();
    worker.end().await.unwrap();
    assert!(host.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gets_impatient_while_hosts_end_leaves_none_behind() {
    let (mut scheduler, worker, mut host) = adopted().await;
    worker.shutdown.request();
    for sequence in [1, 2] {
        assert!(matches!(host.next_order().await, ToHost::Stop { .. }));
        host.say(&finished(attempt(sequence))).await;
        scheduler.ended(sequence).await;
    }
    scheduler.confirm(1);
    scheduler.confirm(2);
    assert_eq!(scheduler.next().await.0, FromWorker::Goodbye);
    // It doesn't do what it is told.
    while host.next_order().await != ToHost::End {}
    worker.shutdown.request_at_once();
    worker.end().await.unwrap();
    until("the host is killed", || !host.is_running()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_connection_breaks_is_met_again_and_hears_what_it_has_missed() {
    let (mut scheduler, _worker, mut host) = adopted().await;
    host.say_nonsense().await;
    host.say(&checkpoint(2, b"state")).await;
    checkpoint_told(&mut scheduler, 2, b"state").await;
    scheduler.order(3, installed(), "wait", &wait());
    assert!(matches!(host.next_order().await, ToHost::Start(_)));
    scheduler.send(&ToWorker::Stop { attempt: attempt(1), at_once: true }, Bytes::new());
    let stop = ToHost::Stop { attempt: attempt(1), grace: std::time::Duration::ZERO };
    assert_eq!(host.next_order().await, stop);
    host.hang_up();
    assert!(host.is_running());
    host.meet(&[(1, Notes::new(), running(77)), (2, Notes::new(), running(78))]).await;
    // The third one's order has gone with the connection.
    let (ended, _) = scheduler.ended(3).await;
    assert!(matches!(ended.end, AttemptEnd::Lost { .. }), "{:?}", ended.end);
    assert_eq!(host.next_order().await, stop);
    host.say(&finished(attempt(2))).await;
    assert_eq!(scheduler.ended(2).await.0.end, AttemptEnd::Finished);
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_that_a_host_has_written_down_are_told_even_if_it_dies_before_it_says_them() {
    let (mut scheduler, worker, mut host) = adopted().await;
    let path = Spool::open(worker.state.join("spool")).unwrap().path(attempt(1));
    let notices = [checkpoint(1, b"last"), finished(attempt(1))];
    spool::write_end(&path, &notices.map(|notice| codec::encode(&notice))).unwrap();
    host.die();
    checkpoint_told(&mut scheduler, 1, b"last").await;
    assert_eq!(scheduler.ended(1).await.0.end, AttemptEnd::Finished);
    let (ended, _) = scheduler.ended(2).await;
    assert!(matches!(ended.end, AttemptEnd::Lost { .. }), "{:?}", ended.end);
}
