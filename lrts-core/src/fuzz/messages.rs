use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::progress::fuzz::{Answer, Order};
use crate::protocol::application::{FromApplication, ToApplication};
use crate::protocol::codec::{Head, decode, decode_local, encode};
use crate::protocol::command::{FromCommand, ToCommand};
use crate::protocol::host::{FromHost, ToHost};
use crate::protocol::progress::{FromReporter, FromWatcher, ToReporter, ToWatcher};
use crate::protocol::worker::{FromWorker, ToWorker};

/// Whether bytes are a value of this type, as this machine's files and processes have it. What is one says the same once it is
/// written anew.
///
/// # Panics
///
/// If it doesn't.
pub fn round_trip<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    decode_local::<T>(bytes).map(|value| comes_back(&value)).is_ok()
}

/// The same of what a peer has sent.
fn said<T: Head>(bytes: &[u8]) {
    if let Ok(message) = decode::<T>(bytes) {
        assert!(bytes.len() <= T::BOUNDS.bytes);
        comes_back(&message);
    }
}

fn comes_back<T: Serialize + DeserializeOwned>(value: &T) {
    let written = encode(value);
    // Fields that were missing are there now, so it may be larger than what may be sent.
    let again = decode_local::<T>(&written).expect("what was encoded is decoded");
    assert_eq!(encode(&again), written);
}

/// Messages between an application and the scheduler.
pub fn application_messages(bytes: &[u8]) {
    said::<FromApplication>(bytes);
    said::<ToApplication>(bytes);
}

/// Messages between a worker and the scheduler.
pub fn worker_messages(bytes: &[u8]) {
    said::<FromWorker>(bytes);
    said::<ToWorker>(bytes);
}

/// Messages to and from the progress server, and notices of a worker to and from its progress subprocess.
pub fn progress_messages(bytes: &[u8]) {
    said::<FromReporter>(bytes);
    said::<ToReporter>(bytes);
    said::<FromWatcher>(bytes);
    said::<ToWatcher>(bytes);
    round_trip::<Order>(bytes);
    round_trip::<Answer>(bytes);
}

/// Messages between a command and the scheduler.
pub fn command_messages(bytes: &[u8]) {
    said::<FromCommand>(bytes);
    said::<ToCommand>(bytes);
}

/// Notices between a worker and its job hosts.
pub fn host_notices(bytes: &[u8]) {
    said::<FromHost>(bytes);
    said::<ToHost>(bytes);
}
