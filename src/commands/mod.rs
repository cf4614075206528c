//! The commands that ask the scheduler something: one file each, data on stdout.

mod cancel;
mod jobs;
mod logs;
mod session;
mod status;
mod table;
mod workers;

pub(crate) use cancel::cancel;
pub(crate) use jobs::jobs;
pub(crate) use logs::logs;
pub(crate) use session::CommandError;
pub(crate) use status::status;
pub(crate) use workers::workers;
