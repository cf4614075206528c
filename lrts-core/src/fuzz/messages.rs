use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::progress::fuzz::{Answer, Order};
use crate::protocol::application::{FromApplication, ToApplication};
use crate::protocol::codec::{decode, encode};
use crate::protocol::command::{FromCommand, ToCommand};
use crate::protocol::host::{FromHost, ToHost};
use crate::protocol::progress::{FromReporter, FromWatcher, ToReporter, ToWatcher};
use crate::protocol::worker::{FromWorker, ToWorker};

/// Whether bytes are a message of this type. What is one says the same once it is written anew.
///
/// # Panics
///
/// If it doesn't.
pub fn round_trip<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> bool {
    let Ok(message) = decode::<T>(bytes) else { return false };
    let written = encode(&message);
    let again = decode::<T>(&written).expect("what was encoded is decoded");
    assert_eq!(encode(&again), written);
    true
}

/// Messages between an application and the scheduler.
pub fn application_messages(bytes: &[u8]) {
    round_trip::<FromApplication>(bytes);
    round_trip::<ToApplication>(bytes);
}

/// Messages between a worker and the scheduler.
pub fn worker_messages(bytes: &[u8]) {
    round_trip::<FromWorker>(bytes);
    round_trip::<ToWorker>(bytes);
}

/// Messages to and from the progress server, and notices of a worker to and from its progress subprocess.
pub fn progress_messages(bytes: &[u8]) {
    round_trip::<FromReporter>(bytes);
    round_trip::<ToReporter>(bytes);
    round_trip::<FromWatcher>(bytes);
    round_trip::<ToWatcher>(bytes);
    round_trip::<Order>(bytes);
    round_trip::<Answer>(bytes);
}

/// Messages between a command and the scheduler.
pub fn command_messages(bytes: &[u8]) {
    round_trip::<FromCommand>(bytes);
    round_trip::<ToCommand>(bytes);
}

/// Notices between a worker and its job hosts.
pub fn host_notices(bytes: &[u8]) {
    round_trip::<FromHost>(bytes);
    round_trip::<ToHost>(bytes);
}
