//! What applications ask about their jobs. A question of a few bytes may concern all of ten million jobs, or make as many answers:
//! so much is done about it at a time, and the rest once that is on its way. Others are heard in between.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;

use lrts_core::ids::{JobId, SessionId, ranges};
use lrts_core::limits::{ANSWER_BYTES, LISTED_RANGES, SEND_WINDOW_JOBS};

use super::Engine;
#[cfg(any(test, feature = "fuzzing"))]
use super::applications::Presence;
use super::bounds::Bounds;
use super::events::{ListedJobs, Message, Peer};
use super::jobs::{Delivery, Phase};
use super::sessions::Mark;

/// What an application has asked and wasn't answered in full, in order.
#[derive(Debug, Default)]
pub(super) struct Questions {
    queue: VecDeque<Question>,
    weight: usize,
}

#[derive(Debug)]
enum Question {
    /// Results of these jobs are wanted.
    Want { session: SessionId, ranges: VecDeque<(u64, u64)>, urgent: bool },
    /// Which jobs there are in these sessions, in the first one from this sequence on.
    List { request: u64, sessions: VecDeque<SessionId>, from: u64 },
}

impl Questions {
    fn push_back(&mut self, question: Question) {
        self.weight += question.weight();
        self.queue.push_back(question);
    }

    fn push_front(&mut self, question: Question) {
        self.weight += question.weight();
        self.queue.push_front(question);
    }

    fn pop_front(&mut self) -> Option<Question> {
        let question = self.queue.pop_front()?;
        self.weight -= question.weight();
        Some(question)
    }
}

impl Question {
    /// What it takes, in ranges.
    fn weight(&self) -> usize {
        let ranges = match self {
            Self::Want { ranges, .. } => ranges.len(),
            Self::List { sessions, .. } => sessions.len(),
        };
        ranges + size_of::<Self>() / size_of::<(u64, u64)>()
    }
}

/// What may still be done at a time: jobs to look at, answers and bytes of results to send.
pub(super) struct Turn {
    jobs: usize,
    answers: usize,
    bytes: u64,
}

impl Turn {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self { jobs: bounds.answer_jobs, answers: bounds.answers, bytes: ANSWER_BYTES }
    }

    pub(super) fn is_over(&self) -> bool {
        self.jobs == 0 || self.answers == 0 || self.bytes == 0
    }

    pub(super) fn looked(&mut self) {
        self.jobs = self.jobs.saturating_sub(1);
    }

    pub(super) fn answered(&mut self, bytes: u64) {
        self.answers = self.answers.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl Engine {
    /// Applications that are owed more answers, the next one to be served first: they get them with [`super::Event::RoomFor`].
    pub(crate) fn asking(&self) -> impl Iterator<Item = Peer> {
        self.asking.iter().copied()
    }

    /// An application waits for results.
    pub(super) fn want(&mut self, peer: Peer, session: SessionId, ranges: Vec<(u64, u64)>, urgent: bool) {
        let Some((application, _)) = self.attached(peer) else { return };
        let index = self.session_of(peer, session);
        let known = index.map_or(RangeInclusive::new(1, 0), |index| self.sessions[index].known());
        let is_heard = self.tell_gone(peer, session, &ranges, known);
        let Some(index) = index.filter(|_| is_heard) else { return };
        self.sessions[index].listener = Some(peer);
        self.ask(peer, application, Question::Want { session, ranges: ranges.into(), urgent });
    }

    /// Tells an application which jobs it has, or whether it has this one.
    pub(super) fn list(&mut self, peer: Peer, request: u64, only: Option<JobId>) {
        let Some((application, _)) = self.attached(peer) else { return };
        let Some(id) = only else {
            let sessions = &self.applications[application].sessions;
            let sessions = sessions.iter().map(|&session| self.sessions[session].id).collect();
            return self.ask(peer, application, Question::List { request, sessions, from: 0 });
        };
        // What was taken can't be had again. Somebody who asks for it by name is told so when he waits.
        let job = self.find_job(id).filter(|&job| self.spec_of(job).application == application);
        self.tell_listed(peer, request, job.into_iter().collect(), true);
    }

    fn ask(&mut self, peer: Peer, application: u32, question: Question) {
        let questions = &mut self.applications[application].questions;
        let is_next = questions.queue.is_empty();
        questions.push_back(question);
        if questions.weight > self.settings.bounds.questions {
            return self.violation(peer, "asks ever more before it has taken the answers");
        }
        if is_next {
            self.answer(peer);
        }
    }

    /// Answers what an application has asked and sends what its credit allows, as much as is said at a time.
    pub(super) fn answer(&mut self, peer: Peer) {
        let Some((application, _)) = self.attached(peer) else { return };
        let mut turn = Turn::new(&self.settings.bounds);
        while !turn.is_over() {
            let Some(question) = self.applications[application].questions.pop_front() else { break };
            let rest = match question {
                Question::Want { session, ranges, urgent } => {
                    self.answer_want(peer, session, ranges, urgent, &mut turn)
                }
                Question::List { request, sessions, from } => {
                    self.answer_list(peer, request, sessions, from, &mut turn)
                }
            };
            if let Some(rest) = rest {
                self.applications[application].questions.push_front(rest);
            }
        }
        self.asking.retain(|&other| other != peer);
        self.pump(application);
        if !self.applications[application].questions.queue.is_empty() {
            self.owe(peer);
        }
    }

    /// There is more to be said to an application than fits now.
    pub(super) fn owe(&mut self, peer: Peer) {
        if !self.asking.contains(&peer) {
            self.asking.push_back(peer);
        }
    }

    fn answer_want(
        &mut self,
        peer: Peer,
        session: SessionId,
        mut ranges: VecDeque<(u64, u64)>,
        urgent: bool,
        turn: &mut Turn,
    ) -> Option<Question> {
        // It may have been forgotten meanwhile.
        let index = self.session_of(peer, session)?;
        while !turn.is_over() {
            let sequence = self.sessions[index].next_to_want(&mut ranges, urgent)?;
            turn.looked();
            let job = self.sessions[index].job(sequence);
            let taken = match job {
                Some(job) => self.jobs.nodes[job].delivery == Delivery::Taken,
                None => self.sessions[index].was_taken(sequence),
            };
            let Some(job) = job.filter(|_| !taken) else {
                turn.answered(0);
                self.send(peer, Message::Gone { job: session.job(sequence), taken });
                continue;
            };
            self.set_delivery(job, if urgent { Delivery::Urgent } else { Delivery::Wanted });
            if let Phase::Ended { report, .. } = self.jobs.nodes[job].phase {
                if urgent {
                    turn.answered(self.jobs.ended[report].output_bytes);
                }
                self.put_out(job);
            }
        }
        Some(Question::Want { session, ranges, urgent })
    }

    fn answer_list(
        &mut self,
        peer: Peer,
        request: u64,
        mut sessions: VecDeque<SessionId>,
        mut from: u64,
        turn: &mut Turn,
    ) -> Option<Question> {
        let mut jobs = Vec::new();
        while let Some(&session) = sessions.front() {
            if turn.is_over() {
                self.tell_listed(peer, request, jobs, false);
                return Some(Question::List { request, sessions, from });
            }
            let listed = self.session_of(peer, session).and_then(|index| {
                let session = &self.sessions[index];
                let sequence = session.next_marked(Mark::Listed, from, u64::MAX)?;
                Some((sequence, session.job(sequence)))
            });
            turn.looked();
            let next = listed.and_then(|(sequence, _)| sequence.checked_add(1));
            jobs.extend(listed.and_then(|(_, job)| job));
            if next.is_none() {
                sessions.pop_front();
            }
            from = next.unwrap_or_default();
        }
        self.tell_listed(peer, request, jobs, true);
        None
    }

    fn tell_listed(&mut self, peer: Peer, request: u64, jobs: Vec<u32>, last: bool) {
        let mut found: BTreeMap<(Arc<str>, SessionId), Vec<u64>> = BTreeMap::new();
        for job in jobs {
            let node = &self.jobs.nodes[job];
            let service = Arc::clone(&self.services[self.spec_of(job).service].name);
            found.entry((service, self.sessions[node.session].id)).or_default().push(node.sequence);
        }
        let mut batch = Vec::new();
        let mut room = LISTED_RANGES;
        for ((service, session), sequences) in found {
            for ranges in ranges(sequences).chunks(LISTED_RANGES) {
                if ranges.len() > room {
                    let jobs = std::mem::take(&mut batch);
                    self.send(peer, Message::Listed { request, jobs, last: false });
                    room = LISTED_RANGES;
                }
                room -= ranges.len();
                batch.push(ListedJobs { service: Arc::clone(&service), session, ranges: ranges.to_vec() });
            }
        }
        if last || !batch.is_empty() {
            self.send(peer, Message::Listed { request, jobs: batch, last });
        }
    }

    /// Tells that the jobs of these ranges that aren't `known` never came. A client speaks of few that it may not know to be so:
    /// one that speaks of more is parted from, and what it had may be forgotten with it. Returns whether it is still heard.
    fn tell_gone(
        &mut self,
        peer: Peer,
        session: SessionId,
        ranges: &[(u64, u64)],
        known: RangeInclusive<u64>,
    ) -> bool {
        let unknown = |&(first, last): &(u64, u64)| {
            let below = first.max(1)..last.saturating_add(1).min(*known.start());
            let above = first.max(known.end().saturating_add(1))..last.saturating_add(1);
            [below, above]
        };
        let mut told = 0;
        for sequences in ranges.iter().flat_map(unknown) {
            for sequence in sequences {
                if told == SEND_WINDOW_JOBS {
                    self.violation(peer, "too many unknown jobs in one message");
                    return false;
                }
                told += 1;
                self.send(peer, Message::Gone { job: session.job(sequence), taken: false });
            }
        }
        true
    }

    /// Panics where somebody is owed answers and isn't served, or is served for nothing.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check_questions(&self) {
        for &peer in &self.asking {
            assert!(self.attached(peer).is_some(), "whoever is served is attached");
        }
        for (_, application) in self.applications.iter() {
            let Questions { queue, weight } = &application.questions;
            assert_eq!(queue.iter().map(Question::weight).sum::<usize>(), *weight, "weights are summed");
            let is_served = match application.presence {
                Presence::Here { peer, .. } => self.asking.contains(&peer),
                Presence::Away { .. } => false,
            };
            assert!(is_served || queue.is_empty(), "whoever is owed answers is served");
        }
    }
}
