//! The runtime of openraft and of the engine, on the simulation's executor.

use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use openraft_rt::{AsyncRuntime, Instant};
use rand::SeedableRng;
use rangedb_engine::boot_time::BootTime;
use rangedb_server::env::channels::{Channels, SharedMutex};
use tokio::sync::oneshot;

use super::executor::{self, Executor};

/// The seed of a runtime that a conformance test makes.
const SUITE_SEED: u64 = 42;

/// The runtime. Only conformance tests need a value of it.
pub struct SimRuntime {
    executor: Rc<Executor>,
}

impl fmt::Debug for SimRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimRuntime")
    }
}

impl Drop for SimRuntime {
    fn drop(&mut self) {
        self.executor.end();
    }
}

/// A point in time on the clock of the host that read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SimInstant(BootTime);

impl Instant for SimInstant {
    fn now() -> SimInstant {
        SimInstant(BootTime::after_boot(executor::current().local_now()))
    }
}

impl From<BootTime> for SimInstant {
    fn from(time: BootTime) -> SimInstant {
        SimInstant(time)
    }
}

impl From<SimInstant> for BootTime {
    fn from(instant: SimInstant) -> BootTime {
        instant.0
    }
}

impl Add<Duration> for SimInstant {
    type Output = SimInstant;
    fn add(self, later: Duration) -> SimInstant {
        SimInstant(self.0 + later)
    }
}

impl AddAssign<Duration> for SimInstant {
    fn add_assign(&mut self, later: Duration) {
        *self = *self + later;
    }
}

impl Sub<Duration> for SimInstant {
    type Output = SimInstant;
    fn sub(self, earlier: Duration) -> SimInstant {
        SimInstant(self.0 - earlier)
    }
}

impl SubAssign<Duration> for SimInstant {
    fn sub_assign(&mut self, earlier: Duration) {
        *self = *self - earlier;
    }
}

impl Sub for SimInstant {
    type Output = Duration;
    fn sub(self, earlier: SimInstant) -> Duration {
        self.0 - earlier.0
    }
}

/// The task's host has crashed, or the task panicked.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the task is gone")]
pub struct Gone;

/// Waits for a task; the task goes on if this is dropped.
pub struct JoinHandle<T>(oneshot::Receiver<T>);

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, Gone>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|done| done.map_err(|_| Gone))
    }
}

/// Ends at a point in time on the clock of the host that sleeps.
pub struct Sleep {
    until: SimInstant,
    timer: Option<(Duration, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let executor = executor::current();
        if let Some(timer) = self.timer.take() {
            executor.clear_timer(timer);
        }
        if executor.local_now() >= BootTime::from(self.until).since_boot() {
            return Poll::Ready(());
        }
        let at = executor.when(BootTime::from(self.until).since_boot());
        self.timer = Some(executor.set_timer(at, cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let (Some(timer), Some(executor)) = (self.timer.take(), executor::running()) {
            executor.clear_timer(timer);
        }
    }
}

/// The time was up before the future was done.
#[derive(Clone, Copy, Debug, thiserror::Error)]
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

impl AsyncRuntime for SimRuntime {
    type JoinError = Gone;
    type JoinHandle<T: 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = SimInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R>> = Timeout<T>;
    type ThreadLocalRng = rand::rngs::StdRng;
    type Mpsc = Channels;
    type Watch = Channels;
    type Oneshot = Channels;
    type Mutex<T: 'static> = SharedMutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + 'static,
        T::Output: 'static,
    {
        let (sender, receiver) = oneshot::channel();
        executor::current().spawn(async move {
            // The handle may have been dropped.
            let _ = sender.send(future.await);
        });
        JoinHandle(receiver)
    }

    fn sleep(duration: Duration) -> Sleep {
        Self::sleep_until(SimInstant::now() + duration)
    }

    fn sleep_until(until: SimInstant) -> Sleep {
        Sleep { until, timer: None }
    }

    fn timeout<R, F: Future<Output = R>>(duration: Duration, future: F) -> Timeout<F> {
        Timeout {
            future: Box::pin(future),
            sleep: Self::sleep(duration),
        }
    }

    fn timeout_at<R, F: Future<Output = R>>(until: SimInstant, future: F) -> Timeout<F> {
        Timeout {
            future: Box::pin(future),
            sleep: Self::sleep_until(until),
        }
    }

    fn is_panic(_: &Gone) -> bool {
        // A panic ends the simulation.
        false
    }

    fn thread_rng() -> rand::rngs::StdRng {
        let executor = executor::current();
        rand::rngs::StdRng::seed_from_u64(executor.trace() ^ executor.now().as_nanos() as u64)
    }

    fn new(_: usize) -> SimRuntime {
        SimRuntime {
            executor: Executor::start(SUITE_SEED),
        }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.executor.run_here(future)
    }
}
