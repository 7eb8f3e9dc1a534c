//! openraft's channels, by those of tokio, which need no runtime of its; for its queues see
//! [`queue`](super::queue).
//!
//! The types of one thread would do, but these are the best tested there are, and what they cost
//! beside a wake-up of openraft's core is small.

use std::future::Future;
use std::ops::Deref;

use openraft_rt::{Mutex, Oneshot, OneshotSender, Watch, WatchReceiver, WatchSender, watch};
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

/// Changes a watched value.
pub struct Watched<T>(sync::watch::Sender<T>);

/// Watches a value.
pub struct Watcher<T>(sync::watch::Receiver<T>);

/// Borrows a watched value.
pub struct WatchRef<'a, T>(sync::watch::Ref<'a, T>);

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Watched<T> {
        Watched(self.0.clone())
    }
}

impl<T> Clone for Watcher<T> {
    fn clone(&self) -> Watcher<T> {
        Watcher(self.0.clone())
    }
}

impl<T> Deref for WatchRef<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl Watch for Channels {
    type Sender<T> = Watched<T>;
    type Receiver<T> = Watcher<T>;
    type Ref<'a, T: 'a> = WatchRef<'a, T>;

    fn channel<T>(first: T) -> (Watched<T>, Watcher<T>) {
        let (sender, receiver) = sync::watch::channel(first);
        (Watched(sender), Watcher(receiver))
    }
}

impl<T> WatchSender<Channels, T> for Watched<T> {
    fn send(&self, value: T) -> Result<(), watch::SendError<T>> {
        self.0
            .send(value)
            .map_err(|refused| watch::SendError(refused.0))
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        self.0.send_if_modified(modify)
    }

    fn borrow_watched(&self) -> WatchRef<'_, T> {
        WatchRef(self.0.borrow())
    }

    fn subscribe(&self) -> Watcher<T> {
        Watcher(self.0.subscribe())
    }
}

impl<T> WatchReceiver<Channels, T> for Watcher<T> {
    async fn changed(&mut self) -> Result<(), watch::RecvError> {
        self.0.changed().await.map_err(|_| watch::RecvError(()))
    }

    fn borrow_watched(&self) -> WatchRef<'_, T> {
        WatchRef(self.0.borrow())
    }

    fn borrow_and_update(&mut self) -> WatchRef<'_, T> {
        WatchRef(self.0.borrow_and_update())
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
