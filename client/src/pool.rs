//! The client's connections, one for each place, opened on first use; and which addresses do not
//! answer.
//!
//! A task opens a connection within [`OPEN_TIMEOUT`]; each caller waits for it no longer than its
//! own deadline. An address that cannot be reached, or that did not answer a caller in time, is
//! avoided for a time that doubles with each failure, as long as there are others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::cluster::{Binding, ClusterId};
use crate::connection::Connection;
use crate::directory::Place;
use crate::opening;

/// Time limit for opening a connection.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an address is avoided after its first failure, and the longest time.
const LEFT_OUT_FIRST: Duration = Duration::from_millis(50);
const LEFT_OUT_LONGEST: Duration = Duration::from_secs(5);

type Opened = Result<Arc<Connection>, String>;

/// `None` while the task is opening the connection.
type Slot = watch::Receiver<Option<Opened>>;

/// An address that failed and has not answered since.
#[derive(Clone, Copy, Debug)]
struct Failed {
    times: u32,
    until: Instant,
}

/// All connections of a client.
pub struct Pool {
    binding: Arc<Binding>,
    slots: Mutex<HashMap<Place, Slot>>,
    failed: Arc<Mutex<HashMap<Arc<str>, Failed>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// An empty pool. All its connections will go to nodes of one cluster: `named`, or that of the
    /// first node.
    pub fn new(named: Option<ClusterId>) -> Pool {
        Pool {
            binding: Arc::new(Binding::new(named)),
            slots: Mutex::default(),
            failed: Arc::default(),
        }
    }

    /// The cluster of all connections, once known.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.binding.cluster()
    }

    /// The connection to a place; opens one if there is none.
    ///
    /// # Errors
    /// It cannot be opened, or not before the deadline.
    pub async fn get(&self, place: &Place, deadline: Instant) -> Opened {
        if let Some(connection) = self.open(place) {
            return Ok(connection);
        }
        let mut slot = self.slot(place);
        let opened = slot.wait_for(Option::is_some);
        match tokio::time::timeout_at(deadline.into(), opened).await {
            Ok(Ok(opened)) => opened.clone().unwrap_or_else(|| Err(ended(place))),
            // The runtime of the task that opened it has ended.
            Ok(Err(_)) => Err(ended(place)),
            Err(_) => {
                self.leave_out(&place.address);
                Err(format!("{}: not connected in time", place.address))
            }
        }
    }

    /// The connection to a place, if it is open.
    fn open(&self, place: &Place) -> Option<Arc<Connection>> {
        match &*lock(&self.slots).get(place)?.borrow() {
            Some(Ok(connection)) if !connection.is_broken() => Some(connection.clone()),
            _ => None,
        }
    }

    fn slot(&self, place: &Place) -> Slot {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.get(place) {
            let usable = match &*slot.borrow() {
                Some(Ok(connection)) => !connection.is_broken(),
                Some(Err(_)) => false,
                None => slot.has_changed().is_ok(),
            };
            if usable {
                return slot.clone();
            }
        }
        let (sender, slot) = watch::channel(None);
        slots.insert(place.clone(), slot.clone());
        let (place, failed) = (place.clone(), self.failed.clone());
        let binding = self.binding.clone();
        tokio::spawn(async move {
            let opening = opening::open(&place, &binding);
            let opened = match tokio::time::timeout(OPEN_TIMEOUT, opening).await {
                Ok(opened) => opened.map(Arc::new),
                Err(_) => Err(format!("{}: no answer in time", place.address)),
            };
            let mut failed = lock(&failed);
            match &opened {
                Ok(_) => drop(failed.remove(&place.address)),
                Err(_) => leave_out(&mut failed, &place.address),
            }
            drop(failed);
            // All callers may have gone.
            let _ = sender.send(Some(opened));
        });
        slot
    }

    /// Avoids an address for a time: it does not answer.
    pub fn leave_out(&self, address: &Arc<str>) {
        let mut failed = lock(&self.failed);
        // Many callers that wait at the same time count as one failure.
        let is_left_out = (failed.get(address)).is_some_and(|f| Instant::now() < f.until);
        if !is_left_out {
            leave_out(&mut failed, address);
        }
    }

    /// Whether an address is being avoided.
    pub fn is_left_out(&self, address: &str) -> bool {
        lock(&self.failed)
            .get(address)
            .is_some_and(|failed| Instant::now() < failed.until)
    }
}

fn ended(place: &Place) -> String {
    format!(
        "{}: the runtime that opened the connection ended",
        place.address
    )
}

fn leave_out(failed: &mut HashMap<Arc<str>, Failed>, address: &Arc<str>) {
    let now = Instant::now();
    let times = failed.get(address).map_or(0, |failed| failed.times);
    let left_out = LEFT_OUT_FIRST
        .saturating_mul(1 << times.min(10))
        .min(LEFT_OUT_LONGEST);
    let (times, until) = (times + 1, now + left_out);
    failed.insert(address.clone(), Failed { times, until });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_left_out_for_a_growing_time() {
        let mut failed = HashMap::new();
        let address: Arc<str> = Arc::from("here:1");
        let mut last = Duration::ZERO;
        for _ in 0..20 {
            leave_out(&mut failed, &address);
            let left = failed[&address].until - Instant::now();
            assert!(left <= LEFT_OUT_LONGEST);
            assert!(left > last.mul_f64(0.99), "{left:?} after {last:?}");
            last = left;
        }
        assert!(last > LEFT_OUT_LONGEST - Duration::from_millis(100));
    }
}
