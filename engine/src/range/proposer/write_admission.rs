//! Write admission: where a leader refuses a write because too much waits already
//! ([`Error::Overloaded`]).
//!
//! The queue of a range is bounded by itself, by the number of its writes and by their bytes. The writes
//! of all ranges of a shard are bounded together by the shard's [`WriteBudget`], which the ranges share
//! fairly ([`crate::fair_share`]): a range that holds more than its share is refused, and the others
//! go on. The [proposer](crate::range::proposer) asks here before it queues a write. It does not ask for orders
//! of the range itself.
//!
//! Other requests are bounded elsewhere: scans and waits for a leader by the gateway's admission, reads
//! that need the disk by [`crate::tree`]. Lives on the shard's thread.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::error::Error;
use crate::fair_share::Weight;
use crate::limits::{
    ENTRY_COMMANDS_GATHERED, ENTRY_LEN_GATHERED, PROPOSAL_BYTES_WAITING_MAX, PROPOSALS_WAITING_MAX,
};
use crate::line_limit::LineLimit;
use crate::tree::budget::{WriteBudget, WriteShare};

/// The shortest and the longest time after which a client that found no room should try again.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(10);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(1);
/// At most one log line in this time says that a range is overloaded.
const OVERLOAD_LINES_INTERVAL: Duration = Duration::from_mins(1);

/// What a command counts for, in bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::range) struct Size {
    /// What it takes in an entry, at most. It counts for the range's queue.
    pub len_max: usize,
    /// What it takes in memory. It counts for the shard's budget.
    pub cost: usize,
}

/// The admission of one range's writes.
pub(in crate::range) struct WriteAdmission {
    /// Bytes of the commands in the range's queue.
    bytes_waiting: Cell<usize>,
    /// What this range uses of the shard's budget, for writes that wait or are in flight.
    share: WriteShare,
    /// The limit on log lines which say that the range is overloaded.
    overload_lines: LineLimit,
}

impl WriteAdmission {
    /// The admission of a range that has no writes yet, on a shard with this budget.
    pub fn new(budget: Rc<WriteBudget>) -> WriteAdmission {
        WriteAdmission {
            bytes_waiting: Cell::new(0),
            share: WriteShare::of(budget),
            overload_lines: LineLimit::new(1, OVERLOAD_LINES_INTERVAL),
        }
    }

    /// Checks that there is room for another write beside the `waiting` ones in the range's queue. The
    /// shard's last entry took `last_flight`.
    ///
    /// # Errors
    /// [`Error::Overloaded`]: the range's queue is full, or the shard is, and the range has its share.
    pub fn admit(&self, size: Size, waiting: usize, last_flight: Duration) -> Result<(), Error> {
        let reason = if waiting >= PROPOSALS_WAITING_MAX
            || self.bytes_waiting.get() + size.len_max > PROPOSAL_BYTES_WAITING_MAX
        {
            "the range's queue of writes is full"
        } else if !self.share.allows(size.cost) {
            "the shard is full, and the range has its share of the writes that wait"
        } else {
            return Ok(());
        };
        let retry_after_ms = self.retry_after_ms(waiting, last_flight);
        Err(Error::overloaded(reason, retry_after_ms))
    }

    /// When a client that found no room should try again: about when what waits now will have been
    /// written, reckoned from how long the shard's last entry took.
    fn retry_after_ms(&self, waiting: usize, last_flight: Duration) -> u32 {
        let by_number = waiting / ENTRY_COMMANDS_GATHERED;
        let by_len = self.bytes_waiting.get() / ENTRY_LEN_GATHERED;
        let entries = by_number.max(by_len) as u32;
        let wait = last_flight.saturating_mul(entries);
        wait.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX).as_millis() as u32
    }

    /// Counts a write that was refused. `Some(n)`: log now that the range is overloaded; `n` refusals have
    /// not been logged.
    pub fn refuse(&self, now: BootTime) -> Option<u64> {
        self.share.refuse();
        self.overload_lines.pass(now)
    }

    /// Counts a command that joins the queue.
    pub fn join(&self, size: Size) {
        self.bytes_waiting
            .set(self.bytes_waiting.get() + size.len_max);
        self.share.take(size.cost);
    }

    /// Counts a command that leaves the queue with an entry. The entry goes on counting for its cost.
    pub fn depart(&self, size: Size) {
        self.leave_queue(size);
        self.share.depart(size.cost);
    }

    fn leave_queue(&self, size: Size) {
        self.bytes_waiting
            .set(self.bytes_waiting.get() - size.len_max);
    }

    /// Counts a command that leaves the queue without being proposed.
    pub fn leave(&self, size: Size) {
        self.leave_queue(size);
        self.share.give_back(size.cost);
    }

    /// Counts the cost of an entry that is no longer on its way as free.
    pub fn give_back(&self, cost: usize) {
        self.share.arrive(cost);
    }

    /// Bytes of the commands in the range's queue.
    pub fn bytes_waiting(&self) -> usize {
        self.bytes_waiting.get()
    }

    /// Bytes of the entries on their way.
    pub fn in_flight(&self) -> usize {
        self.share.in_flight()
    }

    /// How much memory the range's writes use beside those of the other ranges.
    pub fn weight(&self) -> Weight {
        self.share.weight()
    }
}
