//! Which programs are here, who needs them, and whether anybody can start them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use lrts_core::ids::{AttemptId, BundleDigest};
use lrts_core::spec::{BundleRef, Platform};
use lrts_core::status::{Failure, FailureKind};

use super::attempts::Run;
use super::events::{Action, Note, Peer};
use super::jobs::Phase;
use super::platforms::Platforms;
use super::slab::Slab;
use super::workers::Standing;
use super::{Engine, Party};

/// Whether jobs of a bundle may be placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Availability {
    /// No upload of it is complete.
    Awaited,
    /// It is here, or on the workers.
    Here,
}

/// One program.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) reference: BundleRef,
    pub(super) availability: Availability,
    /// What a shipped one was built for.
    pub(super) platforms: Platforms,
    /// Jobs that aren't terminal, and attached applications.
    users: u64,
}

/// Every program that was named; a small record each, which stays until there are very many.
#[derive(Debug)]
pub(super) struct Bundles {
    all: Slab<Bundle>,
    by_reference: BTreeMap<BundleRef, u32>,
}

impl Bundles {
    pub(super) fn new() -> Self {
        Self { all: Slab::new(), by_reference: BTreeMap::new() }
    }

    /// How many were named.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// The record of this bundle, if it was named before.
    pub(super) fn find(&self, reference: &BundleRef) -> Option<u32> {
        self.by_reference.get(reference).copied()
    }

    /// The record of this bundle, made if it is new.
    pub(super) fn intern(&mut self, reference: BundleRef) -> u32 {
        *self.by_reference.entry(reference).or_insert_with_key(|reference| {
            let availability = match reference {
                BundleRef::Shipped(_) => Availability::Awaited,
                BundleRef::Installed(_) => Availability::Here,
            };
            let (reference, platforms) = (reference.clone(), Platforms::default());
            self.all.insert(Bundle { reference, availability, platforms, users: 0 })
        })
    }

    /// Forgets all but these. Returns those that are gone.
    fn keep_only(&mut self, named: &BTreeSet<u32>) -> BTreeSet<u32> {
        let gone = self.all.indices().into_iter().filter(|bundle| !named.contains(bundle)).collect();
        for &bundle in &gone {
            let Bundle { reference, .. } = self.all.remove(bundle);
            self.by_reference.remove(&reference);
        }
        gone
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

/// Who can start a program.
pub(super) enum Starters {
    /// At least one worker, as far as is known.
    Some,
    /// No worker is there that would try.
    Nobody,
    /// All who would try have refused, each for its reason.
    AllRefused(Vec<String>),
}

impl Engine {
    /// One more job or application needs the bundle.
    pub(super) fn use_bundle(&mut self, bundle: u32) {
        let record = &mut self.bundles[bundle];
        record.users += 1;
        if let (1, &BundleRef::Shipped(digest)) = (record.users, &record.reference) {
            self.actions.push(Action::BundleInUse { digest, in_use: true });
        }
    }

    /// One of them doesn't need it any more.
    pub(super) fn release_bundle(&mut self, bundle: u32) {
        let record = &mut self.bundles[bundle];
        record.users -= 1;
        if let (0, &BundleRef::Shipped(digest)) = (record.users, &record.reference) {
            self.actions.push(Action::BundleInUse { digest, in_use: false });
        }
    }

    /// Forgets programs that nobody has any more. One that is here is offered again by whoever has it.
    pub(super) fn forget_unnamed_bundles(&mut self) {
        let programs = self.sessions.iter().filter_map(|(_, session)| session.program.as_ref());
        let attempts = self.attempts.iter().map(|(_, attempt)| attempt.bundle);
        let named = programs.map(|program| program.bundle).chain(attempts).collect();
        let gone = self.bundles.keep_only(&named);
        for worker in self.workers.all.indices() {
            let record = &mut self.workers.all[worker];
            record.verdicts.retain(|bundle, _| !gone.contains(bundle));
            record.ended_well.retain(|bundle, _| !gone.contains(bundle));
        }
    }

    pub(super) fn bundle_completed(&mut self, digest: BundleDigest, platforms: Platforms) {
        // No application has named it, and what peers offer makes no room for itself here. One that does so later offers it.
        let Some(bundle) = self.bundles.find(&BundleRef::Shipped(digest)) else { return };
        self.told_platforms(bundle, platforms);
        if self.bundles[bundle].availability == Availability::Here {
            return;
        }
        self.bundles[bundle].availability = Availability::Here;
        self.bundle_decided(bundle);
    }

    /// Somebody says what a bundle was built for. Who was ruled out by that may not be any more.
    fn told_platforms(&mut self, bundle: u32, platforms: Platforms) {
        if !self.bundles[bundle].platforms.add_all(platforms) {
            return;
        }
        for worker in self.workers.all.indices() {
            self.workers.all[worker].verdicts.remove(&bundle);
        }
        let queues = &mut self.jobs.queues;
        self.barred.retain(|&queue| {
            let stays = queues[queue].bundle != bundle;
            queues[queue].barred = stays;
            stays
        });
        self.refresh_queues_of(bundle);
    }

    /// What the peer's application offers may yet come.
    pub(super) fn bundle_offered(&mut self, peer: Peer, digest: BundleDigest, platform: Platform) {
        if let Some(bundle) = self.bundles.find(&BundleRef::Shipped(digest)) {
            self.told_platforms(bundle, platform.into());
        }
        for session in self.sessions_with(peer, digest) {
            self.program_may_come(session);
        }
    }

    /// What an application offered or sent is of no use. Others that have the same program may yet send it: only its own jobs
    /// fail.
    pub(super) fn bundle_failed(&mut self, peer: Peer, digest: BundleDigest, reason: &str) {
        let sessions = self.sessions_with(peer, digest);
        let Some(&first) = sessions.first() else { return };
        let bundle = self.bundle_of(first);
        if self.bundles[bundle].availability == Availability::Here {
            return;
        }
        let reason: Arc<str> = reason.into();
        for session in sessions {
            if let Some(program) = &mut self.sessions[session].program {
                program.failed = Some(Arc::clone(&reason));
            }
            self.program_decided(session);
        }
        // Among them those of the application's keys, which come from any of its programs.
        let all = self.applications[self.sessions[first].application].sessions.iter();
        let jobs = all.flat_map(|&session| self.sessions[session].remembered());
        let jobs: Vec<u32> = jobs.filter(|&job| self.spec_of(job).bundle == bundle).collect();
        self.fail_waiting(&jobs, &reason);
    }

    /// The starts of a peer's application that have this program, if it is attached with it. Anybody may offer anything, but
    /// nothing depends on the rest.
    fn sessions_with(&self, peer: Peer, digest: BundleDigest) -> Vec<u32> {
        let Some((application, session)) = self.attached(peer) else { return Vec::new() };
        let bundle = self.bundle_of(session);
        if self.bundles[bundle].reference != BundleRef::Shipped(digest) {
            return Vec::new();
        }
        let sessions = self.applications[application].sessions.iter().copied();
        sessions.filter(|&session| self.has_program(session, bundle)).collect()
    }

    fn has_program(&self, session: u32, bundle: u32) -> bool {
        self.sessions[session].program.as_ref().is_some_and(|program| program.bundle == bundle)
    }

    fn program_may_come(&mut self, session: u32) {
        if let Some(program) = &mut self.sessions[session].program {
            program.failed = None;
        }
    }

    /// It was deleted while nobody needed it: the next application offers it again.
    pub(super) fn bundle_forgotten(&mut self, digest: BundleDigest) {
        // No application has named it, and what peers offer makes no room for itself here.
        let Some(bundle) = self.bundles.find(&BundleRef::Shipped(digest)) else { return };
        self.bundles[bundle].availability = Availability::Awaited;
        self.refresh_queues_of(bundle);
    }

    /// Submits that waited for the bundle are accepted, and its queues are open.
    fn bundle_decided(&mut self, bundle: u32) {
        for session in self.sessions.indices() {
            if self.has_program(session, bundle) {
                self.program_may_come(session);
                self.program_decided(session);
            }
        }
        self.refresh_queues_of(bundle);
    }

    fn refresh_queues_of(&mut self, bundle: u32) {
        for queue in self.jobs.queues.indices() {
            if self.jobs.queues[queue].bundle == bundle {
                self.refresh_queue(queue);
            }
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
            let note =
                Note::WorkerRefusedBundle { worker: self.workers.all[worker].id, reason: reason.clone() };
            self.note(note);
            self.workers.all[worker].refuse(bundle, reason);
        }
        self.returned(peer, attempts);
    }

    /// Who can start this bundle, among all workers that aren't lost.
    pub(super) fn starters(&mut self, bundle: u32) -> Starters {
        let mut reasons = Vec::new();
        for worker in self.workers.all.indices() {
            if matches!(self.workers.all[worker].standing, Standing::Lost) {
                continue;
            }
            // Of one that hasn't registered since the scheduler started, nothing is known.
            if self.workers.all[worker].platform.is_none() || self.can_start(worker, bundle) {
                return Starters::Some;
            }
            reasons.extend(self.workers.all[worker].refusal(bundle).map(str::to_owned));
        }
        if reasons.is_empty() { Starters::Nobody } else { Starters::AllRefused(reasons) }
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
