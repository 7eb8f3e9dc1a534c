//! openraft's one-shot channel and mutex, which are tokio's: they need no tokio runtime. For queues
//! see [`queue`](super::queue), for watched values [`watch`](super::watch).
//!
//! Types for a single thread would do, but tokio's are the best tested there are, and their cost
//! beside a wake-up of openraft's core is small.

use std::future::Future;

use openraft_rt::{Mutex, Oneshot, OneshotSender};
use tokio::sync;

/// openraft's channels for this environment.
pub struct Channels;

/// Sends one value.
pub struct OnceSender<T>(sync::oneshot::Sender<T>);

impl Oneshot for Channels {
    type Sender<T> = OnceSender<T>;
    type Receiver<T> = sync::oneshot::Receiver<T>;
    type ReceiverError = sync::oneshot::error::RecvError;

    fn channel<T>() -> (OnceSender<T>, sync::oneshot::Receiver<T>) {
        let (sender, receiver) = sync::oneshot::channel();
        (OnceSender(sender), receiver)
    }
}

impl<T> OneshotSender<T> for OnceSender<T> {
    fn send(self, value: T) -> Result<(), T> {
        self.0.send(value)
    }
}

/// openraft's asynchronous mutex.
pub struct SharedMutex<T>(sync::Mutex<T>);

impl<T: 'static> Mutex<T> for SharedMutex<T> {
    type Guard<'a> = sync::MutexGuard<'a, T>;

    fn new(value: T) -> SharedMutex<T> {
        SharedMutex(sync::Mutex::new(value))
    }

    fn lock(&self) -> impl Future<Output = sync::MutexGuard<'_, T>> {
        self.0.lock()
    }
}
