//! Random histories: the store on a disk has the same as the one in memory, whenever it is opened again.

use std::path::Path;

use super::*;
use crate::record::{KeyedRecord, SessionImage};
use crate::store::{DurableStore, MemoryStore, StoreError};

/// A plain account of what there is, to order what an engine could order.
struct History {
    random: fastrand::Rng,
    /// Sessions that aren't forgotten, and their next sequence.
    sessions: Vec<(SessionId, u64)>,
    live: Vec<JobId>,
    /// Terminal ones, and whether they were taken.
    ended: Vec<(JobId, bool)>,
    next_key: u32,
}

impl History {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, sessions: Vec::new(), live: Vec::new(), ended: Vec::new(), next_key: 0 }
    }

    fn pick<T: Clone>(random: &mut fastrand::Rng, from: &mut Vec<T>, remove: bool) -> Option<T> {
        let index = (!from.is_empty()).then(|| random.usize(..from.len()))?;
        Some(if remove { from.swap_remove(index) } else { from[index].clone() })
    }

    fn body(&mut self) -> Bytes {
        let length = match self.random.u8(..10) {
            0 => 0,
            1 => 20_000,
            2 => 300_000,
            _ => self.random.usize(1..2_000),
        };
        bytes(self.random.u64(..), length)
    }

    fn next(&mut self) -> Vec<Entry> {
        match self.random.u8(..12) {
            0 => {
                let session = SessionId(self.random.u64(..));
                self.sessions.push((session, 1));
                let bundle = lrts_core::spec::BundleRef::Installed("tool".into());
                let image = SessionImage {
                    application: "app".parse().unwrap(),
                    bundle,
                    services: vec![],
                    decided: true,
                    stopped: false,
                };
                vec![record(Record::Session { session, image })]
            }
            1..4 => self.submit(),
            4..6 => {
                let Some(job) = Self::pick(&mut self.random, &mut self.live, false) else { return vec![] };
                let attempt = AttemptId { job, attempt: self.random.u32(1..3) };
                let body = self.body();
                let live = JobImage { checkpoints: vec![attempt.attempt], ..image(Stage::Live) };
                let entry =
                    Entry { record: Record::Checkpoint { attempt }, bodies: Bodies::Checkpoint(body) };
                vec![entry, record(Record::Job { job, image: live })]
            }
            6..9 => {
                let Some(job) = Self::pick(&mut self.random, &mut self.live, true) else { return vec![] };
                self.ended.push((job, false));
                let (output, stdout) = (self.body(), self.body());
                vec![ended(job, 1, self.random.bool(), output, stdout, vec![]), terminal(job, false)]
            }
            9 => {
                let Some((job, _)) = Self::pick(&mut self.random, &mut self.ended, true) else {
                    return vec![];
                };
                self.ended.push((job, true));
                vec![terminal(job, true)]
            }
            10 => {
                let count = self.random.usize(1..8);
                let random = &mut self.random;
                let gone = (0..count).filter_map(|_| Self::pick(random, &mut self.ended, true));
                gone.map(|(job, taken)| forgotten(job, taken)).collect()
            }
            _ if self.random.u8(..4) == 0 => {
                let Some((session, _)) = Self::pick(&mut self.random, &mut self.sessions, true) else {
                    return vec![];
                };
                self.live.retain(|job| job.session != session);
                self.ended.retain(|(job, _)| job.session != session);
                vec![record(Record::SessionForgotten { session })]
            }
            _ => vec![],
        }
    }

    fn submit(&mut self) -> Vec<Entry> {
        let Some((session, first)) = Self::pick(&mut self.random, &mut self.sessions, true) else {
            return vec![];
        };
        let count = if self.random.bool() { 1 } else { self.random.u64(1..9) };
        let payloads: Vec<Bytes> = (0..count).map(|_| self.body()).collect();
        let (mut skipped, mut keyed) = (Vec::new(), Vec::new());
        for sequence in first..first + count {
            match self.random.u8(..8) {
                0 => skipped.push(sequence),
                1 => {
                    self.next_key += 1;
                    let key = self.next_key.to_string();
                    let job = JobId::keyed("app".parse().unwrap(), &key);
                    self.live.push(job);
                    keyed.push(KeyedRecord { sequence, job, key, digest: 1 });
                }
                _ => self.live.push(session.job(sequence)),
            }
        }
        self.sessions.push((session, first + count));
        let change = |submitted: &mut Submitted| (submitted.skipped, submitted.keyed) = (skipped, keyed);
        vec![submit_with(session, first, &payloads, change)]
    }
}

fn run(seed: u64, open: fn(&Path) -> Result<DurableStore, StoreError>) {
    let directory = tempfile::tempdir().unwrap();
    let mut history = History::new(seed);
    let mut memory = MemoryStore::new();
    let mut store = open(directory.path()).unwrap();
    for _ in 0..25 {
        let batch: Vec<Entry> = (0..history.random.usize(1..12)).flat_map(|_| history.next()).collect();
        commit(&mut memory, batch.clone());
        commit(&mut store, batch);
        if history.random.u8(..4) == 0 {
            drop(store);
            store = open(directory.path()).unwrap();
            memory = memory.reopen();
            assert_eq!(ageless(store.load().unwrap()), memory.load().unwrap(), "seed {seed}");
        }
        for &job in &history.live {
            assert_eq!(text(store.payload(job, None)), text(memory.payload(job, None)), "{job}, seed {seed}");
            for attempt in 1..3 {
                let (found, expected) =
                    (store.payload(job, Some(attempt)), memory.payload(job, Some(attempt)));
                assert_eq!(text(found), text(expected), "{job}, seed {seed}");
            }
        }
        for &(job, _) in &history.ended {
            assert_eq!(text(store.result(job)), text(memory.result(job)), "{job}, seed {seed}");
            assert_eq!(text(store.output(job)), text(memory.output(job)), "{job}, seed {seed}");
        }
    }
    // Once all is forgotten, nothing is left on the disk.
    let gone = history.live.iter().chain(history.ended.iter().map(|(job, _)| job));
    let sessions = history.sessions.iter().map(|&(session, _)| record(Record::SessionForgotten { session }));
    let all: Vec<Entry> = gone.map(|&job| forgotten(job, true)).chain(sessions).collect();
    commit(&mut store, all);
    drop(store);
    let mut store = open(directory.path()).unwrap();
    assert_eq!(store.load().unwrap(), Loaded::default(), "seed {seed}");
    assert_eq!(std::fs::read_dir(directory.path().join("bodies")).unwrap().count(), 0, "seed {seed}");
}

#[test]
fn random_histories_come_to_the_same_on_a_disk_and_in_memory() {
    for _ in 0..4 {
        run(fastrand::u64(..), DurableStore::open);
        run(fastrand::u64(..), DurableStore::open_temporary);
    }
}
