//! The record of all keys that an authority has issued.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{AuthorityId, KeyId, KeysError};
use crate::ids::UserName;
use crate::limits::{CLOCK_SKEW, ISSUED_KEY_LINE_BYTES, ISSUED_KEYS, RESERVED_KEYS, REVOKED_KEYS};
use crate::transport::Role;

/// The longest text of an index that is read, in bytes.
pub(super) const INDEX_BYTES: usize = (ISSUED_KEYS + RESERVED_KEYS + 1) * ISSUED_KEY_LINE_BYTES;

/// A key on record. Times count from 1970.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct IssuedKey {
    /// Its id.
    #[serde(with = "as_text")]
    pub key: KeyId,
    /// Its role.
    #[serde(with = "as_word")]
    pub role: Role,
    /// Its user.
    pub user: UserName,
    /// When it was made.
    #[serde(with = "as_timestamp")]
    pub made: Duration,
    /// When it ends.
    #[serde(with = "as_timestamp")]
    pub expires: Duration,
    /// Who vouches for it.
    #[serde(with = "as_text")]
    pub authority: AuthorityId,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_timestamp_or_none")]
    pub revoked: Option<Duration>,
}

/// All keys of an authority and of the one before it. Those that have expired are forgotten only once their room is needed: that
/// they have is a clock's word, and of a clock that was wrong once no revocation must be lost.
///
/// As text it is JSON lines: the revision, then a key on each.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Index {
    revision: u64,
    keys: BTreeMap<KeyId, IssuedKey>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    revision: u64,
}

impl Index {
    /// Reads the text of an index.
    ///
    /// # Errors
    ///
    /// Which line is wrong, and why.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > INDEX_BYTES {
            return Err(format!("it has more than {INDEX_BYTES} bytes"));
        }
        let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
        let mut lines = text.lines().zip(1..);
        let (first, _) = lines.next().ok_or("it is empty")?;
        let head: Head = serde_json::from_str(first).map_err(|error| in_line(1, &error))?;
        let mut index = Self { revision: head.revision, keys: BTreeMap::new() };
        for (line, number) in lines {
            let key: IssuedKey = serde_json::from_str(line).map_err(|error| in_line(number, &error))?;
            if index.keys.len() == ISSUED_KEYS + RESERVED_KEYS {
                return Err(format!("it has more than {} keys", ISSUED_KEYS + RESERVED_KEYS));
            }
            if let Some(twice) = index.keys.insert(key.key, key) {
                return Err(format!("line {number}: key {} for the second time", twice.key));
            }
        }
        Ok(index)
    }

    /// The text of an index.
    pub fn to_text(&self) -> String {
        let json = |line: Result<String, serde_json::Error>| line.expect("texts and numbers are JSON");
        let mut text = json(serde_json::to_string(&Head { revision: self.revision }));
        for key in self.keys.values() {
            write!(text, "\n{}", json(serde_json::to_string(key))).expect("a string takes all");
        }
        text + "\n"
    }

    /// Counts the changes; revocation lists carry it, so that of two the newer one is known.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Must come before a changed index is signed or written.
    pub(super) fn count_change(&mut self) {
        self.revision = self.revision.saturating_add(1);
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &IssuedKey> {
        self.keys.values()
    }

    /// Those that haven't expired by every clock.
    pub fn unexpired(&self, now: Duration) -> impl Iterator<Item = &IssuedKey> {
        self.keys().filter(move |key| !key.has_expired(now))
    }

    /// A key by its id.
    pub fn get(&self, key: KeyId) -> Option<&IssuedKey> {
        self.keys.get(&key)
    }

    /// The keys of an authority that aren't accepted any more.
    pub fn revoked(&self, authority: AuthorityId) -> impl Iterator<Item = (KeyId, Duration)> {
        self.keys
            .values()
            .filter(move |key| key.authority == authority)
            .filter_map(|key| Some((key.key, key.revoked?)))
    }

    /// Puts a new key on record, which was made now.
    ///
    /// # Errors
    ///
    /// [`KeysError::Full`].
    pub fn add(&mut self, key: IssuedKey) -> Result<(), KeysError> {
        self.insert(key, ISSUED_KEYS)
    }

    /// The same of a key that takes the place of another in its keys directory: there is always room for that.
    pub(super) fn add_own(&mut self, key: IssuedKey) -> Result<(), KeysError> {
        self.insert(key, ISSUED_KEYS + RESERVED_KEYS)
    }

    fn insert(&mut self, key: IssuedKey, most: usize) -> Result<(), KeysError> {
        let missing = (self.keys.len() + 1).saturating_sub(most);
        if !self.forget_expired(missing, key.made, |_| true) {
            return Err(KeysError::Full { state: "issued", limit: most });
        }
        self.keys.insert(key.key, key);
        Ok(())
    }

    /// Revokes keys. Those that are revoked stay so since then; those that aren't on record are skipped.
    ///
    /// # Errors
    ///
    /// [`KeysError::Full`]; none is revoked then.
    pub fn revoke(&mut self, keys: &[KeyId], now: Duration) -> Result<(), KeysError> {
        let is_good = |key: &KeyId| self.keys.get(key).is_some_and(|key| key.revoked.is_none());
        let new: BTreeSet<KeyId> = keys.iter().copied().filter(is_good).collect();
        let revoked = self.keys.values().filter(|key| key.revoked.is_some()).count();
        let missing = (revoked + new.len()).saturating_sub(REVOKED_KEYS);
        if !self.forget_expired(missing, now, |key| key.revoked.is_some()) {
            return Err(KeysError::Full { state: "revoked", limit: REVOKED_KEYS });
        }
        for (_, key) in self.keys.iter_mut().filter(|(key, _)| new.contains(key)) {
            key.revoked = Some(now);
        }
        Ok(())
    }

    /// Keeps the keys of these authorities: nobody accepts others.
    pub fn keep_of(&mut self, authorities: &[AuthorityId]) {
        self.keys.retain(|_, key| authorities.contains(&key.authority));
    }

    /// Forgets so many of these keys that have expired by any clock: first those that weren't revoked, and of these the earliest.
    /// If there are fewer, none is forgotten.
    fn forget_expired(&mut self, count: usize, now: Duration, of: impl Fn(&IssuedKey) -> bool) -> bool {
        if count == 0 {
            return true;
        }
        let expired = self.keys.values().filter(|key| key.has_expired(now) && of(key));
        let mut expired: Vec<_> = expired.map(|key| (key.revoked.is_some(), key.expires, key.key)).collect();
        if expired.len() < count {
            return false;
        }
        expired.sort_unstable();
        for (.., key) in &expired[..count] {
            self.keys.remove(key);
        }
        true
    }
}

impl IssuedKey {
    /// Whether it has ended by every clock that is right to [`CLOCK_SKEW`], if this one is.
    fn has_expired(&self, now: Duration) -> bool {
        now > self.expires + CLOCK_SKEW
    }
}

fn in_line(number: usize, error: &serde_json::Error) -> String {
    format!("line {number}: {error}")
}

/// Ids, as people write them.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(id: &impl Display, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub(super) fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Roles, by their words.
mod as_word {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    use crate::keys::{role_of_word, role_word};
    use crate::transport::Role;

    pub(super) fn serialize<S: Serializer>(role: &Role, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(role_word(*role))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Role, D::Error> {
        let word = String::deserialize(from)?;
        role_of_word(&word).ok_or_else(|| D::Error::custom(format!("there is no role {word:?}")))
    }
}

/// Times, as in RFC 3339.
mod as_timestamp {
    use super::{Duration, UNIX_EPOCH};
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_seconds(UNIX_EPOCH + *time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        let time = humantime::parse_rfc3339(&text)
            .map_err(|error| D::Error::custom(format!("{text:?} is no time: {error}")))?;
        time.duration_since(UNIX_EPOCH).map_err(D::Error::custom)
    }
}

/// The same where there may be none.
mod as_timestamp_or_none {
    use super::{Duration, as_timestamp};
    use serde::de::Deserializer;
    use serde::ser::Serializer;

    pub(super) fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => as_timestamp::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        as_timestamp::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn key(id: u64, authority: u64) -> IssuedKey {
        IssuedKey {
            key: format!("{id:016x}").parse().unwrap(),
            role: Role::ProgressServer,
            user: "ann".parse().unwrap(),
            made: NOW,
            expires: NOW + Duration::from_hours(24),
            authority: AuthorityId(authority),
            revoked: None,
        }
    }

    #[test]
    fn an_index_survives_its_text() {
        let mut index = Index::default();
        index.add(key(1, 7)).unwrap();
        index.add(key(2, 7)).unwrap();
        index.revoke(&[key(2, 7).key], NOW).unwrap();
        index.count_change();
        let text = "{\"revision\":1}\n\
            {\"key\":\"0000000000000001\",\"role\":\"progress-server\",\"user\":\"ann\",\"made\":\"2027-01-15T08:00:00Z\",\
            \"expires\":\"2027-01-16T08:00:00Z\",\"authority\":\"0000000000000007\"}\n\
            {\"key\":\"0000000000000002\",\"role\":\"progress-server\",\"user\":\"ann\",\"made\":\"2027-01-15T08:00:00Z\",\
            \"expires\":\"2027-01-16T08:00:00Z\",\"authority\":\"0000000000000007\",\"revoked\":\"2027-01-15T08:00:00Z\"}\n";
        assert_eq!(index.to_text(), text);
        assert_eq!(Index::parse(text.as_bytes()), Ok(index));
    }

    #[test]
    fn a_broken_line_is_named() {
        let good = {
            let mut index = Index::default();
            index.add(key(1, 7)).unwrap();
            index.to_text()
        };
        let problem = |text: &str| Index::parse(text.as_bytes()).unwrap_err();
        assert!(problem("").contains("empty"));
        assert!(problem("nonsense").contains("line 1"));
        assert!(problem(&format!("{good}\n")).contains("line 3"));
        assert!(problem(&format!("{good}{}", good.lines().last().unwrap())).contains("second time"));
        for (right, wrong) in [("progress-server", "root"), ("ann", "../ann"), ("2027-01-15", "2027-13-15")] {
            let problem = problem(&good.replace(right, wrong));
            assert!(problem.contains("line 2") && problem.contains(wrong), "{problem}");
        }
        assert!(Index::parse(b"\xff").is_err());
        assert!(problem(&good.replace("2027-01-15T08", "1969-01-15T08")).contains("line 2"));
    }

    #[test]
    fn whatever_becomes_of_a_byte_is_an_index_or_says_why_not() {
        let mut index = Index::default();
        index.add(key(1, 7)).unwrap();
        index.add(IssuedKey { revoked: Some(NOW), ..key(2, 7) }).unwrap();
        let good = index.to_text().into_bytes();
        for at in 0..good.len() {
            for byte in [0, b'\n', b'"', b'-', b'9', b'}', 0xc3, 0xff] {
                let mut text = good.clone();
                text[at] = byte;
                match Index::parse(&text) {
                    Ok(index) => assert_eq!(Index::parse(index.to_text().as_bytes()), Ok(index)),
                    Err(problem) => assert!(!problem.is_empty()),
                }
            }
        }
    }

    #[test]
    fn the_longest_key_fits_its_line() {
        let mut index = Index::default();
        let user = "a".repeat(crate::limits::USER_NAME_BYTES).parse().unwrap();
        index.add(IssuedKey { user, revoked: Some(NOW), ..key(u64::MAX, u64::MAX) }).unwrap();
        assert!(index.to_text().lines().all(|line| line.len() < ISSUED_KEY_LINE_BYTES));
    }

    #[test]
    fn a_key_stays_revoked_since_the_first_time() {
        let mut index = Index::default();
        index.add(key(1, 7)).unwrap();
        index.revoke(&[key(1, 7).key], NOW).unwrap();
        index.revoke(&[key(1, 7).key, key(2, 7).key], NOW * 2).unwrap();
        assert_eq!(index.revoked(AuthorityId(7)).collect::<Vec<_>>(), [(key(1, 7).key, NOW)]);
        assert_eq!(index.revoked(AuthorityId(8)).count(), 0);
    }

    #[test]
    fn there_is_room_for_so_many_keys() {
        let mut index = Index::default();
        for id in 1..=ISSUED_KEYS as u64 {
            index.add(key(id, 7)).unwrap();
        }
        assert!(matches!(index.add(key(u64::MAX, 7)), Err(KeysError::Full { state: "issued", .. })));
        // What replaces a keys directory's own has room all the same, and is read again.
        for id in 0..RESERVED_KEYS as u64 {
            index.add_own(key(u64::MAX - id, 7)).unwrap();
        }
        assert!(matches!(index.add_own(key(u64::MAX / 2, 7)), Err(KeysError::Full { state: "issued", .. })));
        index = Index::parse(index.to_text().as_bytes()).unwrap();
        for (id, issued) in index.keys.values_mut().take(REVOKED_KEYS).enumerate() {
            issued.revoked = Some(NOW + Duration::from_secs(id as u64));
        }
        let (revoked, last) = (key(1, 7).key, key(ISSUED_KEYS as u64, 7).key);
        assert!(matches!(index.revoke(&[last], NOW), Err(KeysError::Full { state: "revoked", .. })));
        assert_eq!(index.get(last).unwrap().revoked, None);
        index.revoke(&[revoked], NOW).unwrap();
    }

    #[test]
    fn keys_of_authorities_that_nobody_accepts_are_forgotten() {
        let mut index = Index::default();
        for id in 7..10 {
            index.add(key(id, id)).unwrap();
        }
        index.keep_of(&[AuthorityId(7), AuthorityId(8)]);
        assert_eq!(index.keys().map(|key| key.key).collect::<Vec<_>>(), [key(7, 7).key, key(8, 8).key]);
    }

    #[test]
    fn no_clock_makes_a_revocation_vanish_before_its_room_is_needed() {
        let mut index = Index::default();
        let ids: Vec<KeyId> = (1..=REVOKED_KEYS as u64).map(|id| key(id, 7).key).collect();
        for id in 1..=REVOKED_KEYS as u64 {
            index.add(IssuedKey { expires: NOW + Duration::from_secs(id), ..key(id, 7) }).unwrap();
        }
        index.add(key(u64::MAX, 7)).unwrap();
        index.revoke(&ids, NOW).unwrap();
        // Years ahead, whatever is done then.
        let ahead = NOW * 2;
        index.add(IssuedKey { made: ahead, expires: ahead * 2, ..key(u64::MAX - 1, 7) }).unwrap();
        index.revoke(&ids[..1], ahead).unwrap();
        index.keep_of(&[AuthorityId(7)]);
        assert_eq!(index.unexpired(ahead).map(|key| key.key).collect::<Vec<_>>(), [key(u64::MAX - 1, 7).key]);
        assert_eq!(index.revoked(AuthorityId(7)).count(), REVOKED_KEYS);

        // As many go as the new one needs, and only such as have expired by any clock.
        let first = NOW + Duration::from_secs(1) + CLOCK_SKEW;
        let late = key(u64::MAX, 7).key;
        assert!(matches!(index.revoke(&[late], first), Err(KeysError::Full { state: "revoked", .. })));
        assert_eq!(index.revoked(AuthorityId(7)).count(), REVOKED_KEYS);
        index.revoke(&[late], first + Duration::from_secs(1)).unwrap();
        assert_eq!((index.get(ids[0]), index.get(ids[1]).is_some()), (None, true));
        assert_eq!(index.revoked(AuthorityId(7)).count(), REVOKED_KEYS);
    }

    #[test]
    fn of_expired_keys_those_that_were_not_revoked_make_room_first() {
        let mut index = Index::default();
        for id in 1..=ISSUED_KEYS as u64 {
            index.add(key(id, 7)).unwrap();
        }
        let [revoked, other] = [1, 2].map(|id| key(id, 7).key);
        index.revoke(&[revoked], NOW).unwrap();
        let expired = key(1, 7).expires + CLOCK_SKEW;
        let late = |made| IssuedKey { made, expires: made * 2, ..key(u64::MAX, 7) };
        assert!(matches!(index.add(late(expired)), Err(KeysError::Full { state: "issued", .. })));
        index.add(late(expired + Duration::from_secs(1))).unwrap();
        assert_eq!((index.get(revoked).is_some(), index.get(other)), (true, None));
        assert_eq!(index.keys().count(), ISSUED_KEYS);
    }
}
