//! The proposer: a leader's queue of writes before Raft. It gathers them into entries, which the task
//! in [`crate::range::raft_adapter::proposer_task`] gives timestamps and proposes.
//!
//! Writes that arrive while an entry is in flight wait and go into the next one, because an entry costs
//! Raft the same whether it holds one command or four thousand. Only when the last entry has been on its
//! way for [`NEXT_ENTRY_AFTER`], as over long links, the next one departs beside it, up to
//! [`ENTRIES_IN_FLIGHT_MAX`]. When an entry is applied ("has arrived"), the next one waits a moment for
//! the clients that were just answered and for the entries of the shard's other ranges, so that all depart
//! together ([`Departures`]). It waits no longer than the last entry took, and not with enough bytes
//! ([`GATHERED_LEN`]). A lone writer does not wait for others. Apply answers the proposals directly, through
//! their [`WriteSink`].
//!
//! Entries are short: one is applied in one turn of the shard's thread, in which no other range is served.
//! If more waits than fits into one entry, several depart together ([`Proposer::may_follow`]), and are
//! written to the log together.
//!
//! What waits is bounded: writes for which there is no room are refused with [`Error::Overloaded`]
//! ([`write_admission`]). Orders of the range itself, such as a split, are never refused for this:
//! they are few, and may be what helps.
//!
//! When the group has no majority, all writes that wait or are in flight are answered at once
//! ([`Proposer::give_up`]); before that is known, each is answered at its deadline
//! ([`Proposer::expire`]). The fate of a write in flight is then unknown.

pub mod sink;
mod write_admission;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::error::{Error, Fate};
use crate::limits::{ENTRIES_IN_FLIGHT_MAX, ENTRY_COMMANDS_GATHERED, ENTRY_LEN_GATHERED};
use crate::mutant::{self, Mutant};
use crate::notify::Notify;
use crate::raft::TICK;
use crate::range::command::{self, Action, COMMAND_OVERHEAD, RangeOrder};
use crate::request::{Batch, RequestId};
use crate::tree::budget::WriteBudget;
use crate::tree::departures::{Departures, Gathering};
use sink::WriteSink;
use write_admission::{Size, WriteAdmission};

/// How long an entry is in flight before the next one departs beside it. Several times as long as a
/// round trip between neighbouring nodes.
const NEXT_ENTRY_AFTER: Duration = Duration::from_millis(8);
/// Longest wait for more writes to join an entry.
const GATHER_MAX: Duration = Duration::from_millis(2);
/// An entry with this many bytes waits for no more writes: its own cost is small beside theirs.
const GATHERED_LEN: usize = 256 << 10;
/// The same for a range with one replica, whose entry costs no messages. The log would be idle meanwhile.
const GATHERED_LEN_OF_ONE: usize = 32 << 10;
/// Most entries that depart together.
pub(super) const ENTRIES_TOGETHER_MAX: usize = 4;
/// An entry in flight for longer than this may miss the deadlines of its writes.
const LATE_AFTER: Duration = Duration::from_millis(20);
/// A waiting write is answered so long before its deadline: the shard's driver ([`TICK`]) looks only so
/// often.
const ANSWER_AHEAD: Duration = TICK;

/// A command that waits to be put into an entry.
pub struct Proposal {
    pub(super) kind: ProposalKind,
    pub(super) version: u32,
    /// Whether its sender named the range and the version: then it is proposed under no other.
    pub(super) is_named: bool,
    deadline: Option<BootTime>,
    pub(super) sink: Rc<dyn WriteSink>,
    pub(super) token: u64,
    /// The bytes that it takes in an entry, at most.
    pub(super) len_max: usize,
}

impl Proposal {
    /// A command that was checked under a `version` of the range, which apply checks again. It is not
    /// proposed after the deadline. The sink receives the result, with its own number `token` for it.
    pub fn new(
        kind: ProposalKind,
        version: u32,
        deadline: Option<BootTime>,
        (sink, token): (Rc<dyn WriteSink>, u64),
    ) -> Proposal {
        let len_max = kind.len_max();
        Proposal {
            kind,
            version,
            is_named: false,
            deadline,
            sink,
            token,
            len_max,
        }
    }

    /// The same, whose sender may have named the range and the version.
    pub fn named(self, is_named: bool) -> Proposal {
        Proposal { is_named, ..self }
    }

    /// What it counts for.
    fn size(&self) -> Size {
        Size {
            len_max: self.len_max,
            cost: size_of::<Proposal>() + self.len_max,
        }
    }
}

/// The commands that can be proposed.
pub enum ProposalKind {
    /// A client's write.
    Write(Batch, RequestId),
    /// An order of the range itself.
    Order(RangeOrder),
}

impl ProposalKind {
    fn len_max(&self) -> usize {
        match self {
            ProposalKind::Write(batch, _) => command::encoded_len_max(batch),
            ProposalKind::Order(RangeOrder::Split(split)) => {
                COMMAND_OVERHEAD + split.key.len() + size_of_val(&*split.replicas)
            }
            ProposalKind::Order(_) => COMMAND_OVERHEAD,
        }
    }

    /// Whether it is an order of the range itself.
    fn is_order(&self) -> bool {
        matches!(self, ProposalKind::Order(_))
    }

    /// Whether it is proposed in an entry of its own, after which nothing is proposed until that is
    /// applied.
    fn is_alone(&self) -> bool {
        matches!(self, ProposalKind::Order(order) if order.is_alone())
    }

    /// Whether it adds rows with values.
    fn is_put(&self) -> bool {
        matches!(self, ProposalKind::Write(batch, _) if !batch.only_deletes())
    }

    /// What it costs to apply it: keys that are read or written.
    fn work(&self) -> usize {
        match self {
            ProposalKind::Write(batch, _) => batch.reads() + batch.mutations.len(),
            ProposalKind::Order(_) => 1,
        }
    }

    pub(super) fn action(&self) -> Action<'_> {
        match self {
            ProposalKind::Write(batch, request_id) => Action::Write {
                request_id: *request_id,
                batch,
            },
            ProposalKind::Order(order) => Action::Order(order),
        }
    }
}

/// An entry on its way. Each place of a command holds its proposal until that is answered.
struct Flight {
    number: u64,
    /// The bytes that it counts for in the shard's budget.
    cost: usize,
    departed_at: BootTime,
    /// Whether nothing may depart before it has arrived: it is a split.
    is_alone: bool,
    proposals: Vec<Option<Proposal>>,
}

/// The queue of one range's leader.
pub struct Proposer {
    waiting: RefCell<VecDeque<Proposal>>,
    /// Whether there is room for another write.
    pub(super) admission: WriteAdmission,
    in_flight: RefCell<Vec<Flight>>,
    departed: Cell<u64>,
    /// The departures of the whole shard.
    pub(super) departures: Rc<Departures>,
    /// What the next entry waits for.
    gathering: Rc<Gathering>,
    /// An entry with this many bytes waits for no more writes.
    gathered_len: Cell<usize>,
    /// Whether an entry has arrived after the last departure.
    has_arrived: Cell<bool>,
    /// Whether nothing may be proposed for a moment.
    pub(super) paused: Cell<bool>,
    closed: Cell<bool>,
    /// Notified when the proposer may have something to do.
    pub(super) news: Notify,
}

impl Proposer {
    /// An empty queue on a shard with this budget and these departures.
    pub fn new(budget: Rc<WriteBudget>, departures: Rc<Departures>) -> Proposer {
        Proposer {
            waiting: RefCell::new(VecDeque::new()),
            admission: WriteAdmission::new(budget),
            in_flight: RefCell::new(Vec::with_capacity(ENTRIES_IN_FLIGHT_MAX)),
            departed: Cell::new(0),
            departures,
            gathering: Gathering::new(),
            gathered_len: Cell::new(GATHERED_LEN),
            has_arrived: Cell::new(false),
            paused: Cell::new(false),
            closed: Cell::new(false),
            news: Notify::default(),
        }
    }

    /// How many commands wait.
    pub fn waiting(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// How many entries are in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.borrow().len()
    }

    /// Whether nothing waits and nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight() == 0 && self.waiting.borrow().is_empty()
    }

    /// Queues a proposal. Without room for it, it is answered at once with [`Error::Overloaded`], after
    /// [`Proposer::close`] with [`Error::ShuttingDown`]. `Some(n)`: log now that the range is overloaded;
    /// `n` refusals have not been logged.
    pub fn push(&self, proposal: Proposal) -> Option<u64> {
        if self.closed.get() {
            proposal
                .sink
                .complete(proposal.token, Err(Error::ShuttingDown));
            return None;
        }
        let last_flight = self.departures.last_flight.get();
        if !proposal.kind.is_order()
            && let Err(overloaded) =
                self.admission
                    .admit(proposal.size(), self.waiting(), last_flight)
        {
            proposal.sink.complete(proposal.token, Err(overloaded));
            return self.admission.refuse(self.departures.now());
        }
        self.admission.join(proposal.size());
        self.waiting.borrow_mut().push_back(proposal);
        self.departures.written(&self.gathering);
        if self.has_enough() {
            self.departures.news.notify();
        }
        self.news.notify();
        None
    }

    /// Accepts nothing more, and refuses whatever was not proposed yet.
    pub fn close(&self) {
        self.closed.set(true);
        self.refuse_all(&Error::ShuttingDown);
        self.wake();
    }

    /// Answers everything that waits with this error.
    pub fn refuse_all(&self, error: &Error) {
        let refused = std::mem::take(&mut *self.waiting.borrow_mut());
        for proposal in refused {
            self.admission.leave(proposal.size());
            proposal.sink.complete(proposal.token, Err(error.clone()));
        }
    }

    /// Whether a write waits that adds values, and may still be proposed. Looks at all that waits.
    pub(super) fn has_puts(&self) -> bool {
        let now = self.departures.now();
        let is_late = |proposal: &Proposal| proposal.deadline.is_some_and(|until| until <= now);
        let waiting = self.waiting.borrow();
        waiting
            .iter()
            .any(|proposal| proposal.kind.is_put() && !is_late(proposal))
    }

    /// Answers the writes that wait and add values with this error.
    pub(super) fn refuse_puts(&self, error: &Error) {
        if self.has_puts() {
            let stays = |proposal: &Proposal| !proposal.kind.is_put();
            self.recheck(
                |proposal| stays(proposal).then_some(proposal.version),
                error,
            );
        }
    }

    /// Answers what is in flight: the group has stopped, so no result will come.
    pub fn abandon(&self) {
        let lost = std::mem::take(&mut *self.in_flight.borrow_mut());
        for flight in lost {
            self.admission.give_back(flight.cost);
            self.departures.lose();
            complete_all(
                flight.proposals,
                &Error::unknown("the replica was removed while the write was under way"),
            );
        }
    }

    /// Makes the proposer check again what it may do.
    pub fn wake(&self) {
        self.news.notify();
        self.departures.news.notify();
    }

    fn may_propose(&self) -> bool {
        !self.paused.get() && !self.waiting.borrow().is_empty() && self.may_depart()
    }

    /// Whether another entry may depart now.
    fn may_depart(&self) -> bool {
        let in_flight = self.in_flight.borrow();
        let last = in_flight.iter().map(|flight| flight.departed_at).max();
        let Some(last) = last else { return true };
        in_flight.len() < ENTRIES_IN_FLIGHT_MAX
            && self.departures.now() >= last + NEXT_ENTRY_AFTER
            && !in_flight.iter().any(|flight| flight.is_alone)
    }

    /// Whether another entry departs together with the last one: so much waits that it is as long as an
    /// entry may be.
    pub(super) fn may_follow(&self) -> bool {
        let in_flight = self.in_flight.borrow();
        in_flight.len() < ENTRIES_IN_FLIGHT_MAX
            && self.has_whole_entry()
            && !in_flight.iter().any(|flight| flight.is_alone)
    }

    /// Whether as much waits as one entry takes.
    fn has_whole_entry(&self) -> bool {
        self.admission.bytes_waiting() >= ENTRY_LEN_GATHERED
            || self.waiting.borrow().len() >= ENTRY_COMMANDS_GATHERED
    }

    /// Whether enough waits for an entry whose own cost is small beside that of its writes.
    fn has_enough(&self) -> bool {
        self.admission.bytes_waiting() >= self.gathered_len.get() || self.has_whole_entry()
    }

    /// Waits until an entry can be built. `false`: the queue is closed.
    pub(super) async fn ready(&self) -> bool {
        let may_go_on = || self.closed.get() || self.may_propose();
        self.news.until(may_go_on).await;
        !self.closed.get()
    }

    /// Notes whether the range has one replica.
    pub(super) fn set_alone(&self, is_alone: bool) {
        self.gathered_len.set(match is_alone {
            true => GATHERED_LEN_OF_ONE,
            false => GATHERED_LEN,
        });
    }

    /// Until when the next entry must wait for more writes, if at all.
    pub(super) fn gathers_until(&self) -> Option<BootTime> {
        let gathers = self.has_arrived.take() && !self.has_gathered();
        gathers.then(|| self.gathering.until())
    }

    /// Whether all writes that are waited for are there, or enough bytes for an entry.
    pub(super) fn has_gathered(&self) -> bool {
        self.has_enough() || self.closed.get() || self.departures.are_all_there()
    }

    /// Takes from the queue what fits into one entry of this length. Answers those past their
    /// deadline.
    pub(super) fn gather(&self, len_max: usize) -> Vec<Proposal> {
        let mut gathered = Vec::new();
        let mut len = 0;
        let len_max = len_max.min(ENTRY_LEN_GATHERED);
        let mut work = 0;
        let mut late = Vec::new();
        let mut now = None;
        let mut waiting = self.waiting.borrow_mut();
        while let Some(next) = waiting.front() {
            let next_len = next.len_max;
            let next_work = next.kind.work();
            let full = (!gathered.is_empty() && next.kind.is_alone())
                || gathered
                    .last()
                    .is_some_and(|last: &Proposal| last.kind.is_alone())
                || (!gathered.is_empty()
                    && (len + next_len > len_max || work + next_work > ENTRY_COMMANDS_GATHERED));
            if full {
                break;
            }
            let Some(next) = waiting.pop_front() else {
                break;
            };
            let too_late = next.deadline.is_some_and(|deadline| {
                deadline <= *now.get_or_insert_with(|| self.departures.now())
            }) && !mutant::is(Mutant::DeadlineIgnored);
            if too_late {
                self.admission.leave(next.size());
                late.push(next);
            } else {
                // The entry will count for it in the budget.
                self.admission.depart(next.size());
                len += next_len;
                work += next_work;
                gathered.push(next);
            }
        }
        drop(waiting);
        for proposal in late {
            proposal
                .sink
                .complete(proposal.token, Err(Error::DeadlineExceeded));
        }
        gathered
    }

    /// Notes that an entry departs; gives its number.
    pub(super) fn depart(&self, proposals: Vec<Proposal>) -> u64 {
        let number = self.departed.get();
        self.departed.set(number + 1);
        self.departures.depart(&self.gathering);
        let cost = proposals.iter().map(|proposal| proposal.size().cost).sum();
        let is_alone = matches!(proposals.as_slice(), [only] if only.kind.is_alone());
        let proposals = proposals.into_iter().map(Some).collect();
        self.in_flight.borrow_mut().push(Flight {
            number,
            cost,
            departed_at: self.departures.now(),
            is_alone,
            proposals,
        });
        number
    }

    /// Notes that an entry has arrived; gives its proposals, without those that were given up, and whether
    /// it was a split or another order of an entry of its own, and was given up.
    pub(super) fn arrive(&self, number: u64) -> (Vec<Option<Proposal>>, bool) {
        let mut in_flight = self.in_flight.borrow_mut();
        let at = in_flight.iter().position(|flight| flight.number == number);
        let Some(at) = at else {
            return (Vec::new(), false);
        };
        let flight = in_flight.swap_remove(at);
        self.admission.give_back(flight.cost);
        let now = self.departures.now();
        let took = now - flight.departed_at;
        let answered = flight.proposals.iter().flatten().count();
        let until = now + took.min(GATHER_MAX);
        self.departures.last_flight.set(took);
        self.departures.arrive(&self.gathering, answered, until);
        self.has_arrived.set(true);
        (flight.proposals, flight.is_alone && answered == 0)
    }

    /// Answers all writes: the group has no majority.
    pub fn give_up(&self) {
        self.take_out(|_| true, Error::NoQuorum);
    }

    /// Answers writes at their deadline, if an entry is late or none can depart.
    pub fn expire(&self, now: BootTime) {
        let is_late = {
            let in_flight = self.in_flight.borrow();
            let first = in_flight.iter().map(|flight| flight.departed_at).min();
            first.is_none_or(|first| now >= first + LATE_AFTER)
        };
        if !is_late || self.is_idle() || mutant::is(Mutant::DeadlineIgnored) {
            return;
        }
        let by = now + ANSWER_AHEAD;
        let is_due = |proposal: &Proposal| proposal.deadline.is_some_and(|at| at <= by);
        self.take_out(is_due, |fate| match fate {
            Fate::NotApplied => Error::DeadlineExceeded,
            Fate::Unknown => Error::unknown("the deadline passed before a majority had it"),
        });
    }

    /// Answers the due writes that wait or are in flight. Those in flight may still be applied.
    fn take_out(&self, is_due: impl Fn(&Proposal) -> bool, why: impl Fn(Fate) -> Error) {
        let mut taken = Vec::new();
        let mut waiting = self.waiting.borrow_mut();
        if waiting.iter().any(&is_due) {
            for proposal in std::mem::take(&mut *waiting) {
                if is_due(&proposal) {
                    self.admission.leave(proposal.size());
                    taken.push((proposal, Fate::NotApplied));
                } else {
                    waiting.push_back(proposal);
                }
            }
        }
        drop(waiting);
        for flight in self.in_flight.borrow_mut().iter_mut() {
            for place in &mut flight.proposals {
                let due = place.take_if(|proposal| is_due(proposal));
                taken.extend(due.map(|proposal| (proposal, Fate::Unknown)));
            }
        }
        for (proposal, fate) in taken {
            proposal.sink.complete(proposal.token, Err(why(fate)));
        }
    }

    /// Checks what waits anew, because the range has other bounds: `check` gives the version under which
    /// a command may be proposed. The others are answered with this error.
    pub(super) fn recheck(&self, check: impl Fn(&Proposal) -> Option<u32>, error: &Error) {
        let mut refused = Vec::new();
        let mut waiting = self.waiting.borrow_mut();
        for mut proposal in std::mem::take(&mut *waiting) {
            match check(&proposal) {
                Some(version) => {
                    proposal.version = version;
                    waiting.push_back(proposal);
                }
                None => {
                    self.admission.leave(proposal.size());
                    refused.push(proposal);
                }
            }
        }
        drop(waiting);
        for proposal in refused {
            proposal.sink.complete(proposal.token, Err(error.clone()));
        }
    }

    /// Puts writes that were proposed but not applied back at the head of the queue; refuses them
    /// if it was closed meanwhile.
    pub(super) fn give_back(&self, proposals: impl DoubleEndedIterator<Item = Proposal>) {
        let mut waiting = self.waiting.borrow_mut();
        for proposal in proposals.rev() {
            self.admission.join(proposal.size());
            waiting.push_front(proposal);
        }
        drop(waiting);
        if self.closed.get() {
            self.refuse_all(&Error::ShuttingDown);
        }
    }
}

/// Answers the proposals of an entry that are not answered yet.
pub(super) fn complete_all(proposals: Vec<Option<Proposal>>, error: &Error) {
    for proposal in proposals.into_iter().flatten() {
        proposal.sink.complete(proposal.token, Err(error.clone()));
    }
}

#[cfg(test)]
#[path = "proposer_tests.rs"]
mod tests;
