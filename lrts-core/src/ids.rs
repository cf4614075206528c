//! Names of things: jobs, attempts, workers, applications, users, bars, bundles.
//!
//! All of them print as one word and parse back from it. In human-readable formats (JSON) they are that word, in
//! binary ones (MessagePack) their compact fields.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::{APPLICATION_ID_BYTES, USER_NAME_BYTES};

/// A text that is no id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {kind}: {expected}")]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
    expected: &'static str,
}

impl ParseIdError {
    pub(crate) fn new(kind: &'static str, text: &str, expected: &'static str) -> Self {
        Self { kind, text: text.chars().take(80).collect(), expected }
    }
}

/// A fresh random number from the operating system, for ids that must not collide between machines.
pub fn random_u64() -> u64 {
    getrandom::u64().expect("the kernel's random source works once the system has booted")
}

/// A number of 16 hexadecimal digits; `from_str_radix` takes a sign too.
fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| digits)
}

/// A number of decimal digits only.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// Serialises as text for people and as `$compact` for machines.
macro_rules! serde_as_text_or {
    ($name:ident, $compact:ty, $to:expr, $from:expr) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    let to: fn(&$name) -> $compact = $to;
                    to(self).serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                use serde::de::Error;
                if deserializer.is_human_readable() {
                    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                    text.parse().map_err(D::Error::custom)
                } else {
                    let from: fn($compact) -> Result<$name, ParseIdError> = $from;
                    from(<$compact>::deserialize(deserializer)?).map_err(D::Error::custom)
                }
            }
        }
    };
}

/// One `start` of an application: a random number, so that sequences of two starts never meet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

impl SessionId {
    /// In the number of a session of keys, and of no other: so no start of an application can take the place of keys.
    const KEYS: u64 = 1 << 63;

    /// A new session.
    pub fn random() -> Self {
        Self(random_u64() & !Self::KEYS)
    }

    /// The session that all keyed jobs of an application belong to, whichever start of it scheduled them.
    pub fn keyed(application: ApplicationId) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"lrts keyed jobs of ");
        hasher.update(application.as_str().as_bytes());
        Self(first_eight(hasher.finalize()) | Self::KEYS)
    }

    /// Whether it is the session of some application's keyed jobs.
    pub fn is_of_keys(self) -> bool {
        self.0 & Self::KEYS != 0
    }

    /// The job with this sequence number of the session.
    pub fn job(self, sequence: u64) -> JobId {
        JobId { session: self, sequence }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One job: the session that scheduled it and its sequence number there, counted from 1.
///
/// A job with a key is named by its application and its key instead, see [`JobId::keyed`]. Prints as `3f9c1d2e4b5a6978-17`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    /// The start of the application that scheduled the job.
    pub session: SessionId,
    /// Counted from 1 within the session.
    pub sequence: u64,
}

impl JobId {
    /// The job of this application with this key: the same id whichever process schedules it. The session is one that no
    /// start of an application has, [`SessionId::keyed`], the sequence the first eight bytes of the key's blake3 digest.
    pub fn keyed(application: ApplicationId, key: &str) -> Self {
        SessionId::keyed(application).job(first_eight(blake3::hash(key.as_bytes())))
    }
}

fn first_eight(digest: blake3::Hash) -> u64 {
    u64::from_be_bytes(*digest.as_bytes().first_chunk().expect("a digest has 32 bytes"))
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.session, self.sequence)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError::new("job id", text, "16 hexadecimal digits, a dash and a number");
        let (session, sequence) = text.split_once('-').ok_or_else(error)?;
        let session = hexadecimal(session).ok_or_else(error)?;
        Ok(SessionId(session).job(decimal(sequence).ok_or_else(error)?))
    }
}

serde_as_text_or!(JobId, (u64, u64), |id| (id.session.0, id.sequence), |(session, sequence)| Ok(SessionId(
    session
)
.job(sequence)));

/// Numbers, in any order, as ascending ranges: first and last of each, both included.
pub fn ranges(mut numbers: Vec<u64>) -> Vec<(u64, u64)> {
    numbers.sort_unstable();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if number <= last.saturating_add(1) => *last = number.max(*last),
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

/// One dispatch of a job. The number fences: what comes from an attempt that is no longer open is refused.
///
/// Prints as `3f9c1d2e4b5a6978-17/1`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// The job that is attempted.
    pub job: JobId,
    /// Counted from 1 within the job.
    pub attempt: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.attempt)
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for AttemptId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError::new("attempt id", text, "a job id, a slash and a number");
        let (job, attempt) = text.split_once('/').ok_or_else(error)?;
        Ok(Self { job: job.parse().map_err(|_| error())?, attempt: decimal(attempt).ok_or_else(error)? })
    }
}

serde_as_text_or!(AttemptId, (u64, u64, u32), |id| (id.job.session.0, id.job.sequence, id.attempt), |(
    session,
    sequence,
    attempt,
)| Ok(
    AttemptId { job: SessionId(session).job(sequence), attempt }
));

/// One bar of one attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarId {
    /// The attempt that started the bar.
    pub attempt: AttemptId,
    /// Counted from 0 within the attempt, in the order in which bars were started.
    pub index: u32,
}

impl fmt::Display for BarId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.attempt, self.index)
    }
}

impl fmt::Debug for BarId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BarId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError::new("bar id", text, "an attempt id, a number sign and a number");
        let (attempt, index) = text.split_once('#').ok_or_else(error)?;
        Ok(Self { attempt: attempt.parse().map_err(|_| error())?, index: decimal(index).ok_or_else(error)? })
    }
}

serde_as_text_or!(
    BarId,
    (u64, u64, u32, u32),
    |id| (id.attempt.job.session.0, id.attempt.job.sequence, id.attempt.attempt, id.index),
    |(session, sequence, attempt, index)| Ok(BarId {
        attempt: AttemptId { job: SessionId(session).job(sequence), attempt },
        index
    })
);

/// One worker: a digest of the secret in its state directory, see [`WorkerSecret`](crate::worker_secret::WorkerSecret), so that
/// it stays the same over restarts and nobody else can take it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

impl WorkerId {
    pub(crate) fn from_digest(digest: blake3::Hash) -> Self {
        Self(first_eight(digest))
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for WorkerId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError::new("worker id", text, "16 hexadecimal digits");
        hexadecimal(text).map(Self).ok_or_else(error)
    }
}

serde_as_text_or!(WorkerId, u64, |id| id.0, |id| Ok(WorkerId(id)));

/// An application's name: 1 to 64 bytes of text without control characters, chosen by the user or random.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApplicationId {
    /// Zero behind the text; no text contains a zero, so equality and order are those of the text.
    bytes: [u8; APPLICATION_ID_BYTES],
}

impl ApplicationId {
    /// A random name.
    pub fn random() -> Self {
        format!("app-{:016x}", random_u64()).parse().expect("20 plain characters are a valid id")
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let length = self.bytes.iter().position(|&byte| byte == 0).unwrap_or(self.bytes.len());
        std::str::from_utf8(&self.bytes[..length]).expect("made from a str")
    }
}

impl fmt::Display for ApplicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ApplicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl FromStr for ApplicationId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > APPLICATION_ID_BYTES || text.chars().any(char::is_control) {
            return Err(ParseIdError::new(
                "application id",
                text,
                "1 to 64 bytes of text without control characters",
            ));
        }
        let mut bytes = [0; APPLICATION_ID_BYTES];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes })
    }
}

serde_as_text_or!(ApplicationId, String, |id| id.as_str().to_owned(), |text| text.parse());

/// Whom a key belongs to: the subject of its certificate, and the owner of the applications that are started with it.
///
/// 1 to 64 ASCII letters, digits, `.`, `_`, `-` and `@`; the first is a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(Arc<str>);

impl UserName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for UserName {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
        let starts_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        if !starts_well || text.len() > USER_NAME_BYTES || !text.bytes().all(plain) {
            return Err(ParseIdError::new(
                "user name",
                text,
                "1 to 64 letters, digits, `.`, `_`, `-` and `@`, a letter or digit first",
            ));
        }
        Ok(Self(text.into()))
    }
}

serde_as_text_or!(UserName, String, |user| user.as_str().to_owned(), |text| text.parse());

/// The blake3 digest of an executable: its name everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleDigest(pub [u8; 32]);

impl fmt::Display for BundleDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BundleDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BundleDigest {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseIdError::new("bundle digest", text, "64 hexadecimal digits");
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(error());
        }
        let mut digest = [0; 32];
        for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| error())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| error())?;
        }
        Ok(Self(digest))
    }
}

serde_as_text_or!(BundleDigest, [u8; 32], |id| id.0, |digest| Ok(BundleDigest(digest)));

#[cfg(test)]
mod tests {
    use super::*;

    fn prints_and_parses<T: fmt::Display + FromStr + PartialEq + fmt::Debug>(id: T, text: &str)
    where
        T::Err: fmt::Debug,
    {
        assert_eq!(id.to_string(), text);
        assert_eq!(text.parse::<T>().unwrap(), id);
    }

    const JOB: JobId = JobId { session: SessionId(0x1f), sequence: 17 };

    #[test]
    fn ids_print_as_one_word_and_parse_back() {
        prints_and_parses(JOB, "000000000000001f-17");
        prints_and_parses(AttemptId { job: JOB, attempt: 2 }, "000000000000001f-17/2");
        prints_and_parses(
            BarId { attempt: AttemptId { job: JOB, attempt: 2 }, index: 3 },
            "000000000000001f-17/2#3",
        );
        prints_and_parses(WorkerId(255), "00000000000000ff");
        prints_and_parses("nightly run ü".parse::<ApplicationId>().unwrap(), "nightly run ü");
        prints_and_parses(BundleDigest([0xab; 32]), &"ab".repeat(32));
        prints_and_parses("ann.k-2_x@example.org".parse::<UserName>().unwrap(), "ann.k-2_x@example.org");
    }

    #[test]
    fn user_names_are_plain_words() {
        for text in ["", "-ann", "ann k", "ann/../root", "\u{fc}nal", "a\n", &"a".repeat(65)] {
            assert!(text.parse::<UserName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn wrong_texts_are_refused_and_named() {
        let signed = ["000000000000001f-+1", "+00000000000001f-1", "000000000000001f--1"];
        let others = ["", "17", "1f-17", "000000000000001f-", "00000000000000zz-1", "../../../../../../a-1"];
        for text in signed.into_iter().chain(others) {
            let error = text.parse::<JobId>().unwrap_err().to_string();
            assert!(error.contains("job id") && error.contains(text), "{error}");
        }
        assert!("a".repeat(65).parse::<ApplicationId>().is_err());
        assert!("a\nb".parse::<ApplicationId>().is_err());
        for text in ["", "000000000000001f-17/+1", "000000000000001f-17/..", "000000000000001f-17/1/1"] {
            assert!(text.parse::<AttemptId>().is_err(), "{text}");
        }
        for text in ["", "..", "+00000000000000f", "000000000000000/", "0000000000000000f"] {
            assert!(text.parse::<WorkerId>().is_err(), "{text}");
        }
        for text in ["", "../", "é", "+f", "/.", "\0\0", "G0"] {
            assert!(text.repeat(32).parse::<BundleDigest>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn binary_form_is_compact_and_returns() {
        let bytes = rmp_serde::to_vec(&JOB).unwrap();
        assert_eq!(bytes, [0x92, 0x1f, 0x11]);
        assert_eq!(rmp_serde::from_slice::<JobId>(&bytes).unwrap(), JOB);
        let application: ApplicationId = "nightly".parse().unwrap();
        let bytes = rmp_serde::to_vec(&application).unwrap();
        assert_eq!(rmp_serde::from_slice::<ApplicationId>(&bytes).unwrap(), application);
    }
}
