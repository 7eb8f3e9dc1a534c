//! The proposer's queue alone: what it takes, what goes into an entry, and who is answered when.

use super::*;
use crate::boot_time::BootTime;
use crate::boot_time::test_clock;
use crate::limits::{BATCH_LEN_MAX, SHARD_WRITES_LEN_MAX};
use crate::request::Outcome;
use crate::types::{Blob, ClientId, Timestamp};

const VERSION: u32 = 1;
/// Longer than a test takes.
const HOUR: Duration = Duration::from_hours(1);

/// Keeps the results by token.
#[derive(Default)]
struct Results(RefCell<Vec<(u64, Result<Outcome, Error>)>>);

impl WriteSink for Results {
    fn complete(&self, token: u64, result: Result<Outcome, Error>) {
        self.0.borrow_mut().push((token, result));
    }
}

struct Queue {
    proposer: Proposer,
    budget: Rc<WriteBudget>,
    results: Rc<Results>,
}

impl Queue {
    fn new() -> Queue {
        Queue::beside(Rc::default())
    }

    /// The queue of a range on a shard with this budget.
    fn beside(budget: Rc<WriteBudget>) -> Queue {
        Queue {
            proposer: Proposer::new(budget.clone(), Rc::new(Departures::new(test_clock::now))),
            budget,
            results: Rc::default(),
        }
    }

    fn proposal(&self, token: u64, batch: Batch, deadline: Option<BootTime>) -> Proposal {
        let request_id = RequestId {
            client: ClientId(1),
            sequence: token,
            lowest_unanswered: 1,
            first_tried: Timestamp(1),
        };
        let kind = ProposalKind::Write(batch, request_id);
        Proposal::new(kind, VERSION, deadline, (self.results.clone(), token))
    }

    fn put(&self, token: u64, value_len: usize, deadline: Option<BootTime>) {
        let value = Blob::from(vec![b'v'; value_len]);
        let batch = Batch::put(Blob::from_static(b"key"), value);
        self.proposer.push(self.proposal(token, batch, deadline));
    }

    /// The tokens that were answered since the last call, and how.
    fn answered(&self) -> Vec<(u64, Result<Outcome, Error>)> {
        self.results.0.take()
    }

    fn tokens(gathered: &[Proposal]) -> Vec<u64> {
        gathered.iter().map(|proposal| proposal.token).collect()
    }

    /// Sends everything that waits off in one entry; gives its number.
    fn depart(&self) -> u64 {
        self.proposer.depart(self.proposer.gather(usize::MAX))
    }
}

#[test]
fn an_entry_takes_writes_in_order_up_to_its_length() {
    let queue = Queue::new();
    (1..=3).for_each(|token| queue.put(token, 1000, None));
    let one = COMMAND_OVERHEAD + 1100;
    let first = queue.proposer.gather(2 * one);
    assert_eq!(Queue::tokens(&first), [1, 2]);
    // A write that is longer than an entry should be goes alone.
    assert_eq!(Queue::tokens(&queue.proposer.gather(10)), [3]);
    assert!(queue.proposer.gather(10).is_empty());
}

#[test]
fn an_entry_reads_a_bounded_number_of_keys() {
    let queue = Queue::new();
    for token in 0..=(ENTRY_COMMANDS_GATHERED / 2) as u64 {
        let batch = Batch::delete(Blob::from_static(b"key"));
        queue.proposer.push(queue.proposal(token, batch, None));
    }
    assert_eq!(
        queue.proposer.gather(usize::MAX).len(),
        ENTRY_COMMANDS_GATHERED / 2
    );
    assert_eq!(queue.proposer.gather(usize::MAX).len(), 1);
}

#[test]
fn what_is_past_its_deadline_is_not_proposed() {
    let queue = Queue::new();
    let now = test_clock::now();
    queue.put(1, 1, Some(now));
    queue.put(2, 1, Some(now + HOUR));
    assert_eq!(Queue::tokens(&queue.proposer.gather(usize::MAX)), [2]);
    assert_eq!(queue.answered(), [(1, Err(Error::DeadlineExceeded))]);
}

#[test]
fn a_full_queue_refuses_and_gives_everything_back() {
    let queue = Queue::new();
    let mut token = 0;
    while queue.answered().is_empty() {
        token += 1;
        queue.put(token, BATCH_LEN_MAX / 4, None);
    }
    let taken = queue.proposer.waiting() as u64;
    assert_eq!(taken, token - 1, "the last one was refused");
    queue.proposer.close();
    let closed = |token| (token, Err(Error::ShuttingDown));
    assert_eq!(
        queue.answered(),
        (1..=taken).map(closed).collect::<Vec<_>>()
    );
    queue.put(99, 1, None);
    assert_eq!(queue.answered(), [closed(99)]);
    assert_eq!(queue.budget.used(), 0);
}

/// Puts until one is refused; gives how many were taken.
fn flood(queue: &Queue, value_len: usize) -> usize {
    let before = queue.proposer.waiting();
    while queue.answered().is_empty() {
        queue.put(1, value_len, None);
    }
    queue.proposer.waiting() - before
}

#[test]
fn a_range_that_fills_its_shard_is_refused_and_another_is_not() {
    let flooded = Queue::new();
    let budget = flooded.budget.clone();
    // What waits is bounded; what is in flight, too, by the number and length of entries.
    while flood(&flooded, BATCH_LEN_MAX / 4) > 0 {
        flooded.depart();
    }
    assert!(
        budget.used() > SHARD_WRITES_LEN_MAX / 2 - BATCH_LEN_MAX,
        "{}",
        budget.used()
    );
    let refused = budget.refused();
    assert!(refused > 0);
    let other = Queue::beside(budget.clone());
    for token in 1..=4 {
        other.put(token, BATCH_LEN_MAX / 4, None);
    }
    assert!(other.answered().is_empty(), "it is below its share");
    assert_eq!(budget.refused(), refused);
    flooded.put(9, 1, None);
    let [(9, Err(Error::Overloaded { retry_after_ms, .. }))] = &*flooded.answered() else {
        panic!("it has more than its share");
    };
    assert!(*retry_after_ms >= 10);
    // After it has drained, it goes on.
    flooded.proposer.abandon();
    flooded.proposer.refuse_all(&Error::ShuttingDown);
    flooded.answered();
    flooded.put(10, 1, None);
    assert!(flooded.answered().is_empty());
}

#[test]
fn orders_of_a_range_are_not_refused_while_it_is_overloaded_and_one_line_says_that_it_is() {
    let queue = Queue::new();
    let write = |token| {
        let batch = Batch::put(
            Blob::from_static(b"key"),
            vec![b'v'; BATCH_LEN_MAX / 4].into(),
        );
        queue.proposer.push(queue.proposal(token, batch, None))
    };
    let mut lines = (1..100).filter_map(write);
    assert_eq!(lines.next(), Some(0), "the first refusal is told");
    assert_eq!(lines.next(), None, "and no other for a minute");
    queue.answered();
    let order = ProposalKind::Order(RangeOrder::SetGcThreshold { threshold: 1 });
    let sink = queue.results.clone();
    let order = Proposal::new(order, VERSION, None, (sink, 100));
    assert_eq!(queue.proposer.push(order), None);
    assert!(queue.answered().is_empty(), "it waits");
}

#[test]
fn where_more_waits_than_one_entry_takes_several_depart_together() {
    let queue = Queue::new();
    for token in 0..(2 * ENTRY_COMMANDS_GATHERED as u64 + 1) {
        queue.put(token, 1, None);
    }
    for _ in 0..2 {
        assert!(queue.proposer.may_follow());
        let entry = queue.proposer.gather(usize::MAX);
        assert_eq!(entry.len(), ENTRY_COMMANDS_GATHERED);
        queue.proposer.depart(entry);
    }
    assert!(
        !queue.proposer.may_follow(),
        "what is left waits for others"
    );
    assert!(!queue.proposer.may_depart());
    assert_eq!(queue.proposer.waiting(), 1);
}

#[test]
fn without_a_majority_what_waits_is_not_applied_and_what_is_in_flight_is_unknown() {
    let queue = Queue::new();
    queue.put(1, 1, None);
    let number = queue.depart();
    queue.put(2, 1, None);
    queue.proposer.give_up();
    let answered = queue.answered();
    let no_quorum = |token, fate| (token, Err(Error::NoQuorum(fate)));
    let wanted = [no_quorum(2, Fate::NotApplied), no_quorum(1, Fate::Unknown)];
    assert_eq!(answered, wanted);
    // The entry may still be applied: nobody is answered twice.
    assert!(queue.proposer.arrive(number).0.iter().all(Option::is_none));
    assert_eq!(queue.budget.used(), 0);
    assert!(queue.proposer.is_idle());
}

#[test]
fn what_has_no_majority_is_told_so_without_a_deadline_too() {
    let queue = Queue::new();
    let now = test_clock::now();
    queue.put(1, 1, Some(now + Duration::from_millis(10)));
    queue.put(2, 1, Some(now + Duration::from_secs(5)));
    queue.put(3, 1, None);
    assert!(queue.budget.used() > 0);
    // Not known yet: what is at its deadline is told.
    queue.proposer.expire(now);
    assert_eq!(queue.answered(), [(1, Err(Error::DeadlineExceeded))]);
    queue.proposer.give_up();
    let no_quorum = |token| (token, Err(Error::NoQuorum(Fate::NotApplied)));
    assert_eq!(queue.answered(), [no_quorum(2), no_quorum(3)]);
    assert!(queue.proposer.is_idle());
    assert_eq!(queue.budget.used(), 0);
}

#[test]
fn what_comes_back_to_a_closed_proposer_is_refused() {
    let queue = Queue::new();
    let batch = Batch::put(Blob::from_static(b"key"), Blob::new());
    let proposal = queue.proposal(1, batch, None);
    queue.proposer.close();
    queue.proposer.give_back([proposal].into_iter());
    let answered = queue.answered();
    let [(1, Err(error))] = &*answered else {
        panic!("{answered:?}");
    };
    assert_eq!(error.fate(), Fate::NotApplied);
    assert!(queue.proposer.is_idle());
}

#[test]
fn deadlines_are_kept_while_no_entry_can_depart() {
    let queue = Queue::new();
    let now = test_clock::now();
    queue.put(1, 1, Some(now + Duration::from_millis(1)));
    queue.put(2, 1, Some(now + HOUR));
    queue.proposer.expire(now);
    assert_eq!(queue.answered(), [(1, Err(Error::DeadlineExceeded))]);
    // One that has just departed may arrive in time.
    let number = queue.depart();
    queue.proposer.expire(test_clock::now());
    assert!(queue.answered().is_empty());
    queue.proposer.expire(now + HOUR);
    assert!(matches!(&*queue.answered(), [(2, Err(Error::Unknown(_)))]));
    assert_eq!(queue.proposer.arrive(number).0.len(), 1);
}

#[test]
fn the_next_entry_waits_for_as_many_as_were_answered() {
    let queue = Queue::new();
    assert!(queue.proposer.gathers_until().is_none());
    (1..=3).for_each(|token| queue.put(token, 1, None));
    let number = queue.depart();
    assert!(!queue.proposer.may_depart(), "one is in flight");
    queue.put(4, 1, None);
    test_clock::advance(GATHER_MAX);
    assert_eq!(queue.proposer.arrive(number).0.len(), 3);
    (5..=6).for_each(|token| queue.put(token, 1, None));
    assert_eq!(queue.proposer.gathering.missing.get(), 1);
    queue.put(7, 1, None);
    assert_eq!(queue.proposer.gathering.missing.get(), 0);
    assert!(queue.proposer.has_gathered(), "they are there");
}

#[test]
fn enough_bytes_are_not_waited_with() {
    let queue = Queue::new();
    (1..=4).for_each(|token| queue.put(token, 1, None));
    let number = queue.depart();
    test_clock::advance(GATHER_MAX);
    queue.proposer.arrive(number);
    queue.put(5, GATHERED_LEN_OF_ONE, None);
    assert!(!queue.proposer.has_gathered(), "three are missing");
    queue.proposer.set_alone(true);
    assert!(queue.proposer.has_gathered());
    queue.proposer.set_alone(false);
    assert!(!queue.proposer.has_gathered());
    queue.put(6, GATHERED_LEN, None);
    assert!(queue.proposer.has_gathered(), "two are missing");
}

#[test]
fn clients_that_do_not_write_again_are_waited_for_no_longer_than_the_last_entry_took() {
    let queue = Queue::new();
    (1..=3).for_each(|token| queue.put(token, 1, None));
    let number = queue.depart();
    test_clock::advance(GATHER_MAX / 2);
    queue.proposer.arrive(number);
    queue.put(4, 1, None);
    assert!(!queue.proposer.has_gathered(), "two are missing");
    let until = queue.proposer.gathers_until();
    assert_eq!(until, Some(test_clock::now() + GATHER_MAX / 2));
    test_clock::advance(GATHER_MAX / 2 - Duration::from_nanos(1));
    assert!(!queue.proposer.has_gathered());
    test_clock::advance(Duration::from_nanos(1));
    assert!(queue.proposer.has_gathered());
}

#[test]
fn a_further_entry_departs_only_when_the_last_is_long_on_its_way() {
    let queue = Queue::new();
    (1..=2).for_each(|token| {
        queue.put(token, 1, None);
        queue.depart();
        assert!(!queue.proposer.may_depart(), "it has just departed");
        test_clock::advance(NEXT_ENTRY_AFTER - Duration::from_nanos(1));
        assert!(!queue.proposer.may_depart());
        test_clock::advance(Duration::from_nanos(1));
        assert!(queue.proposer.may_depart());
    });
}
