//! Shared flushes, for callers that need what is in memory flushed at once. One flush runs at a time. All
//! callers that ask during it share the next one, because each flush writes a table, however few rows it
//! has. Lives on the shard's thread.

use std::cell::Cell;

use crate::notify::Notify;

/// The callers that have asked for a flush, and how many of them have been served.
#[derive(Debug, Default)]
pub(super) struct FlushTurns {
    /// How many have asked.
    asked: Cell<u64>,
    /// How many of them were there when the last flush that has ended began.
    served: Cell<u64>,
    is_under_way: Cell<bool>,
    ended: Notify,
}

impl FlushTurns {
    /// Waits until it is the caller's turn to flush. `None`: a flush that began after the call has ended.
    pub async fn next(&self) -> Option<FlushTurn<'_>> {
        let number = self.asked.get() + 1;
        self.asked.set(number);
        let is_served = || self.served.get() >= number;
        self.ended
            .until(|| is_served() || !self.is_under_way.get())
            .await;
        if is_served() {
            return None;
        }
        self.is_under_way.set(true);
        Some(FlushTurn {
            turns: self,
            served: self.asked.get(),
        })
    }
}

/// The turn of one flush, which begins at once. It ends when this is dropped.
pub(super) struct FlushTurn<'a> {
    turns: &'a FlushTurns,
    /// How many have asked before it began.
    served: u64,
}

impl FlushTurn<'_> {
    /// Notes that the flush is done.
    pub fn done(self) {
        self.turns.served.set(self.served);
    }
}

impl Drop for FlushTurn<'_> {
    fn drop(&mut self) {
        self.turns.is_under_way.set(false);
        self.turns.ended.notify();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<T>(task: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        task.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn all_who_ask_during_a_flush_share_the_next_one() {
        let turns = FlushTurns::default();
        let Poll::Ready(Some(first)) = poll(pin!(turns.next())) else {
            panic!("nobody flushes");
        };
        let (mut one, mut other) = (pin!(turns.next()), pin!(turns.next()));
        assert!(poll(one.as_mut()).is_pending() && poll(other.as_mut()).is_pending());
        // The flush that was under way may have begun before what they want was written.
        first.done();
        let Poll::Ready(Some(second)) = poll(other.as_mut()) else {
            panic!("it is the turn of one of them");
        };
        assert!(poll(one.as_mut()).is_pending());
        second.done();
        assert!(matches!(poll(one.as_mut()), Poll::Ready(None)));
        assert!(matches!(poll(pin!(turns.next())), Poll::Ready(Some(_))));
    }

    #[test]
    fn a_flush_that_is_given_up_serves_nobody() {
        let turns = FlushTurns::default();
        let Poll::Ready(Some(first)) = poll(pin!(turns.next())) else {
            panic!("nobody flushes");
        };
        let mut waits = pin!(turns.next());
        assert!(poll(waits.as_mut()).is_pending());
        drop(first);
        assert!(matches!(poll(waits), Poll::Ready(Some(_))));
    }
}
