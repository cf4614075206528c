//! What always holds between two events. Tests check it after each of them.

use std::collections::{BTreeMap, BTreeSet};

use lrts_core::status::JobState;

use super::attempts::{Fate, Position};
use super::jobs::{Phase, count_of, total_of};
use super::sessions::marks_of;
use super::slab::NONE;
use super::workers::Standing;
use super::{Engine, Timer, Totals};

impl Engine {
    /// Panics where an invariant is broken.
    pub(crate) fn check_invariants(&self) {
        self.check_queues();
        self.check_attempts();
        self.check_workers();
        self.check_counts();
        let left = self.actions.len() + self.records.len() + self.changed.len();
        assert_eq!(left, 0, "all that came of an event is handed out");
        self.check_kept();
        self.bundles.check();
        self.check_spare();
        self.check_users();
        self.check_retention();
        self.check_questions();
    }

    fn check_queues(&self) {
        let mut queued = BTreeSet::new();
        for (index, queue) in self.jobs.queues.iter() {
            let (mut previous, mut job, mut length) = (NONE, queue.head, 0);
            while job != NONE {
                let node = &self.jobs.nodes[job];
                let Phase::Queued { previous: back, next } = node.phase else {
                    panic!("{node:?} is in a queue")
                };
                assert_eq!(back, previous, "lists are linked both ways");
                assert_eq!(self.jobs.specs[node.spec].queue, index, "a job waits in its own queue");
                queued.insert(job);
                (previous, job) = (job, next);
                length += 1;
            }
            assert_eq!(
                (queue.tail, queue.length),
                (previous, length),
                "a queue knows its end and its length"
            );
            let ready = self.applications[queue.application].ready.iter();
            let places: Vec<_> = ready.filter(|key| key.3 == index).copied().collect();
            assert_eq!(places, Vec::from_iter(queue.key), "a queue has the place that it knows");
            if let Some(key) = queue.key {
                assert_eq!(key.2, self.jobs.nodes[queue.head].sequence, "places follow the first job");
            }
            assert_eq!(self.barred.contains(&index), queue.barred, "barred queues are listed");
            let place = (queue.application, index);
            let listed = self.bundles[queue.bundle].queues.contains(&place);
            assert_eq!(listed, queue.head != NONE, "queues in which jobs wait are listed");
        }
        let phased = self.jobs.nodes.iter().filter(|(_, node)| matches!(node.phase, Phase::Queued { .. }));
        assert!(phased.map(|(job, _)| job).eq(queued), "who is queued is in a queue");
        for (index, application) in self.applications.iter() {
            let hungry = !application.ready.is_empty();
            assert_eq!(application.key.is_some(), hungry, "who has something to place is served");
            if let Some(key) = application.key {
                assert_eq!(key, (application.slots_in_use, application.turn, index));
                assert!(self.hungry.contains(&key));
            }
        }
    }

    fn check_attempts(&self) {
        let mut open = BTreeSet::new();
        for (job, node) in self.jobs.nodes.iter() {
            let mut live = 0;
            let mut attempt = node.open;
            while attempt != NONE {
                let record = &self.attempts[attempt];
                assert_eq!(record.job, job, "an attempt is listed at its job");
                assert_ne!(record.fate, Fate::Fenced, "fenced attempts are not open");
                live += u32::from(record.fate == Fate::Open);
                open.insert(attempt);
                attempt = record.next;
            }
            let expected = match node.phase {
                Phase::Placed | Phase::Running => 1,
                Phase::Queued { .. } | Phase::Backoff => 0,
                Phase::Held => {
                    assert_ne!(node.open, NONE, "a held job waits for an attempt");
                    assert!(self.jobs.verdicts.contains_key(&job), "a held job has failed");
                    0
                }
                Phase::Ended { .. } => {
                    assert_eq!(node.open, NONE, "a terminal job has no open attempt");
                    0
                }
            };
            assert_eq!(live, expected, "{node:?} has the attempts at trusted workers that its phase says");
            assert!(node.executions <= node.attempts);
            assert!(
                !node.cancelling
                    || !matches!(node.phase, Phase::Queued { .. } | Phase::Backoff | Phase::Held),
                "a cancelled job doesn't wait"
            );
        }
        let mut used: BTreeMap<u32, u32> = BTreeMap::new();
        for (index, attempt) in self.attempts.iter() {
            assert_eq!(open.contains(&index), attempt.fate != Fate::Fenced, "open attempts are listed");
            let worker = &self.workers.all[attempt.worker];
            assert_eq!(worker.attempts.get(&attempt.id), Some(&index), "a worker knows its attempts");
            let lost = worker.standing == Standing::Lost;
            assert!(!lost || attempt.fate == Fate::Lapsed, "nothing at a lost worker is trusted");
            if attempt.fate == Fate::Open {
                *used.entry(attempt.application).or_default() += attempt.slots;
            }
        }
        for (index, application) in self.applications.iter() {
            assert_eq!(application.slots_in_use, used.get(&index).copied().unwrap_or(0), "slots are counted");
            for &(_, attempt) in &application.ahead {
                assert!(matches!(self.attempts[attempt].position, Position::Ahead { .. }));
                assert_eq!(self.attempts[attempt].fate, Fate::Open);
            }
        }
    }

    fn check_workers(&self) {
        let mut keys = BTreeSet::new();
        for (index, worker) in self.workers.all.iter() {
            let mut held = 0;
            let mut ahead = BTreeSet::new();
            for &attempt in worker.attempts.values() {
                match self.attempts[attempt].position {
                    Position::Slot => held += self.attempts[attempt].slots,
                    Position::Ahead { .. } => assert!(ahead.insert(attempt)),
                }
            }
            let short = worker.attempts.values().map(|&attempt| &self.attempts[attempt]);
            let short = short.filter(|attempt| attempt.short && attempt.position == Position::Slot).count();
            assert_eq!(worker.short as usize, short, "short attempts are counted");
            assert_eq!(worker.held, held, "a worker's slots are counted");
            assert!(ahead.into_iter().eq(BTreeSet::from_iter(worker.ahead.iter().copied())));
            keys.extend(worker.key);
            let takes = matches!(worker.standing, Standing::Ready(_)) && worker.draining.is_none();
            assert_eq!(worker.key.is_some(), takes);
            let timer = worker.drain_timer;
            assert!(timer.is_none_or(|at| self.timers.contains(&(at, Timer::Drain(index)))), "watched");
            let timer = worker.lease_timer;
            assert!(timer.is_some_and(|at| self.timers.contains(&(at, Timer::Lease(index)))), "watched");
            assert!(
                worker.standing != Standing::Lost || !worker.attempts.is_empty() || worker.draining.is_some(),
                "the lost are forgotten"
            );
        }
        assert_eq!(keys, self.workers.open, "who is ready can be chosen");
        let known = self.workers.all.iter().filter(|(_, worker)| worker.standing != Standing::Lost).count();
        assert_eq!(self.workers.known, known);
    }

    /// What few jobs have is there for jobs that are there.
    fn check_kept(&self) {
        let mut keyed = BTreeSet::new();
        for (index, session) in self.sessions.iter() {
            let remembered = session.remembered();
            assert_eq!(remembered.len() as u64, session.jobs, "a session's jobs are counted");
            session.check_forgotten();
            for job in remembered {
                let node = &self.jobs.nodes[job];
                assert_eq!(node.session, index, "a job is in its session's table");
                let marks = marks_of(node, session.is_keyed());
                assert_eq!(session.marks(node.sequence), marks, "messages about ranges find {node:?}");
                if session.is_keyed() {
                    keyed.insert(job);
                }
            }
        }
        assert!(self.jobs.keys.keys().eq(&keyed), "keyed jobs have keys");
        for (job, kept) in &self.jobs.checkpoints {
            let node = &self.jobs.nodes[*job];
            assert!(!node.is_terminal(), "checkpoints of ended jobs go");
            assert!(kept.iter().all(|&attempt| attempt <= node.attempts));
        }
    }

    fn check_counts(&self) {
        let mut counts = [0; JobState::ALL.len()];
        let mut totals: BTreeMap<u32, Totals> = BTreeMap::new();
        for (_, node) in self.jobs.nodes.iter() {
            counts[count_of(node.state())] += 1;
            let application = self.jobs.specs[node.spec].application;
            *total_of(totals.entry(application).or_default(), node.state()) += 1;
        }
        assert_eq!(self.jobs.counts, counts, "states are counted");
        for (index, application) in self.applications.iter() {
            let found = totals.get(&index).copied().unwrap_or_default();
            let told = application.totals;
            assert_eq!((told.queued, told.running), (found.queued, found.running), "totals are counted");
            assert!(told.finished >= found.finished && told.failed >= found.failed);
            assert!(told.cancelled >= found.cancelled);
            let jobs = self.jobs.nodes.iter().map(|(_, node)| node);
            let unfinished = jobs.filter(|node| !node.is_terminal());
            let own = unfinished.filter(|node| self.sessions[node.session].application == index);
            let bytes: u64 = own.map(|node| node.payload.bytes()).sum();
            assert_eq!(application.payload_bytes, bytes, "bytes of payloads are counted");
        }
    }
}
