//! Random schedules against a plain model of a scheduler: connections break, messages under way are lost, the scheduler dies
//! before it has committed what it heard, waits come and go. Each job's result must reach the caller exactly once, those of
//! jobs with keys as often as they are waited for.

use std::collections::VecDeque;

use super::*;

/// Jobs without keys scheduled per run.
const JOBS: usize = 60;

/// An earlier start of the application, and how many jobs it has left.
const EARLIER: SessionId = SessionId(3);
const EARLIER_JOBS: u64 = 12;

/// Keys that jobs get. The last one belongs to another job.
const KEYS: [&str; 4] = ["a", "b", "c", "foreign"];
const FOREIGN: &str = "foreign";

/// What the jobs with keys are.
const DIGEST: u64 = 1;

fn job_of(key: &str) -> JobId {
    JobId::keyed(application(), key)
}

fn session_of_keys() -> SessionId {
    SessionId::keyed(application())
}

/// A submit that was heard, but not committed.
struct Heard {
    first: u64,
    count: u64,
    keys: Vec<(u64, String, u64)>,
}

/// A scheduler that keeps what it has committed over lost connections.
struct Model {
    attached: bool,
    accepted: u64,
    heard: Vec<Heard>,
    /// Jobs with keys, with their digests.
    keys: BTreeMap<JobId, u64>,
    ended: BTreeSet<JobId>,
    urgent: BTreeSet<JobId>,
    wanted: BTreeSet<JobId>,
    taken: BTreeSet<JobId>,
    credit: Credit,
    out: VecDeque<ToApplication>,
}

const BODY: &[u8] = &[0; 1_000];

impl Model {
    fn new() -> Self {
        Self {
            attached: false,
            accepted: 0,
            heard: Vec::new(),
            keys: BTreeMap::from([(job_of(FOREIGN), DIGEST + 1)]),
            ended: BTreeSet::new(),
            urgent: BTreeSet::new(),
            wanted: BTreeSet::new(),
            taken: BTreeSet::new(),
            credit: Credit::default(),
            out: VecDeque::new(),
        }
    }

    fn hear(&mut self, message: FromApplication) {
        let flat = |set: &JobSet| {
            let sequences = set.ranges.iter().flat_map(|&(first, last)| first..=last);
            sequences.map(|sequence| set.session.job(sequence)).collect::<Vec<_>>()
        };
        match &message {
            FromApplication::Attach(attach) => {
                self.attached = true;
                self.credit = attach.credit;
                self.out.push_back(ToApplication::Attached { epoch: 1, accepted_through: self.accepted });
            }
            FromApplication::Submit { first, jobs, keys, .. } => {
                let before = self.heard.last().map_or(self.accepted, |heard| heard.first + heard.count - 1);
                assert!(self.attached && *first <= before + 1, "a gap below {first}");
                let count = jobs.iter().map(|range| u64::from(range.count)).sum();
                let keys =
                    keys.iter().map(|job| (*first + u64::from(job.index), job.key.clone(), job.digest));
                self.heard.push(Heard { first: *first, count, keys: keys.collect() });
            }
            FromApplication::Want { jobs, urgent } => {
                for job in flat(jobs) {
                    self.check_wanted(job);
                    if self.taken.contains(&job) {
                        self.out.push_back(ToApplication::Gone { job, taken: true });
                    } else if *urgent {
                        self.wanted.remove(&job);
                        self.urgent.insert(job);
                    } else {
                        self.wanted.insert(job);
                    }
                }
            }
            FromApplication::Credit(credit) => {
                self.credit.results += credit.results;
                self.credit.bytes += credit.bytes;
            }
            FromApplication::Taken { jobs } if jobs.session == session_of_keys() => {}
            FromApplication::Taken { jobs } => self.taken.extend(flat(jobs)),
            FromApplication::OfferBundle { .. } => {}
            FromApplication::BundleChunk { .. }
            | FromApplication::Cancel { .. }
            | FromApplication::List { .. }
            | FromApplication::Detach
            | FromApplication::Stop => panic!("{message:?} is not expected"),
        }
        self.deliver();
    }

    fn check_wanted(&self, job: JobId) {
        if job.session == SESSION {
            assert!(job.sequence <= self.accepted, "{job} is wanted before it was accepted");
        } else if job.session == session_of_keys() {
            assert!(job != job_of(FOREIGN), "a job whose key is of another one is wanted");
            assert!(self.keys.contains_key(&job), "{job} is wanted before it was accepted");
        }
    }

    fn commit(&mut self) {
        if self.heard.is_empty() {
            return;
        }
        for Heard { first, count, keys } in std::mem::take(&mut self.heard) {
            for (sequence, key, digest) in keys {
                if *self.keys.entry(job_of(&key)).or_insert(digest) != digest {
                    let (reason, cause) = (String::new(), RefusalCause::KeyConflict);
                    self.out.push_back(ToApplication::Refused { sequence, reason, cause });
                }
            }
            self.accepted = self.accepted.max(first + count - 1);
        }
        self.out.push_back(ToApplication::Accepted { through: self.accepted });
    }

    fn deliver(&mut self) {
        let urgent: Vec<JobId> = self.urgent.intersection(&self.ended).copied().collect();
        for job in urgent {
            self.urgent.remove(&job);
            self.send(job);
        }
        let wanted: Vec<JobId> = self.wanted.intersection(&self.ended).copied().collect();
        for job in wanted {
            if self.credit.results == 0 || self.credit.bytes == 0 {
                return;
            }
            self.credit.results -= 1;
            self.credit.bytes = self.credit.bytes.saturating_sub(BODY.len() as u64);
            self.wanted.remove(&job);
            self.send(job);
        }
    }

    fn send(&mut self, job: JobId) {
        self.out.push_back(ToApplication::Result { job, report: report() });
    }

    /// All that the application can have.
    fn end_everything(&mut self) {
        self.ended.extend((1..=self.accepted).map(|sequence| SESSION.job(sequence)));
        self.ended.extend((1..=EARLIER_JOBS).map(|sequence| EARLIER.job(sequence)));
        self.ended.extend(self.keys.keys());
    }

    fn disconnect(&mut self) {
        self.attached = false;
        self.out.clear();
        self.urgent.clear();
        self.wanted.clear();
    }
}

#[derive(Debug)]
enum Waiting {
    All(WaitId),
    Each(WaitId),
}

struct World {
    engine: Engine,
    model: Model,
    now: Moment,
    up: bool,
    to_model: VecDeque<FromApplication>,
    waits: Vec<Waiting>,
    /// Jobs without keys: the session's, and those of the earlier start.
    jobs: BTreeSet<JobId>,
    scheduled: usize,
    /// Keys that were scheduled.
    keys: BTreeSet<&'static str>,
    returned: Vec<JobId>,
    random: fastrand::Rng,
}

impl World {
    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(self.random.u64(0..20));
        match self.random.u8(0..20) {
            0 if self.up => self.disconnect(),
            0 | 1 if !self.up => self.connect(),
            2 | 3 => self.schedule(),
            4 => {
                let jobs = self.some_jobs();
                self.waits.push(Waiting::All(self.engine.wait_for_all(jobs, self.now)));
            }
            5 => {
                let jobs = self.some_jobs();
                self.waits.push(Waiting::Each(self.engine.wait_for_each(jobs, self.now)));
            }
            6 => self.drop_a_wait(),
            7 | 8 => {
                let sequence = self.random.u64(1..=JOBS as u64);
                let one =
                    [SESSION.job(sequence), EARLIER.job(sequence), job_of(self.random.choice(KEYS).unwrap())];
                let one = *self.random.choice(&one).unwrap();
                self.model.ended.insert(one);
                self.model.deliver();
            }
            9..=12 => self.poll(),
            _ => self.carry(),
        }
    }

    fn connect(&mut self) {
        self.up = true;
        self.engine.handle(Event::LinkUp, self.now);
    }

    fn disconnect(&mut self) {
        self.up = false;
        self.to_model.clear();
        if self.random.bool() {
            // The scheduler has died.
            self.model.heard.clear();
        } else {
            self.model.commit();
        }
        self.model.disconnect();
        self.engine.handle(Event::LinkDown, self.now);
    }

    fn schedule(&mut self) {
        let before = self.engine.jobs.last();
        if self.random.u8(0..3) == 0 {
            let key = self.random.choice(KEYS).unwrap();
            let job = NewJob {
                service: 0,
                options: Arc::new(JobOptions::new()),
                payload: Bytes::from_static(b"x"),
                key: Some(Key { key: key.into(), digest: DIGEST }),
            };
            assert!(self.engine.submit(&mut vec![job]).unwrap().is_some());
            self.keys.insert(key);
            return;
        }
        let count = self.random.usize(1..5).min(JOBS - self.scheduled);
        if count > 0 {
            submit(&mut self.engine, count);
            self.scheduled += count;
            self.jobs.extend((before + 1..=self.engine.jobs.last()).map(|sequence| SESSION.job(sequence)));
        }
    }

    /// Numbers of some jobs, with keys and without.
    fn some_jobs(&mut self) -> Vec<u64> {
        let keyed = self.keys.iter().map(|key| job_of(key));
        let jobs: Vec<JobId> = self.jobs.iter().copied().chain(keyed).collect();
        let some = (0..self.random.u8(0..6)).map(|_| *self.random.choice(&jobs).unwrap());
        let some: Vec<JobId> = some.collect();
        some.into_iter().map(|job| self.engine.number(job)).collect()
    }

    fn drop_a_wait(&mut self) {
        if !self.waits.is_empty() {
            let index = self.random.usize(0..self.waits.len());
            let (Waiting::All(wait) | Waiting::Each(wait)) = self.waits.swap_remove(index);
            self.engine.remove_wait(wait);
        }
    }

    /// Moves messages: some of those that the engine wants to say, one in each direction.
    fn carry(&mut self) {
        if !self.up {
            return;
        }
        self.engine.handle(Event::Tick, self.now);
        for _ in 0..self.random.u8(0..4) {
            if let Step::Send(message, _) = self.engine.next_step(self.now) {
                self.to_model.push_back(message);
            }
        }
        if let Some(message) = self.to_model.pop_front() {
            self.model.hear(message);
        }
        if self.random.u8(0..3) == 0 {
            self.model.commit();
        }
        if let Some(message) = self.model.out.pop_front() {
            let body = if matches!(message, ToApplication::Result { .. }) { BODY } else { b"" };
            self.engine.handle(Event::Received(message, Bytes::from_static(body)), self.now);
        }
    }

    fn poll(&mut self) {
        if self.waits.is_empty() {
            return;
        }
        let index = self.random.usize(0..self.waits.len());
        let deliveries = match self.waits[index] {
            Waiting::All(wait) => match self.engine.poll_all(wait) {
                None => return,
                Some(outcome) => {
                    self.waits.swap_remove(index);
                    self.engine.remove_wait(wait);
                    self.check(outcome)
                }
            },
            Waiting::Each(wait) => match self.engine.poll_each(wait, self.now) {
                Next::Pending => return,
                Next::Item(item) => self.check(item.map(|delivery| vec![delivery])),
                Next::End => {
                    self.waits.swap_remove(index);
                    self.engine.remove_wait(wait);
                    return;
                }
            },
        };
        let numbers: Vec<u64> = deliveries.iter().map(|delivery| delivery.number).collect();
        if self.random.u8(0..8) == 0 {
            self.engine.give_back(&numbers);
        } else {
            self.engine.returned(&numbers, self.now);
            self.returned.extend(deliveries.iter().map(|delivery| delivery.job));
        }
    }

    fn check(&self, outcome: Result<Vec<Delivery>, WaitError>) -> Vec<Delivery> {
        match outcome {
            Ok(deliveries) => deliveries,
            Err(WaitError::Job(job, JobFault::AlreadyTaken)) if self.jobs.contains(&job) => Vec::new(),
            Err(WaitError::Job(job, JobFault::KeyConflict(_))) if job == job_of(FOREIGN) => Vec::new(),
            Err(error) => panic!("{error:?}"),
        }
    }

    /// What hasn't been returned; of jobs with keys only those that never were.
    fn missing(&mut self) -> Vec<u64> {
        let returned: BTreeSet<JobId> = self.returned.iter().copied().collect();
        let keyed = self.keys.iter().filter(|&&key| key != FOREIGN).map(|key| job_of(key));
        let jobs: Vec<JobId> = self.jobs.iter().copied().chain(keyed).collect();
        let missing = jobs.into_iter().filter(|job| !returned.contains(job));
        missing.map(|job| self.engine.number(job)).collect()
    }

    /// Everything heals: whatever hasn't been returned comes now.
    fn finish(&mut self) {
        while self.scheduled < JOBS {
            self.schedule();
        }
        if !self.up {
            self.connect();
        }
        for _ in 0..100_000 {
            if self.waits.is_empty() {
                // A stream that has ended may have met a job while another wait gave it back.
                let missing = self.missing();
                if missing.is_empty() && self.model.heard.is_empty() && self.engine.submits.len() == 0 {
                    return;
                }
                self.waits.push(Waiting::Each(self.engine.wait_for_each(missing, self.now)));
            }
            self.now = self.now + Duration::from_millis(5);
            self.model.end_everything();
            self.model.deliver();
            self.carry();
            self.poll();
        }
        panic!("{:?} were never returned: {:?}", self.missing(), self.waits);
    }
}

fn run(seed: u64) {
    let mut world = World {
        engine: Engine::new(Settings { communication_time_out: None, ..settings() }, T0),
        model: Model::new(),
        now: T0,
        up: false,
        to_model: VecDeque::new(),
        waits: Vec::new(),
        jobs: (1..=EARLIER_JOBS).map(|sequence| EARLIER.job(sequence)).collect(),
        scheduled: 0,
        keys: BTreeSet::new(),
        returned: Vec::new(),
        random: fastrand::Rng::with_seed(seed),
    };
    world.engine.handle(Event::BundleKnown(BundleRef::Installed("x".into()), None), T0);
    for _ in 0..2_000 {
        world.step();
    }
    world.finish();
    world.returned.retain(|job| job.session != session_of_keys());
    world.returned.sort_unstable();
    assert_eq!(world.returned, world.jobs.iter().copied().collect::<Vec<_>>(), "each exactly once");
    let wait = world.engine.wait_for_each(Vec::new(), world.now);
    world.engine.remove_wait(wait);
    assert_eq!(
        world.engine.jobs.base(),
        world.engine.jobs.last() + 1,
        "nothing is kept of jobs that are over"
    );
    let engine = &world.engine;
    let again = engine.arrived.iter().all(|(&number, arrived)| engine.jobs.has_key(number) && arrived.orphan);
    assert!(again, "nothing is held but what may be waited for again");
    assert_eq!(engine.orphan_bytes, engine.arrived.len() as u64 * (BODY.len() + size_of::<Arrived>()) as u64);
}

#[test]
fn each_result_is_returned_exactly_once() {
    for seed in 0..300 {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("the failing seed is {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
