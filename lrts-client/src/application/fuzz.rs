use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lrts_core::clock::Moment;
use lrts_core::fuzz::Input;
use lrts_core::ids::{ApplicationId, BundleDigest, JobId, SessionId};
use lrts_core::protocol::codec;
use lrts_core::spec::{BundleRef, JobOptions, OnDisconnect, Platform};

use super::engine::{Delivery, Engine, Event, Key, NewJob, Next, Offer, Settings, Step, WaitId};

/// Most jobs that are submitted, and most waits at a time.
const JOBS: usize = 64;
/// See [`JOBS`].
const WAITS: usize = 8;

/// The session of the jobs.
pub(crate) const SESSION: SessionId = SessionId(5);
/// Length of the program.
const PROGRAM_BYTES: u64 = 3_000;

/// The program.
pub(crate) const DIGEST: BundleDigest = BundleDigest([7; 32]);

/// A scheduler that says what it likes, while an application submits, waits, loses its connection and gets another.
pub fn scheduler(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut program = Program::new();
    while !input.is_empty() {
        match input.byte() {
            0 => program.submit(input.byte()),
            1 => program.happens(Event::LinkUp),
            2 => program.happens(Event::LinkDown),
            3 => program.speak(),
            4 => program.wait_for_each(),
            5 => program.wait_for_all(),
            6 => program.poll(input.byte()),
            7 => program.cancel(usize::from(input.byte())),
            8 => program.time_passes(input.byte()),
            9 => program.list(),
            10 => program.engine.stop(),
            11 => program.engine.leave(),
            _ => {
                if let Ok(message) = codec::decode(input.part()) {
                    let body = Bytes::copy_from_slice(input.part());
                    program.happens(Event::Received(message, body));
                }
            }
        }
        program.engine.take_actions();
    }
}

/// The application that was submitted by.
pub(crate) fn application() -> ApplicationId {
    "nightly".parse().expect("a valid id")
}

struct Program {
    engine: Engine,
    now: Moment,
    /// Numbers of jobs without keys.
    jobs: Vec<u64>,
    submitted: usize,
    each: Vec<WaitId>,
    all: Vec<WaitId>,
    lists: Vec<WaitId>,
}

impl Program {
    fn new() -> Self {
        let settings = Settings {
            application: application(),
            named: true,
            session: SESSION,
            services: vec!["mult".to_owned()],
            on_disconnect: OnDisconnect::Keep,
            progress_rtt_test: Duration::from_secs(10),
            communication_time_out: Some(Duration::from_secs(60)),
        };
        let now = Moment::default() + Duration::from_secs(1_000);
        let mut engine = Engine::new(settings, now);
        let offer = Offer { digest: DIGEST, bytes: PROGRAM_BYTES, platform: Platform::current() };
        engine.handle(Event::BundleKnown(BundleRef::Shipped(DIGEST), Some(offer)), now);
        Self {
            engine,
            now,
            jobs: Vec::new(),
            submitted: 0,
            each: Vec::new(),
            all: Vec::new(),
            lists: Vec::new(),
        }
    }

    fn happens(&mut self, event: Event) {
        self.engine.handle(event, self.now);
    }

    fn submit(&mut self, kind: u8) {
        if self.submitted >= JOBS {
            return;
        }
        let key = (kind >= 128)
            .then(|| Key { key: format!("key {}", kind % 4).into(), digest: u64::from(kind / 4) });
        let (payload, has_key) = (Bytes::from(vec![kind; usize::from(kind)]), key.is_some());
        let job = NewJob { service: 0, options: Arc::new(JobOptions::new()), payload, key };
        if let Ok(Some(first)) = self.engine.submit(&mut vec![job]) {
            self.submitted += 1;
            // Sequences of jobs with keys may change with a connection.
            self.jobs.extend((!has_key).then_some(first));
        }
    }

    /// Says what there is to say, as long as there is something.
    fn speak(&mut self) {
        for _ in 0..64 {
            match self.engine.next_step(self.now) {
                Step::Send(message, _) => {
                    codec::encode(&message);
                }
                Step::ReadChunk(offset) => {
                    let bytes = PROGRAM_BYTES.saturating_sub(offset).min(1_000) as u32;
                    self.happens(Event::ChunkRead(offset, Bytes::from_static(b"piece"), bytes));
                }
                Step::Idle => return,
            }
        }
    }

    fn numbers(&mut self) -> Vec<u64> {
        let keyed = JobId::keyed(application(), "key 1");
        self.jobs.iter().copied().chain([self.engine.number(keyed)]).collect()
    }

    fn wait_for_each(&mut self) {
        if self.each.len() < WAITS {
            let numbers = self.numbers();
            self.each.push(self.engine.wait_for_each(numbers, self.now));
        }
    }

    fn wait_for_all(&mut self) {
        if self.all.len() < WAITS {
            let numbers = self.numbers();
            self.all.push(self.engine.wait_for_all(numbers, self.now));
        }
    }

    /// Asks on all waits; what they bring was of use, or not.
    fn poll(&mut self, useful: u8) {
        for wait in self.each.clone() {
            if let Next::Item(Ok(delivery)) = self.engine.poll_each(wait, self.now) {
                self.brought(&[delivery], useful);
            }
        }
        let mut waiting = Vec::new();
        for wait in std::mem::take(&mut self.all) {
            match self.engine.poll_all(wait) {
                None => waiting.push(wait),
                Some(result) => {
                    self.engine.remove_wait(wait);
                    self.brought(&result.unwrap_or_default(), useful);
                }
            }
        }
        self.all = waiting;
        let mut asked = Vec::new();
        for wait in std::mem::take(&mut self.lists) {
            match self.engine.poll_list(wait) {
                None => asked.push(wait),
                Some(_) => self.engine.remove_wait(wait),
            }
        }
        self.lists = asked;
    }

    fn brought(&mut self, deliveries: &[Delivery], useful: u8) {
        let numbers: Vec<u64> = deliveries.iter().map(|delivery| delivery.number).collect();
        match useful {
            0 => self.engine.give_back(&numbers),
            _ => self.engine.returned(&numbers, self.now),
        }
    }

    fn cancel(&mut self, job: usize) {
        if let Some(&number) = self.jobs.get(job) {
            // It may be too late.
            let _ = self.engine.cancel(number);
        }
    }

    fn list(&mut self) {
        if self.lists.len() < WAITS {
            self.lists.push(self.engine.wait_for_list(None, self.now));
        }
    }

    fn time_passes(&mut self, seconds: u8) {
        self.now = self.now + Duration::from_secs(seconds.into());
        self.happens(Event::Tick);
    }
}
