//! Random schedules against a plain model of a scheduler: connections break, messages under way are lost, waits come and go.
//! Each job's result must reach the caller exactly once.

use std::collections::VecDeque;

use super::*;

/// Jobs scheduled per run.
const JOBS: u64 = 60;

/// A scheduler that keeps what it was told over lost connections.
#[derive(Default)]
struct Model {
    attached: bool,
    accepted: u64,
    ended: BTreeSet<u64>,
    urgent: BTreeSet<u64>,
    wanted: BTreeSet<u64>,
    taken: BTreeSet<u64>,
    credit: Credit,
    out: VecDeque<ToApplication>,
}

const BODY: &[u8] = &[0; 1_000];

impl Model {
    fn hear(&mut self, message: FromApplication) {
        let flat =
            |set: &JobSet| set.ranges.iter().flat_map(|&(first, last)| first..=last).collect::<Vec<_>>();
        match &message {
            FromApplication::Attach(attach) => {
                self.attached = true;
                self.credit = attach.credit;
                self.out.push_back(ToApplication::Attached { epoch: 1, accepted_through: self.accepted });
            }
            FromApplication::Submit { first, jobs, .. } => {
                assert!(self.attached && *first <= self.accepted + 1, "a gap below {first}");
                let count: u64 = jobs.iter().map(|range| u64::from(range.count)).sum();
                self.accepted = self.accepted.max(first + count - 1);
                self.out.push_back(ToApplication::Accepted { through: self.accepted });
            }
            FromApplication::Want { jobs, urgent } => {
                for sequence in flat(jobs) {
                    assert!(sequence <= self.accepted, "{sequence} is wanted before it was accepted");
                    if self.taken.contains(&sequence) {
                        self.out.push_back(ToApplication::Gone { job: SESSION.job(sequence), taken: true });
                    } else if *urgent {
                        self.wanted.remove(&sequence);
                        self.urgent.insert(sequence);
                    } else {
                        self.wanted.insert(sequence);
                    }
                }
            }
            FromApplication::Credit(credit) => {
                self.credit.results += credit.results;
                self.credit.bytes += credit.bytes;
            }
            FromApplication::Taken { jobs } => self.taken.extend(flat(jobs)),
            FromApplication::List { .. } | FromApplication::Detach => {}
            FromApplication::OfferBundle { .. } => {}
            FromApplication::BundleChunk { .. } | FromApplication::Cancel { .. } | FromApplication::Stop => {
                panic!("{message:?} is not expected");
            }
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        let urgent: Vec<u64> = self.urgent.intersection(&self.ended).copied().collect();
        for sequence in urgent {
            self.urgent.remove(&sequence);
            self.send(sequence);
        }
        let wanted: Vec<u64> = self.wanted.intersection(&self.ended).copied().collect();
        for sequence in wanted {
            if self.credit.results == 0 || self.credit.bytes == 0 {
                return;
            }
            self.credit.results -= 1;
            self.credit.bytes = self.credit.bytes.saturating_sub(BODY.len() as u64);
            self.wanted.remove(&sequence);
            self.send(sequence);
        }
    }

    fn send(&mut self, sequence: u64) {
        self.out.push_back(ToApplication::Result { job: SESSION.job(sequence), report: report() });
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
    returned: Vec<u64>,
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
                let ended = self.random.u64(1..=JOBS);
                if ended <= self.model.accepted {
                    self.model.ended.insert(ended);
                    self.model.deliver();
                }
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
        self.model.disconnect();
        self.engine.handle(Event::LinkDown, self.now);
    }

    fn schedule(&mut self) {
        let count = self.random.u64(1..5).min(JOBS - self.engine.jobs.last());
        if count > 0 {
            submit(&mut self.engine, count as usize);
        }
    }

    fn some_jobs(&mut self) -> Vec<u64> {
        let last = self.engine.jobs.last();
        if last == 0 {
            return Vec::new();
        }
        (0..self.random.u8(0..6)).map(|_| self.random.u64(1..=last)).collect()
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
        let sequences: Vec<u64> = deliveries.iter().map(|delivery| delivery.sequence).collect();
        if self.random.u8(0..8) == 0 {
            self.engine.give_back(&sequences);
        } else {
            self.engine.returned(&sequences, self.now);
            self.returned.extend(sequences);
        }
    }

    fn check(&self, outcome: Result<Vec<Delivery>, WaitError>) -> Vec<Delivery> {
        match outcome {
            Ok(deliveries) => deliveries,
            Err(WaitError::Job(_, JobFault::AlreadyTaken)) => Vec::new(),
            Err(error) => panic!("{error:?}"),
        }
    }

    /// Everything heals: whatever hasn't been returned comes now.
    fn finish(&mut self) {
        while self.engine.jobs.last() < JOBS {
            self.schedule();
        }
        if !self.up {
            self.connect();
        }
        let jobs = (1..=JOBS).filter(|&sequence| self.engine.jobs.state(sequence) != State::Taken).collect();
        self.waits.push(Waiting::Each(self.engine.wait_for_each(jobs, self.now)));
        for _ in 0..100_000 {
            if self.returned.len() == JOBS as usize {
                return;
            }
            self.now = self.now + Duration::from_millis(5);
            self.model.ended.extend(1..=self.model.accepted);
            self.model.deliver();
            self.carry();
            self.poll();
            // A stream that has ended may have met a job while another wait gave it back.
            if self.waits.is_empty() {
                let all = (1..=JOBS).filter(|sequence| !self.returned.contains(sequence)).collect();
                self.waits.push(Waiting::Each(self.engine.wait_for_each(all, self.now)));
            }
        }
        panic!("only {} of {JOBS} jobs were returned: {:?}", self.returned.len(), self.waits);
    }
}

fn run(seed: u64) {
    let mut world = World {
        engine: Engine::new(Settings { communication_time_out: None, ..settings() }, T0),
        model: Model::default(),
        now: T0,
        up: false,
        to_model: VecDeque::new(),
        waits: Vec::new(),
        returned: Vec::new(),
        random: fastrand::Rng::with_seed(seed),
    };
    world.engine.handle(Event::BundleKnown(BundleRef::Installed("x".into()), None), T0);
    for _ in 0..2_000 {
        world.step();
    }
    world.finish();
    world.returned.sort_unstable();
    assert_eq!(world.returned, (1..=JOBS).collect::<Vec<_>>(), "each exactly once");
    world
        .waits
        .drain(..)
        .for_each(|(Waiting::All(wait) | Waiting::Each(wait))| world.engine.remove_wait(wait));
    assert_eq!(world.engine.jobs.base(), JOBS + 1, "nothing is kept of jobs that are over");
    assert!(world.engine.arrived.is_empty() && world.engine.orphan_bytes == 0);
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
