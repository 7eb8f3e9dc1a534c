//! The receiver of an answer: a client's connection, or a request that another shard has forwarded. Lives
//! on its shard's thread.

use std::pin::Pin;
use std::rc::Rc;

use super::values::Values;
use crate::error::Error;
use crate::request::{Outcome, ScanReply};
use crate::shard::WriteSink;
use crate::types::Timestamp;

/// The answer to a request that succeeded.
#[derive(Clone, Debug)]
pub enum Response<'a> {
    /// To a get: the value, where it lies, and its version.
    Value(Option<(&'a [u8], Timestamp)>),
    /// To a write: what was decided.
    Written(Outcome),
    /// To a scan.
    Rows(&'a ScanReply),
    /// To a multi-get.
    Values(&'a Values),
}

/// A task of a scan.
pub type Scanning = Pin<Box<dyn Future<Output = ()>>>;

/// Takes the answers to requests. Each request has one answer, at once or later.
pub trait Responder: Sized + 'static {
    /// What the responder must know of a request to answer it.
    type Ticket: Copy + 'static;
    /// Why a request is refused: an error of the engine, or a reason of the responder's own.
    type Refusal: From<Error>;

    /// Answers a request. `now` is the time of the cluster where the answer was given, if another
    /// shard has given it.
    fn answer(
        &self,
        ticket: &Self::Ticket,
        now: Option<Timestamp>,
        response: Result<Response<'_>, Error>,
    );

    /// Keeps a request whose answer comes later. [`Responder::release`] takes it back by the returned
    /// token.
    ///
    /// # Errors
    /// Too many requests are waiting.
    fn hold(&self, ticket: Self::Ticket) -> Result<u64, Self::Refusal>;

    /// Forgets a request since its answer is due now; `None` if it was forgotten before.
    fn release(&self, token: u64) -> Option<Self::Ticket>;

    /// Runs the task of a scan, which will answer the held request `token`. A responder may run one
    /// after the other, because their answers are large.
    fn scan(self: &Rc<Self>, token: u64, scanning: Scanning);

    /// Called when a request has left for another shard; its answer will need room.
    fn departed(&self, _ticket: &Self::Ticket) {}

    /// Called when the answer to such a request is here.
    fn returned(&self, _ticket: &Self::Ticket) {}
}

impl<R: Responder> WriteSink for R {
    fn complete(&self, token: u64, result: Result<Outcome, Error>) {
        if let Some(ticket) = self.release(token) {
            self.answer(&ticket, None, result.map(Response::Written));
        }
    }
}
