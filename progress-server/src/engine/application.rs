//! The bars of one application, and how much of them each of its watchers knows.

use std::collections::BTreeMap;

use lrts_core::ids::{AttemptId, BarId, JobId};
use lrts_core::protocol::progress::{BarNumbers, BarText, BarUpdate};

/// Orders attempts by when they were reported last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rest(pub(super) u64);

/// Where news of a job come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<P> {
    /// From this connection.
    Reporter(P),
    /// From nowhere any more.
    Resting(Rest),
}

/// What an update meant for its job.
pub(super) enum Reported<P> {
    /// It is of an attempt older than the newest one.
    Stale,
    /// It is reported by the update's reporter now.
    By {
        /// It rested until now.
        rest: Option<Rest>,
        /// Another connection reported it until now.
        other: Option<P>,
    },
}

#[derive(Debug)]
pub(super) struct Application<P> {
    jobs: BTreeMap<JobId, Job<P>>,
    /// Number of the last change.
    version: u64,
    /// Every bar under the number of its last change.
    changes: BTreeMap<u64, BarId>,
    /// Those of `changes` that go once everybody has seen them: closed, and not to be left on the screen.
    vanishing: BTreeMap<u64, BarId>,
    watchers: BTreeMap<P, Watcher>,
}

#[derive(Debug)]
struct Job<P> {
    /// The newest; only its bars are kept.
    attempt: u32,
    bars: BTreeMap<u32, Bar>,
    source: Source<P>,
}

#[derive(Debug)]
struct Bar {
    text: BarText,
    numbers: BarNumbers,
    /// Number of its last change.
    changed: u64,
    /// A watcher that knows all up to this number knows the text.
    text_changed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Watcher {
    /// Number of the last change when it came. Until it knows all up to there, it is sent every text.
    joined: u64,
    /// It knows all changes up to this number.
    seen: u64,
}

impl Watcher {
    /// It knows the texts of all changes up to this number.
    fn texts_seen(self) -> u64 {
        if self.seen < self.joined { 0 } else { self.seen }
    }
}

impl<P> Default for Application<P> {
    fn default() -> Self {
        Self {
            jobs: BTreeMap::new(),
            version: 0,
            changes: BTreeMap::new(),
            vanishing: BTreeMap::new(),
            watchers: BTreeMap::new(),
        }
    }
}

impl<P: Copy + Ord> Application<P> {
    pub(super) fn join(&mut self, watcher: P) {
        self.watchers.insert(watcher, Watcher { joined: self.version, seen: 0 });
    }

    pub(super) fn leave(&mut self, watcher: P) {
        self.watchers.remove(&watcher);
    }

    pub(super) fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.watchers.is_empty()
    }

    /// How many bars there are.
    pub(super) fn bars(&self) -> usize {
        self.changes.len()
    }

    pub(super) fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.jobs.keys().copied()
    }

    /// Whether a bar is here, or is of an attempt that is out of date.
    pub(super) fn knows(&self, bar: BarId) -> bool {
        self.jobs.get(&bar.attempt.job).is_some_and(|job| {
            let attempt = bar.attempt.attempt;
            attempt < job.attempt || (attempt == job.attempt && job.bars.contains_key(&bar.index))
        })
    }

    /// Whether news of this job come from this connection.
    pub(super) fn is_reported_by(&self, job: JobId, reporter: P) -> bool {
        let source = self.jobs.get(&job).map(|job| job.source);
        matches!(source, Some(Source::Reporter(known)) if known == reporter)
    }

    /// How many bars come to a reporter that begins to tell of this attempt, after another one, or nobody, has; None if it doesn't
    /// take it over.
    pub(super) fn taken_over(&self, attempt: AttemptId, reporter: P) -> Option<usize> {
        let job = self.jobs.get(&attempt.job).filter(|job| job.attempt == attempt.attempt)?;
        (!self.is_reported_by(attempt.job, reporter)).then_some(job.bars.len())
    }

    /// Takes in an update; that of a new bar must have a text.
    pub(super) fn update(&mut self, update: BarUpdate, reporter: P) -> Reported<P> {
        let BarUpdate { bar: id, text, numbers } = update;
        let AttemptId { job, attempt } = id.attempt;
        let texts_seen = self.texts_seen();
        if let Some(known) = self.jobs.get(&job) {
            if attempt < known.attempt {
                return Reported::Stale;
            }
            if attempt > known.attempt {
                self.drop_bars(job);
            }
        }
        let (mut rest, mut other) = (None, None);
        let known = self
            .jobs
            .entry(job)
            .and_modify(|known| match known.source {
                Source::Reporter(known) => other = Some(known).filter(|&known| known != reporter),
                Source::Resting(since) => rest = Some(since),
            })
            .or_insert_with(|| Job { attempt, bars: BTreeMap::new(), source: Source::Reporter(reporter) });
        known.attempt = attempt;
        known.source = Source::Reporter(reporter);
        let reported = Reported::By { rest, other };

        self.version += 1;
        let version = self.version;
        match (known.bars.get_mut(&id.index), text) {
            (None, None) => {}
            (None, Some(text)) => {
                let bar = Bar { text, numbers, changed: version, text_changed: version };
                self.changes.insert(version, id);
                if bar.vanishes() {
                    self.vanishing.insert(version, id);
                }
                known.bars.insert(id.index, bar);
            }
            (Some(bar), text) => {
                let new_text = text.filter(|text| *text != bar.text);
                // A reconnected reporter tells all again: time alone is no news.
                let elapsed = bar.numbers.elapsed;
                if new_text.is_none() && (BarNumbers { elapsed, ..numbers }) == bar.numbers {
                    return reported;
                }
                bar.numbers = numbers;
                let is_new_text = new_text.is_some();
                if let Some(text) = new_text {
                    bar.text = text;
                }
                // A text that somebody hasn't seen yet moves on with the bar.
                if is_new_text || bar.text_changed > texts_seen {
                    bar.text_changed = version;
                }
                move_bar(&mut self.changes, &mut self.vanishing, id, bar, version);
            }
        }
        reported
    }

    /// Closes the bars of an attempt that has ended; false if it isn't the newest of its job.
    pub(super) fn close(&mut self, attempt: AttemptId) -> bool {
        let texts_seen = self.texts_seen();
        let Some(job) = self.jobs.get_mut(&attempt.job).filter(|job| job.attempt == attempt.attempt) else {
            return false;
        };
        for (&index, bar) in job.bars.iter_mut().filter(|(_, bar)| !bar.numbers.closed) {
            self.version += 1;
            bar.numbers.closed = true;
            if bar.text_changed > texts_seen {
                bar.text_changed = self.version;
            }
            let id = BarId { attempt, index };
            move_bar(&mut self.changes, &mut self.vanishing, id, bar, self.version);
        }
        true
    }

    /// Notes that nobody reports a job any more; returns who did.
    pub(super) fn rest(&mut self, job: JobId, rest: Rest) -> Option<P> {
        let job = self.jobs.get_mut(&job)?;
        match job.source {
            Source::Reporter(reporter) => {
                job.source = Source::Resting(rest);
                Some(reporter)
            }
            Source::Resting(_) => None,
        }
    }

    /// Drops a job and its bars.
    pub(super) fn forget(&mut self, job: JobId) -> Option<Source<P>> {
        self.drop_bars(job);
        self.jobs.remove(&job).map(|job| job.source)
    }

    /// The latest state of what a watcher doesn't know, at most `limit` bars, oldest change first. It knows them from now on.
    pub(super) fn news(&mut self, watcher: P, limit: usize) -> Vec<BarUpdate> {
        let Some(watcher) = self.watchers.get_mut(&watcher) else { return Vec::new() };
        let texts_seen = watcher.texts_seen();
        let mut updates = Vec::new();
        for (&changed, &bar) in self.changes.range(watcher.seen + 1..) {
            if updates.len() == limit {
                return updates;
            }
            watcher.seen = changed;
            let known = self.jobs.get(&bar.attempt.job).and_then(|job| job.bars.get(&bar.index));
            let known = known.expect("a change is dropped with its bar");
            let text = (known.text_changed > texts_seen).then(|| known.text.clone());
            updates.push(BarUpdate { bar, text, numbers: known.numbers });
        }
        watcher.seen = self.version;
        updates
    }

    /// Whether there are changes that a watcher doesn't know.
    pub(super) fn is_behind(&self, watcher: P) -> bool {
        let last = self.changes.last_key_value().map_or(0, |(&changed, _)| changed);
        self.watchers.get(&watcher).is_some_and(|watcher| watcher.seen < last)
    }

    /// Drops closed bars that aren't to be left on the screen and that every watcher has seen; returns how many. Without a
    /// watcher they stay, for one that comes back and still shows them as open.
    pub(super) fn drop_vanished(&mut self) -> usize {
        let Some(seen) = self.watchers.values().map(|watcher| watcher.seen).min() else { return 0 };
        let mut dropped = 0;
        while let Some(first) = self.vanishing.first_entry().filter(|first| *first.key() <= seen) {
            let (changed, bar) = first.remove_entry();
            self.changes.remove(&changed);
            if let Some(job) = self.jobs.get_mut(&bar.attempt.job) {
                job.bars.remove(&bar.index);
            }
            dropped += 1;
        }
        dropped
    }

    fn drop_bars(&mut self, job: JobId) {
        let Some(job) = self.jobs.get_mut(&job) else { return };
        for bar in std::mem::take(&mut job.bars).into_values() {
            self.changes.remove(&bar.changed);
            self.vanishing.remove(&bar.changed);
        }
    }

    /// Every watcher knows the texts of all changes up to this number.
    fn texts_seen(&self) -> u64 {
        self.watchers.values().map(|watcher| watcher.texts_seen()).min().unwrap_or(u64::MAX)
    }
}

impl Bar {
    fn vanishes(&self) -> bool {
        self.numbers.closed && !self.text.leave
    }
}

/// Gives a changed bar the number of its change.
fn move_bar(
    changes: &mut BTreeMap<u64, BarId>,
    vanishing: &mut BTreeMap<u64, BarId>,
    id: BarId,
    bar: &mut Bar,
    version: u64,
) {
    changes.remove(&bar.changed);
    vanishing.remove(&bar.changed);
    bar.changed = version;
    changes.insert(version, id);
    if bar.vanishes() {
        vanishing.insert(version, id);
    }
}
