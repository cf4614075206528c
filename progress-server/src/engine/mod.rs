//! What the progress server decides: the latest state of each bar, and who has yet to hear of it. Does no I/O.
//!
//! Every change of a bar gets the next number of its application. What a watcher knows is then one number, and a slow one
//! costs no memory: whenever it can take more, it gets the latest state of what has changed since.

mod application;
mod reporters;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, JobId};
use lrts_core::limits::{BARS, BARS_PER_ATTEMPT, BARS_PER_BATCH, RESTING_ATTEMPTS};
use lrts_core::progress::is_bounded;
use lrts_core::protocol::progress::{BarUpdate, OwnedApplication};

use application::{Application, Rest};
use reporters::Reporters;

/// Bars of ended attempts, and of attempts whose reporter is gone, are kept this long for watchers that come back.
pub(crate) const RETENTION: Duration = Duration::from_secs(3600);

/// Between two lines of the log about bars that there is no room for.
const REFUSED_INTERVAL: Duration = Duration::from_secs(10);

/// What happens. `P` names a connection.
#[derive(Clone, Debug)]
pub(crate) enum Event<P> {
    /// A reporter tells of bars.
    Batch {
        /// Who.
        reporter: P,
        /// The bars.
        updates: Vec<(OwnedApplication, Vec<BarUpdate>)>,
    },
    /// Attempts have ended.
    Ended {
        /// Who says so: of attempts that others report it is ignored.
        reporter: P,
        /// Which.
        attempts: Vec<(OwnedApplication, AttemptId)>,
    },
    /// A connection wants an application's bars.
    Watch {
        /// Who.
        watcher: P,
        /// Whose bars.
        application: OwnedApplication,
    },
    /// A watcher's application has stopped.
    Forget {
        /// Who.
        watcher: P,
    },
    /// A connection has ended.
    Left(P),
    /// Time to tell watchers what is new.
    FanOut {
        /// Watchers that haven't taken what they were told before: they get nothing now.
        busy: BTreeSet<P>,
    },
    /// Time has passed, as [`Engine::deadline`] said.
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Action<P> {
    /// Tell a watcher this: at most [`BARS_PER_BATCH`] bars.
    Send {
        /// Whom.
        watcher: P,
        /// What.
        updates: Vec<BarUpdate>,
    },
    /// Close the connection of a peer that broke the rules.
    Disconnect {
        /// Whose.
        peer: P,
        /// What it did.
        reason: &'static str,
    },
}

/// The state of all bars.
#[derive(Debug)]
pub(crate) struct Engine<P> {
    /// By owner too: two users' applications of one name have nothing to do with each other.
    applications: BTreeMap<OwnedApplication, Application<P>>,
    /// Which application a connection watches.
    watchers: BTreeMap<P, OwnedApplication>,
    /// The jobs that each reporter has told of and that haven't ended.
    reporters: Reporters<P>,
    /// Attempts that nobody reports any more, in the order in which that came about.
    resting: BTreeMap<Rest, (Moment, OwnedApplication, JobId)>,
    next_rest: u64,
    bars: usize,
    /// Whether a watcher may have something to hear.
    is_behind: bool,
    /// Updates of bars that were not taken for want of room since the last word about them, and when that was.
    refused: u64,
    refused_told: Option<Moment>,
}

impl<P: Copy + Ord> Engine<P> {
    pub(crate) fn new() -> Self {
        Self {
            applications: BTreeMap::new(),
            watchers: BTreeMap::new(),
            reporters: Reporters::new(),
            resting: BTreeMap::new(),
            next_rest: 0,
            bars: 0,
            is_behind: false,
            refused: 0,
            refused_told: None,
        }
    }

    /// Takes in what happened.
    pub(crate) fn handle(&mut self, event: Event<P>, now: Moment) -> Vec<Action<P>> {
        self.expire(now);
        match event {
            Event::Batch { reporter, updates } => {
                if let Err(reason) = check(&updates) {
                    return vec![Action::Disconnect { peer: reporter, reason }];
                }
                for (application, updates) in updates {
                    for update in updates {
                        self.update(reporter, &application, update);
                    }
                }
            }
            Event::Ended { reporter, attempts } => {
                for (application, attempt) in attempts {
                    self.end(reporter, &application, attempt, now);
                }
            }
            Event::Watch { watcher, application } => {
                if self.watchers.contains_key(&watcher) {
                    return vec![Action::Disconnect { peer: watcher, reason: "asked to watch twice" }];
                }
                self.watchers.insert(watcher, application.clone());
                self.applications.entry(application).or_default().join(watcher);
                self.is_behind = true;
            }
            Event::Forget { watcher } => {
                let Some(application) = self.watchers.get(&watcher).cloned() else {
                    let reason = "asked to forget what it doesn't watch";
                    return vec![Action::Disconnect { peer: watcher, reason }];
                };
                let jobs = self.applications.get(&application).into_iter().flat_map(Application::jobs);
                for job in jobs.collect::<Vec<_>>() {
                    self.forget(&application, job);
                }
            }
            Event::Left(peer) => self.left(peer, now),
            Event::FanOut { busy } => return self.fan_out(&busy),
            Event::Tick => {}
        }
        Vec::new()
    }

    /// Whether there is something to fan out.
    pub(crate) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Every connection that watches.
    pub(crate) fn watchers(&self) -> impl Iterator<Item = P> {
        self.watchers.keys().copied()
    }

    /// When to tick, if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.resting.first_key_value().map(|(_, &(since, ..))| since + RETENTION)
    }

    /// How many bars are known.
    pub(crate) fn bars(&self) -> usize {
        self.bars
    }

    /// How many updates of bars were not taken for want of room, since this was asked last: at most once in an interval, since
    /// whoever has no room goes on.
    pub(crate) fn refused_to_tell(&mut self, now: Moment) -> Option<u64> {
        let is_told = self.refused_told.is_some_and(|told| now.since(told) < REFUSED_INTERVAL);
        if is_told || self.refused == 0 {
            return None;
        }
        self.refused_told = Some(now);
        Some(std::mem::take(&mut self.refused))
    }

    fn update(&mut self, reporter: P, application: &OwnedApplication, update: BarUpdate) {
        let job = (application.clone(), update.bar.attempt.job);
        let known = self.applications.get(application);
        let is_new = !known.is_some_and(|application| application.knows(update.bar));
        // Text comes with the first update. Without it this bar was forgotten here, or refused.
        if is_new && update.text.is_none() {
            return;
        }
        let taken_over = self.taken_over(application, &update, reporter);
        if is_new || taken_over.is_some() {
            let bars = usize::from(is_new) + taken_over.unwrap_or(0);
            if !self.reporters.has_room(reporter, &job, bars) || (is_new && !self.make_room()) {
                self.refused += 1;
                return;
            }
        }
        // Asked again: bars that nobody reports may have made room just now.
        let bars = usize::from(is_new) + self.taken_over(application, &update, reporter).unwrap_or(0);
        let entry = self.applications.entry(application.clone()).or_default();
        let before = entry.bars();
        let replaced = entry.update(update, reporter);
        self.bars = self.bars + entry.bars() - before;
        self.is_behind |= entry.is_watched();
        match replaced {
            // An attempt that a newer one has replaced: nobody shows it.
            application::Reported::Stale => self.drop_if_empty(application),
            application::Reported::By { rest, other } => {
                rest.map(|rest| self.resting.remove(&rest));
                if let Some(other) = other {
                    self.reporters.remove(other, &job);
                }
                self.reporters.report(reporter, job, bars);
            }
        }
    }

    fn taken_over(&self, application: &OwnedApplication, update: &BarUpdate, reporter: P) -> Option<usize> {
        self.applications.get(application)?.taken_over(update.bar.attempt, reporter)
    }

    fn end(&mut self, reporter: P, application: &OwnedApplication, attempt: AttemptId, now: Moment) {
        let Some(entry) = self.applications.get_mut(application) else { return };
        if entry.is_reported_by(attempt.job, reporter) && entry.close(attempt) {
            self.is_behind |= entry.is_watched();
            self.rest(application, attempt.job, now);
        }
    }

    /// Nobody reports this job any more.
    fn rest(&mut self, application: &OwnedApplication, job: JobId, now: Moment) {
        let rest = Rest(self.next_rest);
        self.next_rest += 1;
        let Some(reporter) = self.applications.get_mut(application).and_then(|entry| entry.rest(job, rest))
        else {
            return;
        };
        self.reporters.remove(reporter, &(application.clone(), job));
        self.resting.insert(rest, (now, application.clone(), job));
        if self.resting.len() > RESTING_ATTEMPTS {
            self.forget_oldest();
        }
    }

    fn left(&mut self, peer: P, now: Moment) {
        if let Some(application) = self.watchers.remove(&peer) {
            if let Some(entry) = self.applications.get_mut(&application) {
                entry.leave(peer);
            }
            self.drop_if_empty(&application);
        }
        for (application, job) in self.reporters.leave(peer) {
            self.rest(&application, job, now);
        }
    }

    fn fan_out(&mut self, busy: &BTreeSet<P>) -> Vec<Action<P>> {
        let mut actions = Vec::new();
        self.is_behind = false;
        for (&watcher, application) in &self.watchers {
            let Some(entry) = self.applications.get_mut(application) else { continue };
            if !busy.contains(&watcher) {
                let updates = entry.news(watcher, BARS_PER_BATCH);
                if !updates.is_empty() {
                    actions.push(Action::Send { watcher, updates });
                }
            }
            self.is_behind |= entry.is_behind(watcher);
        }
        for entry in self.applications.values_mut() {
            self.bars -= entry.drop_vanished();
        }
        actions
    }

    fn make_room(&mut self) -> bool {
        while self.bars >= BARS {
            if !self.forget_oldest() {
                return false;
            }
        }
        true
    }

    fn expire(&mut self, now: Moment) {
        while self.deadline().is_some_and(|due| due <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((_, (_, application, job))) = self.resting.pop_first() else { return false };
        self.forget(&application, job);
        true
    }

    fn forget(&mut self, application: &OwnedApplication, job: JobId) {
        let Some(entry) = self.applications.get_mut(application) else { return };
        let before = entry.bars();
        match entry.forget(job) {
            Some(application::Source::Resting(rest)) => {
                self.resting.remove(&rest);
            }
            Some(application::Source::Reporter(reporter)) => {
                self.reporters.remove(reporter, &(application.clone(), job));
            }
            None => {}
        }
        self.bars = self.bars + entry.bars() - before;
        self.drop_if_empty(application);
    }

    fn drop_if_empty(&mut self, application: &OwnedApplication) {
        if self.applications.get(application).is_some_and(Application::is_empty) {
            self.applications.remove(application);
        }
    }
}

/// Refuses what no honest reporter sends.
fn check(updates: &[(OwnedApplication, Vec<BarUpdate>)]) -> Result<(), &'static str> {
    let bars = || updates.iter().flat_map(|(_, bars)| bars);
    if updates.len() > BARS_PER_BATCH || bars().count() > BARS_PER_BATCH {
        return Err("too many bars in a batch");
    }
    if bars().any(|update| update.bar.index >= BARS_PER_ATTEMPT) {
        return Err("too many bars in an attempt");
    }
    if bars().filter_map(|update| update.text.as_ref()).any(|text| !is_bounded(text)) {
        return Err("text of a bar is out of bounds");
    }
    Ok(())
}
