//! Whose an application is. Its owner is the user of the key that it was first attached with; nobody else may come back to it.
//! And what each user has, which is bounded.

use std::collections::BTreeMap;

use lrts_core::ids::UserName;

use super::Engine;
#[cfg(any(test, feature = "fuzzing"))]
use super::applications::Presence;
use super::bundles::Availability;

/// It belongs to somebody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Foreign;

/// Who owns an application from now on, given who did and who attaches.
///
/// Without keys nobody is told apart: everybody may, and it stays whose it was. An application from before there were keys
/// belongs to the first who comes.
pub(super) fn owner_after(
    owner: Option<&UserName>,
    user: Option<&UserName>,
) -> Result<Option<UserName>, Foreign> {
    match (owner, user) {
        (owner, None) => Ok(owner.cloned()),
        (None, Some(user)) => Ok(Some(user.clone())),
        (Some(owner), Some(user)) if owner == user => Ok(Some(owner.clone())),
        (Some(_), Some(_)) => Err(Foreign),
    }
}

/// What a user has.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct Holdings {
    pub(super) applications: usize,
    /// The programs of those, with how many sessions were started with each.
    pub(super) programs: BTreeMap<u32, usize>,
    /// Those that they need now.
    pub(super) needed: BTreeMap<u32, Needed>,
    /// What those take in all.
    pub(super) needed_bytes: u64,
}

/// A program that applications of one user need.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct Needed {
    /// How many of them.
    applications: usize,
    /// Of its file, as long as that isn't here as they announced it.
    pub(super) bytes: u64,
}

impl Holdings {
    /// One more application needs a program, which takes so much, or as much as another one has announced.
    fn need(&mut self, bundle: u32, bytes: u64) {
        self.needed.entry(bundle).or_default().applications += 1;
        self.weigh(bundle, |announced| announced.max(bytes));
    }

    /// What a program takes that is needed has changed.
    fn weigh(&mut self, bundle: u32, bytes: impl FnOnce(u64) -> u64) {
        if let Some(needed) = self.needed.get_mut(&bundle) {
            let before = needed.bytes;
            needed.bytes = bytes(before);
            self.needed_bytes = self.needed_bytes - before + needed.bytes;
        }
    }

    /// An application doesn't need it any more.
    fn spare(&mut self, bundle: u32) {
        if let Some(needed) = self.needed.get_mut(&bundle) {
            needed.applications -= 1;
            if needed.applications == 0 {
                self.needed_bytes -= needed.bytes;
                self.needed.remove(&bundle);
            }
        }
    }
}

impl Engine {
    /// Nobody's application has an owner from now on.
    pub(super) fn give_application(&mut self, application: u32, owner: UserName) {
        self.give_spare(application, &owner);
        self.give_retained(application, &owner);
        let record = &mut self.applications[application];
        let holdings = self.users.entry(owner.clone()).or_default();
        record.terms.owner = Some(owner);
        holdings.applications += 1;
        for &session in &record.sessions {
            if let Some(program) = &self.sessions[session].program {
                *holdings.programs.entry(program.bundle).or_default() += 1;
            }
        }
        for &bundle in record.needs.keys() {
            holdings.need(bundle, self.bundles[bundle].bytes);
        }
    }

    /// An application is forgotten, and has no session any more.
    pub(super) fn take_application(&mut self, owner: &UserName) {
        if let Some(holdings) = self.users.get_mut(owner) {
            holdings.applications -= 1;
            if holdings.applications == 0 {
                self.users.remove(owner);
            }
        }
    }

    /// An application needs a program, for a job or because it is attached with it.
    pub(super) fn need_program(&mut self, application: u32, bundle: u32) {
        let record = &mut self.applications[application];
        let needs = record.needs.entry(bundle).or_default();
        *needs += 1;
        if *needs == 1
            && let Some(holdings) = record.terms.owner.as_ref().and_then(|owner| self.users.get_mut(owner))
        {
            holdings.need(bundle, self.bundles[bundle].bytes);
        }
    }

    /// One of the things for which it does is over.
    pub(super) fn spare_program(&mut self, application: u32, bundle: u32) {
        let record = &mut self.applications[application];
        let needs = record.needs.get_mut(&bundle).expect("what is over was needed");
        *needs -= 1;
        if *needs == 0 {
            record.needs.remove(&bundle);
            if let Some(holdings) = record.terms.owner.as_ref().and_then(|owner| self.users.get_mut(owner)) {
                holdings.spare(bundle);
            }
        }
    }

    /// An application says how long its program is, which isn't here yet. The longest counts of what those of one user say.
    pub(super) fn announce_program(&mut self, application: u32, bundle: u32, bytes: u64) {
        let owner = self.applications[application].terms.owner.as_ref();
        if let Some(holdings) = owner.and_then(|owner| self.users.get_mut(owner))
            && self.bundles[bundle].availability == Availability::Awaited
        {
            holdings.weigh(bundle, |before| before.max(bytes));
        }
    }

    /// A program is here now, and its length is known, or it isn't here any more.
    pub(super) fn weigh_program(&mut self, bundle: u32) {
        let record = &self.bundles[bundle];
        for &(application, _) in &record.sessions {
            let owner = self.applications[application].terms.owner.as_ref();
            if let Some(holdings) = owner.and_then(|owner| self.users.get_mut(owner)) {
                holdings.weigh(bundle, |_| record.bytes);
            }
        }
    }

    /// An application has one more session that was started with a program.
    pub(super) fn hold_program(&mut self, application: u32, bundle: u32) {
        let owner = self.applications[application].terms.owner.as_ref();
        if let Some(holdings) = owner.and_then(|owner| self.users.get_mut(owner)) {
            *holdings.programs.entry(bundle).or_default() += 1;
        }
    }

    /// It has one fewer.
    pub(super) fn drop_program(&mut self, application: u32, bundle: u32) {
        let owner = self.applications[application].terms.owner.as_ref();
        if let Some(holdings) = owner.and_then(|owner| self.users.get_mut(owner))
            && let Some(sessions) = holdings.programs.get_mut(&bundle)
        {
            *sessions -= 1;
            if *sessions == 0 {
                holdings.programs.remove(&bundle);
            }
        }
    }

    /// Panics where what is kept of users isn't true.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check_users(&self) {
        let mut users: BTreeMap<UserName, Holdings> = BTreeMap::new();
        for (_, application) in self.applications.iter() {
            let Some(owner) = application.terms.owner.clone() else { continue };
            let holdings = users.entry(owner).or_default();
            holdings.applications += 1;
            for &session in &application.sessions {
                if let Some(program) = &self.sessions[session].program {
                    *holdings.programs.entry(program.bundle).or_default() += 1;
                }
            }
        }
        for application in self.applications.indices() {
            let record = &self.applications[application];
            let mut needs: BTreeMap<u32, u64> = BTreeMap::new();
            let jobs = record.sessions.iter().flat_map(|&session| self.sessions[session].remembered());
            for job in jobs.filter(|&job| !self.jobs.nodes[job].is_terminal()) {
                *needs.entry(self.spec_of(job).bundle).or_default() += 1;
            }
            if let Presence::Here { session, .. } = record.presence {
                *needs.entry(self.bundle_of(session)).or_default() += 1;
            }
            assert_eq!(record.needs, needs, "what an application needs is counted");
            let Some(owner) = &record.terms.owner else { continue };
            for &bundle in needs.keys() {
                let known = self.users[owner].needed.get(&bundle).map_or(0, |needed| needed.bytes);
                let program = &self.bundles[bundle];
                let is_here = program.availability == Availability::Here;
                let bytes = if is_here { program.bytes } else { known };
                users.get_mut(owner).expect("it was counted").need(bundle, bytes);
            }
        }
        assert_eq!(self.users, users, "what users have is counted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_comes_back() {
        let name = |name: &str| Some(name.parse::<UserName>().unwrap());
        let (nobody, ann, bob) = (None, name("ann"), name("bob"));
        let table = [
            (&nobody, &nobody, Ok(nobody.clone())),
            (&nobody, &ann, Ok(ann.clone())),
            (&ann, &nobody, Ok(ann.clone())),
            (&ann, &ann, Ok(ann.clone())),
            (&ann, &bob, Err(Foreign)),
            (&bob, &ann, Err(Foreign)),
        ];
        for (owner, user, after) in table {
            assert_eq!(owner_after(owner.as_ref(), user.as_ref()), after, "{owner:?} {user:?}");
        }
    }
}
