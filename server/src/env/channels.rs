//! openraft's channels, by those of tokio, which need no runtime of its.
//!
//! The types of one thread would do, but these are the best tested there are, and what they cost
//! beside a wake-up of openraft's core is small.

use std::future::Future;
use std::ops::Deref;

use openraft_rt::{
    Mpsc, MpscReceiver, MpscSender, MpscWeakSender, Mutex, Oneshot, OneshotSender, SendError,
    TryRecvError, Watch, WatchReceiver, WatchSender, watch,
};
use tokio::sync;

/// The family of channels.
pub struct Channels;

/// Sends to a bounded queue.
pub struct Sender<T>(sync::mpsc::Sender<T>);

/// Sends while other senders live.
pub struct WeakSender<T>(sync::mpsc::WeakSender<T>);

/// Receives from a bounded queue.
pub struct Receiver<T>(sync::mpsc::Receiver<T>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender(self.0.clone())
    }
}

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> WeakSender<T> {
        WeakSender(self.0.clone())
    }
}

impl Mpsc for Channels {
    type Sender<T> = Sender<T>;
    type Receiver<T> = Receiver<T>;
    type WeakSender<T> = WeakSender<T>;

    fn channel<T>(len_max: usize) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = sync::mpsc::channel(len_max);
        (Sender(sender), Receiver(receiver))
    }
}

impl<T> MpscSender<Channels, T> for Sender<T> {
    async fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.0
            .send(message)
            .await
            .map_err(|refused| SendError(refused.0))
    }

    fn downgrade(&self) -> WeakSender<T> {
        WeakSender(self.0.downgrade())
    }
}

impl<T> MpscWeakSender<Channels, T> for WeakSender<T> {
    fn upgrade(&self) -> Option<Sender<T>> {
        self.0.upgrade().map(Sender)
    }
}

impl<T> MpscReceiver<T> for Receiver<T> {
    fn recv(&mut self) -> impl Future<Output = Option<T>> {
        self.0.recv()
    }

    fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.0.try_recv().map_err(|error| match error {
            sync::mpsc::error::TryRecvError::Empty => TryRecvError::Empty,
            sync::mpsc::error::TryRecvError::Disconnected => TryRecvError::Disconnected,
        })
    }
}

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
