//! Scenarios: what happens, in invented time, and what the engine says and gives.

mod leaving;
mod simulation;

use std::time::Duration;

use lrts_core::ids::{AttemptId, BundleDigest, WorkerId};
use lrts_core::limits::{RESULT_WINDOW, RESULT_WINDOW_BYTES, SEND_WINDOW_JOBS};
use lrts_core::protocol::application::Credit;
use lrts_core::spec::{JobOptions, Platform};
use lrts_core::status::{Failure, FailureKind};

use super::*;

const T0: Moment = Moment::from_nanos(1_000_000_000_000);
const SESSION: SessionId = SessionId(7);
const DIGEST: BundleDigest = BundleDigest([9; 32]);
const LIMIT: Duration = Duration::from_secs(5);

fn application() -> ApplicationId {
    "tests".parse().unwrap()
}

fn settings() -> Settings {
    Settings {
        application: application(),
        named: false,
        session: SESSION,
        services: vec!["add".to_owned()],
        on_disconnect: OnDisconnect::Keep,
        progress_rtt_test: Duration::from_secs(10),
        communication_time_out: Some(LIMIT),
    }
}

fn offer() -> Offer {
    Offer {
        digest: DIGEST,
        bytes: 3_000,
        platform: Platform { target: "x86_64-linux-gnu".into(), glibc: None },
    }
}

/// An engine that was started and knows its program.
fn started() -> Engine {
    let mut engine = Engine::new(settings(), T0);
    engine.handle(Event::BundleKnown(BundleRef::Shipped(DIGEST), Some(offer())), T0);
    engine
}

/// An engine whose scheduler knows nothing yet.
fn connected() -> Engine {
    let mut engine = started();
    connect(&mut engine, 0);
    engine
}

/// A new connection to a scheduler that has accepted so much.
fn connect(engine: &mut Engine, accepted_through: u64) {
    engine.handle(Event::LinkUp, T0);
    assert!(matches!(said(engine)[..], [FromApplication::Attach(_)]));
    hear(engine, ToApplication::Attached { epoch: 1, accepted_through });
}

fn hear(engine: &mut Engine, message: ToApplication) {
    engine.handle(Event::Received(message, Bytes::new()), T0);
}

/// Everything that the engine wants to send; it reads nothing.
fn said(engine: &mut Engine) -> Vec<FromApplication> {
    said_at(engine, T0)
}

fn said_at(engine: &mut Engine, now: Moment) -> Vec<FromApplication> {
    let mut said = Vec::new();
    loop {
        match engine.next_step(now) {
            Step::Send(message, _) => said.push(message),
            Step::ReadChunk(_) | Step::Idle => return said,
        }
    }
}

fn submit(engine: &mut Engine, count: usize) {
    let job = NewJob {
        service: 0,
        options: Arc::new(JobOptions::new()),
        payload: Bytes::from_static(b"x"),
        key: None,
    };
    let mut jobs = vec![job; count];
    assert!(engine.submit(&mut jobs).unwrap().is_some());
}

/// Submits jobs and lets the scheduler accept them.
fn accepted(engine: &mut Engine, count: usize) {
    submit(engine, count);
    said(engine);
    let through = engine.jobs.last();
    hear(engine, ToApplication::Accepted { through });
}

fn report() -> JobReport {
    JobReport {
        failure: None,
        attempt: 1,
        attempts: 1,
        worker: Some(WorkerId(1)),
        queued: Duration::ZERO,
        ran: Duration::ZERO,
        bars: Vec::new(),
    }
}

fn finish(engine: &mut Engine, sequence: u64) {
    finish_with(engine, sequence, b"output");
}

fn finish_with(engine: &mut Engine, sequence: u64, body: &[u8]) {
    let message = ToApplication::Result { job: SESSION.job(sequence), report: report() };
    engine.handle(Event::Received(message, Bytes::copy_from_slice(body)), T0);
}

fn set(ranges: &[(u64, u64)]) -> JobSet {
    JobSet { session: SESSION, ranges: ranges.to_vec() }
}

fn urgently(ranges: &[(u64, u64)]) -> FromApplication {
    FromApplication::Want { jobs: set(ranges), urgent: true }
}

fn wanted(ranges: &[(u64, u64)]) -> FromApplication {
    FromApplication::Want { jobs: set(ranges), urgent: false }
}

fn sequences(polled: Option<Result<Vec<Delivery>, WaitError>>) -> Vec<u64> {
    polled.unwrap().unwrap().iter().map(|delivery| delivery.number).collect()
}

fn job_error(sequence: u64, fault: JobFault) -> WaitError {
    WaitError::Job(SESSION.job(sequence), fault)
}

fn next(engine: &mut Engine, wait: WaitId) -> Option<Result<u64, WaitError>> {
    match engine.poll_each(wait, T0) {
        Next::Pending => None,
        Next::End => panic!("the stream has ended"),
        Next::Item(item) => Some(item.map(|delivery| {
            engine.returned(&[delivery.number], T0);
            delivery.number
        })),
    }
}

#[test]
fn nothing_is_said_before_the_program_and_the_scheduler_are_known() {
    let mut engine = Engine::new(settings(), T0);
    submit(&mut engine, 1);
    assert_eq!(said(&mut engine), []);
    engine.handle(Event::LinkUp, T0);
    assert_eq!(said(&mut engine), []);
    engine.handle(Event::BundleKnown(BundleRef::Shipped(DIGEST), Some(offer())), T0);

    let [FromApplication::Attach(attach)] = &said(&mut engine)[..] else {
        panic!("Attach comes first and alone")
    };

    assert_eq!(attach.credit.results, RESULT_WINDOW);
    hear(&mut engine, ToApplication::Attached { epoch: 1, accepted_through: 0 });
    assert!(matches!(
        said(&mut engine)[..],
        [FromApplication::OfferBundle { .. }, FromApplication::Submit { .. }]
    ));
    submit(&mut engine, 2);
    assert!(matches!(said(&mut engine)[..], [FromApplication::Submit { first: 2, .. }]));
}

#[test]
fn an_installed_program_is_not_offered() {
    let mut engine = Engine::new(settings(), T0);
    engine.handle(Event::BundleKnown(BundleRef::Installed("tools".into()), None), T0);
    connect(&mut engine, 0);
    submit(&mut engine, 1);
    assert!(matches!(said(&mut engine)[..], [FromApplication::Submit { .. }]));
}

#[test]
fn a_result_is_asked_for_once_its_job_is_accepted_and_confirmed_once_it_was_returned() {
    let mut engine = connected();
    submit(&mut engine, 1);
    let wait = engine.wait_for_all(vec![1], T0);
    assert!(!said(&mut engine).iter().any(|message| matches!(message, FromApplication::Want { .. })));
    hear(&mut engine, ToApplication::Accepted { through: 1 });
    assert_eq!(said(&mut engine), [urgently(&[(1, 1)])]);
    assert_eq!(engine.poll_all(wait), None);
    engine.take_actions();

    finish(&mut engine, 1);

    assert_eq!(
        engine.take_actions(),
        [Action::ShowEnded(AttemptId { job: SESSION.job(1), attempt: 1 }, vec![]), Action::Wake(wait)]
    );
    assert_eq!(sequences(engine.poll_all(wait)), [1]);
    engine.remove_wait(wait);
    assert_eq!(said_at(&mut engine, T0 + LIMIT), [], "handed out is not returned");
    engine.returned(&[1], T0);
    assert_eq!(said(&mut engine), [], "others may follow soon");
    assert_eq!(engine.next_deadline(), Some(T0 + TAKEN_DELAY));
    assert_eq!(said_at(&mut engine, T0 + TAKEN_DELAY), [FromApplication::Taken { jobs: set(&[(1, 1)]) }]);
    assert_eq!(engine.next_deadline(), None);
}

#[test]
fn a_program_travels_from_where_it_is_wanted_piece_by_piece() {
    let mut engine = connected();
    submit(&mut engine, 1);
    said(&mut engine);
    hear(&mut engine, ToApplication::BundleWanted { digest: DIGEST, offset: 1_000 });
    assert_eq!(engine.next_step(T0), Step::ReadChunk(1_000));
    assert_eq!(engine.next_step(T0), Step::Idle, "one piece at a time");
    engine.handle(Event::ChunkRead(1_000, Bytes::from_static(b"z"), 1_500), T0);
    let chunk = FromApplication::BundleChunk { digest: DIGEST, offset: 1_000, bytes: 1_500 };
    assert_eq!(engine.next_step(T0), Step::Send(chunk, Bytes::from_static(b"z")));
    assert_eq!(engine.next_step(T0), Step::ReadChunk(2_500));

    // A piece that was read for a connection that is gone is not sent on the next one.
    engine.handle(Event::LinkDown, T0);
    connect(&mut engine, 0);
    engine.handle(Event::ChunkRead(2_500, Bytes::from_static(b"z"), 500), T0);
    assert!(matches!(
        said(&mut engine)[..],
        [FromApplication::OfferBundle { .. }, FromApplication::Submit { .. }]
    ));
    hear(&mut engine, ToApplication::BundleWanted { digest: DIGEST, offset: 2_500 });
    assert_eq!(engine.next_step(T0), Step::ReadChunk(2_500));
    engine.handle(Event::ChunkRead(2_500, Bytes::from_static(b"z"), 500), T0);
    said(&mut engine);
    engine.handle(Event::ChunkRead(3_000, Bytes::new(), 0), T0);
    assert_eq!(engine.next_step(T0), Step::Idle);
}

#[test]
fn nothing_is_sent_of_a_program_from_behind_its_end() {
    let mut engine = connected();
    submit(&mut engine, 1);
    said(&mut engine);
    for offset in [3_001, u64::MAX] {
        hear(&mut engine, ToApplication::BundleWanted { digest: DIGEST, offset });
        assert_eq!(engine.next_step(T0), Step::Idle);
    }
    hear(&mut engine, ToApplication::BundleWanted { digest: DIGEST, offset: 2_999 });
    assert_eq!(engine.next_step(T0), Step::ReadChunk(2_999));
}

#[test]
fn a_refused_program_fails_its_jobs_until_the_next_connection() {
    let mut engine = connected();
    submit(&mut engine, 1);
    said(&mut engine);
    let flush = engine.wait_for_flush(T0);
    assert_eq!(engine.poll_flush(flush), None);
    let wait = engine.wait_for_all(vec![1], T0);

    hear(&mut engine, ToApplication::BundleRefused { digest: DIGEST, reason: "no space".into() });

    let refused = || job_error(1, JobFault::Refused("no space".into()));
    assert_eq!(engine.poll_all(wait), Some(Err(refused())));
    assert_eq!(engine.poll_flush(flush), Some(Err(refused())));
    let job = NewJob { service: 0, options: Arc::new(JobOptions::new()), payload: Bytes::new(), key: None };
    assert_eq!(engine.submit(&mut vec![job]), Err(WaitError::Bundle("no space".into())));
    engine.handle(Event::LinkDown, T0);
    connect(&mut engine, 0);
    submit(&mut engine, 1);
    assert!(matches!(said(&mut engine)[0], FromApplication::OfferBundle { .. }));
}

#[test]
fn a_new_connection_hears_everything_that_may_be_unknown() {
    let mut engine = connected();
    accepted(&mut engine, 5);
    let done = engine.wait_for_all(vec![2], T0);
    finish(&mut engine, 2);
    engine.poll_all(done);
    engine.returned(&[2], T0);
    let (_urgent, _stream) = (engine.wait_for_all(vec![1], T0), engine.wait_for_each(vec![3, 4], T0));
    engine.cancel(5).unwrap();
    submit(&mut engine, 1);
    engine.cancel(6).unwrap();
    said_at(&mut engine, T0 + TAKEN_DELAY);

    engine.handle(Event::LinkDown, T0);
    assert_eq!(said(&mut engine), []);
    connect(&mut engine, 5);

    let said = said(&mut engine);
    assert_eq!(
        said[..4],
        [
            urgently(&[(1, 1)]),
            wanted(&[(3, 4)]),
            FromApplication::Cancel { jobs: set(&[(5, 5)]) },
            FromApplication::Taken { jobs: set(&[(2, 2)]) },
        ]
    );
    assert!(matches!(
        said[4..],
        [FromApplication::OfferBundle { .. }, FromApplication::Submit { first: 6, .. }]
    ));
    hear(&mut engine, ToApplication::Accepted { through: 6 });
    assert_eq!(super::tests::said(&mut engine), [FromApplication::Cancel { jobs: set(&[(6, 6)]) }]);
}

#[test]
fn an_acceptance_that_was_lost_shows_at_the_next_connection() {
    let mut engine = connected();
    submit(&mut engine, 2);
    said(&mut engine);
    let flush = engine.wait_for_flush(T0);
    engine.handle(Event::LinkDown, T0);
    connect(&mut engine, 2);
    let said = said(&mut engine);
    assert!(matches!(said[..], [FromApplication::OfferBundle { .. }]), "{said:?}");
    assert_eq!(engine.poll_flush(flush), Some(Ok(())));
}

#[test]
fn a_program_is_offered_again_while_jobs_of_it_are_open() {
    let mut engine = connected();
    accepted(&mut engine, 1);
    hear(&mut engine, ToApplication::BundleComplete { digest: DIGEST });
    engine.handle(Event::LinkDown, T0);
    connect(&mut engine, 1);
    let heard = said(&mut engine);
    assert!(matches!(heard[..], [FromApplication::OfferBundle { .. }]), "{heard:?}");
    assert_eq!(said(&mut engine), [], "once");
    // The scheduler has lost it, now or later.
    for _ in 0..2 {
        hear(&mut engine, ToApplication::BundleWanted { digest: DIGEST, offset: 0 });
        assert_eq!(engine.next_step(T0), Step::ReadChunk(0));
        engine.handle(Event::ChunkRead(0, Bytes::from_static(b"z"), 3_000), T0);
        assert!(matches!(said(&mut engine)[..], [FromApplication::BundleChunk { .. }]));
        hear(&mut engine, ToApplication::BundleComplete { digest: DIGEST });
    }

    finish(&mut engine, 1);
    engine.handle(Event::LinkDown, T0);
    connect(&mut engine, 1);
    assert_eq!(said(&mut engine), [], "nobody needs it");
}

#[test]
fn jobs_that_the_scheduler_has_lost_fail_their_waits() {
    let mut engine = connected();
    accepted(&mut engine, 3);
    let (wait, stream) = (engine.wait_for_all(vec![2], T0), engine.wait_for_each(vec![1, 2, 3], T0));
    finish(&mut engine, 3);
    engine.handle(Event::LinkDown, T0);
    engine.take_actions();

    connect(&mut engine, 1);

    assert!(engine.take_actions().contains(&Action::Wake(wait)));
    assert_eq!(engine.poll_all(wait), Some(Err(job_error(2, JobFault::Lost))));
    assert_eq!(next(&mut engine, stream), Some(Ok(3)), "a result that is here is not lost");
    assert_eq!(next(&mut engine, stream), Some(Err(job_error(2, JobFault::Lost))));
    assert_eq!(next(&mut engine, stream), None);
    let late = engine.wait_for_all(vec![2], T0);
    assert_eq!(engine.poll_all(late), Some(Err(job_error(2, JobFault::Lost))));
    let flush = engine.wait_for_flush(T0);
    assert_eq!(engine.poll_flush(flush), Some(Err(job_error(2, JobFault::Lost))));
    let flush = engine.wait_for_flush(T0);
    assert_eq!(engine.poll_flush(flush), Some(Ok(())), "it was said once");
    submit(&mut engine, 1);
    let said = said(&mut engine);
    assert!(matches!(said[..], [.., FromApplication::Submit { first: 4, .. }]), "{said:?}");
}

#[test]
fn a_refused_job_leaves_the_others_alone() {
    let mut engine = connected();
    submit(&mut engine, 3);
    said(&mut engine);
    let wait = engine.wait_for_all(vec![1, 2, 3], T0);
    hear(
        &mut engine,
        ToApplication::Refused { sequence: 2, reason: "disk full".into(), cause: RefusalCause::NoRoom },
    );
    hear(&mut engine, ToApplication::Accepted { through: 3 });
    let refused = job_error(2, JobFault::Refused("disk full".into()));
    assert_eq!(engine.poll_all(wait), Some(Err(refused)));
    engine.remove_wait(wait);

    finish(&mut engine, 1);
    finish(&mut engine, 3);
    let wait = engine.wait_for_all(vec![3, 1], T0);
    assert_eq!(sequences(engine.poll_all(wait)), [1, 3]);
}

#[test]
fn a_job_beyond_what_an_application_may_have_is_refused_where_it_is_waited_for_and_flushed() {
    let mut engine = connected();
    submit(&mut engine, 1);
    said(&mut engine);
    let flush = engine.wait_for_flush(T0);
    let wait = engine.wait_for_all(vec![1], T0);
    let (reason, cause) = ("too many jobs".to_owned(), RefusalCause::Limit);
    hear(&mut engine, ToApplication::Refused { sequence: 1, reason, cause });
    hear(&mut engine, ToApplication::Accepted { through: 1 });
    let refused = || job_error(1, JobFault::Refused("too many jobs".into()));
    assert_eq!(engine.poll_flush(flush), Some(Err(refused())));
    assert_eq!(engine.poll_all(wait), Some(Err(refused())));
}

#[test]
fn an_unknown_job_is_lost_and_a_known_taken_one_is_taken() {
    let mut engine = connected();
    accepted(&mut engine, 2);
    let stream = engine.wait_for_each(vec![1, 2], T0);
    hear(&mut engine, ToApplication::Gone { job: SESSION.job(1), taken: true });
    hear(&mut engine, ToApplication::Gone { job: SESSION.job(2), taken: false });
    hear(&mut engine, ToApplication::Gone { job: SessionId(1).job(2), taken: true });
    assert_eq!(next(&mut engine, stream), Some(Err(job_error(1, JobFault::AlreadyTaken))));
    assert_eq!(next(&mut engine, stream), Some(Err(job_error(2, JobFault::Lost))));
    assert_eq!(engine.poll_each(stream, T0), Next::End);
}

#[test]
fn a_repeated_result_counts_once() {
    let mut engine = connected();
    accepted(&mut engine, 1);
    let wait = engine.wait_for_all(vec![1], T0);
    finish_with(&mut engine, 1, b"first");
    finish_with(&mut engine, 1, b"again");
    let deliveries = engine.poll_all(wait).unwrap().unwrap();
    assert_eq!(deliveries[0].body, "first");
    finish_with(&mut engine, 1, b"again");
    engine.returned(&[1], T0);
    finish_with(&mut engine, 1, b"again");
    assert!(engine.arrived.is_empty());
    let second = engine.wait_for_all(vec![1], T0);
    assert_eq!(engine.poll_all(second), Some(Err(job_error(1, JobFault::AlreadyTaken))));
}

#[test]
fn of_two_waits_for_a_job_one_gets_it() {
    let mut engine = connected();
    accepted(&mut engine, 2);
    let (one, both) = (engine.wait_for_all(vec![1], T0), engine.wait_for_all(vec![1, 2], T0));
    let stream = engine.wait_for_each(vec![1], T0);
    finish(&mut engine, 1);
    engine.take_actions();

    assert_eq!(sequences(engine.poll_all(one)), [1]);

    assert_eq!(engine.take_actions(), [Action::Wake(both)]);
    assert_eq!(engine.poll_all(both), Some(Err(job_error(1, JobFault::AlreadyTaken))));
    assert_eq!(next(&mut engine, stream), Some(Err(job_error(1, JobFault::AlreadyTaken))));
}

#[test]
fn a_dropped_wait_loses_nothing() {
    let mut engine = connected();
    accepted(&mut engine, 2);
    let wait = engine.wait_for_all(vec![1], T0);
    said(&mut engine);
    engine.remove_wait(wait);
    finish(&mut engine, 1);
    let wait = engine.wait_for_all(vec![1], T0);
    assert_eq!(said(&mut engine), [], "it is here already");
    assert_eq!(sequences(engine.poll_all(wait)), [1]);

    let wait = engine.wait_for_all(vec![2], T0);
    finish(&mut engine, 2);
    engine.remove_wait(wait);
    let wait = engine.wait_for_all(vec![2], T0);
    assert_eq!(sequences(engine.poll_all(wait)), [2]);
    assert_eq!(engine.orphan_bytes, 0);
}

#[test]
fn results_that_nobody_waits_for_are_bounded_and_come_again() {
    let mut engine = connected();
    accepted(&mut engine, 4);
    let wait = engine.wait_for_all(vec![1, 2, 3, 4], T0);
    said(&mut engine);
    engine.remove_wait(wait);
    let large = vec![0; RESULT_WINDOW_BYTES as usize / 3];
    (1..=4).for_each(|sequence| finish_with(&mut engine, sequence, &large));
    assert_eq!(engine.arrived.len(), 2);

    let wait = engine.wait_for_all(vec![1, 2, 3, 4], T0);

    assert_eq!(said(&mut engine), [urgently(&[(3, 4)])]);
    finish_with(&mut engine, 3, &large);
    finish_with(&mut engine, 4, &large);
    assert_eq!(sequences(engine.poll_all(wait)), [1, 2, 3, 4]);
}

#[test]
fn what_could_not_be_read_stays_at_the_scheduler() {
    let mut engine = connected();
    accepted(&mut engine, 1);
    let wait = engine.wait_for_all(vec![1], T0);
    said(&mut engine);
    finish(&mut engine, 1);
    engine.poll_all(wait);
    engine.remove_wait(wait);
    engine.give_back(&[1]);
    assert_eq!(said_at(&mut engine, T0 + TAKEN_DELAY), []);

    let wait = engine.wait_for_all(vec![1], T0);
    assert_eq!(said(&mut engine), [urgently(&[(1, 1)])]);
    assert_eq!(engine.poll_all(wait), None);
    finish(&mut engine, 1);
    assert_eq!(sequences(engine.poll_all(wait)), [1]);
}

#[test]
fn a_stream_gives_jobs_as_they_end_under_credit() {
    let mut engine = connected();
    accepted(&mut engine, 3);
    let stream = engine.wait_for_each(vec![1, 2, 3, 2], T0);
    assert_eq!(said(&mut engine), [wanted(&[(1, 3)])]);
    assert_eq!(next(&mut engine, stream), None);
    for sequence in [3, 1, 2] {
        finish(&mut engine, sequence);
    }
    for sequence in [3, 1, 2] {
        assert_eq!(next(&mut engine, stream), Some(Ok(sequence)));
    }
    assert_eq!(engine.poll_each(stream, T0), Next::End);
    engine.remove_wait(stream);
    assert_eq!(engine.jobs.base(), 4, "nothing is kept of jobs that are over");
}

#[test]
fn credit_comes_back_as_results_are_fetched() {
    let mut engine = connected();
    let window = u64::from(RESULT_WINDOW);
    accepted(&mut engine, 2 * window as usize);
    let stream = engine.wait_for_each((1..=2 * window).collect(), T0);
    said(&mut engine);
    (1..=window).for_each(|sequence| finish(&mut engine, sequence));
    assert_eq!(said(&mut engine), [], "the window is full");
    (1..=window / 4).for_each(|sequence| assert_eq!(next(&mut engine, stream), Some(Ok(sequence))));
    let credit = said(&mut engine);
    assert!(
        matches!(credit[..], [FromApplication::Taken { .. }, FromApplication::Credit(Credit { results, .. })] if results == RESULT_WINDOW / 4),
        "{credit:?}"
    );
}

#[test]
fn a_half_read_stream_starves_nobody() {
    let mut engine = connected();
    let window = u64::from(RESULT_WINDOW);
    accepted(&mut engine, window as usize + 3);
    let (other, job, alone) = (window + 1, window + 2, window + 3);
    let full = engine.wait_for_each((1..=window).collect(), T0);
    let starving = engine.wait_for_each(vec![other, job], T0);
    said(&mut engine);
    assert_eq!(next(&mut engine, starving), None);
    (1..=window).for_each(|sequence| finish(&mut engine, sequence));

    assert_eq!(said(&mut engine), [urgently(&[(other, job)])]);
    finish(&mut engine, other);
    assert_eq!(next(&mut engine, starving), Some(Ok(other)));

    // Nor does it starve a wait for a job of another half read stream, or one that begins only now.
    let late = engine.wait_for_each(vec![alone], T0);
    let wait = engine.wait_for_all(vec![alone], T0);
    said(&mut engine);
    assert_eq!(engine.poll_all(wait), None);
    assert_eq!(said(&mut engine), [urgently(&[(alone, alone)])]);
    finish(&mut engine, alone);
    assert_eq!(sequences(engine.poll_all(wait)), [alone]);
    engine.remove_wait(late);
    assert_eq!(next(&mut engine, full), Some(Ok(1)));
}

#[test]
fn a_stream_that_is_dropped_half_read_gives_its_credit_back() {
    let mut engine = connected();
    let window = u64::from(RESULT_WINDOW);
    accepted(&mut engine, window as usize);
    let stream = engine.wait_for_each((1..=window).collect(), T0);
    said(&mut engine);
    (1..=window).for_each(|sequence| finish(&mut engine, sequence));
    engine.remove_wait(stream);
    assert!(matches!(
        said(&mut engine)[..],
        [FromApplication::Credit(Credit { results: RESULT_WINDOW, .. })]
    ));
    let wait = engine.wait_for_all(vec![window], T0);
    assert_eq!(sequences(engine.poll_all(wait)), [window]);
}

#[test]
fn a_wait_without_a_scheduler_fails_after_the_time_limit_only() {
    let mut engine = started();
    submit(&mut engine, 1);
    let (wait, stream) = (engine.wait_for_all(vec![1], T0), engine.wait_for_each(vec![1], T0));
    assert_eq!(engine.poll_each(stream, T0), Next::Pending);
    assert_eq!(engine.next_deadline(), Some(T0 + LIMIT));
    engine.handle(Event::Tick, T0 + LIMIT / 2);
    assert_eq!(engine.poll_all(wait), None);
    engine.take_actions();

    engine.handle(Event::Tick, T0 + LIMIT);

    assert_eq!(engine.take_actions(), [Action::Wake(wait), Action::Wake(stream)]);
    assert_eq!(engine.next_deadline(), None);
    assert_eq!(engine.poll_all(wait), Some(Err(WaitError::NoScheduler(LIMIT))));
    let later = T0 + LIMIT;
    assert_eq!(engine.poll_each(stream, later), Next::Item(Err(WaitError::NoScheduler(LIMIT))));
    assert_eq!(engine.poll_each(stream, later), Next::Pending, "whoever asks again waits again");
    engine.remove_wait(wait);
    assert_eq!(engine.next_deadline(), Some(later + LIMIT));
    connect(&mut engine, 0);
    assert_eq!(engine.next_deadline(), None, "with a scheduler there is no limit");
}

#[test]
fn the_time_limit_counts_from_the_loss_of_the_connection() {
    let mut engine = connected();
    accepted(&mut engine, 1);
    engine.wait_for_all(vec![1], T0);
    engine.handle(Event::LinkDown, T0 + LIMIT * 3);
    assert_eq!(engine.next_deadline(), Some(T0 + LIMIT * 4));
}

#[test]
fn a_refusal_for_good_fails_waits_but_not_results_that_are_here() {
    let mut engine = connected();
    accepted(&mut engine, 2);
    let (here, never) = (engine.wait_for_all(vec![1], T0), engine.wait_for_all(vec![2], T0));
    let stream = engine.wait_for_each(vec![2], T0);
    finish(&mut engine, 1);
    engine.take_actions();

    engine.handle(Event::Refused(Fatal::Unauthorised("no".into())), T0);

    assert!(engine.take_actions().contains(&Action::Wake(never)));
    assert_eq!(engine.poll_all(never), Some(Err(WaitError::Fatal(Fatal::Unauthorised("no".into())))));
    assert_eq!(sequences(engine.poll_all(here)), [1]);
    assert_eq!(next(&mut engine, stream), Some(Err(WaitError::Fatal(Fatal::Unauthorised("no".into())))));
    assert_eq!(engine.poll_each(stream, T0), Next::End);
    assert_eq!(engine.submit(&mut Vec::new()), Err(WaitError::Fatal(Fatal::Unauthorised("no".into()))));
    let flush = engine.wait_for_flush(T0);
    assert_eq!(engine.poll_flush(flush), Some(Ok(())), "all that was scheduled is safe");
    assert_eq!(engine.cancel(2), Err(WaitError::Fatal(Fatal::Unauthorised("no".into()))));
}

#[test]
fn a_full_send_window_makes_submits_wait() {
    let mut engine = connected();
    submit(&mut engine, SEND_WINDOW_JOBS);
    said(&mut engine);
    let job = NewJob { service: 0, options: Arc::new(JobOptions::new()), payload: Bytes::new(), key: None };
    let mut jobs = vec![job];
    assert_eq!(engine.submit(&mut jobs), Ok(None));
    let room = engine.wait_for_room(T0);
    assert_eq!(engine.poll_room(room), None);
    engine.take_actions();
    hear(&mut engine, ToApplication::Accepted { through: 1 });
    assert_eq!(engine.take_actions(), [Action::Wake(room)]);
    assert_eq!(engine.submit(&mut jobs), Ok(Some(SEND_WINDOW_JOBS as u64 + 1)));
}

#[test]
fn stop_tells_the_scheduler_and_ends_everything_else() {
    let mut engine = connected();
    accepted(&mut engine, 2);
    let wait = engine.wait_for_all(vec![1], T0);
    finish(&mut engine, 1);

    engine.stop();

    let stop = engine.wait_for_farewell(T0);
    assert_eq!(engine.poll_all(wait), Some(Err(WaitError::Fatal(Fatal::Stopped))));
    assert_eq!(engine.poll_farewell(stop), None);
    assert_eq!(said(&mut engine), [FromApplication::Stop]);
    engine.handle(Event::LinkDown, T0);
    connect(&mut engine, 2);
    assert_eq!(said(&mut engine), [FromApplication::Stop], "it may not have heard");
    hear(&mut engine, ToApplication::Stopped);
    assert_eq!(engine.poll_farewell(stop), Some(Ok(())));
}

#[test]
fn stop_waits_for_a_scheduler_only_if_it_has_something_to_forget() {
    let mut idle = started();
    idle.stop();
    let stop = idle.wait_for_farewell(T0);
    assert_eq!(idle.poll_farewell(stop), Some(Ok(())));

    let mut busy = connected();
    accepted(&mut busy, 1);
    busy.handle(Event::LinkDown, T0);
    busy.stop();
    let stop = busy.wait_for_farewell(T0);
    assert_eq!(busy.poll_farewell(stop), None);
    busy.handle(Event::Tick, T0 + LIMIT);
    assert_eq!(busy.poll_farewell(stop), Some(Err(WaitError::NoScheduler(LIMIT))));
}

#[test]
fn failures_are_results_too() {
    let mut engine = connected();
    accepted(&mut engine, 1);
    let wait = engine.wait_for_all(vec![1], T0);
    let failed = JobReport { failure: Some(Failure::new(FailureKind::Panic, "no")), ..report() };
    hear(&mut engine, ToApplication::Result { job: SESSION.job(1), report: failed.clone() });
    assert_eq!(engine.poll_all(wait).unwrap().unwrap()[0].report, failed);
}

#[test]
fn nothing_counts_before_the_answer_to_attach() {
    let mut engine = connected();
    accepted(&mut engine, 1);
    let wait = engine.wait_for_all(vec![1], T0);
    engine.handle(Event::LinkDown, T0);
    engine.handle(Event::LinkUp, T0);
    said(&mut engine);
    hear(&mut engine, ToApplication::Gone { job: SESSION.job(1), taken: false });
    hear(&mut engine, ToApplication::Stopped);
    assert_eq!(engine.poll_all(wait), None);
}
