//! Keys, coming back, leaving.

use super::*;

fn keyed(key: &str, digest: u64) -> NewJob {
    NewJob {
        service: 0,
        options: Arc::new(JobOptions::new()),
        payload: Bytes::from_static(b"x"),
        key: Some(Key { key: key.into(), digest }),
    }
}

fn job_of(key: &str) -> JobId {
    JobId::keyed(application(), key)
}

/// Schedules a job with a key; returns its number.
fn schedule(engine: &mut Engine, key: &str, digest: u64) -> u64 {
    assert!(engine.submit(&mut vec![keyed(key, digest)]).unwrap().is_some());
    engine.number(job_of(key))
}

fn finish_job(engine: &mut Engine, job: JobId) {
    let message = ToApplication::Result { job, report: report() };
    engine.handle(Event::Received(message, Bytes::from_static(b"output")), T0);
}

fn refused(sequence: u64, cause: RefusalCause) -> ToApplication {
    ToApplication::Refused { sequence, reason: "no".into(), cause }
}

fn urgently_one(job: JobId) -> FromApplication {
    FromApplication::Want { jobs: JobSet::one(job), urgent: true }
}

fn conflict(key: &str) -> WaitError {
    WaitError::Job(job_of(key), JobFault::KeyConflict(key.into()))
}

#[test]
fn a_job_with_a_key_goes_by_its_own_id_and_its_result_comes_as_often_as_it_is_asked_for() {
    let mut engine = connected();
    let number = schedule(&mut engine, "night", 5);
    let wait = engine.wait_for_all(vec![number], T0);
    let said_first = said(&mut engine);
    let [.., FromApplication::Submit { first: 1, keys, .. }] = &said_first[..] else {
        panic!("{said_first:?}")
    };
    assert_eq!((keys[0].index, keys[0].key.as_str(), keys[0].digest), (0, "night", 5));
    hear(&mut engine, ToApplication::Accepted { through: 1 });
    assert_eq!(said(&mut engine), [urgently_one(job_of("night"))]);

    finish_job(&mut engine, job_of("night"));

    assert_eq!(engine.poll_all(wait).unwrap().unwrap()[0].job, job_of("night"));
    engine.remove_wait(wait);
    engine.returned(&[number], T0);
    let taken = FromApplication::Taken { jobs: JobSet::one(job_of("night")) };
    assert_eq!(said_at(&mut engine, T0 + TAKEN_DELAY), [taken]);
    let again = engine.wait_for_all(vec![number], T0);
    assert_eq!(said(&mut engine), [urgently_one(job_of("night"))]);
    finish_job(&mut engine, job_of("night"));
    assert_eq!(sequences(engine.poll_all(again)), [number]);
}

#[test]
fn every_wait_for_a_job_with_a_key_gets_its_result() {
    let mut engine = connected();
    let number = schedule(&mut engine, "night", 5);
    said(&mut engine);
    hear(&mut engine, ToApplication::Accepted { through: 1 });
    let (one, other) = (engine.wait_for_all(vec![number], T0), engine.wait_for_all(vec![number], T0));
    let stream = engine.wait_for_each(vec![number], T0);
    finish_job(&mut engine, job_of("night"));
    for wait in [one, other] {
        assert_eq!(sequences(engine.poll_all(wait)), [number]);
        engine.returned(&[number], T0);
    }
    assert_eq!(next(&mut engine, stream), Some(Ok(number)));
    assert!(engine.arrived.is_empty());
}

#[test]
fn the_same_key_again_is_the_same_job_and_uses_a_sequence() {
    let mut engine = connected();
    let number = schedule(&mut engine, "night", 5);
    assert_eq!(schedule(&mut engine, "night", 5), number);
    submit(&mut engine, 1);
    assert_eq!(engine.submit(&mut vec![keyed("night", 6)]), Err(conflict("night")));
    said(&mut engine);
    let flush = engine.wait_for_flush(T0);
    hear(&mut engine, ToApplication::Accepted { through: 2 });
    assert_eq!(engine.poll_flush(flush), None);
    hear(&mut engine, ToApplication::Accepted { through: 3 });
    assert_eq!(engine.poll_flush(flush), Some(Ok(())));
    assert_eq!(engine.submit(&mut vec![keyed("night", 6)]), Err(conflict("night")));
}

#[test]
fn a_conflict_that_only_the_scheduler_knows_reaches_waits_and_flush() {
    let mut engine = connected();
    let number = schedule(&mut engine, "night", 5);
    let (wait, flush) = (engine.wait_for_all(vec![number], T0), engine.wait_for_flush(T0));
    said(&mut engine);
    hear(&mut engine, refused(1, RefusalCause::KeyConflict));
    assert_eq!(engine.poll_all(wait), Some(Err(conflict("night"))));
    assert_eq!(engine.poll_flush(flush), Some(Err(conflict("night"))));
    hear(&mut engine, ToApplication::Accepted { through: 1 });
    assert_eq!(said(&mut engine), [], "nobody asks for a job that was refused");

    // The job that has the key can be had once it was listed.
    engine.exist([job_of("night")], 0);
    let wait = engine.wait_for_all(vec![number], T0);
    assert_eq!(said(&mut engine), [urgently_one(job_of("night"))]);
    finish_job(&mut engine, job_of("night"));
    assert_eq!(sequences(engine.poll_all(wait)), [number]);
}

#[test]
fn a_job_with_a_key_that_was_refused_can_be_scheduled_again() {
    let mut engine = connected();
    let number = schedule(&mut engine, "night", 5);
    said(&mut engine);
    hear(&mut engine, refused(1, RefusalCause::NoRoom));
    hear(&mut engine, ToApplication::Accepted { through: 1 });
    let wait = engine.wait_for_all(vec![number], T0);
    let reason = JobFault::Refused("no".into());
    assert_eq!(engine.poll_all(wait), Some(Err(WaitError::Job(job_of("night"), reason))));
    engine.remove_wait(wait);

    schedule(&mut engine, "night", 6);
    let wait = engine.wait_for_all(vec![number], T0);
    said(&mut engine);
    hear(&mut engine, ToApplication::Accepted { through: 2 });
    assert_eq!(said(&mut engine), [urgently_one(job_of("night"))]);
    finish_job(&mut engine, job_of("night"));
    assert_eq!(sequences(engine.poll_all(wait)), [number]);
}

#[test]
fn a_key_whose_answer_was_lost_with_the_connection_is_submitted_once_more() {
    let mut engine = connected();
    let number = schedule(&mut engine, "night", 5);
    said(&mut engine);
    let (wait, flush) = (engine.wait_for_all(vec![number], T0), engine.wait_for_flush(T0));
    engine.handle(Event::LinkDown, T0);

    // It was accepted, or refused since the key belongs to another job: the watermark is the same.
    connect(&mut engine, 1);

    let said = said(&mut engine);
    let [.., FromApplication::Submit { first: 2, keys, .. }] = &said[..] else { panic!("{said:?}") };
    assert_eq!(keys[0].key, "night");
    assert_eq!(engine.poll_flush(flush), None);
    hear(&mut engine, refused(2, RefusalCause::KeyConflict));
    hear(&mut engine, ToApplication::Accepted { through: 2 });
    assert_eq!(engine.poll_all(wait), Some(Err(conflict("night"))));
    assert_eq!(engine.poll_flush(flush), Some(Err(conflict("night"))));
}

#[test]
fn a_key_that_was_forgotten_can_be_scheduled_again() {
    let mut engine = connected();
    let number = schedule(&mut engine, "night", 5);
    said(&mut engine);
    hear(&mut engine, ToApplication::Accepted { through: 1 });
    let wait = engine.wait_for_all(vec![number], T0);
    hear(&mut engine, ToApplication::Gone { job: job_of("night"), taken: false });
    let lost = || WaitError::Job(job_of("night"), JobFault::Lost);
    assert_eq!(engine.poll_all(wait), Some(Err(lost())));
    let flush = engine.wait_for_flush(T0);
    assert_eq!(engine.poll_flush(flush), Some(Err(lost())));

    schedule(&mut engine, "night", 6);
    said(&mut engine);
    hear(&mut engine, ToApplication::Accepted { through: 2 });
    let wait = engine.wait_for_all(vec![number], T0);
    assert_eq!(said(&mut engine), [urgently_one(job_of("night"))]);
    finish_job(&mut engine, job_of("night"));
    assert_eq!(sequences(engine.poll_all(wait)), [number]);
}

#[test]
fn jobs_of_earlier_starts_are_wanted_cancelled_and_taken_by_their_ids() {
    let mut engine = connected();
    let earlier = SessionId(3);
    let numbers: Vec<u64> = (1..=4).map(|sequence| engine.number(earlier.job(sequence))).collect();
    accepted(&mut engine, 1);
    let all = engine.wait_for_all(vec![numbers[0], 1, numbers[1]], T0);
    let stream = engine.wait_for_each(vec![numbers[2]], T0);
    engine.cancel(numbers[3]).unwrap();
    let of = |ranges: &[(u64, u64)]| JobSet { session: earlier, ranges: ranges.to_vec() };
    let expected = [
        urgently(&[(1, 1)]),
        FromApplication::Want { jobs: of(&[(1, 2)]), urgent: true },
        FromApplication::Want { jobs: of(&[(3, 3)]), urgent: false },
        FromApplication::Cancel { jobs: of(&[(4, 4)]) },
    ];
    let mut first = said(&mut engine);
    first.sort_by_key(|message| expected.iter().position(|other| other == message));
    assert_eq!(first, expected);

    finish(&mut engine, 1);
    for sequence in 1..=3 {
        finish_job(&mut engine, earlier.job(sequence));
    }
    let deliveries = engine.poll_all(all).unwrap().unwrap();
    let jobs: Vec<JobId> = deliveries.iter().map(|delivery| delivery.job).collect();
    assert_eq!(jobs, [SESSION.job(1), earlier.job(1), earlier.job(2)]);
    engine.returned(&[1, numbers[0], numbers[1]], T0);
    assert_eq!(next(&mut engine, stream), Some(Ok(numbers[2])));
    engine.remove_wait(all);

    engine.handle(Event::LinkDown, T0);
    connect(&mut engine, 1);
    let again = said(&mut engine);
    assert!(again.contains(&FromApplication::Taken { jobs: of(&[(1, 3)]) }), "{again:?}");
    assert!(again.contains(&FromApplication::Cancel { jobs: of(&[(4, 4)]) }), "{again:?}");
    let second = engine.wait_for_all(vec![numbers[0]], T0);
    let taken = WaitError::Job(earlier.job(1), JobFault::AlreadyTaken);
    assert_eq!(engine.poll_all(second), Some(Err(taken)));
    let flush = engine.wait_for_flush(T0);
    hear(&mut engine, ToApplication::Gone { job: earlier.job(4), taken: false });
    assert_eq!(engine.poll_flush(flush), Some(Ok(())), "it was not scheduled here");
}

#[test]
fn a_list_is_asked_for_on_each_connection_until_it_is_complete() {
    let mut engine = started();
    let list = engine.wait_for_list(None, T0);
    let one = engine.wait_for_list(Some(SessionId(3).job(1)), T0);
    connect(&mut engine, 0);
    let asked = said(&mut engine);
    assert_eq!(asked.len(), 2);
    let part = |sequence| ("add".to_owned(), JobSet::one(SessionId(3).job(sequence)));
    let request_of = |asked: &[FromApplication], wanted| {
        asked.iter().find_map(|message| {
            let FromApplication::List { request, job } = message else { return None };
            (*job == wanted).then_some(*request)
        })
    };
    let request = request_of(&asked, None).unwrap();
    hear(&mut engine, ToApplication::Listed { request, jobs: vec![part(1)], last: false });
    assert_eq!(engine.poll_list(list), None);
    engine.handle(Event::LinkDown, T0);

    connect(&mut engine, 0);

    let asked = said(&mut engine);
    hear(&mut engine, ToApplication::Listed { request, jobs: vec![part(9)], last: true });
    assert_eq!(engine.poll_list(list), None, "an answer to a question that is out of date");
    let request = request_of(&asked, None).unwrap();
    hear(&mut engine, ToApplication::Listed { request, jobs: vec![part(1)], last: false });
    hear(&mut engine, ToApplication::Listed { request, jobs: vec![part(2)], last: true });
    assert!(engine.take_actions().contains(&Action::Wake(list)));
    assert_eq!(engine.poll_list(list), Some(Ok(vec![part(1), part(2)])));
    let request = request_of(&asked, Some(SessionId(3).job(1))).unwrap();
    hear(&mut engine, ToApplication::Listed { request, jobs: vec![], last: true });
    assert_eq!(engine.poll_list(one), Some(Ok(vec![])));
}

#[test]
fn results_are_confirmed_before_a_list_is_asked_for() {
    let mut engine = connected();
    accepted(&mut engine, 1);
    let wait = engine.wait_for_all(vec![1], T0);
    said(&mut engine);
    finish(&mut engine, 1);
    engine.poll_all(wait);
    engine.returned(&[1], T0);

    engine.wait_for_list(None, T0);

    let taken = FromApplication::Taken { jobs: set(&[(1, 1)]) };
    assert_eq!(said(&mut engine), [taken, FromApplication::List { request: 1, job: None }]);
}

#[test]
fn a_list_without_a_scheduler_fails_after_the_time_limit() {
    let mut engine = started();
    let list = engine.wait_for_list(None, T0);
    engine.handle(Event::Tick, T0 + LIMIT);
    assert_eq!(engine.poll_list(list), Some(Err(WaitError::NoScheduler(LIMIT))));
}

#[test]
fn leaving_tells_the_scheduler_after_everything_else() {
    let mut engine = connected();
    accepted(&mut engine, 3);
    let wait = engine.wait_for_all(vec![1], T0);
    let pending = engine.wait_for_all(vec![2], T0);
    said(&mut engine);
    finish(&mut engine, 1);
    engine.poll_all(wait);
    engine.returned(&[1], T0);
    engine.cancel(3).unwrap();

    engine.leave();

    let detached = WaitError::Fatal(Fatal::Detached);
    assert_eq!(engine.poll_all(pending), Some(Err(detached.clone())));
    assert_eq!(engine.submit(&mut Vec::new()), Err(detached));
    let farewell = engine.wait_for_farewell(T0);
    assert!(!engine.is_settled());
    let cancel = FromApplication::Cancel { jobs: set(&[(3, 3)]) };
    let taken = FromApplication::Taken { jobs: set(&[(1, 1)]) };
    assert_eq!(said(&mut engine), [cancel.clone(), taken.clone(), FromApplication::Detach]);
    assert_eq!(engine.poll_farewell(farewell), None);
    engine.handle(Event::LinkDown, T0);
    connect(&mut engine, 3);
    let again = said(&mut engine);
    assert_eq!(again.last(), Some(&FromApplication::Detach), "it may not have heard: {again:?}");
    assert!(again.contains(&cancel) && again.contains(&taken));
    hear(&mut engine, ToApplication::Stopped);
    assert_eq!(engine.poll_farewell(farewell), None);
    hear(&mut engine, ToApplication::Detached);
    assert_eq!(engine.poll_farewell(farewell), Some(Ok(())));
    assert!(engine.is_settled() && !engine.is_stopped());
}

#[test]
fn an_interrupted_program_leaves_and_gives_those_who_wait_nothing_more() {
    let mut engine = connected();
    accepted(&mut engine, 2);
    let (wait, stream) = (engine.wait_for_all(vec![1], T0), engine.wait_for_each(vec![1, 2], T0));
    said(&mut engine);
    finish(&mut engine, 1);
    engine.freeze();
    assert_eq!(engine.poll_all(wait), None, "the next start gets it");
    assert_eq!(engine.poll_each(stream, T0), Next::Pending);
    engine.begin_detach();
    assert_eq!(said(&mut engine), [FromApplication::Detach]);
    hear(&mut engine, ToApplication::Detached);
    assert!(engine.is_answered() && engine.is_settled());
    assert_eq!(engine.poll_all(wait), None);
}

#[test]
fn a_named_application_tells_a_scheduler_of_its_end_even_if_it_has_scheduled_nothing() {
    let mut engine = Engine::new(Settings { named: true, ..settings() }, T0);
    engine.stop();
    let stop = engine.wait_for_farewell(T0);
    assert_eq!(engine.poll_farewell(stop), None, "earlier starts may have left jobs");
    engine.handle(Event::Tick, T0 + LIMIT);
    assert_eq!(engine.poll_farewell(stop), Some(Err(WaitError::NoScheduler(LIMIT))));
}

#[test]
fn once_superseded_even_results_that_are_here_go_to_the_newer_start() {
    let mut engine = connected();
    accepted(&mut engine, 2);
    let (here, never) = (engine.wait_for_all(vec![1], T0), engine.wait_for_all(vec![2], T0));
    let stream = engine.wait_for_each(vec![1, 2], T0);
    finish(&mut engine, 1);
    engine.take_actions();
    engine.handle(Event::Refused(Fatal::Superseded), T0);
    assert!(engine.take_actions().contains(&Action::Wake(never)));
    let superseded = || WaitError::Fatal(Fatal::Superseded);
    assert_eq!(engine.poll_all(here), Some(Err(superseded())));
    assert_eq!(engine.poll_all(never), Some(Err(superseded())));
    assert_eq!(engine.poll_each(stream, T0), Next::Item(Err(superseded())));
    assert_eq!(engine.poll_each(stream, T0), Next::End);
    let farewell = engine.wait_for_farewell(T0);
    engine.leave();
    assert_eq!(engine.poll_farewell(farewell), Some(Ok(())), "the newer start has the word");
    engine.handle(Event::LinkUp, T0);
    assert_eq!(said(&mut engine), [], "it doesn't take over in its turn");
}
