//! The read lease: until when a leader may read without asking anybody.
//!
//! A replica that accepts an append will not vote for anyone else for one lease. The promise counts
//! from when the replica accepted the append, which is after the leader sent it. So the leader may
//! rely on the time at which it sent the last append that a majority has acknowledged.
//!
//! openraft computes such a time, too, but 0.10.0-alpha.37 can take the answer to an append for the
//! answer to a later empty append that ends at the same entry, with that one's time
//! (`InflightAppendQueue::drain_acked`). The lease is then too long, and a lease that is too long
//! is a stale read. So openraft's time is used nowhere here: neither for leases nor for reads
//! without one.
//!
//! The voters are those that openraft knows at the moment of the call. They may change before the
//! result is used, but by one step of a joint change at most: the next step needs answers, and
//! every answer makes the result be computed anew. Any two neighbouring memberships have a voter in
//! common in all their majorities.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use crate::env::{Env, Now};
use crate::types::ReplicaId;

/// What the other replicas have acknowledged to a leader.
pub(super) struct Lease<E: Env> {
    /// The leader's term, and for each other replica when the last append was sent that it
    /// accepted.
    taken: RefCell<Taken<E>>,
    /// The last result of [`Lease::quorum_at`]; `None` once a newer answer has come.
    reckoned: Cell<Option<Reckoned<E>>>,
}

struct Taken<E: Env> {
    term: u64,
    by: Vec<(ReplicaId, Now<E>)>,
}

/// A term, and what [`Lease::quorum_at`] gave in it.
type Reckoned<E> = (u64, Option<Now<E>>);

impl<E: Env> Lease<E> {
    /// A lease with no answers yet.
    pub fn new() -> Lease<E> {
        Lease {
            taken: RefCell::new(Taken {
                term: 0,
                by: Vec::new(),
            }),
            reckoned: Cell::new(None),
        }
    }

    /// Notes that a replica has accepted an append of the leader of `term`, sent at `sent`.
    pub fn take(&self, term: u64, by: ReplicaId, sent: Now<E>) {
        let mut taken = self.taken.borrow_mut();
        if term < taken.term {
            return;
        }
        if term > taken.term {
            *taken = Taken {
                term,
                by: Vec::new(),
            };
        }
        match taken.by.iter_mut().find(|(id, _)| *id == by) {
            Some((_, at)) => *at = sent.max(*at),
            None => taken.by.push((by, sent)),
        }
        self.reckoned.set(None);
    }

    /// The time up to which a majority of each set of voters had voted for nobody but `me`, the
    /// leader of this term. `None`: no majority has answered yet, or there are no other voters.
    pub fn quorum_at(
        &self,
        term: u64,
        me: ReplicaId,
        voters: &[BTreeSet<ReplicaId>],
    ) -> Option<Now<E>> {
        match self.reckoned.get() {
            Some((of, at)) if of == term => at,
            _ => {
                let at = self.reckon(term, me, voters);
                self.reckoned.set(Some((term, at)));
                at
            }
        }
    }

    fn reckon(&self, term: u64, me: ReplicaId, voters: &[BTreeSet<ReplicaId>]) -> Option<Now<E>> {
        let taken = self.taken.borrow();
        if taken.term != term {
            return None;
        }
        let mut quorum: Option<Now<E>> = None;
        for voters in voters {
            // How many others make a majority together with the leader, if it has a vote itself.
            let others = voters.len() / 2 + 1 - usize::from(voters.contains(&me));
            if others == 0 {
                continue;
            }
            let answered = taken.by.iter().filter(|(id, _)| voters.contains(id));
            let mut times: Vec<Now<E>> = answered.map(|(_, at)| *at).collect();
            // Newest first: at the last of the majority's times all of the majority had promised.
            times.sort_unstable_by(|a, b| b.cmp(a));
            let at = *times.get(others - 1)?;
            quorum = Some(quorum.map_or(at, |quorum| quorum.min(at)));
        }
        quorum
    }
}
