//! Connections of one shard whose handshake is awaited, or that are being refused.
//!
//! Their number is limited. If there is one too many, the oldest goes: a client that speaks
//! RangeDB's protocol sends its handshake at once, so connections that send nothing cannot keep it
//! out. Lives on the shard's thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};
use tokio::sync::Notify;

/// The connections of one shard whose handshake is under way.
pub struct PendingHandshakes {
    max: usize,
    /// By number, which rises, so the first is the oldest.
    present: RefCell<BTreeMap<u64, Rc<Notify>>>,
    last: Cell<u64>,
    evicted: Cell<u64>,
}

/// A connection whose handshake is under way, until this is dropped.
pub struct PendingHandshake {
    of: Rc<PendingHandshakes>,
    number: u64,
    must_go: Rc<Notify>,
}

impl PendingHandshakes {
    /// At most `max` connections at a time.
    pub fn new(max: usize) -> Rc<PendingHandshakes> {
        Rc::new(PendingHandshakes {
            max: max.max(1),
            present: RefCell::default(),
            last: Cell::new(0),
            evicted: Cell::new(0),
        })
    }

    /// Adds a connection; the oldest goes if there are too many.
    pub fn begin(self: &Rc<PendingHandshakes>) -> PendingHandshake {
        let mut present = self.present.borrow_mut();
        while present.len() >= self.max {
            let Some((_, oldest)) = present.pop_first() else {
                break;
            };
            oldest.notify_one();
            self.evicted.set(self.evicted.get() + 1);
        }
        let number = self.last.get() + 1;
        self.last.set(number);
        let must_go = Rc::new(Notify::new());
        present.insert(number, must_go.clone());
        PendingHandshake {
            of: self.clone(),
            number,
            must_go,
        }
    }

    /// How many connections were evicted.
    pub fn evicted(&self) -> u64 {
        self.evicted.get()
    }
}

impl PendingHandshake {
    /// Runs `work`; returns `None` if this connection is evicted first.
    pub async fn unless_evicted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        match select(pin!(work), pin!(self.must_go.notified())).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }
}

impl Drop for PendingHandshake {
    fn drop(&mut self) {
        self.of.present.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn the_oldest_goes() {
        let handshakes = PendingHandshakes::new(2);
        let first = handshakes.begin();
        let second = handshakes.begin();
        let goes = |pending: &PendingHandshake| {
            let forever = std::future::pending::<()>();
            pending.unless_evicted(forever).now_or_never() == Some(None)
        };
        assert!(!goes(&first) && !goes(&second));
        let third = handshakes.begin();
        assert!(goes(&first) && !goes(&second) && !goes(&third));
        drop(second);
        let _fourth = handshakes.begin();
        assert!(!goes(&third));
        assert_eq!(handshakes.evicted(), 1);
    }
}
