//! A channel from one thread to another: bounded, lock-free, one sender, one receiver.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use tokio::sync::Mutex;

use crate::env::reactor::WakerSlot;

struct Shared<T> {
    queue: ArrayQueue<T>,
    /// The task that waits for a message.
    receiver: AtomicWaker,
    /// The task that waits for room.
    sender: AtomicWaker,
    /// Whether the sender or the receiver is gone.
    ended: AtomicBool,
}

/// The sending end.
pub struct ChannelSender<T> {
    shared: Arc<Shared<T>>,
    /// Held by the task that waits for room: others wait behind it.
    turn: Mutex<()>,
}

/// The receiving end, on its way to the receiving thread.
pub struct ChannelEnd<T> {
    shared: Arc<Shared<T>>,
}

/// The receiving end, on its thread.
pub struct ChannelReceiver<T> {
    end: ChannelEnd<T>,
    slot: Option<WakerSlot>,
}

/// Makes a channel that holds at most `len_max` messages.
pub fn channel<T>(len_max: usize) -> (ChannelSender<T>, ChannelEnd<T>) {
    let shared = Arc::new(Shared {
        queue: ArrayQueue::new(len_max),
        receiver: AtomicWaker::new(),
        sender: AtomicWaker::new(),
        ended: AtomicBool::new(false),
    });
    let sender = ChannelSender {
        shared: shared.clone(),
        turn: Mutex::new(()),
    };
    (sender, ChannelEnd { shared })
}

impl<T> Shared<T> {
    /// Takes a message, which makes room.
    fn pop(&self) -> Option<T> {
        let message = self.queue.pop()?;
        self.sender.wake();
        Some(message)
    }
}

impl<T> ChannelSender<T> {
    /// Sends a message; gives it back if the channel is full.
    ///
    /// # Errors
    /// The message.
    pub fn send(&self, message: T) -> Result<(), T> {
        self.shared.queue.push(message)?;
        self.shared.receiver.wake();
        Ok(())
    }

    /// Sends a message, and waits for room if the channel is full. Drops it if the receiver is gone.
    pub async fn send_in_time(&self, message: T) {
        let _turn = self.turn.lock().await;
        let Err(message) = self.send(message) else {
            return;
        };
        let (mut unsent, mut slot) = (Some(message), None);
        poll_fn(|cx| {
            let waker = WakerSlot::waker(&mut slot, cx.waker());
            self.shared.sender.register(&waker);
            // A receiver that makes room now finds the waker; room that was made before is found
            // here.
            unsent = unsent.take().and_then(|message| self.send(message).err());
            match unsent.is_none() || self.is_gone() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    /// Whether the other end is gone.
    pub fn is_gone(&self) -> bool {
        self.shared.ended.load(Ordering::Acquire)
    }
}

impl<T> Drop for ChannelSender<T> {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.receiver.wake();
    }
}

impl<T> ChannelEnd<T> {
    /// Opens the receiving end on this thread.
    pub fn open(self) -> ChannelReceiver<T> {
        ChannelReceiver {
            end: self,
            slot: None,
        }
    }
}

impl<T> ChannelReceiver<T> {
    /// The next message; `None` once the sender is gone and all messages are received.
    pub async fn receive(&mut self) -> Option<T> {
        let ChannelReceiver { end, slot } = self;
        poll_fn(|cx| {
            if let Some(message) = end.shared.pop() {
                return Poll::Ready(Some(message));
            }
            let waker = WakerSlot::waker(slot, cx.waker());
            end.shared.receiver.register(&waker);
            // A sender that comes now finds the waker; a message that came before is found below.
            let ended = end.shared.ended.load(Ordering::Acquire);
            match end.shared.pop() {
                None if !ended => Poll::Pending,
                last => Poll::Ready(last),
            }
        })
        .await
    }
}

impl<T> Drop for ChannelEnd<T> {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.shared.sender.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rangedb_engine::env::AsyncRuntime;

    use super::*;
    use crate::env::GlommioRuntime;

    #[test]
    fn what_is_sent_arrives_in_order_and_then_the_end() {
        const MESSAGES: u32 = 100_000;
        let (sender, end) = channel(64);
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
    fn tasks_that_wait_for_room_go_on_in_order_and_when_the_receiver_is_gone() {
        let (sender, end) = channel(1);
        let taking = std::thread::spawn(move || {
            GlommioRuntime::new(1).block_on(async {
                let mut receiver = end.open();
                let mut taken = Vec::new();
                while taken.len() < 3 {
                    taken.extend(receiver.receive().await);
                }
                taken
            })
        });
        GlommioRuntime::new(1).block_on(async {
            let waiting = (1..=9).map(|number| sender.send_in_time(number));
            futures_util::future::join_all(waiting).await;
        });
        assert_eq!(taking.join().expect("it ends"), [1, 2, 3]);
        assert!(sender.is_gone());
    }

    #[test]
    fn a_full_channel_gives_back_and_an_ended_one_is_known() {
        let (sender, end) = channel(1);
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(sender.send(2), Err(2));
        assert!(!sender.is_gone());
        drop(end);
        assert!(sender.is_gone());
    }
}
