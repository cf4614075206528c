//! Which programs are here, who needs them, and whether anybody can start them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use lrts_core::clock::Moment;
use lrts_core::ids::{AttemptId, BundleDigest};
use lrts_core::spec::{BundleRef, Platform};
use lrts_core::status::{Failure, FailureKind};

use super::attempts::Run;
use super::events::{Action, Note, Peer};
use super::jobs::Phase;
use super::platforms::Platforms;
use super::slab::Slab;
use super::workers::Verdict;
use super::{Engine, Party, Timer};

/// So many workers' reasons for refusing a bundle are told.
const REASONS: usize = 20;

/// Whether jobs of a bundle may be placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Availability {
    /// No upload of it is complete.
    Awaited,
    /// It is here, or on the workers.
    Here,
}

/// One program. What names it, a session or an attempt, keeps it known.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) reference: BundleRef,
    pub(super) availability: Availability,
    /// Of its file; 0 while it isn't here.
    pub(super) bytes: u64,
    /// What a shipped one was built for.
    pub(super) platforms: Platforms,
    /// Jobs that aren't terminal, and attached applications.
    users: u64,
    /// Sessions that were started with it, each behind its application.
    pub(super) sessions: BTreeSet<(u32, u32)>,
    /// Queues in which jobs of it wait, each behind its application.
    pub(super) queues: BTreeSet<(u32, u32)>,
    /// How many attempts of it there are.
    pub(super) attempts: u32,
    /// Until then a worker that could start it and left in order may be back.
    starter_expected: Option<Moment>,
}

impl Bundle {
    fn is_named(&self) -> bool {
        !self.sessions.is_empty() || self.attempts > 0
    }
}

/// Every program that was named; a small record each, which stays until there are very many.
#[derive(Debug)]
pub(super) struct Bundles {
    all: Slab<Bundle>,
    by_reference: BTreeMap<BundleRef, u32>,
    /// Those that nothing names any more.
    unnamed: BTreeSet<u32>,
}

impl Bundles {
    pub(super) fn new() -> Self {
        Self { all: Slab::new(), by_reference: BTreeMap::new(), unnamed: BTreeSet::new() }
    }

    /// How many were named.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// The record of this bundle, if it was named before.
    pub(super) fn find(&self, reference: &BundleRef) -> Option<u32> {
        self.by_reference.get(reference).copied()
    }

    /// The record of this bundle, made if it is new. It must be named at once.
    pub(super) fn intern(&mut self, reference: BundleRef) -> u32 {
        *self.by_reference.entry(reference).or_insert_with_key(|reference| {
            let availability = match reference {
                BundleRef::Shipped(_) => Availability::Awaited,
                BundleRef::Installed(_) => Availability::Here,
            };
            self.all.insert(Bundle {
                reference: reference.clone(),
                availability,
                bytes: 0,
                platforms: Platforms::default(),
                users: 0,
                sessions: BTreeSet::new(),
                queues: BTreeSet::new(),
                attempts: 0,
                starter_expected: None,
            })
        })
    }

    /// What names a program has changed.
    fn named(&mut self, bundle: u32) {
        if self.all[bundle].is_named() {
            self.unnamed.remove(&bundle);
        } else {
            self.unnamed.insert(bundle);
        }
    }

    pub(super) fn add_session(&mut self, bundle: u32, application: u32, session: u32) {
        self.all[bundle].sessions.insert((application, session));
        self.named(bundle);
    }

    /// A session is gone. Returns whether its application has others with this program.
    pub(super) fn remove_session(&mut self, bundle: u32, application: u32, session: u32) -> bool {
        let sessions = &mut self.all[bundle].sessions;
        sessions.remove(&(application, session));
        let has_others = sessions.range((application, 0)..=(application, u32::MAX)).next().is_some();
        self.named(bundle);
        has_others
    }

    pub(super) fn add_attempt(&mut self, bundle: u32) {
        self.all[bundle].attempts += 1;
        if self.all[bundle].attempts == 1 {
            self.named(bundle);
        }
    }

    pub(super) fn remove_attempt(&mut self, bundle: u32) {
        self.all[bundle].attempts -= 1;
        if self.all[bundle].attempts == 0 {
            self.named(bundle);
        }
    }

    /// Whether a program could be forgotten at once.
    pub(super) fn has_unnamed(&self) -> bool {
        !self.unnamed.is_empty()
    }

    /// What was said of programs before isn't known any more.
    pub(super) fn forget_platforms(&mut self) {
        for bundle in self.all.indices() {
            self.all[bundle].platforms = Platforms::Any;
        }
    }

    /// Forgets those that nothing names. Returns them.
    fn forget_unnamed(&mut self) -> BTreeSet<u32> {
        let gone = std::mem::take(&mut self.unnamed);
        for &bundle in &gone {
            let Bundle { reference, .. } = self.all.remove(bundle);
            self.by_reference.remove(&reference);
        }
        gone
    }

    /// Panics where what is kept of programs isn't true.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self) {
        let unnamed = self.all.iter().filter(|(_, bundle)| !bundle.is_named()).map(|(index, _)| index);
        assert!(unnamed.eq(self.unnamed.iter().copied()), "unnamed programs are listed");
    }
}

impl Index<u32> for Bundles {
    type Output = Bundle;

    fn index(&self, index: u32) -> &Bundle {
        &self.all[index]
    }
}

impl IndexMut<u32> for Bundles {
    fn index_mut(&mut self, index: u32) -> &mut Bundle {
        &mut self.all[index]
    }
}

/// Often one goes of very many.
fn remove_all<V>(from: &mut BTreeMap<u32, V>, gone: &BTreeSet<u32>) {
    if gone.len() < from.len() {
        for bundle in gone {
            from.remove(bundle);
        }
    } else {
        from.retain(|bundle, _| !gone.contains(bundle));
    }
}

/// Who can start a program.
pub(super) enum Starters {
    /// At least one worker, as far as is known.
    Some,
    /// No worker is there that would try.
    Nobody,
    /// All who would try have refused, each for its reason. These are the first of many.
    AllRefused(Vec<String>),
}

impl Engine {
    /// One more job of an application needs the bundle, or the application itself.
    pub(super) fn use_bundle(&mut self, application: u32, bundle: u32) {
        self.need_program(application, bundle);
        let record = &mut self.bundles[bundle];
        record.users += 1;
        if let (1, &BundleRef::Shipped(digest)) = (record.users, &record.reference) {
            self.actions.push(Action::BundleInUse { digest, in_use: true });
        }
    }

    /// One of them doesn't need it any more.
    pub(super) fn release_bundle(&mut self, application: u32, bundle: u32) {
        self.spare_program(application, bundle);
        let record = &mut self.bundles[bundle];
        record.users -= 1;
        if let (0, &BundleRef::Shipped(digest)) = (record.users, &record.reference) {
            self.actions.push(Action::BundleInUse { digest, in_use: false });
        }
    }

    /// Forgets programs that nobody has any more. One that is here is offered again by whoever has it.
    pub(super) fn forget_unnamed_bundles(&mut self) {
        let gone = self.bundles.forget_unnamed();
        for worker in self.workers.all.indices() {
            let record = &mut self.workers.all[worker];
            remove_all(&mut record.verdicts, &gone);
            remove_all(&mut record.ended_well, &gone);
        }
    }

    pub(super) fn bundle_completed(&mut self, digest: BundleDigest, bytes: u64, platforms: Platforms) {
        // No application has named it, and what peers offer makes no room for itself here. One that does so later offers it.
        let Some(bundle) = self.bundles.find(&BundleRef::Shipped(digest)) else { return };
        self.told_platforms(bundle, platforms);
        if self.bundles[bundle].availability == Availability::Here {
            return;
        }
        self.bundles[bundle].availability = Availability::Here;
        self.bundles[bundle].bytes = bytes;
        self.weigh_program(bundle);
        self.bundle_decided(bundle);
    }

    /// Somebody says what a bundle was built for. Who was ruled out by that may not be any more.
    fn told_platforms(&mut self, bundle: u32, platforms: Platforms) {
        if !self.bundles[bundle].platforms.add_all(platforms) {
            return;
        }
        for worker in self.workers.all.indices() {
            // What it has tried itself stays true.
            let verdicts = &mut self.workers.all[worker].verdicts;
            if matches!(verdicts.get(&bundle), Some(Verdict::OtherPlatform(_))) {
                verdicts.remove(&bundle);
            }
        }
        let queues = &mut self.jobs.queues;
        self.barred.retain(|&queue| {
            let stays = queues[queue].bundle != bundle;
            queues[queue].barred = stays;
            stays
        });
        self.refresh_queues_of(bundle);
    }

    /// Why the peer may not offer a program of this length, if so. Only what it is attached with is needed from it.
    pub(crate) fn refuses_offer(&self, peer: Peer, digest: BundleDigest, bytes: u64) -> Option<String> {
        let Some((application, _, bundle)) = self.started_with(peer, digest) else {
            return Some(
                "an application offers the program that it is attached with, and no other".to_owned(),
            );
        };
        let user = self.applications[application].terms.owner.as_ref()?;
        let is_here = self.bundles[bundle].availability == Availability::Here;
        if is_here { None } else { self.no_room_for_program_bytes(user, bundle, bytes) }
    }

    /// What the peer's application offers may yet come.
    pub(super) fn bundle_offered(
        &mut self,
        peer: Peer,
        digest: BundleDigest,
        bytes: u64,
        platform: Platform,
    ) {
        if let Some((application, _, bundle)) = self.started_with(peer, digest) {
            self.told_platforms(bundle, platform.into());
            self.announce_program(application, bundle, bytes);
            self.program_may_come(application, bundle);
        }
    }

    /// What an application offered or sent is of no use. Others that have the same program may yet send it: only its own jobs
    /// fail.
    pub(super) fn bundle_failed(&mut self, peer: Peer, digest: BundleDigest, reason: &str) {
        let Some((application, current, bundle)) = self.started_with(peer, digest) else { return };
        if self.bundles[bundle].availability == Availability::Here {
            return;
        }
        let reason: Arc<str> = reason.into();
        self.applications[application].failed_programs.insert(bundle, Arc::clone(&reason));
        let own = self.bundles[bundle].queues.range((application, 0)..=(application, u32::MAX));
        // Those that wait for something else fail when they are queued.
        let jobs: Vec<u32> = own.flat_map(|&(_, queue)| self.jobs.queued_in(queue)).collect();
        // Other starts hear of it when they are back.
        let sessions = jobs.iter().map(|&job| self.jobs.nodes[job].session);
        let mut starts: BTreeSet<u32> =
            sessions.filter(|&session| !self.sessions[session].is_keyed()).collect();
        starts.insert(current);
        for session in starts {
            self.program_decided(session);
        }
        self.fail_waiting(&jobs, &reason);
    }

    /// A peer's application, its session and its program, if it is attached with this one. Anybody may offer anything, but
    /// nothing depends on the rest.
    fn started_with(&self, peer: Peer, digest: BundleDigest) -> Option<(u32, u32, u32)> {
        let (application, session) = self.attached(peer)?;
        let bundle = self.bundle_of(session);
        let is_it = self.bundles[bundle].reference == BundleRef::Shipped(digest);
        is_it.then_some((application, session, bundle))
    }

    fn program_may_come(&mut self, application: u32, bundle: u32) {
        self.applications[application].failed_programs.remove(&bundle);
    }

    /// Why an application's program can't be had, if so.
    pub(super) fn program_failure(&self, application: u32, bundle: u32) -> Option<&Arc<str>> {
        let is_here = self.bundles[bundle].availability == Availability::Here;
        self.applications[application].failed_programs.get(&bundle).filter(|_| !is_here)
    }

    /// It was deleted while nobody needed it: the next application offers it again.
    pub(super) fn bundle_forgotten(&mut self, digest: BundleDigest) {
        // No application has named it, and what peers offer makes no room for itself here.
        let Some(bundle) = self.bundles.find(&BundleRef::Shipped(digest)) else { return };
        self.bundles[bundle].availability = Availability::Awaited;
        self.bundles[bundle].bytes = 0;
        self.weigh_program(bundle);
        self.refresh_queues_of(bundle);
    }

    /// Submits that waited for the bundle are accepted, and its queues are open.
    fn bundle_decided(&mut self, bundle: u32) {
        for (application, session) in self.bundles[bundle].sessions.clone() {
            self.program_may_come(application, bundle);
            self.program_decided(session);
        }
        self.refresh_queues_of(bundle);
    }

    fn refresh_queues_of(&mut self, bundle: u32) {
        for (_, queue) in self.bundles[bundle].queues.clone() {
            self.refresh_queue(queue);
        }
    }

    /// A worker can't start a bundle: others are tried.
    pub(super) fn refused_by_worker(
        &mut self,
        peer: Peer,
        bundle: BundleRef,
        reason: String,
        attempts: &[AttemptId],
    ) {
        let Some(Party::Worker(worker)) = self.heard(peer) else { return };
        // Of one that no application has named, nobody needs to know.
        if let Some(bundle) = self.bundles.find(&bundle) {
            let record = &mut self.workers.all[worker];
            let note = Note::WorkerRefusedBundle { worker: record.id, reason: reason.clone() };
            if record.refuse(bundle, reason) {
                self.note(note);
            }
        }
        self.returned(peer, attempts);
    }

    /// Who can start this bundle, among all workers that are there or may yet be back.
    pub(super) fn starters(&mut self, bundle: u32) -> Starters {
        let mut reasons = Vec::new();
        for worker in self.workers.all.indices() {
            // Of one that hasn't registered since the scheduler started, nothing is known.
            if self.workers.all[worker].platform.is_none() || self.can_start(worker, bundle) {
                return Starters::Some;
            }
            let refusal = self.workers.all[worker].refusal(bundle).filter(|_| reasons.len() < REASONS);
            reasons.extend(refusal.map(str::to_owned));
        }
        // Of those that haven't come yet, or aren't back yet, another one may start it.
        let is_expected = self.bundles[bundle].starter_expected.is_some_and(|end| self.now < end);
        if reasons.is_empty() || self.is_gathering() || is_expected {
            Starters::Nobody
        } else {
            Starters::AllRefused(reasons)
        }
    }

    /// A worker leaves in order, perhaps only to start again. Those who stay have no say for as long as a lease takes in what it
    /// could start, as if it had fallen silent. Of other programs they have: where workers come and go all the time, that time is
    /// never over for all.
    pub(super) fn expect_starter_back(&mut self, worker: u32) {
        let end = self.now + self.lost_after();
        let mut is_starter = false;
        for bundle in self.bundles.all.indices() {
            if self.bundles[bundle].users > 0 && self.can_start(worker, bundle) {
                self.bundles[bundle].starter_expected = Some(end);
                is_starter = true;
            }
        }
        if is_starter {
            self.timers.insert((end, Timer::Gathered));
        }
    }

    /// Those of these jobs that wait have failed for good.
    pub(super) fn fail_waiting(&mut self, jobs: &[u32], reason: &str) {
        for &job in jobs {
            // Ends make room for results, of which the oldest are forgotten.
            let Some(node) = self.jobs.nodes.get(job) else { continue };
            if matches!(node.phase, Phase::Queued { .. } | Phase::Backoff) {
                let failure = Failure::new(FailureKind::Bundle, reason);
                self.fail_job(job, failure, Run::without_end(None, self.now));
            }
        }
    }
}
