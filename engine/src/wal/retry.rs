//! What the log does on a full disk, or when the process lacks file descriptors or memory: it waits and
//! tries again. Records appended meanwhile wait, too, so the shard refuses writes of users. Once there is
//! room again, the log continues where it stopped.

use std::future::Future;
use std::time::Duration;

use crate::disk_fault::Lack;
use crate::env::{AsyncRuntime, Env};
use crate::wal::WalError;
use crate::wal::shared::SharedWal;

/// Pause before an operation is tried again for which something was lacking.
/// By time: the system does not say when there is room on a disk again.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

impl<E: Env> SharedWal<E> {
    /// Repeats an operation on the disk until it succeeds, or fails for another reason than a lack.
    pub(super) async fn with_retries<T, F: Future<Output = Result<T, WalError>>>(
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

    /// Waits for a moment if the error is a lack. Logs the first of a row.
    ///
    /// # Errors
    /// The error is not a lack.
    pub(super) async fn pause_for_lack(&self, error: WalError) -> Result<(), WalError> {
        let lack = match &error {
            WalError::Io { lack, .. } => *lack,
            _ => None,
        };
        if lack.is_none() {
            return Err(error);
        }
        if self.health.lack.replace(lack).is_none() {
            match lack {
                Some(Lack::Room) => tracing::error!(
                    event = "disk_full",
                    %error,
                    "the disk of the log is full: writes are refused until there is room"
                ),
                _ => tracing::error!(
                    event = "resources_lacking",
                    %error,
                    "the log lacks file descriptors, memory or threads: it tries again until they are \
                     there"
                ),
            }
        }
        // A clean stop does not wait until the disk has room: it wakes up and ends without the
        // mark.
        self.events.end.notify();
        E::Runtime::sleep(RETRY_INTERVAL).await;
        Ok(())
    }

    /// Notes that the disk has done what it lacked something for.
    pub(super) fn goes_on(&self) {
        match self.health.lack.take() {
            Some(Lack::Room) => tracing::info!(
                event = "disk_free",
                "the disk of the log has room again: writes go on"
            ),
            Some(Lack::Resources) => tracing::info!(
                event = "resources_back",
                "the log has what it lacked, and goes on"
            ),
            None => {}
        }
    }
}
