//! Sessions and applications of which nobody would miss anything, and from which moment on. Where there is no room for another
//! one, the one that has been spare for longest is found without a look at all others.

use std::collections::BTreeSet;
use std::time::Duration;

use lrts_core::clock::Moment;
use lrts_core::ids::UserName;

use super::Engine;
use super::applications::Presence;

/// Among whose.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Scope {
    All,
    User(UserName),
    Application(u32),
}

/// Records of one kind that are spare from some moment on, in each scope that they belong to.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct Spare(BTreeSet<(Scope, Moment, u32)>);

impl Spare {
    /// The one that has been spare for longest, if one is by now.
    pub(super) fn longest(&self, scope: &Scope, now: Moment) -> Option<u32> {
        let from = (scope.clone(), Moment::default(), 0);
        let to = (scope.clone(), now, u32::MAX);
        self.0.range(from..=to).next().map(|&(_, _, index)| index)
    }

    /// The moment from which all are spare that are here; none if none are.
    fn last(&self, scope: &Scope) -> Option<Moment> {
        let from = (scope.clone(), Moment::default(), 0);
        let to = (scope.clone(), Moment::default() + Duration::MAX, u32::MAX);
        self.0.range(from..=to).next_back().map(|&(_, moment, _)| moment)
    }

    /// A record is spare from another moment on, or isn't any more.
    fn change(&mut self, scopes: &[Scope], index: u32, before: Option<Moment>, after: Option<Moment>) {
        for scope in scopes {
            if let Some(before) = before {
                self.0.remove(&(scope.clone(), before, index));
            }
            self.0.extend(after.map(|after| (scope.clone(), after, index)));
        }
    }
}

impl Engine {
    fn scopes_of(&self, application: u32) -> Vec<Scope> {
        let owner = self.applications[application].terms.owner.clone();
        [Scope::All, Scope::Application(application)].into_iter().chain(owner.map(Scope::User)).collect()
    }

    /// From when on nobody would miss a session, unless something happens to it: it has no jobs, none of a key's is known by its
    /// program, and nobody who comes back with it could find that its sequences, or which results were taken, are forgotten
    /// before retention ends that.
    fn spare_from(&self, session: u32) -> Option<Moment> {
        let record = &self.sessions[session];
        match self.applications[record.application].presence {
            Presence::Here { session: current, .. } if current == session => None,
            Presence::Here { .. } | Presence::Away { .. } => {
                self.spare_once_left(session, record.left, record.kept)
            }
        }
    }

    /// The same of one that was left at this moment and is kept for so long.
    pub(super) fn spare_once_left(&self, session: u32, left: Moment, kept: Duration) -> Option<Moment> {
        let record = &self.sessions[session];
        let waits = record.had_jobs && !record.stopped;
        let from = if waits { left + kept } else { left };
        (!self.has_jobs(session)).then_some(from)
    }

    /// Whether a session has jobs that are remembered, or may have some under a key.
    pub(super) fn has_jobs(&self, session: u32) -> bool {
        let record = &self.sessions[session];
        record.jobs > 0 || record.brought_keys && self.has_keys(record.application)
    }

    /// A session came or was left, or what makes it spare has changed.
    pub(super) fn refresh_spare(&mut self, session: u32) {
        let from = self.spare_from(session);
        self.set_spare(session, from);
    }

    /// The keys of an application are known now, or aren't any more.
    pub(super) fn refresh_spare_of(&mut self, application: u32) {
        for session in self.applications[application].sessions.clone() {
            self.refresh_spare(session);
        }
    }

    pub(super) fn set_spare(&mut self, session: u32, from: Option<Moment>) {
        let application = self.sessions[session].application;
        let before = std::mem::replace(&mut self.sessions[session].spare_from, from);
        if before != from {
            let scopes = self.scopes_of(application);
            self.spare_sessions.change(&scopes, session, before, from);
            let count = &mut self.applications[application].spare_sessions;
            *count -= usize::from(before.is_some());
            *count += usize::from(from.is_some());
        }
        self.refresh_spare_application(application);
    }

    /// Nobody would miss an application that is away and has nothing but such sessions.
    pub(super) fn refresh_spare_application(&mut self, application: u32) {
        let record = &self.applications[application];
        let is_away = matches!(record.presence, Presence::Away { .. });
        let is_spare = is_away && record.spare_sessions == record.sessions.len();
        let from = is_spare.then(|| self.spare_sessions.last(&Scope::Application(application))).flatten();
        let before = std::mem::replace(&mut self.applications[application].spare_from, from);
        if before != from {
            let scopes = self.scopes_of(application);
            self.spare_applications.change(&scopes, application, before, from);
        }
    }

    /// An application has an owner now.
    pub(super) fn give_spare(&mut self, application: u32, owner: &UserName) {
        let scope = [Scope::User(owner.clone())];
        let record = &self.applications[application];
        self.spare_applications.change(&scope, application, None, record.spare_from);
        for &session in &record.sessions {
            self.spare_sessions.change(&scope, session, None, self.sessions[session].spare_from);
        }
    }

    /// Forgets the session that has been spare for longest. Returns whether there was one.
    pub(super) fn forget_spare_session(&mut self, scope: &Scope) -> bool {
        let Some(session) = self.spare_sessions.longest(scope, self.now) else { return false };
        let application = self.sessions[session].application;
        self.forget_session(session);
        self.forget_if_empty(application);
        true
    }

    /// Forgets the application that has been spare for longest. Returns whether there was one.
    pub(super) fn forget_spare_application(&mut self, scope: &Scope) -> bool {
        let Some(application) = self.spare_applications.longest(scope, self.now) else { return false };
        for session in self.applications[application].sessions.clone() {
            self.forget_session(session);
        }
        self.forget_if_empty(application);
        true
    }

    /// Panics where what is kept of spare records isn't true.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check_spare(&self) {
        let (mut sessions, mut applications) = (Spare::default(), Spare::default());
        for (index, application) in self.applications.iter() {
            let scopes = self.scopes_of(index);
            let mut from = matches!(application.presence, Presence::Away { .. }).then(Moment::default);
            for &session in &application.sessions {
                let spare_from = self.spare_from(session);
                sessions.change(&scopes, session, None, spare_from);
                from = from.zip(spare_from).map(|(one, other)| one.max(other));
            }
            applications.change(&scopes, index, None, from);
        }
        assert_eq!(self.spare_sessions, sessions, "spare sessions are listed");
        assert_eq!(self.spare_applications, applications, "spare applications are listed");
    }
}
