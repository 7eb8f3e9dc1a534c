//! The receivers of the results of writes. Lives on the shard's thread.

use std::cell::Cell;

use crate::error::Error;
use crate::request::Outcome;

/// Receives the results of writes, on the shard's thread.
pub trait WriteSink {
    /// The write that was pushed with `token` has ended.
    fn complete(&self, token: u64, result: Result<Outcome, Error>);
}

/// A sink for the result of one write.
pub struct Once<F>(Cell<Option<F>>);

impl<F: FnOnce(Result<Outcome, Error>)> Once<F> {
    /// A sink that calls `take` with the result.
    pub fn new(take: F) -> Once<F> {
        Once(Cell::new(Some(take)))
    }
}

impl<F: FnOnce(Result<Outcome, Error>)> WriteSink for Once<F> {
    fn complete(&self, _: u64, result: Result<Outcome, Error>) {
        if let Some(take) = self.0.take() {
            take(result);
        }
    }
}
