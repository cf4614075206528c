//! Submits: which jobs are taken, and when an application may rely on it. One key is one job, however often it comes.

use std::collections::BTreeMap;
use std::sync::Arc;

use lrts_core::ids::{JobId, SessionId};
use lrts_core::limits::{BODY_BYTES, KEY_BYTES, SUBMIT_JOBS};
use lrts_core::spec::{JobOptions, KeyedJob};
use lrts_core::status::RefusalCause;

use super::Engine;
use super::applications::Presence;
use super::bundles::Availability;
use super::events::{Action, Message, Peer, Submit};
use super::jobs::NewNode;
use super::sessions::{FORGOTTEN, Session};
use crate::record::{KeyedRecord, NewJob, Record, Submitted};

/// What tells a job with a key from another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Key {
    pub(super) text: String,
    /// Of its service and payload.
    pub(super) digest: u64,
}

/// Why a job isn't taken.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Refused {
    reason: String,
    cause: RefusalCause,
}

impl Refused {
    fn invalid(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), cause: RefusalCause::Invalid }
    }
}

/// How many jobs weren't taken since the scheduler's start, by cause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RefusedJobs {
    invalid: u64,
    key_conflict: u64,
    no_room: u64,
    limit: u64,
}

impl RefusedJobs {
    fn count(&mut self, cause: RefusalCause) {
        *match cause {
            RefusalCause::Invalid => &mut self.invalid,
            RefusalCause::KeyConflict => &mut self.key_conflict,
            RefusalCause::NoRoom => &mut self.no_room,
            RefusalCause::Limit => &mut self.limit,
        } += 1;
    }
}

/// Who submits.
#[derive(Clone, Copy)]
struct Submitter {
    application: u32,
    session: u32,
    peer: Peer,
}

impl Engine {
    /// How many jobs weren't taken, by the cause's name in `lrts status --json`.
    pub(crate) fn refused_jobs(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let RefusedJobs { invalid, key_conflict, no_room, limit } = self.refused_jobs;
        let causes = [
            ("jobs_invalid", invalid),
            ("jobs_key_conflict", key_conflict),
            ("jobs_no_room", no_room),
            ("jobs_limit", limit),
        ];
        causes.into_iter()
    }

    pub(super) fn submit(&mut self, peer: Peer, submit: Submit) {
        let Some((application, session)) = self.attached(peer) else { return };
        let Submit { first, options, mut jobs, mut keys, no_room } = submit;
        let record = &self.sessions[session];
        if jobs.len() > SUBMIT_JOBS || options.len() > SUBMIT_JOBS {
            return self.violation(peer, format!("a submit of more than {SUBMIT_JOBS} jobs"));
        }
        if first > u64::MAX - jobs.len() as u64 {
            return self.violation(peer, format!("a submit from {first} on: there are no such sequences"));
        }
        if record.stopped {
            return self.violation(peer, "a submit after the application was stopped");
        }
        let record = &mut self.sessions[session];
        record.begin_behind(first.saturating_sub(1));
        let received = record.received();
        if first == 0 || first > received + 1 {
            return self.violation(peer, format!("a submit from {first} on where {} was next", received + 1));
        }
        // Those that came before, on this connection or an earlier one.
        let known = usize::try_from(received + 1 - first).unwrap_or(usize::MAX).min(jobs.len());
        jobs.drain(..known);
        keys.retain(|key| key.index as usize >= known);
        keys.iter_mut().for_each(|key| key.index -= known as u32);
        if jobs.is_empty() {
            let through = record.accepted;
            return self.send(peer, Message::Accepted { through });
        }
        let fresh = Submit { first: received + 1, options, jobs, keys, no_room };
        self.submit_fresh(Submitter { application, session, peer }, fresh);
        if self.is_program_decided(session) {
            self.program_decided(session);
        }
    }

    fn submit_fresh(&mut self, from: Submitter, submit: Submit) {
        let Submit { first, options, jobs, keys, no_room } = submit;
        let bad_options: Vec<Option<String>> =
            options.iter().map(|options| options.validate().err().map(|error| error.to_string())).collect();
        let options: Arc<[JobOptions]> = options.into();
        let mut keys = keys.into_iter().peekable();
        let mut specs: BTreeMap<(u16, u16), u32> = BTreeMap::new();
        let mut made = Vec::new();
        let (mut refusals, mut skipped, mut keyed) = (Vec::new(), Vec::new(), Vec::new());
        for ((index, sequence), job) in (0..).zip(first..).zip(&jobs) {
            let key = keys.next_if(|key| key.index == index);
            let taken = self
                .check(from.session, job, &bad_options)
                .and_then(|()| self.place_of(from.application, key))
                // A job that is here already needs none.
                .and_then(|place| match place {
                    Some(place) => {
                        self.find_room(from.application, job, no_room.as_deref()).map(|()| Some(place))
                    }
                    None => Ok(None),
                });
            let place = match taken {
                Ok(Some(place)) => place,
                Ok(None) => {
                    // Its job is here already.
                    self.sessions[from.session].push(FORGOTTEN);
                    skipped.push(sequence);
                    continue;
                }
                Err(refused) => {
                    self.sessions[from.session].push(FORGOTTEN);
                    skipped.push(sequence);
                    refusals.push((sequence, refused));
                    continue;
                }
            };
            let spec = match specs.get(&(job.service, job.options)) {
                Some(&spec) => spec,
                None => {
                    let spec =
                        self.spec_of_submit(from.session, job.service, &options[usize::from(job.options)]);
                    specs.insert((job.service, job.options), spec);
                    spec
                }
            };
            match place {
                Place::Sequence => {
                    let index = self.add_job(from.session, sequence, spec, job.payload_bytes);
                    self.sessions[from.session].push(index);
                    self.mark_job(index);
                    made.push(index);
                }
                Place::Key { session, id, key } => {
                    self.sessions[from.session].push(FORGOTTEN);
                    self.sessions[from.session].brought_keys = true;
                    let Key { text, digest } = key.clone();
                    keyed.push(KeyedRecord { sequence, job: id, key: text, digest });
                    let index = self.add_job(session, id.sequence, spec, job.payload_bytes);
                    self.sessions[session].insert(id.sequence, index);
                    self.mark_job(index);
                    let attempts = self.jobs.left.remove(&id).unwrap_or(0);
                    if attempts > 0 {
                        self.jobs.nodes[index].attempts = attempts;
                        self.job_changed(index);
                    }
                    self.jobs.keys.insert(index, key);
                    made.push(index);
                }
            }
        }
        self.totals_changed(from.application);
        let id = self.sessions[from.session].id;
        self.persist(Record::Submitted(Submitted { session: id, first, options, jobs, skipped, keyed }));
        for (sequence, Refused { reason, cause }) in refusals {
            self.refused_jobs.count(cause);
            let message = Message::Refused { sequence, reason, cause };
            match cause {
                // It can't wait for a commit, which waits for room.
                RefusalCause::NoRoom => self.actions.push(Action::SendAtOnce { to: from.peer, message }),
                RefusalCause::Invalid | RefusalCause::KeyConflict | RefusalCause::Limit => {
                    self.send(from.peer, message);
                }
            }
        }
        let bundle = self.bundle_of(from.session);
        if let Some(reason) = self.program_failure(from.application, bundle).cloned() {
            self.fail_waiting(&made, &reason);
        }
    }

    /// The spec of jobs that a session submits.
    pub(super) fn spec_of_submit(&mut self, session: u32, service: u16, options: &JobOptions) -> u32 {
        let program = self.sessions[session].program.as_ref().expect("only programs submit");
        self.spec_for(program.services[usize::from(service)], options)
    }

    /// Makes a job and puts it into its queue. Its place in the session's table is the caller's to set.
    fn add_job(&mut self, session: u32, sequence: u64, spec: u32, payload_bytes: u32) -> u32 {
        let index = self.jobs.insert(NewNode { session, sequence, spec, payload_bytes, submitted: self.now });
        self.count_new_job(session, index);
        self.queue_job(index);
        index
    }

    /// A job has been made: it counts for its session, its application and its bundle.
    pub(super) fn count_new_job(&mut self, session: u32, job: u32) {
        self.sessions[session].jobs += 1;
        let (application, bundle) = (self.sessions[session].application, self.spec_of(job).bundle);
        let record = &mut self.applications[application];
        record.totals.queued += 1;
        record.payload_bytes += self.jobs.nodes[job].payload.bytes();
        self.refresh_spare_by_jobs(session);
        self.use_bundle(application, bundle);
    }

    /// Whether there is room for one more job, here and on the disk.
    fn find_room(&self, application: u32, job: &NewJob, no_room: Option<&str>) -> Result<(), Refused> {
        if let Some(reason) = no_room {
            return Err(Refused { reason: reason.to_owned(), cause: RefusalCause::NoRoom });
        }
        match self.no_room_for_job(application, job.payload_bytes) {
            Some(reason) => Err(Refused { reason, cause: RefusalCause::Limit }),
            None => Ok(()),
        }
    }

    /// Where a new job belongs; none if it is here already.
    fn place_of(&mut self, application: u32, key: Option<KeyedJob>) -> Result<Option<Place>, Refused> {
        let Some(KeyedJob { key: text, digest, .. }) = key else { return Ok(Some(Place::Sequence)) };
        if text.is_empty() || text.len() > KEY_BYTES {
            let bytes = text.len();
            return Err(Refused::invalid(format!("key of {bytes} bytes: 1 to {KEY_BYTES} are allowed")));
        }
        let job = JobId::keyed(self.applications[application].id, &text);
        let session = self.keyed_session(application)?;
        if let Some(known) = self.sessions[session].job(job.sequence) {
            let key = &self.jobs.keys[&known];
            return if key.text != text {
                Err(Refused::invalid(format!(
                    "key `{text}`: its digest is that of key `{}`: choose another",
                    key.text
                )))
            } else if key.digest != digest {
                let reason = format!(
                    "key `{text}`: job {job} has it, with another service or payload: choose another key, or stop the \
                     application to forget its jobs"
                );
                Err(Refused { reason, cause: RefusalCause::KeyConflict })
            } else {
                Ok(None)
            };
        }
        if self.sessions[session].stopped {
            let reason = "the application was stopped and its jobs are still being cancelled: try again when they have ended";
            return Err(Refused::invalid(reason));
        }
        let most = self.settings.bounds.keys;
        if self.sessions[session].jobs >= most {
            let id = self.applications[application].id;
            let reason = format!(
                "application `{id}` has {most} jobs with keys: stop it to forget them, or do without keys"
            );
            return Err(Refused { reason, cause: RefusalCause::Limit });
        }
        Ok(Some(Place::Key { session, id: job, key: Key { text, digest } }))
    }

    /// The session of an application's jobs with a key, made if it isn't there.
    fn keyed_session(&mut self, application: u32) -> Result<u32, Refused> {
        let id = SessionId::keyed(self.applications[application].id);
        let session = match self.session_ids.get(&id) {
            Some(&session) => session,
            None => self.add_session(Session::new(id, application, None)),
        };
        let record = &mut self.sessions[session];
        if record.application != application {
            return Err(Refused::invalid(
                "another application's keys have the same place: choose another application id",
            ));
        }
        // Those of a start that was stopped are gone.
        record.stopped &= record.jobs > 0;
        Ok(session)
    }

    /// Whether a job is as a job must be.
    fn check(&self, session: u32, job: &NewJob, bad_options: &[Option<String>]) -> Result<(), Refused> {
        let services = self.sessions[session].program.as_ref().map_or(0, |program| program.services.len());
        if usize::from(job.service) >= services {
            return Err(Refused::invalid(format!(
                "service number {} of a program with {services}: services are named when the application starts",
                job.service
            )));
        }
        if u64::from(job.payload_bytes) > BODY_BYTES {
            return Err(Refused::invalid(format!(
                "a payload of {} bytes: at most {BODY_BYTES} are allowed, larger data belongs into files",
                job.payload_bytes
            )));
        }
        match bad_options.get(usize::from(job.options)) {
            None => {
                let (number, count) = (job.options, bad_options.len());
                Err(Refused::invalid(format!("options number {number} of a submit with {count}")))
            }
            Some(Some(reason)) => Err(Refused::invalid(reason)),
            Some(None) => Ok(()),
        }
    }

    /// The program of a session that is one start of an application.
    pub(super) fn bundle_of(&self, session: u32) -> u32 {
        self.sessions[session].program.as_ref().expect("a start has a program").bundle
    }

    pub(super) fn is_program_decided(&self, session: u32) -> bool {
        let bundle = self.bundle_of(session);
        let is_here = self.bundles[bundle].availability == Availability::Here;
        is_here || self.program_failure(self.sessions[session].application, bundle).is_some()
    }

    /// The session's program is here, or can't be had: all that was submitted is accepted.
    pub(super) fn program_decided(&mut self, session: u32) {
        if !std::mem::replace(&mut self.sessions[session].decided, true) {
            self.keep_session(session);
        }
        let record = &mut self.sessions[session];
        if record.accepted == record.received() {
            return;
        }
        record.accepted = record.received();
        let (application, through) = (record.application, record.accepted);
        if let Presence::Here { peer, session: current } = self.applications[application].presence
            && current == session
        {
            self.send(peer, Message::Accepted { through });
        }
    }
}

/// Where a new job belongs.
enum Place {
    /// Under its sequence.
    Sequence,
    /// Under its key.
    Key { session: u32, id: JobId, key: Key },
}
