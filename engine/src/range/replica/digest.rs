//! The replica's part in a digest: which one was asked for last, and whether it was made or given up. How a
//! digest is computed is in [`crate::range::digest`]. Lives on the shard's thread.

use crate::env::Env;
use crate::range::digest::{Digest, Digesting};
use crate::range::replica::Replica;
use crate::types::Timestamp;

impl<E: Env> Replica<E> {
    /// A digest that was asked for and whose rows nobody reads yet. The caller must read them now.
    pub fn begin_digest(&self) -> Option<Digesting> {
        let mut digesting = self.digesting.get()?;
        if std::mem::replace(&mut digesting.is_read, true) {
            return None;
        }
        self.digesting.set(Some(digesting));
        Some(digesting)
    }

    /// The last digest that was asked for.
    pub fn digesting(&self) -> Option<Digesting> {
        self.digesting.get()
    }

    /// Whether the digest with this number is still to be made.
    pub fn is_digesting(&self, number: u64) -> bool {
        let digesting = self.digesting.get();
        digesting.is_some_and(|digesting| digesting.number == number && digesting.made.is_none())
    }

    /// Sets the result of a digest, if it is still the last one that was asked for.
    pub fn end_digest(&self, number: u64, digest: Digest) {
        if let Some(mut digesting) = self.digesting.get()
            && digesting.number == number
        {
            digesting.made = Some(digest);
            self.digesting.set(Some(digesting));
        }
    }

    /// Gives up the last digest that was asked for.
    pub fn give_up_digest(&self) {
        self.digesting.set(None);
    }

    /// The digest with this number, if it has been made.
    pub fn digest(&self, number: u64) -> Option<Digest> {
        let digesting = self.digesting.get();
        digesting
            .filter(|digesting| digesting.number == number)?
            .made
    }

    /// The threshold of collection at which versions must stay for a digest that is being made.
    pub(in crate::range) fn kept_for_digest(&self) -> Option<Timestamp> {
        let digesting = self.digesting.get()?;
        digesting.made.is_none().then_some(digesting.threshold)
    }
}
