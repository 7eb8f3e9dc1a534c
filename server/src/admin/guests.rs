//! Connections of the admin pages: how many there are, and who goes when there are too many.
//!
//! Without room the oldest goes that has asked nothing for a while. If all are at work, the newcomer
//! has one of a few seats of probes: it may ask whether the node lives and is ready, and nothing else.
//! So neither idle nor slow users of the API keep an orchestrator from its answer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

/// Seats of probes.
const PROBES_MAX: usize = 4;
/// One that was busy so recently, or has just come, is not idle.
const IDLE_AFTER: Duration = Duration::from_secs(1);
/// In place of when it was last busy: it is.
const BUSY: u64 = u64::MAX;

/// How busy one connection is.
#[derive(Clone, Debug)]
pub struct Guest {
    begun: Instant,
    /// Milliseconds after `begun`, or [`BUSY`].
    last_busy: Arc<AtomicU64>,
}

impl Guest {
    /// One that has just come.
    pub fn new() -> Guest {
        Guest {
            begun: Instant::now(),
            last_busy: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Counts as busy while work is done.
    pub async fn busy_with<T>(&self, work: impl Future<Output = T>) -> T {
        self.last_busy.store(BUSY, Ordering::Relaxed);
        let done = work.await;
        let now = self.begun.elapsed().as_millis() as u64;
        self.last_busy.store(now, Ordering::Relaxed);
        done
    }

    fn is_idle(&self) -> bool {
        let last = self.last_busy.load(Ordering::Relaxed);
        last != BUSY && self.begun.elapsed() >= Duration::from_millis(last) + IDLE_AFTER
    }
}

/// What a newcomer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// Ask anything.
    Any,
    /// Ask whether the node lives, and is ready.
    Probe,
}

/// All connections, the oldest first.
pub struct Guests {
    max: usize,
    present: VecDeque<(Guest, AbortHandle)>,
    probes: VecDeque<AbortHandle>,
}

impl Guests {
    /// At most so many.
    pub fn new(max: usize) -> Guests {
        Guests {
            max: max.saturating_sub(PROBES_MAX).max(1),
            present: VecDeque::new(),
            probes: VecDeque::new(),
        }
    }

    /// Makes room for one more; where it may sit.
    pub fn make_room(&mut self) -> Seat {
        self.present.retain(|(_, task)| !task.is_finished());
        if self.present.len() < self.max {
            return Seat::Any;
        }
        let idle = self.present.iter().position(|(guest, _)| guest.is_idle());
        if let Some((_, task)) = idle.and_then(|idle| self.present.remove(idle)) {
            task.abort();
            return Seat::Any;
        }
        self.probes.retain(|task| !task.is_finished());
        while self.probes.len() >= PROBES_MAX {
            if let Some(oldest) = self.probes.pop_front() {
                oldest.abort();
            }
        }
        Seat::Probe
    }

    /// Seats a connection, which is served by this task.
    pub fn seat(&mut self, seat: Seat, guest: Guest, task: AbortHandle) {
        match seat {
            Seat::Any => self.present.push_back((guest, task)),
            Seat::Probe => self.probes.push_back(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_idle_one_goes_and_probes_have_seats() {
        let mut guests = Guests::new(PROBES_MAX + 2);
        let mut come = |guest: &Guest| {
            let task = tokio::spawn(std::future::pending::<()>());
            let seat = guests.make_room();
            guests.seat(seat, guest.clone(), task.abort_handle());
            (seat, task)
        };
        let (first, second) = (Guest::new(), Guest::new());
        let (_, busy) = come(&first);
        let (_, idle) = come(&second);
        first.last_busy.store(BUSY, Ordering::Relaxed);
        // Neither is idle yet.
        let probes: Vec<_> = (0..=PROBES_MAX).map(|_| come(&Guest::new())).collect();
        assert!(probes.iter().all(|(seat, _)| *seat == Seat::Probe));
        tokio::time::sleep(IDLE_AFTER).await;
        assert!(probes[0].1.is_finished() && !probes[1].1.is_finished());
        assert_eq!(come(&Guest::new()).0, Seat::Any);
        tokio::task::yield_now().await;
        assert!(idle.is_finished() && !busy.is_finished());
    }
}
