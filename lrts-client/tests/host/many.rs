//! Many jobs.

use std::path::Path;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::protocol::host::{Payload, ToHost};
use lrts_core::protocol::worker::AttemptEnd;

use crate::services::Echo;
use crate::worker::{Worker, attempt, value};

#[test]
fn two_hundred_jobs_at_once() {
    let mut worker = Worker::new();
    let start = Moment::now();
    for number in 1..=200 {
        worker.start(number, &Echo(number.to_string()));
    }
    for number in 1..=200 {
        let ended = worker.end(attempt(number));
        assert_eq!(value::<(String, u32)>(ended).0, number.to_string());
    }
    eprintln!("200 jobs at once: {:?} a job", start.elapsed() / 200);
    assert_eq!(worker.began.len(), 200);
}

#[test]
fn cost_of_one_job_after_the_other() {
    for threads in [false, true] {
        let mut worker = Worker::with_threads(threads);
        let directory = worker.path(attempt(1));
        let payload = Payload::Inline(rmp_serde::to_vec_named(&Echo("x".into())).unwrap());
        let mut start = worker.start_attempt::<Echo>(attempt(1), payload);
        let began = Moment::now();
        for number in 1..=300 {
            start.attempt = attempt(number);
            worker.send(&ToHost::Start(start.clone()));
            let ended = worker.end(attempt(number));
            let region = ended.region.unwrap();
            assert_eq!(ended.end, AttemptEnd::Finished);
            worker.send(&ToHost::Confirm { attempt: attempt(number) });
            worker.send(&ToHost::ReleaseRegion { region });
        }
        let each = began.elapsed() / 300;
        eprintln!("one job after the other, forked: {}: {each:?} a job", worker.forks);
        assert!(each < Duration::from_millis(100), "{each:?}");
        assert!(Path::new(&directory).exists());
    }
}
