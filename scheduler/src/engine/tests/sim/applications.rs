//! Applications: programs that schedule, wait, crash and come back under their name.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use lrts_core::ids::{JobId, SessionId};
use lrts_core::spec::{JobOptions, KeyedJob};

use super::super::cluster::{attach_of, job_of};
use super::history::History;
use crate::engine::{Attach, Credit, Event, Message, Peer, Submit};
use crate::record::NewJob;

/// Most jobs of one start that aren't over.
const WINDOW: usize = 40;

/// A job as the program has scheduled it.
#[derive(Clone)]
struct Scheduled {
    job: NewJob,
    options: JobOptions,
    key: Option<(String, u64)>,
}

/// An application. What a start of it knows is lost when it crashes.
pub(super) struct Application {
    pub(super) name: String,
    /// Whose key it has.
    user: &'static str,
    pub(super) peer: Option<Peer>,
    pub(super) start: SessionId,
    pub(super) starts: BTreeSet<SessionId>,
    pub(super) inbox: Vec<Message>,
    pub(super) outbox: Vec<Event>,
    attached: bool,
    /// Sequences up to here were accepted, as it was told.
    accepted: u64,
    /// Those behind, in order.
    waiting: Vec<Scheduled>,
    /// Jobs that it waits for.
    wanted: BTreeSet<JobId>,
    /// Jobs whose results it has, or has returned to its caller.
    returned: BTreeSet<JobId>,
    /// Results that it has and hasn't returned yet.
    results: Vec<JobId>,
    /// The number of its last question which jobs it has, and what was answered so far.
    request: u64,
    listed: BTreeSet<JobId>,
    /// What it is owed when it asks for a list; none if it hasn't.
    owed: Option<Vec<JobId>>,
    pub(super) stopping: bool,
    /// Counts its stops: keys are forgotten by them.
    stops: u64,
}

impl Application {
    pub(super) fn new(number: u64, start: SessionId) -> Self {
        Self {
            name: format!("application {number}"),
            user: if number.is_multiple_of(2) { "ann" } else { "bob" },
            peer: None,
            start,
            starts: [start].into(),
            inbox: Vec::new(),
            outbox: Vec::new(),
            attached: false,
            accepted: 0,
            waiting: Vec::new(),
            wanted: BTreeSet::new(),
            returned: BTreeSet::new(),
            results: Vec::new(),
            request: 0,
            listed: BTreeSet::new(),
            owed: None,
            stopping: false,
            stops: 0,
        }
    }

    pub(super) fn cut(&mut self) {
        self.peer = None;
        self.attached = false;
        self.owed = None;
        self.inbox.clear();
        self.outbox.clear();
    }

    /// The program crashes, and another start of it begins. All that it has is the application's name.
    pub(super) fn crash(&mut self, start: SessionId) {
        let name = std::mem::take(&mut self.name);
        let mut starts = std::mem::take(&mut self.starts);
        starts.insert(start);
        let stops = self.stops + u64::from(self.stopping);
        *self = Self { name, user: self.user, starts, stops, ..Self::new(0, start) };
    }

    pub(super) fn attach(&mut self, peer: Peer) -> Attach {
        self.peer = Some(peer);
        let user = Some(self.user.parse().expect("it is a name"));
        Attach { user, credit: Credit { results: 3, bytes: 1 << 20 }, ..attach_of(&self.name, self.start) }
    }

    /// What somebody says who has another user's key.
    pub(super) fn imitated(&self) -> Attach {
        let user = Some("eve".parse().expect("it is a name"));
        Attach { user, ..attach_of(&self.name, self.start) }
    }

    /// Where its jobs are: its starts, and its keys.
    pub(super) fn sessions(&self) -> impl Iterator<Item = SessionId> {
        let keyed = SessionId::keyed(self.name.parse().expect("names are valid"));
        self.starts.iter().copied().chain([keyed])
    }

    /// Schedules some jobs.
    pub(super) fn schedule(&mut self, rng: &mut Rng) {
        if self.stopping || self.waiting.len() + self.wanted.len() > WINDOW {
            return;
        }
        let options = JobOptions::new()
            .priority(rng.i32(-1..=1))
            .slots(rng.u32(1..=2))
            .retries(rng.u32(0..3))
            .crash_limit(rng.u32(1..4));
        let options = if rng.u32(0..3) == 0 { options.exclusive() } else { options };
        let jobs: Vec<Scheduled> = (0..rng.u32(1..6))
            .map(|_| Scheduled {
                job: job_of(rng.u16(0..2)),
                options: options.clone(),
                key: (rng.u32(0..4) == 0).then(|| {
                    // Now and then with another content, which is a conflict.
                    let content = u64::from(rng.u32(0..10) == 0);
                    (format!("{} {}", self.stops, rng.u32(0..8)), content)
                }),
            })
            .collect();
        let first = self.accepted + self.waiting.len() as u64 + 1;
        self.waiting.extend(jobs.iter().cloned());
        for (sequence, scheduled) in (first..).zip(&jobs) {
            self.wanted.insert(self.job_of(sequence, scheduled));
        }
        if self.attached {
            self.submit(first, jobs);
            self.want(rng.bool());
        }
    }

    /// The job that this sequence is.
    fn job_of(&self, sequence: u64, scheduled: &Scheduled) -> JobId {
        match &scheduled.key {
            Some((key, _)) => JobId::keyed(self.name.parse().expect("names are valid"), key),
            None => self.start.job(sequence),
        }
    }

    fn submit(&mut self, first: u64, jobs: Vec<Scheduled>) {
        let Some(peer) = self.peer.filter(|_| !jobs.is_empty()) else { return };
        let keyed = |(index, scheduled): (u32, &Scheduled)| {
            let (key, digest) = scheduled.key.clone()?;
            Some(KeyedJob { index, key, digest })
        };
        let keys = (0..).zip(&jobs).filter_map(keyed).collect();
        let options = jobs.iter().map(|scheduled| scheduled.options.clone()).collect();
        let jobs = (0..).zip(&jobs).map(|(options, scheduled)| NewJob { options, ..scheduled.job });
        let submit = Submit { first, options, jobs: jobs.collect(), keys, no_room: None };
        self.outbox.push(Event::Submitted { peer, submit });
    }

    fn want(&mut self, urgent: bool) {
        let Some(peer) = self.peer else { return };
        for (session, ranges) in by_session(self.wanted.iter().copied()) {
            self.outbox.push(Event::Wanted { peer, session, ranges, urgent });
        }
    }

    /// Returns to its caller what it has.
    pub(super) fn return_results(&mut self, history: &mut History) {
        let Some(peer) = self.peer.filter(|_| self.attached && !self.results.is_empty()) else { return };
        let results = std::mem::take(&mut self.results);
        let count = results.len() as u32;
        history.returned.extend(&results);
        for (session, ranges) in by_session(results.into_iter()) {
            self.outbox.push(Event::Taken { peer, session, ranges });
        }
        let credit = Credit { results: count, bytes: u64::from(count) * 3 };
        self.outbox.push(Event::CreditGranted { peer, credit });
    }

    pub(super) fn cancel(&mut self, rng: &mut Rng, history: &mut History) {
        let wanted: Vec<JobId> = self.wanted.iter().copied().collect();
        if let (Some(&job), Some(peer)) = (rng.choice(&wanted), self.peer.filter(|_| self.attached)) {
            history.cancelled.insert(job);
            let ranges = vec![(job.sequence, job.sequence)];
            self.outbox.push(Event::CancelAsked { peer, session: job.session, ranges });
        }
    }

    /// Asks which jobs it has.
    pub(super) fn list(&mut self, history: &History) {
        let Some(peer) = self.peer.filter(|_| self.attached && self.owed.is_none() && !self.stopping) else {
            return;
        };
        self.listed.clear();
        self.owed = Some(history.owed(&self.starts).collect());
        self.request += 1;
        self.outbox.push(Event::ListAsked { peer, request: self.request, job: None });
    }

    pub(super) fn stop(&mut self, history: &mut History) {
        let Some(peer) = self.peer.filter(|_| self.attached) else { return };
        self.stopping = true;
        history.stopped.extend(&self.starts);
        self.outbox.push(Event::StopAsked { peer });
    }

    /// Takes in a message of the scheduler. Returns whether the application is over.
    pub(super) fn take_in(&mut self, message: Message, history: &mut History) -> bool {
        let Some(peer) = self.peer else { return false };
        match message {
            Message::Attached { accepted_through, .. } => {
                self.attached = true;
                if self.stopping {
                    // Nothing may be known of it any more.
                    self.outbox.push(Event::StopAsked { peer });
                    return false;
                }
                assert!(accepted_through >= self.accepted, "what was accepted is lost");
                self.accept(accepted_through);
                self.submit(self.accepted + 1, self.waiting.clone());
                let returned = self.returned.iter().filter(|job| !self.results.contains(job));
                for (session, ranges) in by_session(returned.copied()) {
                    self.outbox.push(Event::Taken { peer, session, ranges });
                }
                self.want(true);
            }
            Message::Accepted { through } => {
                let fresh: Vec<JobId> = (self.accepted + 1..=through)
                    .zip(&self.waiting)
                    .filter(|(_, scheduled)| scheduled.key.is_none())
                    .map(|(sequence, scheduled)| self.job_of(sequence, scheduled))
                    .collect();
                fresh.iter().for_each(|job| assert!(history.jobs.contains_key(job), "{job} isn't durable"));
                self.accept(through);
            }
            Message::Result { job, .. } => {
                // It may come twice where it was asked for twice; the caller gets it once.
                let is_new = self.wanted.remove(&job) && self.returned.insert(job);
                self.results.extend(is_new.then_some(job));
            }
            Message::Gone { job, .. } => {
                self.wanted.remove(&job);
            }
            Message::Listed { request, jobs, last } if request == self.request => {
                for listed in jobs {
                    let sequences = listed.ranges.iter().flat_map(|&(first, last)| first..=last);
                    self.listed.extend(sequences.map(|sequence| listed.session.job(sequence)));
                }
                if last {
                    self.check_list(history);
                }
            }
            Message::Stopped => {
                assert!(self.stopping, "stopped without a wish");
                return true;
            }
            _ => {}
        }
        false
    }

    fn accept(&mut self, through: u64) {
        let count = through.saturating_sub(self.accepted).min(self.waiting.len() as u64) as usize;
        self.waiting.drain(..count);
        self.accepted = self.accepted.max(through);
    }

    /// A list has all that the application is owed, and it waits for all of it.
    fn check_list(&mut self, history: &History) {
        for job in self.owed.take().unwrap_or_default() {
            let gone = history.jobs[&job].forgotten || history.returned.contains(&job);
            assert!(gone && !history.jobs[&job].keyed || self.listed.contains(&job), "{job} isn't listed");
        }
        for job in &self.listed {
            assert!(self.starts.contains(&history.jobs[job].start), "{job} is another application's");
        }
        let fresh = self.listed.iter().filter(|job| !self.returned.contains(job));
        self.wanted.extend(fresh.copied().collect::<Vec<_>>());
        self.want(true);
    }

    /// What it still waits for, and how many messages are on their way.
    pub(super) fn left(&self) -> String {
        let Self { name, attached, waiting, wanted, results, inbox, outbox, .. } = self;
        let (waiting, results, inbox, outbox) = (waiting.len(), results.len(), inbox.len(), outbox.len());
        format!(
            "{name}: attached {attached}, waiting {waiting}, wanted {wanted:?}, results {results}, inbox {inbox}, outbox {outbox}"
        )
    }

    /// Whether it has all that it waits for.
    pub(super) fn is_content(&self) -> bool {
        self.attached && self.waiting.is_empty() && self.wanted.is_empty() && self.results.is_empty()
    }
}

/// Sequences by session, as ranges.
fn by_session(jobs: impl Iterator<Item = JobId>) -> BTreeMap<SessionId, Vec<(u64, u64)>> {
    let mut sessions: BTreeMap<SessionId, Vec<(u64, u64)>> = BTreeMap::new();
    let jobs: BTreeSet<JobId> = jobs.collect();
    for job in jobs {
        sessions.entry(job.session).or_default().push((job.sequence, job.sequence));
    }
    sessions
}
