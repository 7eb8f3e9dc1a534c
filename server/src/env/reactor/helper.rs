//! What may wait for the disk, or for a name to be resolved: on threads beside the shard's. Names have
//! one of their own, since a name server may take long to say nothing, and the log waits for the disk's.

use std::cell::OnceCell;
use std::io;
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::{Reactor, foreign};
use crate::env::threads;

type Work = Box<dyn FnOnce() + Send>;

/// A thread beside a shard's, which is made when there is first something to do. It ends with
/// the reactor.
#[derive(Default)]
pub(super) struct Helper {
    work: OnceCell<mpsc::Sender<Work>>,
}

impl Helper {
    fn give(&self, work: Work) -> io::Result<()> {
        let sender = match self.work.get() {
            Some(sender) => sender,
            None => {
                let (sender, receiver) = mpsc::channel();
                start(receiver)?;
                self.work.get_or_init(|| sender)
            }
        };
        let gone = |_| io::Error::other("the helper thread is gone");
        sender.send(work).map_err(gone)
    }
}

fn start(receiver: mpsc::Receiver<Work>) -> io::Result<()> {
    let run = move || {
        // It inherited the shard's processor, and any of the node's will do.
        if let Err(error) = threads::stay_where_the_process_may() {
            tracing::warn!(%error, "a helper thread stays where it is");
        }
        while let Ok(work) = receiver.recv() {
            work();
        }
    };
    let thread = std::thread::Builder::new().name("helper".to_owned());
    thread.spawn(run).map(drop)
}

/// Runs something that may block; what is asked for first is done first.
///
/// # Errors
/// Its own, or there is no thread for it.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        // Whoever asked may have gone.
        let _ = sender.send(work());
    };
    Reactor::here().helper.give(Box::new(work))?;
    outcome(receiver).await
}

/// Resolves a name. A caller that has given up before its turn costs no lookup.
///
/// # Errors
/// Its own, or there is no thread for it.
pub(super) async fn resolving<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        if !sender.is_closed() {
            // Whoever asked may have gone meanwhile.
            let _ = sender.send(work());
        }
    };
    Reactor::here().resolver.give(Box::new(work))?;
    outcome(receiver).await
}

async fn outcome<T>(receiver: oneshot::Receiver<io::Result<T>>) -> io::Result<T> {
    let gone = |_| io::Error::other("the work panicked");
    foreign(receiver).await.map_err(gone)?
}
