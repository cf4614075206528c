//! Which programs are here, who needs them, and whether anybody can start them.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};

use lrts_core::ids::{AttemptId, BundleDigest};
use lrts_core::spec::{BundleRef, Platform};
use lrts_core::status::{Failure, FailureKind};

use super::attempts::Run;
use super::events::{Action, Note, Peer};
use super::jobs::Phase;
use super::workers::Standing;
use super::{Engine, Party};

/// Whether jobs of a bundle may be placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Availability {
    /// Its upload isn't complete.
    Awaited,
    /// It is here, or on the workers.
    Here,
    /// It can't be had.
    Failed(String),
}

/// One program.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) reference: BundleRef,
    pub(super) availability: Availability,
    /// What it was built for; known once a shipped one is here.
    pub(super) platform: Option<Platform>,
    /// Jobs that aren't terminal, and attached applications.
    users: u64,
}

/// Every program that was ever named; a small record each, never reused.
#[derive(Debug)]
pub(super) struct Bundles {
    all: Vec<Bundle>,
    by_reference: BTreeMap<BundleRef, u32>,
}

impl Bundles {
    pub(super) fn new() -> Self {
        Self { all: Vec::new(), by_reference: BTreeMap::new() }
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
            self.all.push(Bundle { reference: reference.clone(), availability, platform: None, users: 0 });
            u32::try_from(self.all.len() - 1).expect("memory ends before 4 billion bundles do")
        })
    }
}

impl Index<u32> for Bundles {
    type Output = Bundle;

    fn index(&self, index: u32) -> &Bundle {
        &self.all[index as usize]
    }
}

impl IndexMut<u32> for Bundles {
    fn index_mut(&mut self, index: u32) -> &mut Bundle {
        &mut self.all[index as usize]
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

    pub(super) fn bundle_completed(&mut self, digest: BundleDigest, platform: Platform) {
        let bundle = self.bundles.intern(BundleRef::Shipped(digest));
        let record = &mut self.bundles[bundle];
        if record.availability == Availability::Here {
            return;
        }
        record.availability = Availability::Here;
        record.platform = Some(platform);
        for worker in self.workers.all.indices() {
            // Verdicts given before the platform was known would only be guesses.
            self.workers.all[worker].verdicts.remove(&bundle);
        }
        self.bundle_decided(bundle);
    }

    pub(super) fn bundle_failed(&mut self, digest: BundleDigest, reason: String) {
        // No application has named it, and what peers offer makes no room for itself here.
        let Some(bundle) = self.bundles.find(&BundleRef::Shipped(digest)) else { return };
        if self.bundles[bundle].availability == Availability::Here {
            return;
        }
        self.bundles[bundle].availability = Availability::Failed(reason.clone());
        self.bundle_decided(bundle);
        self.fail_queued(bundle, &reason);
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
            if self.sessions[session].program.as_ref().is_some_and(|program| program.bundle == bundle) {
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

    /// All jobs of a bundle that wait have failed for good.
    pub(super) fn fail_queued(&mut self, bundle: u32, reason: &str) {
        let waiting: Vec<u32> = self
            .jobs
            .nodes
            .iter()
            .filter(|(_, node)| matches!(node.phase, Phase::Queued { .. } | Phase::Backoff))
            .filter(|(_, node)| self.jobs.specs[node.spec].bundle == bundle)
            .map(|(job, _)| job)
            .collect();
        for job in waiting {
            let failure = Failure::new(FailureKind::Bundle, reason);
            self.fail_job(job, failure, Run::without_end(None, self.now));
        }
    }
}
