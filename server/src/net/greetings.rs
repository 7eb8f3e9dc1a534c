//! Connections of one shard that have not said yet who they are, or that are being refused.
//!
//! There are only so many. When one more comes, the oldest goes: whoever speaks RangeDB's protocol
//! sends the preamble at once, so that connections that say nothing cannot keep it out. Lives on the
//! shard's thread.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};
use tokio::sync::Notify;

/// The greetings of one shard.
pub struct Greetings {
    max: usize,
    /// By number, which rises: the oldest is the first.
    present: RefCell<BTreeMap<u64, Rc<Notify>>>,
    last: Cell<u64>,
    evicted: Cell<u64>,
}

/// One greeting, until it is dropped.
pub struct Greeting {
    of: Rc<Greetings>,
    number: u64,
    must_go: Rc<Notify>,
}

impl Greetings {
    /// At most so many.
    pub fn new(max: usize) -> Rc<Greetings> {
        Rc::new(Greetings {
            max: max.max(1),
            present: RefCell::default(),
            last: Cell::new(0),
            evicted: Cell::new(0),
        })
    }

    /// Begins one; the oldest goes if there are too many.
    pub fn begin(self: &Rc<Greetings>) -> Greeting {
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
        Greeting {
            of: self.clone(),
            number,
            must_go,
        }
    }

    /// How many had to go.
    pub fn evicted(&self) -> u64 {
        self.evicted.get()
    }
}

impl Greeting {
    /// Does something, unless this has to go before that is done: then it gives nothing.
    pub async fn unless_evicted<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        match select(pin!(work), pin!(self.must_go.notified())).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }
}

impl Drop for Greeting {
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
        let greetings = Greetings::new(2);
        let first = greetings.begin();
        let second = greetings.begin();
        let goes = |greeting: &Greeting| {
            let forever = std::future::pending::<()>();
            greeting.unless_evicted(forever).now_or_never() == Some(None)
        };
        assert!(!goes(&first) && !goes(&second));
        let third = greetings.begin();
        assert!(goes(&first) && !goes(&second) && !goes(&third));
        drop(second);
        let _fourth = greetings.begin();
        assert!(!goes(&third));
        assert_eq!(greetings.evicted(), 1);
    }
}
