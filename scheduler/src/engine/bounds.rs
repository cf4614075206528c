//! What applications may keep here. The bounds are generous; they keep one that has gone wild from taking the others down.

use lrts_core::limits::{
    APPLICATIONS, BODY_BYTES, BUNDLES, JOBS_PER_APPLICATION, KEYS_PER_APPLICATION,
    PAYLOAD_BYTES_PER_APPLICATION, SERVICES_PER_APPLICATION, SESSIONS_PER_APPLICATION,
};

use super::Engine;
use super::events::Attach;

/// The bounds. Tests have smaller ones.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    /// Applications that are remembered.
    pub(crate) applications: usize,
    /// Programs that were ever named.
    pub(crate) bundles: usize,
    /// Starts of one application that are remembered.
    pub(crate) sessions: usize,
    /// Services of all programs of one application.
    pub(crate) services: usize,
    /// Jobs of one application that haven't ended.
    pub(crate) jobs: u64,
    /// Bytes of their payloads.
    pub(crate) payload_bytes: u64,
    /// Jobs with a key of one application.
    pub(crate) keys: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            applications: APPLICATIONS,
            bundles: BUNDLES,
            sessions: SESSIONS_PER_APPLICATION,
            services: SERVICES_PER_APPLICATION,
            jobs: JOBS_PER_APPLICATION,
            payload_bytes: PAYLOAD_BYTES_PER_APPLICATION,
            keys: KEYS_PER_APPLICATION,
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
    /// Why there is no room for an application, if so.
    pub(super) fn no_room_for(&self, attach: &Attach) -> Option<String> {
        let bounds = &self.settings.bounds;
        if self.bundles.find(&attach.bundle).is_none() && self.bundles.len() >= bounds.bundles {
            let most = bounds.bundles;
            return Some(format!(
                "the scheduler has heard of {most} programs: restart it to forget unused ones"
            ));
        }
        let Some(&application) = self.application_ids.get(&attach.application) else {
            let most = bounds.applications;
            return (self.application_ids.len() >= most).then(|| {
                format!("the scheduler remembers {most} applications: stop some, see `lrts applications`")
            });
        };
        if self.session_ids.contains_key(&attach.session) {
            return None;
        }
        let application = &self.applications[application];
        let (id, most) = (application.id, bounds.sessions);
        if application.sessions.len() >= most {
            return Some(format!("application `{id}` was started {most} times and never stopped: stop it"));
        }
        let most = bounds.services;
        if application.services() + attach.services.len() > most {
            return Some(format!("application `{id}` has {most} services of all its programs: stop it"));
        }
        None
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
