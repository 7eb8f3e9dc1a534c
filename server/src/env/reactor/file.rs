//! Direct reads and writes of files.

use std::fs::File;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::Reactor;
use super::ring::Operation;
use super::transfer::{AlignedBuffer, Direction, Transfer, TransferState};

/// Waits for a transfer. If it is dropped before, the kernel finishes the transfer all the same.
struct Wait {
    reactor: Rc<Reactor>,
    /// The transfer's number; `None` after its result was taken.
    number: Option<usize>,
}

impl Wait {
    fn begin(file: &Rc<File>, buffer: AlignedBuffer, offset: u64, direction: Direction) -> Wait {
        let reactor = Reactor::here();
        let number = reactor.ring.borrow_mut().transfer(Transfer {
            file: file.clone(),
            buffer,
            offset,
            direction,
            state: TransferState::UnderWay(None),
        });
        Wait {
            reactor,
            number: Some(number),
        }
    }
}

impl Future for Wait {
    type Output = io::Result<(AlignedBuffer, usize)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut ring = this.reactor.ring.borrow_mut();
        let number = this.number.expect("it is not polled after its end");
        let Some(Operation::Transfer(transfer)) = ring.operations.get_mut(number) else {
            unreachable!("it is under way until it is taken");
        };
        match &mut transfer.state {
            TransferState::UnderWay(waker) => {
                *waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            TransferState::Abandoned => unreachable!("this waits"),
            TransferState::Done(_) => this.number = None,
        }
        let Operation::Transfer(Transfer { buffer, state, .. }) = ring.operations.remove(number)
        else {
            unreachable!("it was one just now");
        };
        let TransferState::Done(result) = state else {
            unreachable!("it was just now");
        };
        Poll::Ready(match usize::try_from(result) {
            Ok(len) => Ok((buffer, len)),
            Err(_) => Err(io::Error::from_raw_os_error(-result)),
        })
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut ring = self.reactor.ring.borrow_mut();
        if let Some(Operation::Transfer(transfer)) = ring.operations.get_mut(number) {
            match transfer.state {
                TransferState::Done(_) => drop(ring.operations.remove(number)),
                _ => transfer.state = TransferState::Abandoned,
            }
        }
    }
}

/// Writes a buffer, with one operation. Returns how many bytes were written.
///
/// # Errors
/// The kernel's.
pub async fn write_at(file: &Rc<File>, buffer: AlignedBuffer, offset: u64) -> io::Result<usize> {
    let written = Wait::begin(file, buffer, offset, Direction::Write).await;
    written.map(|(_, len)| len)
}

/// Reads up to `len` bytes, with one operation.
///
/// # Errors
/// The kernel's.
pub async fn read_at(file: &Rc<File>, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let buffer = AlignedBuffer::new(len);
    let (buffer, len) = Wait::begin(file, buffer, offset, Direction::Read).await?;
    Ok(buffer.as_ref().get(..len).unwrap_or_default().to_vec())
}
