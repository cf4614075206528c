//! Schedules services on an lrts cluster, watches them, gets their results.
//!
//! A [`Service`] is a value that travels to a worker and is run there, in a process of its own. The program itself is what
//! workers run: it is copied to them, and [`host_services!`] at the beginning of its `main` tells it to run jobs there.
//!
//! ```no_run
//! use lrts_client::{ApplicationInformation, JobContext, Service, ServiceError};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Mult { a: f64, b: f64 }
//!
//! impl Service for Mult {
//!     const NAME: &'static str = "mult";
//!     type Output = f64;
//!     fn run(self, _job: &JobContext) -> Result<f64, ServiceError> { Ok(self.a * self.b) }
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     lrts_client::host_services!(Mult);            // first in main: under a worker it runs jobs and never returns
//!     let app = lrts_client::blocking::ClientApplication::start(ApplicationInformation::from_env())?;
//!     let job = app.schedule_service(&Mult { a: 6.0, b: 9.0 })?;
//!     let result = app.wait_for(&job)?;
//!     let id = result.job_id;
//!     println!("{id} finished with {}", result.into_output()?);
//!     app.stop()?;
//!     Ok(())
//! }
//! ```
//!
//! # Map of the crate
//!
//! In the program that schedules:
//!
//! | Module | What |
//! |---|---|
//! | `information` | where the cluster is: [`ApplicationInformation`] |
//! | `application` | [`ClientApplication`]: an engine that decides without I/O, and the thread around it |
//! | [`blocking`] | the same for code that isn't async |
//! | `handles`, `results`, `completed` | [`JobHandle`], [`ServiceResult`], [`AsCompleted`] |
//! | `display` | bars, lines, and the user's own [`ProgressSink`] |
//! | `error` | [`ClientError`] |
//! | `park` | waits for futures without a runtime |
//! | `handlers` | signal handlers that leave the program its own |
//!
//! In the processes that a worker starts from it:
//!
//! | Module | What |
//! |---|---|
//! | [`service`] | [`Service`], [`Services`] and [`host_services!`] |
//! | `host` | the job host, which forks a process per job, and that process |
//! | `context` | [`JobContext`]: what a running service knows and can do |
//! | `progress_bar` | [`ProgressBar`]: its counters, in shared memory |
//! | `encoding` | how services and outputs become bytes |

mod application;
pub mod blocking;
mod completed;
mod context;
mod display;
mod encoding;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod handlers;
mod handles;
mod host;
mod information;
mod park;
mod progress_bar;
mod results;
pub mod service;

pub use application::{AsService, ByReference, ByValue, ClientApplication};
pub use completed::AsCompleted;
pub use context::{CheckpointError, JobContext};
#[doc(hidden)]
pub use display::testing;
pub use display::{Bar, LogLevel, ProgressDisplay, ProgressSink};
pub use encoding::{Bytes, DecodeError, EncodeError};
pub use error::ClientError;
pub use handles::{JobHandle, JobOutput};
pub use information::{ApplicationInformation, Bundle};
pub use lrts_core::ids::{ApplicationId, AttemptId, BarId, JobId, ParseIdError, WorkerId};
pub use lrts_core::protocol::application::Totals;
pub use lrts_core::protocol::progress::Color;
pub use lrts_core::spec::{InvalidOptions, JobOptions, OnDisconnect};
pub use lrts_core::status::{Failure, FailureKind, ServiceStatus};
pub use progress_bar::{ChunkIndex, ProgressBar, ProgressBuilder, ProgressChunks, ProgressIter};
pub use results::{RawOutput, ServiceResult};
pub use service::{Service, ServiceError, Services, refuse_foreign_mode};
