//! Small bodies that were written or read lately, so that most jobs start and most results leave without a read.

use std::collections::BTreeMap;

use bytes::Bytes;
use lrts_core::ids::{JobId, SessionId};

use super::body::{BodyKey, Kind, Layout, unseal_bytes};

/// Larger bodies are not kept.
pub(super) const CACHED_BODY_BYTES: u64 = 256 << 10;

/// Most memory of the cache.
pub(super) const CACHE_BYTES: usize = 32 << 20;

/// What an entry takes beside its bytes.
const ENTRY_BYTES: usize = 256;

/// Sealed bodies by name, the oldest go first.
#[derive(Debug)]
pub(super) struct Cache {
    limit: usize,
    bytes: usize,
    entries: BTreeMap<BodyKey, Cached>,
    by_age: BTreeMap<u64, BodyKey>,
    next: u64,
}

#[derive(Debug)]
struct Cached {
    sealed: Bytes,
    /// Of payloads.
    layout: Option<Layout>,
    number: u64,
}

impl Cached {
    fn bytes(&self) -> usize {
        self.sealed.len() + self.layout.as_ref().map_or(0, Layout::bytes) + ENTRY_BYTES
    }
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, entries: BTreeMap::new(), by_age: BTreeMap::new(), next: 0 }
    }

    /// Keeps a body, in memory of its own.
    pub(super) fn insert(&mut self, key: BodyKey, sealed: Bytes, layout: Option<Layout>) {
        self.remove(key);
        let cached = Cached { sealed, layout, number: self.next };
        self.next += 1;
        self.bytes += cached.bytes();
        self.by_age.insert(cached.number, key);
        self.entries.insert(key, cached);
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            self.remove(oldest);
        }
    }

    pub(super) fn remove(&mut self, key: BodyKey) {
        if let Some(cached) = self.entries.remove(&key) {
            self.bytes -= cached.bytes();
            self.by_age.remove(&cached.number);
        }
    }

    pub(super) fn remove_session(&mut self, session: SessionId) {
        for kind in Kind::ALL {
            let first = BodyKey::new(kind, session.job(0));
            let last = BodyKey { kind, job: session.job(u64::MAX), attempt: u32::MAX };
            let keys: Vec<BodyKey> = self.entries.range(first..=last).map(|(&key, _)| key).collect();
            for key in keys {
                self.remove(key);
            }
        }
    }

    /// A body that is checked as a whole, unsealed.
    pub(super) fn whole(&self, key: BodyKey) -> Option<Bytes> {
        unseal_bytes(&self.entries.get(&key)?.sealed)
    }

    /// The payload of a job.
    pub(super) fn payload(&self, job: JobId) -> Option<Bytes> {
        let first = BodyKey::new(Kind::Payloads, job.session.job(0));
        let (_, cached) = self.entries.range(first..=BodyKey::new(Kind::Payloads, job)).next_back()?;
        slice(&cached.sealed, cached.layout.as_ref()?, job)
    }
}

/// The payload of a job out of those of its submit; none if it isn't there or not as it was written.
pub(super) fn slice(sealed: &Bytes, layout: &Layout, job: JobId) -> Option<Bytes> {
    let range = layout.range(job.sequence)?;
    let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
    if end > sealed.len() {
        return None;
    }
    unseal_bytes(&sealed.slice(start..end))
}

#[cfg(test)]
mod tests {
    use super::super::body::Body;
    use super::*;

    #[test]
    fn its_memory_is_bounded_and_the_oldest_go_first() {
        let session = SessionId(1);
        let key = |number| BodyKey::new(Kind::Result, session.job(number));
        let mut cache = Cache::new(100_000);
        for number in 0..1_000 {
            cache.insert(key(number), Body::whole([Bytes::from(vec![7; 1_000])]).joined(), None);
            assert!(cache.bytes <= 100_000);
        }
        assert_eq!((cache.whole(key(0)), cache.whole(key(999)).unwrap().len()), (None, 1_000));
        cache.insert(key(999), Body::whole([Bytes::from("new")]).joined(), None);
        assert_eq!(cache.whole(key(999)).unwrap(), "new");
        cache.remove_session(session);
        assert_eq!((cache.bytes, cache.entries.len(), cache.by_age.len()), (0, 0, 0));
    }

    #[test]
    fn payloads_are_found_by_their_jobs() {
        let session = SessionId(1);
        let mut cache = Cache::new(CACHE_BYTES);
        let body = Body::payloads([Bytes::from("a"), Bytes::from("ccc")]);
        let layout = Layout::new(5, [Some(1), None, Some(3)]);
        cache.insert(BodyKey::new(Kind::Payloads, session.job(5)), body.joined(), Some(layout));
        let payload = |sequence| cache.payload(session.job(sequence));
        assert_eq!((payload(5).unwrap(), payload(7).unwrap()), (Bytes::from("a"), Bytes::from("ccc")));
        assert_eq!((payload(4), payload(6), payload(8)), (None, None, None));
        assert_eq!(cache.payload(SessionId(2).job(5)), None);
    }
}
