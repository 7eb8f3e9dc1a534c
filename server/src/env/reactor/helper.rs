//! Runs work that may wait for the disk or for a name server on threads beside the shard's. Lookups
//! of names have a thread of their own, because a name server may be silent for long and the log
//! must not wait for it.

use std::cell::OnceCell;
use std::io;
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::{Reactor, cross_thread};
use crate::env::threads;

type Work = Box<dyn FnOnce() + Send>;

/// A thread beside a shard's, started with its first work. It ends with the reactor.
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
        // The thread inherited the shard's processor, but may run on any of the process's.
        if let Err(error) = threads::stay_where_the_process_may() {
            tracing::warn!(%error, "a helper thread could not leave the processor of its shard");
        }
        while let Ok(work) = receiver.recv() {
            work();
        }
    };
    let thread = std::thread::Builder::new().name("helper".to_owned());
    thread.spawn(run).map(drop)
}

/// Runs work that may block, in the order of the calls.
///
/// # Errors
/// The work's own, or no thread could be started.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        // The caller may have gone meanwhile.
        let _ = sender.send(work());
    };
    Reactor::here().helper.give(Box::new(work))?;
    outcome(receiver).await
}

/// Resolves a name. If the caller has given up before its turn, there is no lookup.
///
/// # Errors
/// The lookup's own, or no thread could be started.
pub(super) async fn resolving<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    let work = move || {
        if !sender.is_closed() {
            // The caller may have gone meanwhile.
            let _ = sender.send(work());
        }
    };
    Reactor::here().resolver.give(Box::new(work))?;
    outcome(receiver).await
}

async fn outcome<T>(receiver: oneshot::Receiver<io::Result<T>>) -> io::Result<T> {
    let gone = |_| io::Error::other("the work panicked");
    cross_thread(receiver).await.map_err(gone)?
}
