//! The limit on connections to the admin pages.
//!
//! When all slots are taken, a new connection replaces the oldest idle one. If none is idle, it
//! gets one of a few slots for probes: there it may ask only whether the node lives and is ready.
//! So neither idle clients nor slow users of the API can keep an orchestrator from its answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

/// Slots that only probes use.
const PROBES_MAX: usize = 4;
/// A connection is idle if it came, and was last busy, longer ago than this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// The value of `last_busy` while a request is being answered.
const BUSY: u64 = u64::MAX;

/// A connection's state: busy, or idle since when.
#[derive(Clone, Debug)]
pub struct Activity {
    begun: Instant,
    /// When the connection was last busy: milliseconds after `begun`, or [`BUSY`].
    last_busy: Arc<AtomicU64>,
}

impl Activity {
    /// The state of a new connection, which is not idle yet.
    pub fn new() -> Activity {
        Activity {
            begun: Instant::now(),
            last_busy: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Marks the connection as busy while `work` runs.
    pub async fn busy_with<T>(&self, work: impl Future<Output = T>) -> T {
        self.last_busy.store(BUSY, Ordering::Relaxed);
        let done = work.await;
        let now = self.begun.elapsed().as_millis() as u64;
        self.last_busy.store(now, Ordering::Relaxed);
        done
    }

    fn is_idle(&self) -> bool {
        let last = self.last_busy.load(Ordering::Relaxed);
        last != BUSY && self.begun.elapsed() >= Duration::from_millis(last) + IDLE_TIMEOUT
    }
}

/// What a connection may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every page.
    Any,
    /// Only whether the node lives and is ready.
    Probe,
}

/// The open connections, oldest first.
pub struct Connections {
    max: usize,
    present: VecDeque<(Activity, AbortHandle)>,
    probes: VecDeque<AbortHandle>,
}

impl Connections {
    /// At most `max` connections, those of probes included; at least one for every page.
    pub fn new(max: usize) -> Connections {
        Connections {
            max: max.saturating_sub(PROBES_MAX).max(1),
            present: VecDeque::new(),
            probes: VecDeque::new(),
        }
    }

    /// Makes room for one more connection and returns the kind of its slot. May close another
    /// connection.
    pub fn make_room(&mut self) -> Access {
        self.present.retain(|(_, task)| !task.is_finished());
        if self.present.len() < self.max {
            return Access::Any;
        }
        let idle = self
            .present
            .iter()
            .position(|(activity, _)| activity.is_idle());
        if let Some((_, task)) = idle.and_then(|idle| self.present.remove(idle)) {
            task.abort();
            return Access::Any;
        }
        self.probes.retain(|task| !task.is_finished());
        while self.probes.len() >= PROBES_MAX {
            if let Some(oldest) = self.probes.pop_front() {
                oldest.abort();
            }
        }
        Access::Probe
    }

    /// Adds a connection that `task` serves.
    pub fn add(&mut self, access: Access, activity: Activity, task: AbortHandle) {
        match access {
            Access::Any => self.present.push_back((activity, task)),
            Access::Probe => self.probes.push_back(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_idle_one_goes_and_probes_have_slots() {
        let mut connections = Connections::new(PROBES_MAX + 2);
        let mut come = |activity: &Activity| {
            let task = tokio::spawn(std::future::pending::<()>());
            let access = connections.make_room();
            connections.add(access, activity.clone(), task.abort_handle());
            (access, task)
        };
        let (first, second) = (Activity::new(), Activity::new());
        let (_, busy) = come(&first);
        let (_, idle) = come(&second);
        first.last_busy.store(BUSY, Ordering::Relaxed);
        // Neither of the two is idle yet.
        let probes: Vec<_> = (0..=PROBES_MAX).map(|_| come(&Activity::new())).collect();
        assert!(probes.iter().all(|(access, _)| *access == Access::Probe));
        tokio::time::sleep(IDLE_TIMEOUT).await;
        assert!(probes[0].1.is_finished() && !probes[1].1.is_finished());
        assert_eq!(come(&Activity::new()).0, Access::Any);
        tokio::task::yield_now().await;
        assert!(idle.is_finished() && !busy.is_finished());
    }
}
