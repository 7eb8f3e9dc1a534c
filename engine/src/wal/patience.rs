//! What the log does when the disk lacks room, or the process file descriptors or memory: it waits,
//! and tries again. What is appended meanwhile waits, too, so the shard refuses writes of users; a
//! leader's and a follower's log go on where they were when there is room again.

use std::future::Future;
use std::task::Waker;
use std::time::Duration;

use crate::env::{AsyncRuntime, Env};
use crate::wal::WalError;
use crate::wal::writer::Core;

/// What the disk lacked something for is tried again after this.
const RETRY_AFTER: Duration = Duration::from_millis(200);

impl<E: Env> Core<E> {
    /// Does something on the disk until it works, or fails for another reason than a lack.
    pub(super) async fn patiently<T, F: Future<Output = Result<T, WalError>>>(
        &self,
        work: impl Fn() -> F,
    ) -> Result<T, WalError> {
        let mut waited = false;
        loop {
            match work().await {
                Ok(done) => {
                    if waited {
                        self.goes_on();
                    }
                    return Ok(done);
                }
                Err(error) => self.pause_for_lack(error).await?,
            }
            waited = true;
        }
    }

    /// Waits for a moment if the error is a lack; says so once.
    ///
    /// # Errors
    /// It is another error.
    pub(super) async fn pause_for_lack(&self, error: WalError) -> Result<(), WalError> {
        let lack = match &error {
            WalError::Io { lack, .. } => *lack,
            _ => None,
        };
        if lack.is_none() {
            return Err(error);
        }
        if self.lack.replace(lack).is_none() {
            tracing::error!(%error, "the log waits for the disk, and tries again");
        }
        // A stop does not wait for a disk.
        let waiting = self.waiting_for_end.borrow_mut().take();
        waiting.into_iter().for_each(Waker::wake);
        E::Runtime::sleep(RETRY_AFTER).await;
        Ok(())
    }

    /// The disk has done what it lacked something for.
    pub(super) fn goes_on(&self) {
        if self.lack.take().is_some() {
            tracing::info!("the log goes on");
        }
    }
}
