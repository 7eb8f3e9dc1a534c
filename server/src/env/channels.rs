//! openraft's channels, by those of tokio, which need no runtime of its; for its queues see
//! [`queue`](super::queue), for watched values [`watch`](super::watch).
//!
//! The types of one thread would do, but these are the best tested there are, and what they cost
//! beside a wake-up of openraft's core is small.

use std::future::Future;

use openraft_rt::{Mutex, Oneshot, OneshotSender};
use tokio::sync;

/// The family of channels.
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

/// A mutex that is waited for.
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
