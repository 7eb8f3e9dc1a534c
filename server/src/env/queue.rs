//! openraft's queues, between tasks of one thread.
//!
//! tokio's queues hold two blocks of 32 messages as soon as they are used. With three queues in
//! each group, idle groups would spend a third of their memory there. These queues take only the
//! room that waiting messages need. Wakers are called, and messages dropped, only after the queue's
//! borrow has ended: either may use the queue again.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::mem;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use openraft_rt::{Mpsc, MpscReceiver, MpscSender, MpscWeakSender, SendError, TryRecvError};

use super::channels::Channels;

/// Most messages for which an empty queue keeps room.
const LEN_KEPT: usize = 64;

struct Queue<T> {
    messages: VecDeque<T>,
    len_max: usize,
    senders: usize,
    has_receiver: bool,
    receiver: Option<Waker>,
    /// Senders that wait for room.
    blocked: Vec<Waker>,
}

impl<T> Queue<T> {
    /// The oldest message, and the senders that may now have room.
    fn pop(&mut self) -> Option<(T, Vec<Waker>)> {
        let message = self.messages.pop_front()?;
        if self.messages.is_empty() && self.messages.capacity() > LEN_KEPT {
            self.messages.shrink_to(LEN_KEPT);
        }
        Some((message, mem::take(&mut self.blocked)))
    }
}

fn wake(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}

/// The sending end of a bounded queue.
pub struct Sender<T>(Rc<RefCell<Queue<T>>>);

/// A sending end that does not keep the queue open.
pub struct WeakSender<T>(Rc<RefCell<Queue<T>>>);

/// The receiving end of a bounded queue.
pub struct Receiver<T>(Rc<RefCell<Queue<T>>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.0.borrow_mut().senders += 1;
        Sender(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut queue = self.0.borrow_mut();
        queue.senders -= 1;
        let receiver = match queue.senders {
            0 => queue.receiver.take(),
            _ => None,
        };
        drop(queue);
        wake(receiver);
    }
}

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> WeakSender<T> {
        WeakSender(self.0.clone())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut queue = self.0.borrow_mut();
        queue.has_receiver = false;
        let left = mem::take(&mut queue.messages);
        let blocked = mem::take(&mut queue.blocked);
        drop(queue);
        drop(left);
        wake(blocked);
    }
}

impl<T> Sender<T> {
    fn poll_send(
        &self,
        message: &mut Option<T>,
        cx: &Context<'_>,
    ) -> Poll<Result<(), SendError<T>>> {
        let mut queue = self.0.borrow_mut();
        if queue.has_receiver && queue.messages.len() >= queue.len_max {
            queue.blocked.push(cx.waker().clone());
            return Poll::Pending;
        }
        let message = message.take().expect("a sent message is not sent again");
        if !queue.has_receiver {
            return Poll::Ready(Err(SendError(message)));
        }
        queue.messages.push_back(message);
        let receiver = queue.receiver.take();
        drop(queue);
        wake(receiver);
        Poll::Ready(Ok(()))
    }
}

impl<T> Receiver<T> {
    fn poll_recv(&self, cx: &Context<'_>) -> Poll<Option<T>> {
        let mut queue = self.0.borrow_mut();
        if let Some((message, blocked)) = queue.pop() {
            drop(queue);
            wake(blocked);
            return Poll::Ready(Some(message));
        }
        if queue.senders == 0 {
            return Poll::Ready(None);
        }
        let before = queue.receiver.replace(cx.waker().clone());
        drop(queue);
        drop(before);
        Poll::Pending
    }
}

impl Mpsc for Channels {
    type Sender<T> = Sender<T>;
    type Receiver<T> = Receiver<T>;
    type WeakSender<T> = WeakSender<T>;

    fn channel<T>(len_max: usize) -> (Sender<T>, Receiver<T>) {
        let queue = Rc::new(RefCell::new(Queue {
            messages: VecDeque::new(),
            len_max,
            senders: 1,
            has_receiver: true,
            receiver: None,
            blocked: Vec::new(),
        }));
        (Sender(queue.clone()), Receiver(queue))
    }
}

impl<T> MpscSender<Channels, T> for Sender<T> {
    fn send(&self, message: T) -> impl Future<Output = Result<(), SendError<T>>> {
        let mut message = Some(message);
        poll_fn(move |cx| self.poll_send(&mut message, cx))
    }

    fn downgrade(&self) -> WeakSender<T> {
        WeakSender(self.0.clone())
    }
}

impl<T> MpscWeakSender<Channels, T> for WeakSender<T> {
    fn upgrade(&self) -> Option<Sender<T>> {
        let mut queue = self.0.borrow_mut();
        (queue.senders > 0).then(|| {
            queue.senders += 1;
            Sender(self.0.clone())
        })
    }
}

impl<T> MpscReceiver<T> for Receiver<T> {
    fn recv(&mut self) -> impl Future<Output = Option<T>> {
        poll_fn(|cx| self.poll_recv(cx))
    }

    fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let mut queue = self.0.borrow_mut();
        let Some((message, blocked)) = queue.pop() else {
            return Err(match queue.senders {
                0 => TryRecvError::Disconnected,
                _ => TryRecvError::Empty,
            });
        };
        drop(queue);
        wake(blocked);
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn an_emptied_queue_gives_its_room_back() {
        let (sender, mut receiver) = Channels::channel(1 << 16);
        for number in 0..10_000 {
            sender
                .send(number)
                .now_or_never()
                .expect("there is room")
                .expect("it is open");
        }
        let room = || sender.0.borrow().messages.capacity();
        assert!(room() >= 10_000);
        for number in 0..10_000 {
            assert_eq!(receiver.try_recv(), Ok(number));
        }
        assert!(room() <= 2 * LEN_KEPT);
    }

    #[test]
    fn a_message_may_hold_the_queue_it_is_in() {
        struct Message(#[expect(dead_code, reason = "it is dropped")] Sender<Message>);
        let (sender, receiver) = Channels::channel(1);
        let sent = sender.send(Message(sender.clone())).now_or_never();
        assert!(sent.is_some_and(|sent| sent.is_ok()));
        drop(receiver);
        assert_eq!(sender.0.borrow().senders, 1);
        assert!(
            sender
                .send(Message(sender.clone()))
                .now_or_never()
                .is_some_and(|s| s.is_err())
        );
    }
}
