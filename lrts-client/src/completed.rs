//! Results in the order in which jobs end.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::application::{Application, WaitId};
use crate::error::ClientError;
use crate::handles::Decode;
use crate::results::ServiceResult;

/// The results of some jobs as they end: a [`Stream`] that also has [`next`](Self::next) of its own.
///
/// Keeps the application alive. Dropping it early loses nothing: what it hasn't returned can be waited for again. While it is
/// open and nobody asks it, a bounded number of results is held for it.
#[must_use = "results come only when asked for"]
pub struct AsCompleted<T> {
    application: Arc<Application>,
    /// None where there is nothing to read.
    decode: Option<Decode<T>>,
    wait: WaitId,
}

impl<T> AsCompleted<T> {
    pub(crate) fn new(application: Arc<Application>, decode: Option<Decode<T>>, wait: WaitId) -> Self {
        Self { application, decode, wait }
    }

    /// The next job that has ended; none once all were returned. Dropping the future loses nothing.
    ///
    /// An error concerns one job, and the others still follow, or the whole application, as
    /// [`Stopped`](ClientError::Stopped) does, and then nothing follows.
    pub async fn next(&mut self) -> Option<Result<ServiceResult<T>, ClientError>> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<ServiceResult<T>, ClientError>>> {
        match self.decode {
            Some(decode) => self.application.poll_stream(self.wait, decode, context),
            None => Poll::Ready(None),
        }
    }
}

impl<T> Stream for AsCompleted<T> {
    type Item = Result<ServiceResult<T>, ClientError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll(context)
    }
}

impl<T> Drop for AsCompleted<T> {
    fn drop(&mut self) {
        self.application.remove_stream(self.wait);
    }
}

impl<T> fmt::Debug for AsCompleted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsCompleted").finish_non_exhaustive()
    }
}
