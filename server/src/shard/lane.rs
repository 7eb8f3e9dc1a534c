//! A channel from one thread to another ("lane"): bounded, lock-free, one sender, one receiver.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use rangedb_engine::env::AsyncRuntime;

use crate::env::GlommioRuntime;
use crate::env::reactor::Place;

/// Pause before a sender that waits for room tries again.
const ROOM_PAUSE: Duration = Duration::from_millis(1);

struct Shared<T> {
    queue: ArrayQueue<T>,
    receiver: AtomicWaker,
    /// Whether the sender or the receiver is gone.
    ended: AtomicBool,
}

/// The sending end.
pub struct LaneSender<T> {
    shared: Arc<Shared<T>>,
}

/// The receiving end, on its way to the receiving thread.
pub struct LaneEnd<T> {
    shared: Arc<Shared<T>>,
}

/// The receiving end, on its thread.
pub struct LaneReceiver<T> {
    end: LaneEnd<T>,
    place: Option<Place>,
}

/// Makes a lane that holds at most `len_max` messages.
pub fn lane<T>(len_max: usize) -> (LaneSender<T>, LaneEnd<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(len_max),
        receiver: AtomicWaker::new(),
        ended: AtomicBool::new(false),
    });
    let sender = LaneSender {
        shared: shared.clone(),
    };
    (sender, LaneEnd { shared })
}

impl<T> LaneSender<T> {
    /// Sends a message; gives it back if the lane is full.
    ///
    /// # Errors
    /// The message.
    pub fn send(&self, message: T) -> Result<(), T> {
        self.shared.queue.push(message)?;
        self.shared.receiver.wake();
        Ok(())
    }

    /// Sends a message, and waits for room if the lane is full. Drops it if the receiver is gone.
    pub async fn send_in_time(&self, mut message: T) {
        while !self.is_gone() {
            match self.send(message) {
                Ok(()) => return,
                Err(back) => message = back,
            }
            GlommioRuntime::sleep(ROOM_PAUSE).await;
        }
    }

    /// Whether the other end is gone.
    pub fn is_gone(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }
}

impl<T> Drop for LaneSender<T> {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.receiver.wake();
    }
}

impl<T> LaneEnd<T> {
    /// Opens the receiving end on this thread.
    pub fn open(self) -> LaneReceiver<T> {
        LaneReceiver {
            end: self,
            place: None,
        }
    }
}

impl<T> LaneReceiver<T> {
    /// The next message; `None` once the sender is gone and all messages are received.
    pub async fn receive(&mut self) -> Option<T> {
        let LaneReceiver { end, place } = self;
        poll_fn(|cx| {
            if let Some(message) = end.shared.queue.pop() {
                return Poll::Ready(Some(message));
            }
            let waker = Place::waker(place, cx.waker());
            end.shared.receiver.register(&waker);
            // A sender that comes now finds the waker; a message that came before is found below.
            let ended = end.shared.ended.load(Ordering::Acquire);
            match end.shared.queue.pop() {
                None if !ended => Poll::Pending,
                last => Poll::Ready(last),
            }
        })
        .await
    }
}

impl<T> Drop for LaneEnd<T> {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::GlommioRuntime;

    #[test]
    fn what_is_sent_arrives_in_order_and_then_the_end() {
        const MESSAGES: u32 = 100_000;
        let (sender, end) = lane(64);
        let sending = std::thread::spawn(move || {
            GlommioRuntime::new(1).block_on(async {
                for number in 0..MESSAGES {
                    sender.send_in_time(number).await;
                    if number % 1000 == 0 {
                        // Lets the receiver fall asleep now and then.
                        GlommioRuntime::sleep(Duration::from_millis(1)).await;
                    }
                }
            });
        });
        GlommioRuntime::new(1).block_on(async {
            let mut receiver = end.open();
            for number in 0..MESSAGES {
                assert_eq!(receiver.receive().await, Some(number));
            }
            assert_eq!(receiver.receive().await, None);
        });
        sending.join().expect("it ends");
    }

    #[test]
    fn a_full_lane_gives_back_and_an_ended_one_is_known() {
        let (sender, end) = lane(1);
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(sender.send(2), Err(2));
        assert!(!sender.is_gone());
        drop(end);
        assert!(sender.is_gone());
    }
}
