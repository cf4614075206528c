//! Whose an application is. Its owner is the user of the key that it was first attached with; nobody else may come back to it.
//! And what each user has, which is bounded.

use std::collections::BTreeMap;

use lrts_core::ids::UserName;

use super::Engine;

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
