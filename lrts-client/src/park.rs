//! Waits for a future by parking the thread: needs no runtime, and so works inside of any.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use lrts_core::clock::Moment;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future that some other thread wakes.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    block_until(future, None).expect("without a deadline the wait ends with an output")
}

/// Waits for a future until a deadline, if there is one; None if it has passed.
pub(crate) fn block_until<F: Future>(future: F, deadline: Option<Moment>) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        // A wake since the poll makes the park return at once; one without a reason only costs another poll.
        match deadline {
            None => thread::park(),
            Some(deadline) => match deadline.since(Moment::now()) {
                left if left.is_zero() => return None,
                left => thread::park_timeout(left),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_future_is_waited_for_from_another_thread() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let other = thread::spawn(move || sender.send(7));
        assert_eq!(block_on(receiver), Ok(7));
        other.join().unwrap().unwrap();
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let deadline = Moment::now() + Duration::from_millis(5);
        assert_eq!(block_until(std::future::pending::<()>(), Some(deadline)), None);
        assert!(Moment::now() >= deadline);
        assert_eq!(block_until(std::future::ready(3), Some(Moment::default())), Some(3));
    }

    #[test]
    fn it_works_inside_a_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(runtime.block_on(async { block_on(std::future::ready(5)) }), 5);
    }
}
