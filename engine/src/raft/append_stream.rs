//! Chooses the class for the appends of one stream.
//!
//! A large append, such as to a replica that catches up, belongs to the bulk class, where it delays no
//! heartbeat. But pipelined appends must arrive in order, and two classes keep no order between them: an
//! append that overtakes another is a conflict at its receiver. So a stream changes its class only while
//! none of its appends is under way. It goes back to the control class when none happens to be under way;
//! once [`SMALL_IN_A_ROW`] appends in a row were small, it waits for that moment. Lives on the shard's
//! thread.

use std::cell::Cell;
use std::rc::Rc;

use crate::env::MessageClass;
use crate::notify::Count;

/// After this many small appends in a row a stream waits until it can go back to the control class.
const SMALL_IN_A_ROW: usize = 16;

/// One stream of appends, all of one class at a time.
pub struct AppendStream {
    /// Appends up to this many bytes are small.
    small_max: usize,
    class: Cell<MessageClass>,
    /// The appends that are under way.
    under_way: Count,
    small_in_a_row: Cell<usize>,
}

/// An append under way, until this is dropped.
pub struct UnderWay {
    stream: Rc<AppendStream>,
    class: MessageClass,
}

impl UnderWay {
    /// The class of this append.
    pub fn class(&self) -> MessageClass {
        self.class
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.stream.under_way.subtract(1);
    }
}

impl AppendStream {
    /// A new stream. Appends up to `small_max` bytes are small.
    pub fn new(small_max: usize) -> Rc<AppendStream> {
        Rc::new(AppendStream {
            small_max,
            class: Cell::new(MessageClass::Control),
            under_way: Count::default(),
            small_in_a_row: Cell::new(0),
        })
    }

    /// Returns the class for the stream's next append of `len` bytes. Waits if the class has to change
    /// while other appends are under way.
    pub async fn enter(self: Rc<Self>, len: usize) -> UnderWay {
        let (wanted, small_in_a_row) = match len > self.small_max {
            true => (MessageClass::Bulk, 0),
            false => (MessageClass::Control, self.small_in_a_row.get() + 1),
        };
        self.small_in_a_row.set(small_in_a_row);
        let must_change = wanted == MessageClass::Bulk || small_in_a_row > SMALL_IN_A_ROW;
        if must_change && wanted != self.class.get() {
            self.under_way.until(|number| number == 0).await;
        }
        if self.under_way.get() == 0 {
            self.class.set(wanted);
        }
        self.under_way.add(1);
        UnderWay {
            class: self.class.get(),
            stream: self,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const SMALL: usize = 100;
    const LARGE: usize = SMALL + 1;

    /// The next append, if it can be sent without waiting.
    fn send(stream: &Rc<AppendStream>, len: usize) -> Option<UnderWay> {
        stream.clone().enter(len).now_or_never()
    }

    fn class(sent: Option<&UnderWay>) -> Option<MessageClass> {
        sent.map(|sent| sent.class)
    }

    #[test]
    fn no_append_overtakes_another_of_the_other_class() {
        let stream = AppendStream::new(SMALL);
        let first = send(&stream, SMALL);
        assert_eq!(class(first.as_ref()), Some(MessageClass::Control));
        let large = send(&stream, LARGE);
        assert_eq!(class(large.as_ref()), None, "the first is under way");
        drop(first);
        let large = send(&stream, LARGE);
        assert_eq!(class(large.as_ref()), Some(MessageClass::Bulk));
        let small = send(&stream, SMALL);
        assert_eq!(
            class(small.as_ref()),
            Some(MessageClass::Bulk),
            "behind the large"
        );
        drop((large, small));
        let last = send(&stream, SMALL);
        assert_eq!(class(last.as_ref()), Some(MessageClass::Control));
    }

    #[test]
    fn a_stream_that_has_caught_up_goes_back_although_it_is_never_idle() {
        let stream = AppendStream::new(SMALL);
        let mut under_way = send(&stream, LARGE);
        for _ in 0..SMALL_IN_A_ROW {
            let next = send(&stream, SMALL);
            assert_eq!(class(next.as_ref()), Some(MessageClass::Bulk));
            under_way = next;
        }
        let mut waits = Box::pin(stream.clone().enter(SMALL));
        assert!(waits.as_mut().now_or_never().is_none(), "one is under way");
        drop(under_way);
        let back = waits.now_or_never();
        assert_eq!(class(back.as_ref()), Some(MessageClass::Control));
    }
}
