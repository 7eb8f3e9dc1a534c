//! The client's session: the request ids of its writes, by which a retry is applied at most once,
//! and the largest timestamp that a node has sent.
//!
//! A node refuses a timestamp that lies too far ahead of its own clock. Then one of two nodes has a
//! wrong clock, and the client cannot know which. It goes back to the time of the node that
//! refused, so that one wrong clock does not lock it out of all other nodes; see
//! [`Session::step_back`].

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rangedb_protocol::Session as RequestId;

/// The counter bits of a timestamp; the bits above are milliseconds.
const COUNTER_BITS: u32 = 16;
/// After this long without a reply the client extrapolates the cluster's time. Until then the last
/// timestamp is near enough for `first_tried`, and no node finds it ahead of its clock.
const EXTRAPOLATE_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Open {
    next: u64,
    /// Writes that may still be tried or be on their way.
    unanswered: BTreeSet<u64>,
    /// Writes whose caller has gone, with the moment from which they count as answered.
    abandoned: BTreeSet<(Instant, u64)>,
}

/// The newest timestamp from the cluster, and when it came.
#[derive(Clone, Copy, Debug)]
struct Seen {
    timestamp: u64,
    at: Instant,
}

/// One client's session.
#[derive(Debug)]
pub struct Session {
    client: u128,
    open: Mutex<Open>,
    seen: Mutex<Seen>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// A new session of a client with this id, which is random.
    pub fn new(client: u128, now: Instant) -> Session {
        Session {
            client,
            open: Mutex::new(Open {
                next: 1,
                unanswered: BTreeSet::new(),
                abandoned: BTreeSet::new(),
            }),
            seen: Mutex::new(Seen {
                timestamp: 0,
                at: now,
            }),
        }
    }

    /// Takes the timestamp of a reply.
    pub fn observe(&self, timestamp: u64, now: Instant) {
        let mut seen = lock(&self.seen);
        if timestamp >= seen.timestamp {
            *seen = Seen { timestamp, at: now };
        }
    }

    /// Goes back to an earlier timestamp, because a node whose time it is has refused this
    /// client's. The writes under way go back, too, but for those of which a try may still be under way. An
    /// earlier `first_tried` makes a write be refused sooner, and a range forget it sooner: then the
    /// older try, of which the range would think that it is a new write, could be applied as well.
    pub fn step_back(&self, timestamp: u64, now: Instant) {
        let mut seen = lock(&self.seen);
        if timestamp < seen.timestamp {
            *seen = Seen { timestamp, at: now };
        }
    }

    /// The largest timestamp received.
    pub fn token(&self) -> u64 {
        lock(&self.seen).timestamp
    }

    /// The client's estimate of the cluster's time.
    fn cluster_time(&self, now: Instant) -> u64 {
        let seen = *lock(&self.seen);
        let since = now.saturating_duration_since(seen.at);
        let since = since.saturating_sub(EXTRAPOLATE_AFTER).as_millis() as u64;
        seen.timestamp.saturating_add(since << COUNTER_BITS)
    }

    /// Gives a new write its request id.
    pub fn begin(&self, deadline: Instant, now: Instant) -> Write<'_> {
        let first_tried = self.cluster_time(now);
        let mut open = lock(&self.open);
        let sequence = open.next;
        open.next += 1;
        open.unanswered.insert(sequence);
        Write {
            session: self,
            sequence,
            first_tried,
            deadline,
            answered: false,
        }
    }

    fn lowest_unanswered(&self, now: Instant) -> u64 {
        let mut open = lock(&self.open);
        while let Some(&(until, sequence)) = open.abandoned.first() {
            if now < until {
                break;
            }
            open.abandoned.pop_first();
            open.unanswered.remove(&sequence);
        }
        open.unanswered.first().copied().unwrap_or(open.next)
    }
}

/// A write with its request id. Until it is answered or its deadline has passed, no later write
/// lets the servers forget it. So its caller may go while the write goes on.
#[derive(Debug)]
pub struct Write<'a> {
    session: &'a Session,
    sequence: u64,
    /// Never raised: see [`Session::step_back`].
    first_tried: u64,
    deadline: Instant,
    answered: bool,
}

impl Write<'_> {
    /// The request id to send with the next try. `in_doubt` says that an earlier one may have been received.
    pub fn request_id(&mut self, now: Instant, in_doubt: bool) -> RequestId {
        if !in_doubt {
            self.first_tried = self.first_tried.min(self.session.cluster_time(now));
        }
        RequestId {
            client: self.session.client,
            sequence: self.sequence,
            lowest_unanswered: self.session.lowest_unanswered(now),
            first_tried: self.first_tried,
        }
    }

    /// Ends the write: its outcome is known, and it is not tried again.
    pub fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        let mut open = lock(&self.session.open);
        if self.answered {
            open.unanswered.remove(&self.sequence);
        } else {
            open.abandoned.insert((self.deadline, self.sequence));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn session() -> (Session, Instant) {
        let now = Instant::now();
        (Session::new(7, now), now)
    }

    #[test]
    fn the_lowest_unanswered_waits_for_answers() {
        let (session, now) = session();
        let later = now + MINUTE;
        let mut first = session.begin(later, now);
        let mut second = session.begin(later, now);
        let request_ids = (first.request_id(now, false), second.request_id(now, false));
        assert_eq!((request_ids.0.sequence, request_ids.1.sequence), (1, 2));
        assert_eq!(second.request_id(now, false).lowest_unanswered, 1);
        first.answered();
        assert_eq!(second.request_id(now, false).lowest_unanswered, 2);
        second.answered();
        assert_eq!(
            session
                .begin(later, now)
                .request_id(now, false)
                .lowest_unanswered,
            3
        );
    }

    #[test]
    fn an_abandoned_write_is_kept_until_its_deadline() {
        let (session, now) = session();
        let later = now + MINUTE;
        drop(session.begin(later, now));
        let mut next = session.begin(later + MINUTE, now);
        assert_eq!(next.request_id(now, false).lowest_unanswered, 1);
        assert_eq!(next.request_id(later, false).lowest_unanswered, 2);
    }

    #[test]
    fn time_goes_on_from_what_was_seen() {
        let (session, now) = session();
        session.observe(5_000 << COUNTER_BITS, now);
        session.observe(4_000 << COUNTER_BITS, now);
        assert_eq!(session.token(), 5_000 << COUNTER_BITS);
        let first_tried = |now| session.begin(now, now).request_id(now, false).first_tried;
        assert_eq!(first_tried(now + MINUTE), 5_000 << COUNTER_BITS);
        let later = now + MINUTE + Duration::from_millis(7);
        assert_eq!(first_tried(later), 5_007 << COUNTER_BITS);
    }

    #[test]
    fn a_time_that_is_refused_is_given_up_and_a_first_try_never_moves_forward() {
        let (session, now) = session();
        session.observe(9_000 << COUNTER_BITS, now);
        let mut write = session.begin(now, now);
        assert_eq!(
            write.request_id(now, false).first_tried,
            9_000 << COUNTER_BITS
        );
        session.step_back(4_000 << COUNTER_BITS, now);
        assert_eq!(session.token(), 4_000 << COUNTER_BITS);
        assert_eq!(
            write.request_id(now, false).first_tried,
            4_000 << COUNTER_BITS
        );
        session.observe(9_500 << COUNTER_BITS, now);
        assert_eq!(session.token(), 9_500 << COUNTER_BITS);
        assert_eq!(
            write.request_id(now, false).first_tried,
            4_000 << COUNTER_BITS
        );
        // An earlier one neither, once a try may have been received.
        session.step_back(2_000 << COUNTER_BITS, now);
        assert_eq!(
            write.request_id(now, true).first_tried,
            4_000 << COUNTER_BITS
        );
        assert_eq!(
            write.request_id(now, false).first_tried,
            2_000 << COUNTER_BITS
        );
        session.observe(9_500 << COUNTER_BITS, now);
        // A later time is not taken.
        session.step_back(10_000 << COUNTER_BITS, now);
        assert_eq!(session.token(), 9_500 << COUNTER_BITS);
    }
}
