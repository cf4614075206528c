//! How long an attempt may run, how long it may go without progress, and how much memory its processes may take.
//!
//! The host watches, not the worker: limits hold while no worker is there. Time in which the host isn't running, since it or its
//! machine is stopped, doesn't count, as its jobs may have been stopped with it: see [`LATE`].

use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::limits::MEMORY_SAMPLE_INTERVAL;
use lrts_core::protocol::host::StartAttempt;
use lrts_core::status::{Failure, FailureKind};

/// A look that comes so much later than it was due shows that the host wasn't running. How much of the time since the look
/// before the jobs had is unknown, so none of it counts for limits of time.
const LATE: Duration = Duration::from_millis(500);

/// How often a job with a limit of run time is looked at, so that little time is passed over with each stop.
const RUN_SAMPLE: Duration = Duration::from_secs(5);

/// How often progress is looked for: four times within its limit, between these two.
const PROGRESS_SAMPLE_MIN: Duration = Duration::from_millis(50);
const PROGRESS_SAMPLE_MAX: Duration = Duration::from_secs(5);

/// How often memory is measured exactly, where a job's processes have much in common.
const MEMORY_EXACT_INTERVAL: Duration = Duration::from_secs(1);

/// The limits of one attempt.
#[derive(Debug)]
pub(super) struct Limits {
    /// When it was looked at last.
    looked: Moment,
    run: Option<Run>,
    progress: Option<Progress>,
    memory: Option<Memory>,
}

#[derive(Debug)]
struct Run {
    limit: Duration,
    until: Moment,
}

#[derive(Debug)]
struct Progress {
    limit: Duration,
    /// What was seen last, and since when it has been so.
    seen: Option<(u64, u64)>,
    since: Moment,
    next: Moment,
}

#[derive(Debug)]
struct Memory {
    limit: u64,
    peak: u64,
    next: Moment,
}

/// What a look at a job shows.
pub(super) trait Look {
    /// Other numbers whenever the job has made progress.
    fn progress(&mut self) -> (u64, u64);
    /// What its processes take, in bytes, or somewhat more.
    fn memory(&mut self) -> u64;
    /// What they take exactly, which takes longer to find out.
    fn exact_memory(&mut self) -> u64;
}

/// A limit that an attempt has passed.
#[derive(Debug, PartialEq)]
pub(super) enum Exceeded {
    /// One of time: it is to stop within its grace period.
    Time(Failure),
    /// That of memory: it is to be killed.
    Memory(Failure),
}

impl Limits {
    /// The limits of an attempt that begins now. That of memory is left out where the kernel sees to it.
    pub(super) fn new(start: &StartAttempt, watch_memory: bool, now: Moment) -> Self {
        Self {
            looked: now,
            run: start.run_timeout.map(|limit| Run { limit, until: now + limit }),
            progress: start.progress_timeout.map(|limit| Progress {
                limit,
                seen: None,
                since: now,
                next: now,
            }),
            memory: start.memory_limit.filter(|_| watch_memory).map(|limit| Memory {
                limit,
                peak: 0,
                next: now,
            }),
        }
    }

    /// When to [`check`](Self::check) next.
    pub(super) fn next(&self, stopping: bool) -> Option<Moment> {
        let run = self.run.as_ref().map(|run| run.until.min(self.looked + RUN_SAMPLE));
        let progress = self.progress.as_ref().map(|progress| progress.next);
        let time = run.into_iter().chain(progress).filter(|_| !stopping);
        time.chain(self.memory.as_ref().map(|memory| memory.next)).min()
    }

    /// Looks at the job where it is time to. One that is stopping has no limits of time any more.
    pub(super) fn check(&mut self, stopping: bool, now: Moment, look: &mut impl Look) -> Option<Exceeded> {
        if self.next(stopping).is_some_and(|due| now.since(due) > LATE) {
            self.pass_over(now.since(self.looked));
        }
        self.looked = now;
        if let Some(memory) = self.memory.as_mut().filter(|memory| memory.next <= now) {
            memory.next = now + MEMORY_SAMPLE_INTERVAL;
            let mut bytes = look.memory();
            if bytes > memory.limit {
                bytes = look.exact_memory();
                memory.next = now + MEMORY_EXACT_INTERVAL;
            }
            memory.peak = memory.peak.max(bytes);
            if bytes > memory.limit {
                return Some(Exceeded::Memory(out_of_memory(bytes, memory.limit)));
            }
        }
        if stopping {
            return None;
        }
        if let Some(run) = self.run.as_ref().filter(|run| run.until <= now) {
            let text = format!("ran longer than its run_timeout of {:?}", run.limit);
            return Some(Exceeded::Time(Failure::new(FailureKind::TimedOut, text)));
        }
        let progress = self.progress.as_mut().filter(|progress| progress.next <= now)?;
        let seen = Some(look.progress());
        if progress.seen != seen {
            (progress.seen, progress.since) = (seen, now);
        }
        let passed = now.since(progress.since) >= progress.limit;
        let sample = (progress.limit / 4).clamp(PROGRESS_SAMPLE_MIN, PROGRESS_SAMPLE_MAX);
        progress.next = (now + sample).min((progress.since + progress.limit).max(now + PROGRESS_SAMPLE_MIN));
        passed.then(|| {
            let text = format!("made no progress within its progress_timeout of {:?}", progress.limit);
            Exceeded::Time(Failure::new(FailureKind::TimedOut, text))
        })
    }

    /// Lets so much time not count.
    fn pass_over(&mut self, time: Duration) {
        if let Some(run) = &mut self.run {
            run.until = run.until + time;
        }
        if let Some(progress) = &mut self.progress {
            progress.since = progress.since + time;
        }
    }

    /// The job is done but for its delivery, which may have to wait for others: limits of time hold no more.
    pub(super) fn lift_time(&mut self) {
        (self.run, self.progress) = (None, None);
    }

    /// The most memory that was seen; 0 if nobody looked.
    pub(super) fn peak_memory_bytes(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.peak)
    }
}

/// The end of an attempt that took too much memory.
pub(super) fn out_of_memory(peak: u64, limit: u64) -> Failure {
    // Up and down, so that what was used is never shown as within the limit.
    let (used, limit) = (peak.div_ceil(1 << 20), limit >> 20);
    let text = format!("out of memory: {used} MiB used, its limit is {limit} MiB");
    Failure::new(FailureKind::OutOfMemory, text)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use lrts_core::ids::{AttemptId, SessionId};
    use lrts_core::protocol::host::Payload;

    use super::*;

    const T0: Moment = Moment::from_nanos(1_000);

    #[derive(Default)]
    struct Job {
        progress: u64,
        memory: u64,
        common: u64,
        looks: u32,
    }

    impl Look for Job {
        fn progress(&mut self) -> (u64, u64) {
            self.looks += 1;
            (self.progress, 0)
        }

        fn memory(&mut self) -> u64 {
            self.looks += 1;
            self.memory
        }

        fn exact_memory(&mut self) -> u64 {
            self.memory - self.common
        }
    }

    fn start() -> StartAttempt {
        StartAttempt {
            attempt: AttemptId { job: SessionId(1).job(1), attempt: 1 },
            execution: 1,
            service: String::new(),
            payload: Payload::Inline(Vec::new()),
            directory: PathBuf::new(),
            spool_file: PathBuf::new(),
            env: Vec::new(),
            checkpoint: None,
            grace: Duration::ZERO,
            run_timeout: None,
            progress_timeout: None,
            memory_limit: None,
            lease_until: None,
            notes: Vec::new(),
        }
    }

    fn limits(change: impl FnOnce(&mut StartAttempt)) -> Limits {
        let mut start = start();
        change(&mut start);
        Limits::new(&start, true, T0)
    }

    fn timed_out(text: &str) -> Option<Exceeded> {
        Some(Exceeded::Time(Failure::new(FailureKind::TimedOut, text)))
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_job_without_limits_is_never_looked_at() {
        let (mut limits, mut job) = (limits(|_| {}), Job::default());
        assert_eq!(limits.next(false), None);
        assert_eq!(limits.check(false, T0 + Duration::from_hours(9_999), &mut job), None);
        assert_eq!(job.looks, 0);
    }

    #[test]
    fn a_run_ends_at_its_limit_unless_it_is_stopping() {
        let mut limits = limits(|start| start.run_timeout = Some(5 * S));
        let mut job = Job::default();
        assert_eq!(limits.next(false), Some(T0 + 5 * S));
        assert_eq!(limits.check(false, T0 + 4 * S, &mut job), None);
        assert_eq!((limits.next(true), limits.check(true, T0 + 6 * S, &mut job)), (None, None));
        let wanted = timed_out("ran longer than its run_timeout of 5s");
        assert_eq!(limits.check(false, T0 + 5 * S, &mut job), wanted);
    }

    #[test]
    fn time_in_which_nobody_looked_does_not_count() {
        const HOUR: Duration = Duration::from_hours(1);
        let both = |start: &mut StartAttempt| {
            (start.run_timeout, start.progress_timeout) = (Some(100 * S), Some(8 * S));
        };
        let (mut limits, mut job) = (limits(both), Job::default());
        let mut now = T0;
        for round in 0..48 {
            assert_eq!(limits.check(false, now, &mut job), None);
            // Each look moves on by 2 s; suspended or stopped for an hour now and then, two of which come just before a limit.
            job.progress = round / 3;
            now = limits.next(false).unwrap() + if [5, 47].contains(&round) { HOUR } else { Duration::ZERO };
        }
        assert_eq!(limits.check(false, now, &mut job), None);
        let end = loop {
            now = limits.next(false).unwrap();
            job.progress += 1;
            if let Some(exceeded) = limits.check(false, now, &mut job) {
                break exceeded;
            }
        };
        assert_eq!(Some(end), timed_out("ran longer than its run_timeout of 100s"));
        // What the job had, and the two intervals that ended late.
        assert_eq!(now, T0 + 100 * S + 2 * (HOUR + 2 * S));

        // A little late is a busy machine.
        let mut limits = Limits::new(&StartAttempt { run_timeout: Some(S), ..start() }, true, T0);
        assert!(limits.check(false, T0 + S + LATE, &mut job).is_some());
    }

    #[test]
    fn a_job_that_delivers_has_no_limits_of_time() {
        let mut limits = limits(|start| {
            (start.run_timeout, start.progress_timeout) = (Some(S), Some(S));
            start.memory_limit = Some(5);
        });
        let mut job = Job::default();
        limits.lift_time();
        assert_eq!((limits.check(false, T0 + S, &mut job), job.looks), (None, 1));
        assert_eq!(limits.next(false), Some(T0 + S + MEMORY_SAMPLE_INTERVAL));
    }

    #[test]
    fn progress_is_looked_for_four_times_within_its_limit_and_any_change_counts() {
        let mut limits = limits(|start| start.progress_timeout = Some(8 * S));
        let mut job = Job::default();
        let mut now = T0;
        // It moves now and then, for far longer than its limit.
        for round in 0..40 {
            assert_eq!(limits.check(false, now, &mut job), None);
            assert_eq!(limits.next(false), Some(now + 2 * S));
            now = now + 2 * S;
            job.progress += u64::from(round % 3 == 0);
        }
        let stood = loop {
            if let Some(exceeded) = limits.check(false, now, &mut job) {
                break exceeded;
            }
            now = limits.next(false).unwrap();
        };
        assert_eq!(Some(stood), timed_out("made no progress within its progress_timeout of 8s"));
        assert_eq!(now, T0 + 80 * S + 8 * S);
    }

    #[test]
    fn memory_is_watched_in_the_grace_period_too() {
        let mut limits = limits(|start| start.memory_limit = Some(256 << 20));
        let mut job = Job { memory: 256 << 20, ..Job::default() };
        assert_eq!(limits.check(false, T0, &mut job), None);
        assert_eq!(limits.next(true), Some(T0 + MEMORY_SAMPLE_INTERVAL));
        job.memory = (311 << 20) + 1;
        assert_eq!(limits.check(true, T0, &mut job), None);
        let text = "out of memory: 312 MiB used, its limit is 256 MiB";
        let wanted = Exceeded::Memory(Failure::new(FailureKind::OutOfMemory, text));
        assert_eq!(limits.check(true, T0 + MEMORY_SAMPLE_INTERVAL, &mut job), Some(wanted));
        assert_eq!(limits.peak_memory_bytes(), (311 << 20) + 1);
    }

    #[test]
    fn what_processes_have_in_common_counts_once() {
        let mut limits = limits(|start| start.memory_limit = Some(256 << 20));
        let mut job = Job { memory: 400 << 20, common: 200 << 20, ..Job::default() };
        assert_eq!(limits.check(false, T0, &mut job), None);
        assert_eq!((limits.next(false), limits.peak_memory_bytes()), (Some(T0 + S), 200 << 20));
        job.common = 0;
        assert!(limits.check(false, T0 + S, &mut job).is_some());
    }
}
