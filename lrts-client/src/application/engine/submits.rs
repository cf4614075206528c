//! Jobs that the scheduler hasn't accepted yet: kept, grouped into messages, sent again after a reconnect.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lrts_core::limits::{
    SEND_WINDOW_BYTES, SEND_WINDOW_JOBS, SUBMIT_BYTES, SUBMIT_JOBS, SUBMIT_OPTION_BYTES, SUBMIT_OPTION_VALUES,
};
use lrts_core::protocol::application::{FromApplication, JobRange, KeyedJob};
use lrts_core::protocol::codec;
use lrts_core::spec::JobOptions;

/// A job to be scheduled.
#[derive(Clone, Debug)]
pub(crate) struct NewJob {
    /// Index of its service.
    pub(crate) service: u16,
    /// How to run it.
    pub(crate) options: Arc<JobOptions>,
    /// The encoded service.
    pub(crate) payload: Bytes,
    /// Its key, if it has one.
    pub(crate) key: Option<Key>,
}

/// What names a job within its application.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Key {
    pub(crate) key: Arc<str>,
    /// Of its service and payload.
    pub(crate) digest: u64,
}

/// The jobs above the scheduler's watermark, in order.
#[derive(Debug, Default)]
pub(super) struct Submits {
    accepted_through: u64,
    /// The jobs from `accepted_through + 1` on.
    queue: VecDeque<NewJob>,
    /// How many of them were sent on this connection.
    sent: usize,
    bytes: usize,
}

impl Submits {
    /// Whether the window has room for this much more. An empty window has room for anything.
    pub(super) fn has_room(&self, jobs: usize, bytes: usize) -> bool {
        self.queue.is_empty()
            || (self.queue.len() + jobs <= SEND_WINDOW_JOBS
                && self.bytes.saturating_add(bytes) <= SEND_WINDOW_BYTES)
    }

    pub(super) fn push(&mut self, job: NewJob) {
        self.bytes += job.payload.len();
        self.queue.push_back(job);
    }

    /// Every sequence up to here was accepted or refused.
    pub(super) fn accepted_through(&self) -> u64 {
        self.accepted_through
    }

    /// Jobs that aren't accepted.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Their sequences.
    pub(super) fn sequences(&self) -> RangeInclusive<u64> {
        self.accepted_through + 1..=self.accepted_through + self.queue.len() as u64
    }

    /// The jobs with keys up to this sequence, with theirs.
    pub(super) fn keyed_through(&self, through: u64) -> Vec<(u64, NewJob)> {
        let jobs = self.sequences().zip(&self.queue).take_while(|&(sequence, _)| sequence <= through);
        jobs.filter(|(_, job)| job.key.is_some()).map(|(sequence, job)| (sequence, job.clone())).collect()
    }

    /// Whether some of them weren't sent on this connection.
    pub(super) fn has_unsent(&self) -> bool {
        self.sent < self.queue.len()
    }

    /// The watermark has moved; returns the sequences that it passed.
    pub(super) fn accept(&mut self, through: u64) -> RangeInclusive<u64> {
        let first = self.accepted_through + 1;
        while self.accepted_through < through {
            let Some(job) = self.queue.pop_front() else { break };
            self.bytes -= job.payload.len();
            self.sent = self.sent.saturating_sub(1);
            self.accepted_through += 1;
        }
        first..=self.accepted_through
    }

    /// A new connection: nothing was sent on it.
    pub(super) fn rewind(&mut self) {
        self.sent = 0;
    }

    /// The next group of jobs that weren't sent on this connection.
    pub(super) fn next_batch(&mut self) -> Option<(FromApplication, Bytes)> {
        if !self.has_unsent() {
            return None;
        }
        let mut options = Distinct::default();
        let (mut jobs, mut keys) = (Vec::new(), Vec::new());
        let (mut count, mut bytes) = (0, 0);
        for job in self.queue.range(self.sent..) {
            if count == SUBMIT_JOBS || (count > 0 && bytes + job.payload.len() > SUBMIT_BYTES) {
                break;
            }
            let Some(option) = options.index_of(&job.options) else { break };
            if let Some(Key { key, digest }) = &job.key {
                let index = u32::try_from(count).expect("a batch has at most a thousand jobs");
                keys.push(KeyedJob { index, key: key.as_ref().to_owned(), digest: *digest });
            }
            count += 1;
            bytes += job.payload.len();
            let payload_bytes =
                u32::try_from(job.payload.len()).expect("payloads are checked when scheduled");
            JobRange::push(&mut jobs, job.service, option, payload_bytes);
        }
        let body = match count {
            1 => self.queue[self.sent].payload.clone(),
            count => {
                let mut body = BytesMut::with_capacity(bytes);
                self.queue
                    .range(self.sent..self.sent + count)
                    .for_each(|job| body.extend_from_slice(&job.payload));
                body.freeze()
            }
        };
        let first = self.accepted_through + self.sent as u64 + 1;
        self.sent += count;
        let options = options.all.iter().map(|options| JobOptions::clone(options)).collect();
        Some((FromApplication::Submit { first, options, jobs, keys }, body))
    }
}

/// The different options of a message, and what they come to.
#[derive(Default)]
struct Distinct {
    all: Vec<Arc<JobOptions>>,
    values: usize,
    bytes: usize,
}

impl Distinct {
    /// The place of some options among the others, which they join if they are new and the message has room.
    fn index_of(&mut self, options: &Arc<JobOptions>) -> Option<u16> {
        let same = |other: &Arc<JobOptions>| Arc::ptr_eq(other, options) || other == options;
        // Neighbours are usually alike, so the newest is looked at first.
        let index = match self.all.iter().rposition(same) {
            Some(index) => index,
            None if self.values >= SUBMIT_OPTION_VALUES || self.bytes >= SUBMIT_OPTION_BYTES => return None,
            None => {
                let (values, bytes) = codec::measure(&**options);
                self.values += values;
                self.bytes += bytes;
                self.all.push(Arc::clone(options));
                self.all.len() - 1
            }
        };
        Some(u16::try_from(index).expect("a batch has at most a thousand jobs"))
    }
}

#[cfg(test)]
mod tests {
    use lrts_core::limits::ENV_VARIABLES;

    use super::*;

    fn job(options: &Arc<JobOptions>, bytes: usize) -> NewJob {
        NewJob { service: 0, options: Arc::clone(options), payload: Bytes::from(vec![7; bytes]), key: None }
    }

    fn batch(submits: &mut Submits) -> Option<(u64, usize, usize, usize)> {
        let (message, body) = submits.next_batch()?;
        let FromApplication::Submit { first, options, jobs, .. } = message else { panic!("not a submit") };
        let count = jobs.iter().map(|range| range.count as usize).sum();
        Some((first, options.len(), count, body.len()))
    }

    #[test]
    fn jobs_are_grouped_up_to_the_bounds_of_a_message() {
        let plain = Arc::new(JobOptions::new());
        let mut submits = Submits::default();
        for _ in 0..SUBMIT_JOBS + 1 {
            submits.push(job(&plain, 1));
        }
        submits.push(job(&plain, SUBMIT_BYTES));
        submits.push(job(&plain, 2 * SUBMIT_BYTES));
        assert_eq!(batch(&mut submits), Some((1, 1, SUBMIT_JOBS, SUBMIT_JOBS)));
        assert_eq!(batch(&mut submits), Some((1_001, 1, 1, 1)));
        assert_eq!(batch(&mut submits), Some((1_002, 1, 1, SUBMIT_BYTES)));
        assert_eq!(batch(&mut submits), Some((1_003, 1, 1, 2 * SUBMIT_BYTES)));
        assert_eq!(batch(&mut submits), None);
    }

    #[test]
    fn equal_options_travel_once() {
        let (plain, other) = (Arc::new(JobOptions::new()), Arc::new(JobOptions::new().priority(1)));
        let mut submits = Submits::default();
        for options in [&plain, &other, &Arc::new(JobOptions::new()), &other] {
            submits.push(job(options, 1));
        }
        assert_eq!(batch(&mut submits), Some((1, 2, 4, 4)));
    }

    #[test]
    fn different_options_are_grouped_up_to_the_bounds_of_a_message_too() {
        let labelled = |label: usize| Arc::new(JobOptions::new().label(label.to_string()));
        let with_env = |label: usize| {
            let options = JobOptions::new().label(label.to_string());
            Arc::new((0..ENV_VARIABLES).fold(options, |options, _| options.env("N", "v".repeat(100))))
        };
        let groups = |options: &dyn Fn(usize) -> Arc<JobOptions>| {
            let mut submits = Submits::default();
            (0..SUBMIT_JOBS).for_each(|number| submits.push(job(&options(number), 1)));
            std::iter::from_fn(|| {
                let (message, _) = submits.next_batch()?;
                let decoded: FromApplication = codec::decode(&codec::encode(&message)).unwrap();
                let FromApplication::Submit { options, .. } = decoded else { panic!("not a submit") };
                Some(options.len())
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(groups(&labelled), [SUBMIT_JOBS]);
        let by_values = groups(&with_env);
        assert!(by_values.len() > 1 && by_values.iter().sum::<usize>() == SUBMIT_JOBS, "{by_values:?}");
    }

    #[test]
    fn what_was_not_accepted_is_sent_again() {
        let plain = Arc::new(JobOptions::new());
        let mut submits = Submits::default();
        for _ in 0..5 {
            submits.push(job(&plain, 1));
        }
        batch(&mut submits);
        assert_eq!(submits.accept(2), 1..=2);
        assert!(!submits.has_unsent());
        submits.rewind();
        assert_eq!(batch(&mut submits), Some((3, 1, 3, 3)));
        assert_eq!(submits.accept(99), 3..=5);
        assert!(submits.accept(99).is_empty());
        assert_eq!((submits.len(), submits.bytes), (0, 0));
    }

    #[test]
    fn an_empty_window_takes_one_oversized_job() {
        let mut submits = Submits::default();
        assert!(submits.has_room(1, SEND_WINDOW_BYTES + 1));
        submits.push(job(&Arc::new(JobOptions::new()), 1));
        assert!(!submits.has_room(1, SEND_WINDOW_BYTES));
        assert!(!submits.has_room(SEND_WINDOW_JOBS, 0));
    }

    #[test]
    fn keys_travel_beside_their_jobs_and_can_be_found_again() {
        let plain = Arc::new(JobOptions::new());
        let mut submits = Submits::default();
        for key in [None, Some("a"), None, Some("b")] {
            let key = key.map(|key| Key { key: key.into(), digest: 9 });
            submits.push(NewJob { key, ..job(&plain, 1) });
        }
        submits.accept(1);
        let Some((FromApplication::Submit { keys, .. }, _)) = submits.next_batch() else { panic!("a batch") };
        let keyed = |index, key: &str| KeyedJob { index, key: key.to_owned(), digest: 9 };
        assert_eq!(keys, [keyed(0, "a"), keyed(2, "b")]);
        let found = |through| -> Vec<u64> {
            submits.keyed_through(through).iter().map(|&(sequence, _)| sequence).collect()
        };
        assert_eq!((found(1), found(3), found(9)), (vec![], vec![2], vec![2, 4]));
    }
}
