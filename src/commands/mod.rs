//! The commands that aren't a daemon's own, a file each: `local`, `keys`, and those that ask the scheduler
//! something. Data on stdout.

mod applications;
mod cancel;
mod drain;
mod jobs;
mod keys;
mod local;
mod logs;
mod session;
mod status;
mod table;
mod workers;

pub(crate) use applications::applications;
pub(crate) use cancel::cancel;
pub(crate) use drain::drain;
pub(crate) use jobs::jobs;
pub(crate) use keys::keys;
pub(crate) use local::local;
pub(crate) use logs::logs;
pub(crate) use session::ask;
pub(crate) use status::status;
pub(crate) use workers::workers;
