//! Until when a leader may read alone: reckoned from when it sent what others have answered.
//!
//! Who takes an append promises to elect nobody for a lease from then on, which is after the append
//! was sent. So the leader may rely on the time at which it sent the last append that a majority has
//! answered. openraft reckons this, too, but 0.10.0-alpha.37 takes the answer to an append for one to
//! a later empty append that ends at the same entry, with that one's time
//! (`InflightAppendQueue::drain_acked`): a lease that is too long is a stale read. Its word counts for
//! nothing here, neither for leases nor for reads without one.
//!
//! The voters are those openraft knows by now. They may change between that and the use; by one step
//! of a joint change at most, since the next needs answers, and each answer has it reckoned anew: any
//! two neighbouring memberships have a voter in common in all their majorities.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use crate::env::{Env, Now};
use crate::types::ReplicaId;

/// What the others have answered to a leader.
pub(super) struct Lease<E: Env> {
    /// The leader's term, and when the last append was sent that each other replica took.
    taken: RefCell<Taken<E>>,
    /// What [`Lease::quorum_at`] gave, until something new is taken.
    reckoned: Cell<Option<Reckoned<E>>>,
}

struct Taken<E: Env> {
    term: u64,
    by: Vec<(ReplicaId, Now<E>)>,
}

/// In this term, this.
type Reckoned<E> = (u64, Option<Now<E>>);

impl<E: Env> Lease<E> {
    /// Nobody has answered.
    pub fn new() -> Lease<E> {
        Lease {
            taken: RefCell::new(Taken {
                term: 0,
                by: Vec::new(),
            }),
            reckoned: Cell::new(None),
        }
    }

    /// A replica has taken an append of the leader of a term, which was sent at `sent`.
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

    /// Up to when a majority of each set of voters had elected nobody but `me`, the leader of this
    /// term. `None`: not yet, or there are no others.
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
            let others = voters.len() / 2 + 1 - usize::from(voters.contains(&me));
            if others == 0 {
                continue;
            }
            let answered = taken.by.iter().filter(|(id, _)| voters.contains(id));
            let mut times: Vec<Now<E>> = answered.map(|(_, at)| *at).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            let at = *times.get(others - 1)?;
            quorum = Some(quorum.map_or(at, |quorum| quorum.min(at)));
        }
        quorum
    }
}
