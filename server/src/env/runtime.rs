//! openraft's runtime, and the engine's, on glommio and the [`reactor`].
//!
//! A task belongs to the executor of the thread that spawned it. Dropping its handle does not end
//! it. A panic of a task is caught only where panics unwind, in tests; in the server it has already
//! ended the process.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use rangedb_engine::env::{AsyncRuntime, Instant};

use super::channels::{Channels, SharedMutex};
use super::clock::BootInstant;
use super::reactor::{self, Sleep};

/// The runtime of a shard's thread. Only tests make a value of it.
pub struct GlommioRuntime {
    executor: LocalExecutor,
}

impl fmt::Debug for GlommioRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GlommioRuntime")
    }
}

/// Why a task gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It panicked.
    #[error("the task panicked")]
    Panicked,
    /// Its executor has ended.
    #[error("the task was cancelled")]
    Cancelled,
}

/// Waits for a task; dropping it lets the task go on.
pub struct JoinHandle<T: 'static>(glommio::task::JoinHandle<Result<T, JoinError>>);

impl<T> Unpin for JoinHandle<T> {}

impl<T: 'static> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|done| done.unwrap_or(Err(JoinError::Cancelled)))
    }
}

/// The time limit was reached first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time is up")]
pub struct Elapsed;

/// A future with a time limit.
pub struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut self.sleep).poll(cx).map(|()| Err(Elapsed))
    }
}

impl AsyncRuntime for GlommioRuntime {
    type JoinError = JoinError;
    type JoinHandle<T: 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = BootInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R>> = Timeout<T>;
    type ThreadLocalRng = rand::rngs::ThreadRng;
    type Mpsc = Channels;
    type Watch = Channels;
    type Oneshot = Channels;
    type Mutex<T: 'static> = SharedMutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + 'static,
        T::Output: 'static,
    {
        let caught = AssertUnwindSafe(future).catch_unwind();
        let task = async move { caught.await.map_err(|_| JoinError::Panicked) };
        JoinHandle(reactor::spawn_for::<T, _>(task).detach())
    }

    fn sleep(duration: Duration) -> Sleep {
        Self::sleep_until(BootInstant::now() + duration)
    }

    fn sleep_until(until: BootInstant) -> Sleep {
        Sleep::until(until.into())
    }

    fn timeout<R, F: Future<Output = R>>(duration: Duration, future: F) -> Timeout<F> {
        Timeout {
            future: Box::pin(future),
            sleep: Self::sleep(duration),
        }
    }

    fn timeout_at<R, F: Future<Output = R>>(until: BootInstant, future: F) -> Timeout<F> {
        Timeout {
            future: Box::pin(future),
            sleep: Self::sleep_until(until),
        }
    }

    fn is_panic(error: &JoinError) -> bool {
        *error == JoinError::Panicked
    }

    fn thread_rng() -> rand::rngs::ThreadRng {
        rand::rng()
    }

    fn new(_: usize) -> GlommioRuntime {
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .preempt_timer(reactor::PREEMPT_TIMER)
            .make()
            .expect("a test runs where io_uring is allowed");
        GlommioRuntime { executor }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        let driven = self.executor.run(reactor::drive(future));
        driven.expect("a test runs where io_uring is allowed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms_to_openraft() {
        // The suite's other half tests determinism, which no runtime on a real clock has.
        let mut runtime = GlommioRuntime::new(1);
        openraft_rt::testing::Suite::<GlommioRuntime>::test_all_on(&mut runtime);
    }

    #[test]
    fn a_long_sleep_does_not_overflow() {
        GlommioRuntime::new(1).block_on(async {
            let sleep = GlommioRuntime::sleep(Duration::MAX);
            assert!(
                GlommioRuntime::timeout(Duration::from_millis(5), sleep)
                    .await
                    .is_err()
            );
        });
    }
}
