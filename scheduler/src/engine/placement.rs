//! Which job goes where next.
//!
//! Applications share the slots equally: the one that uses fewest is served next, those that use equally many take turns.
//! Within an application the highest priority goes first, and among equal ones the oldest job. The job goes to the worker with
//! most free slots, rather to one that has begun its program before. A job that fits nowhere now keeps the emptiest worker free
//! from others, so that large jobs aren't starved by small ones.
//!
//! Short jobs may be sent ahead of a free slot, so that a worker needn't wait for the scheduler between two of them, but never
//! past a job whose turn it is; they are taken back when a slot is idle elsewhere or a higher priority waits.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lrts_core::limits::ATTEMPTS_AHEAD;

use super::Engine;
use super::attempts::{Fate, Position};
use super::bundles::{Availability, Starters};
use super::workers::{Standing, Verdict};

/// How much measured work may wait at a worker for each of its slots.
const AHEAD_TIME: Duration = Duration::from_millis(100);

/// How many attempts may wait at a worker for each of its slots, however short.
const AHEAD_PER_SLOT: usize = 64;

/// Even a job that does nothing takes this long, in microseconds: its process is made and reaped.
const SHORTEST_US: u64 = 50;

/// How many workers that could take a job are looked at for one that has begun its program before.
const WARM_SEARCH: usize = 32;

/// Where a job can go.
enum Choice {
    /// There, now.
    Free(u32),
    /// To such a worker once it has room; this one has most.
    Full(u32),
    /// To no worker that is ready.
    Nowhere,
}

/// What the search for places has found so far.
#[derive(Default)]
struct Pass {
    /// Queues whose first job fits nowhere now.
    blocked: BTreeSet<u32>,
    /// Those of them that ready workers could serve if they had room, and which one is kept free for it; none if nothing is
    /// free for anybody.
    crowded: BTreeMap<u32, Option<u32>>,
    /// All workers that are kept free.
    reserved: BTreeSet<u32>,
}

impl Engine {
    /// An application uses more slots.
    pub(super) fn use_slots(&mut self, application: u32, slots: u32) {
        self.applications[application].slots_in_use += slots;
        self.refresh_hunger(application);
    }

    /// An application uses fewer slots.
    pub(super) fn free_slots(&mut self, application: u32, slots: u32) {
        self.applications[application].slots_in_use -= slots;
        self.refresh_hunger(application);
    }

    /// Brings an application's place in the order of service up to date.
    fn refresh_hunger(&mut self, application: u32) {
        let record = &mut self.applications[application];
        let key = (!record.ready.is_empty()).then_some((record.slots_in_use, record.turn, application));
        if key != record.key {
            if let Some(old) = std::mem::replace(&mut record.key, key) {
                self.hungry.remove(&old);
            }
            self.hungry.extend(key);
        }
    }

    /// Brings a queue's place in its application's order up to date, after its first job, or whether it may be placed, changed.
    pub(super) fn refresh_queue(&mut self, queue: u32) {
        let record = &mut self.jobs.queues[queue];
        let place = (record.application, queue);
        let bundle = &mut self.bundles[record.bundle];
        let waits = record.length > 0;
        if std::mem::replace(&mut record.waits, waits) != waits {
            match waits {
                true => bundle.queues.insert(place),
                false => bundle.queues.remove(&place),
            };
        }
        let open = bundle.availability == Availability::Here && !record.barred;
        let key = self.jobs.nodes.get(record.head).filter(|_| open);
        let key = key.map(|head| (Reverse(record.priority), head.submitted, head.sequence, queue));
        if key != record.key {
            let application = record.application;
            let ready = &mut self.applications[application].ready;
            if let Some(old) = std::mem::replace(&mut self.jobs.queues[queue].key, key) {
                ready.remove(&old);
            }
            ready.extend(key);
            self.reordered.insert(application);
            self.refresh_hunger(application);
        }
    }

    /// Places what can be placed.
    pub(super) fn place_queued(&mut self) {
        let mut pass = Pass::default();
        while let Some(queue) = self.next_queue(&pass) {
            let Some(&(Reverse(most_free), _, _)) = self.workers.open.first() else { break };
            match self.choose_worker(queue, &pass) {
                Choice::Free(worker) => self.place_first(queue, worker, Position::Slot),
                Choice::Full(worker) => {
                    if let Some((ahead, estimate_us)) = self.choose_ahead(queue, &pass) {
                        self.place_first(queue, ahead, Position::Ahead { estimate_us });
                        continue;
                    }
                    pass.blocked.insert(queue);
                    pass.crowded.insert(queue, (most_free > 0).then_some(worker));
                    pass.reserved.insert(worker);
                    if most_free == 0 {
                        // Nothing is sent ahead past the one whose turn it is.
                        break;
                    }
                }
                Choice::Nowhere => {
                    pass.blocked.insert(queue);
                    self.bar_if_hopeless(queue);
                }
            }
        }
        self.recall_for_priority(&pass);
        self.recall_for_idle_slots(&pass);
    }

    /// The queue whose turn it is.
    fn next_queue(&self, pass: &Pass) -> Option<u32> {
        self.hungry.iter().find_map(|&(_, _, application)| {
            let ready = self.applications[application].ready.iter();
            ready.map(|&(_, _, _, queue)| queue).find(|queue| !pass.blocked.contains(queue))
        })
    }

    fn place_first(&mut self, queue: u32, worker: u32, position: Position) {
        let record = &self.jobs.queues[queue];
        let (job, application) = (record.head, record.application);
        self.turns += 1;
        self.applications[application].turn = self.turns;
        self.dispatch(job, worker, position);
    }

    fn choose_worker(&mut self, queue: u32, pass: &Pass) -> Choice {
        let record = &self.jobs.queues[queue];
        let (bundle, slots) = (record.bundle, record.slots);
        let mut suited = None;
        let mut full = None;
        let mut seen = 0;
        let mut after = None;
        while let Some((Reverse(free), load, worker)) = self.workers.next_open(after) {
            after = Some((Reverse(free), load, worker));
            if free < slots && suited.is_some() {
                break;
            }
            if pass.reserved.contains(&worker)
                || self.workers.all[worker].slots < slots
                || !self.can_start(worker, bundle)
            {
                continue;
            }
            if free < slots {
                full = Some(worker);
                break;
            }
            if self.workers.all[worker].verdicts.get(&bundle) == Some(&Verdict::Proven) {
                return Choice::Free(worker);
            }
            suited = suited.or(Some(worker));
            seen += 1;
            if seen == WARM_SEARCH {
                break;
            }
        }
        match (suited, full) {
            (Some(worker), _) => Choice::Free(worker),
            (None, Some(worker)) => Choice::Full(worker),
            (None, None) => Choice::Nowhere,
        }
    }

    /// The worker that may be sent the queue's first job ahead of a free slot, and how long that job will take.
    fn choose_ahead(&mut self, queue: u32, pass: &Pass) -> Option<(u32, u64)> {
        let record = &self.jobs.queues[queue];
        let (bundle, slots) = (record.bundle, record.slots);
        let service = &self.services[record.service];
        let estimate_us = service.mean_us?.max(SHORTEST_US);
        if slots != 1 || !service.is_short() {
            return None;
        }
        let mut after = None;
        while let Some((free, load, worker)) = self.workers.next_open(after) {
            after = Some((free, load, worker));
            if Duration::from_micros(load.saturating_add(estimate_us)) > AHEAD_TIME {
                // The others have more, or run nothing short that would make way.
                return None;
            }
            let record = &self.workers.all[worker];
            let room = record.ahead.len() < ATTEMPTS_AHEAD.min(AHEAD_PER_SLOT * record.short as usize);
            if room && !pass.reserved.contains(&worker) && self.can_start(worker, bundle) {
                return Some((worker, estimate_us));
            }
        }
        None
    }

    /// Sets a queue aside that none of the known workers can serve, until a worker registers; ends its jobs if all refused.
    fn bar_if_hopeless(&mut self, queue: u32) {
        let record = &self.jobs.queues[queue];
        let (bundle, slots) = (record.bundle, record.slots);
        match self.starters(bundle) {
            Starters::AllRefused(reasons) => {
                let reason = format!("no worker can start the program: {}", reasons.join("; "));
                // All that wait for the program at once, since this cost a look at all workers. Those that wait for something
                // else come here when they are queued.
                let queues = self.bundles[bundle].queues.iter();
                let jobs: Vec<u32> = queues.flat_map(|&(_, queue)| self.jobs.queued_in(queue)).collect();
                self.fail_waiting(&jobs, &reason);
            }
            Starters::Nobody => self.bar(queue),
            Starters::Some => {
                let fits = self.workers.all.indices().into_iter().any(|worker| {
                    self.workers.all[worker].standing != Standing::Lost
                        && self.workers.all[worker].slots >= slots
                        && self.can_start(worker, bundle)
                });
                if !fits {
                    self.bar(queue);
                }
            }
        }
    }

    fn bar(&mut self, queue: u32) {
        self.jobs.queues[queue].barred = true;
        self.barred.push(queue);
        self.refresh_queue(queue);
    }

    /// Takes back what was sent ahead for a lower priority than the application's next job has, but not from where it would only
    /// be sent again.
    fn recall_for_priority(&mut self, pass: &Pass) {
        for application in std::mem::take(&mut self.reordered) {
            let Some(record) = self.applications.get(application) else { continue };
            let (Some(&(Reverse(waiting), _, _, queue)), Some(&(lowest, _))) =
                (record.ready.first(), record.ahead.first())
            else {
                continue;
            };
            let Some(&kept_free) = pass.crowded.get(&queue).filter(|_| lowest < waiting) else { continue };
            let lower: Vec<(i32, u32)> = record.ahead.range(..(waiting, 0)).copied().collect();
            for (_, attempt) in lower {
                if kept_free.is_none_or(|worker| worker == self.attempts[attempt].worker) {
                    self.recall(attempt);
                }
            }
        }
    }

    /// Takes back what waits behind other attempts where another worker has nothing to do.
    fn recall_for_idle_slots(&mut self, pass: &Pass) {
        let Some(&(Reverse(mut free), _, idle)) = self.workers.open.first() else { return };
        let Some(&(_, busiest)) = self.workers.laden.last() else { return };
        if free == 0 || idle == busiest || pass.reserved.contains(&idle) {
            return;
        }
        let waiting: Vec<u32> = self.workers.all[busiest].ahead.iter().rev().copied().collect();
        for attempt in waiting {
            if free == 0 {
                return;
            }
            if self.attempts[attempt].recalled {
                free -= 1;
                continue;
            }
            if self.attempts[attempt].fate != Fate::Open {
                continue;
            }
            let bundle = self.spec_of(self.attempts[attempt].job).bundle;
            if self.can_start(idle, bundle) {
                self.recall(attempt);
                free -= 1;
            }
        }
    }
}
