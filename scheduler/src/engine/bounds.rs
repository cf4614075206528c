//! What applications may keep here. The bounds are generous; they keep one that has gone wild from taking the others down. At a
//! bound, what nobody would miss is forgotten before anybody is turned away.

use std::collections::BTreeSet;

use lrts_core::ids::UserName;
use lrts_core::limits::{
    ANSWER_JOBS, ANSWERS, APPLICATIONS, APPLICATIONS_PER_USER, BODY_BYTES, BUNDLES, BUNDLES_PER_USER,
    ENDED_JOBS, JOBS_PER_APPLICATION, KEYS_PER_APPLICATION, PAYLOAD_BYTES_PER_APPLICATION,
    SERVICES_PER_APPLICATION, SESSIONS_PER_APPLICATION, WAITING_RANGES,
};

use super::Engine;
use super::applications::{Application, Presence};
use super::events::Attach;
use super::spare::Scope;

/// The bounds. Tests have smaller ones.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Applications that are remembered.
    pub(crate) applications: usize,
    /// Those of one user.
    pub(crate) applications_per_user: usize,
    /// Programs that they have or had.
    pub(crate) bundles: usize,
    /// Those that the applications of one user have.
    pub(crate) bundles_per_user: usize,
    /// What the programs take that the applications of one user need at a time.
    pub(crate) bundle_bytes_per_user: u64,
    /// Starts of one application that are remembered.
    pub(crate) sessions: usize,
    /// Services of all programs of one application.
    pub(crate) services: usize,
    /// Jobs of one application that haven't ended.
    pub(crate) jobs: u64,
    /// Bytes of their payloads.
    pub(crate) payload_bytes: u64,
    /// Ended jobs of all applications.
    pub(crate) ended_jobs: u64,
    /// Jobs with a key of one application.
    pub(crate) keys: u64,
    /// Jobs that are looked at for questions of an application at a time, and answers that are given.
    pub(crate) answer_jobs: usize,
    pub(crate) answers: usize,
    /// Ranges of jobs in questions of one application that wait.
    pub(crate) questions: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            applications: APPLICATIONS,
            applications_per_user: APPLICATIONS_PER_USER,
            bundles: BUNDLES,
            bundles_per_user: BUNDLES_PER_USER,
            bundle_bytes_per_user: u64::MAX,
            sessions: SESSIONS_PER_APPLICATION,
            services: SERVICES_PER_APPLICATION,
            jobs: JOBS_PER_APPLICATION,
            payload_bytes: PAYLOAD_BYTES_PER_APPLICATION,
            ended_jobs: ENDED_JOBS,
            keys: KEYS_PER_APPLICATION,
            answer_jobs: ANSWER_JOBS,
            answers: ANSWERS,
            questions: WAITING_RANGES,
        }
    }
}

/// A payload's length in one byte, rounded up by an eighth at most: there is no room for more beside a job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct RoughSize(u8);

impl RoughSize {
    /// Digits that are kept behind the first one.
    const DIGITS: u32 = 3;

    pub(super) fn of(bytes: u32) -> Self {
        let shift = (u32::BITS - bytes.leading_zeros()).saturating_sub(Self::DIGITS + 1);
        let digits = u64::from(bytes).div_ceil(1 << shift);
        // Rounded up, it may have one digit more, which is right: the next power has digits 0 then.
        let size = (u64::from(shift) << Self::DIGITS) + digits;
        Self(u8::try_from(size).expect("32 shifts of 8 and 16 digits at most"))
    }

    pub(super) fn bytes(self) -> u64 {
        let size = u64::from(self.0);
        let above = 1 << Self::DIGITS;
        match size.checked_sub(2 * above) {
            None => size,
            Some(rest) => (above + rest % above) << (rest / above + 1),
        }
    }
}

const _: () = assert!(BODY_BYTES <= u32::MAX as u64, "every payload has a rough size");

impl Engine {
    /// Makes room for an application by forgetting what nobody would miss. Why there is none, if so.
    pub(super) fn make_room_for(&mut self, attach: &Attach) -> Option<String> {
        if let Some(reason) = self.no_room_for_program(attach) {
            return Some(reason);
        }
        match self.application_ids.get(&attach.application).copied() {
            None => self.no_room_for_application(attach),
            Some(known) => {
                let is_nobodys = self.applications[known].terms.owner.is_none();
                let of_user = if is_nobodys { self.no_room_for_one_more_of(attach) } else { None };
                of_user.or_else(|| self.no_room_for_session(known, attach))
            }
        }
    }

    fn no_room_for_program(&mut self, attach: &Attach) -> Option<String> {
        let known = self.bundles.find(&attach.bundle);
        if let Some(user) = &attach.user {
            let most = self.settings.bounds.bundles_per_user;
            let scope = Scope::User(user.clone());
            let lacks_room = |engine: &Self| {
                let programs = engine.users.get(user).map(|holdings| &holdings.programs);
                programs.is_some_and(|programs| {
                    programs.len() >= most && known.is_none_or(|known| !programs.contains_key(&known))
                })
            };
            while lacks_room(self) {
                if !self.forget_spare_session(&scope) {
                    return Some(format!(
                        "the applications of user `{user}` have {most} programs: stop some, see `lrts applications`"
                    ));
                }
            }
            // What isn't here is looked at when it is offered. A start that comes back to its jobs may be there for their results
            // alone, which a program that came meanwhile must not keep from it.
            let session = self.session_ids.get(&attach.session);
            let comes_back = session.is_some_and(|&session| self.has_jobs(session));
            let bytes = |known| self.no_room_for_program_bytes(user, known, self.bundles[known].bytes);
            if let Some(reason) = known.filter(|_| !comes_back).and_then(bytes) {
                return Some(reason);
            }
        }
        let most = self.settings.bounds.bundles;
        while known.is_none() && self.bundles.len() >= most {
            if self.bundles.has_unnamed() {
                self.forget_unnamed_bundles();
            } else if !self.forget_spare_session(&Scope::All) {
                return Some(format!(
                    "the applications that the scheduler remembers have {most} programs: stop some"
                ));
            }
        }
        None
    }

    /// Why the applications of a user may not need this program too, if it has this length. What is needed is never deleted, so
    /// nobody may fill the store with it.
    pub(super) fn no_room_for_program_bytes(
        &self,
        user: &UserName,
        bundle: u32,
        bytes: u64,
    ) -> Option<String> {
        let most = self.settings.bounds.bundle_bytes_per_user;
        let holdings = self.users.get(user)?;
        let known = holdings.needed.get(&bundle).map_or(0, |needed| needed.bytes);
        let is_more = bytes > known && (holdings.needed_bytes - known).saturating_add(bytes) > most;
        is_more.then(|| {
            format!(
                "with this one, of {bytes} bytes, the programs that user `{user}` needs at a time would take more than {most} \
                 bytes, a user's part of the scheduler's room for programs (--bundle-store): wait for jobs of others, or stop some \
                 applications, see `lrts applications`"
            )
        })
    }

    fn no_room_for_application(&mut self, attach: &Attach) -> Option<String> {
        if let Some(reason) = self.no_room_for_one_more_of(attach) {
            return Some(reason);
        }
        let most = self.settings.bounds.applications;
        let is_full = self.application_ids.len() >= most && !self.forget_spare_application(&Scope::All);
        is_full.then(|| {
            format!("the scheduler remembers {most} applications: stop some, see `lrts applications`")
        })
    }

    /// Why a user may own no further application. Without keys nobody owns any.
    fn no_room_for_one_more_of(&mut self, attach: &Attach) -> Option<String> {
        let user = attach.user.as_ref()?;
        let most = self.settings.bounds.applications_per_user;
        let has = self.users.get(user).map_or(0, |holdings| holdings.applications);
        let is_full = has >= most && !self.forget_spare_application(&Scope::User(user.clone()));
        is_full.then(|| {
            format!(
                "user `{user}` has {most} applications: stop some, see `lrts applications`, or start with one \
                 application id again and again"
            )
        })
    }

    /// Makes room for another start of an application, if it is another one. Why there is none, if so.
    pub(super) fn no_room_for_session(&mut self, application: u32, attach: &Attach) -> Option<String> {
        if self.session_ids.contains_key(&attach.session) {
            return None;
        }
        loop {
            let reason = self.lacks_room_for_session(application, attach)?;
            let scope = Scope::Application(application);
            let Some(session) = self.spare_sessions.longest(&scope, self.now) else { return Some(reason) };
            self.forget_session(session);
        }
    }

    fn lacks_room_for_session(&self, application: u32, attach: &Attach) -> Option<String> {
        let application = &self.applications[application];
        let (id, most) = (application.id, self.settings.bounds.sessions);
        let (leaving, its_services) = self.leaving(application);
        if application.sessions.len() - leaving >= most {
            return Some(format!("application `{id}` was started {most} times and never stopped: stop it"));
        }
        let most = self.settings.bounds.services;
        (application.services() - its_services + attach.services.len() > most)
            .then(|| format!("application `{id}` has {most} services of all its programs: stop it"))
    }

    /// The start that another one would supersede doesn't count if nobody would miss it then: how many sessions and services
    /// that is.
    fn leaving(&self, application: &Application) -> (usize, usize) {
        let Presence::Here { session, .. } = application.presence else { return (0, 0) };
        let kept = self.settings.result_retention;
        if self.spare_once_left(session, self.now, kept).is_none_or(|from| from > self.now) {
            return (0, 0);
        }
        let services = self.sessions[session].program.iter().flat_map(|program| &program.services);
        // A program that names a service twice has it once.
        let services: BTreeSet<u32> = services.copied().collect();
        (1, services.into_iter().filter(|&service| self.services[service].sessions == 1).count())
    }

    /// Why an application may have no further job with a payload of this length, if so.
    pub(super) fn no_room_for_job(&self, application: u32, payload_bytes: u32) -> Option<String> {
        let bounds = &self.settings.bounds;
        let application = &self.applications[application];
        let (id, most) = (application.id, bounds.jobs);
        if application.totals.queued + application.totals.running >= most {
            return Some(format!(
                "application `{id}` has {most} jobs that haven't ended: wait for some of them"
            ));
        }
        let most = bounds.payload_bytes;
        if application.payload_bytes + RoughSize::of(payload_bytes).bytes() > most {
            return Some(format!(
                "the payloads of application `{id}`'s jobs that haven't ended would have more than {most} bytes: wait for some of \
                 them, or put data into files"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up_and_never_by_much() {
        let near = |power: u32| (0..40).map(move |more| (1_u32 << power).saturating_sub(20) + more);
        let all = (0..5_000).chain((12..32).flat_map(near)).chain([BODY_BYTES as u32, u32::MAX]);
        for bytes in all {
            let rough = RoughSize::of(bytes).bytes();
            let most = u64::from(bytes) + u64::from(bytes) / 8;
            assert!((u64::from(bytes)..=most).contains(&rough), "{bytes} became {rough}");
        }
        assert!((0..20).all(|bytes| RoughSize::of(bytes).bytes() >= u64::from(bytes)));
    }
}
