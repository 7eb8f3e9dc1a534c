//! The end of a group. openraft's stop does not wait for its state machine, which may be in the middle of an
//! entry and have more of them in its queue. So the state machine looks here: once the group has stopped,
//! nothing is applied or installed any more. Lives on the shard's thread.

use std::cell::Cell;

use crate::notify::Notify;

/// How far a group has come to its end.
#[derive(Default)]
pub struct Ending {
    /// Whether this replica is being removed: it neither answers nor campaigns.
    pub(super) retired: Cell<bool>,
    has_stopped: Cell<bool>,
    told: Notify,
}

impl Ending {
    /// Notes that the group has stopped.
    pub(super) fn stop(&self) {
        self.has_stopped.set(true);
        self.told.notify();
    }

    /// Whether the group has stopped.
    pub(super) fn has_stopped(&self) -> bool {
        self.has_stopped.get()
    }

    /// Waits until the group has stopped.
    pub(super) async fn stopped(&self) {
        self.told.until(|| self.has_stopped.get()).await;
    }
}
