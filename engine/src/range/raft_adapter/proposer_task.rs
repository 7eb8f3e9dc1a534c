//! The task of a leader's [`Proposer`](crate::range::proposer::Proposer): it makes entries of the writes
//! that wait, proposes them, and answers the writes when the entries are applied or refused.
//!
//! One for each replica of the shard, on the shard's thread.
//!
//! While the disk is short of room, entries with puts wait, so that memory is left for deletes and for orders of
//! ranges, which make room; once it is full, the puts that wait are refused. With room enough on the disk, flushes
//! make room in memory, and puts are slowed down by how far those are behind, and by nothing else.

use std::rc::Rc;
use std::time::Duration;

use openraft::errors::{ClientWriteError, ForwardReason};

use crate::env::{AsyncRuntime, Env};
use crate::error::{Error, Fatal};
use crate::fair_share::Weight;
use crate::raft::ProposalResult;
use crate::range::apply::Applied;
use crate::range::command::{self, Command, Entry, RangeOrder};
use crate::range::proposer::{ENTRIES_TOGETHER_MAX, Proposal, ProposalKind, complete_all};
use crate::range::replica::Replica;
use crate::range::{Keyspace, RaftGroup};
use crate::request::Outcome;
use crate::types::{Epoch, Timestamp};
use crate::wal::Body;

/// How long a proposer waits before it tries again after openraft's own lease ran out.
/// By time: openraft does not say when its lease is renewed.
const LEASE_RETRY: Duration = Duration::from_millis(10);
/// The pause before each entry when the tree is as far behind as it may be; shorter before that.
/// By time: it is the pace itself that is wanted.
const THROTTLE_MAX: Duration = Duration::from_millis(20);
/// From this pressure on a range that writes much more than others makes no entry, for as long as this at
/// most.
const HELD_PRESSURE: f32 = 0.6;
const HELD_MAX: Duration = Duration::from_secs(1);

/// The proposer's task: runs until the queue is closed.
///
/// # Errors
/// The group has failed, and the process must end.
pub async fn run<E: Env>(replica: Rc<Replica<E>>, raft: RaftGroup<E>) -> Result<(), Fatal> {
    let proposer = &replica.proposer;
    let len_max = replica.store.entry_len_max();
    while proposer.ready().await {
        proposer.set_alone(raft.is_alone());
        if let Some(until) = proposer.gathers_until() {
            // Writes that come after that go into the entry after this one.
            let departures = &proposer.departures;
            let departed = departures.departed();
            let may_depart = || proposer.has_gathered() || departures.departed() != departed;
            let news = departures.news.until(may_depart);
            let _ = E::Runtime::timeout_at(until.into(), news).await;
        }
        if proposer.paused.get() {
            continue;
        }
        await_tree(&replica).await;
        let waits = || replica.leading().is_some() && takes_reserve(&replica);
        replica.store.spare_reserve(waits).await;
        replica.store.room_in_log().await;
        // Checked after the waits above: another may have taken the lead meanwhile.
        if replica.leading().is_none() {
            proposer.refuse_all(&Error::NotLeader(Some(Box::new(replica.route()))));
            continue;
        }
        let is_short = replica.store.is_short_of_room();
        if is_short && replica.store.disk_full() && is_of_users(&replica) {
            // They were accepted before that was known. What they would take is kept for deletes and orders.
            proposer.refuse_puts(&Error::DiskFull);
        }
        raft.renew_lease().await?;
        propose_next(&replica, &raft, len_max).await?;
        for _ in 1..ENTRIES_TOGETHER_MAX {
            if replica.leading().is_none() || !proposer.may_follow() || takes_reserve(&replica) {
                break;
            }
            propose_next(&replica, &raft, len_max).await?;
        }
    }
    Ok(())
}

/// Whether an entry now would take memory that puts must leave. Nothing is kept while the disk has room
/// enough: an entry then costs no more than that look.
fn takes_reserve<E: Env>(replica: &Replica<E>) -> bool {
    let (store, proposer) = (&replica.store, &replica.proposer);
    // Other ranges are not counted: what they have on its way may wait for a majority.
    store.is_short_of_room()
        && !store.has_room_for_puts(proposer.admission.in_flight())
        && proposer.has_puts()
        && is_of_users(replica)
}

/// Whether the range has the rows of users. The records of the cluster are few, and orders such as splits need
/// them.
fn is_of_users<E: Env>(replica: &Replica<E>) -> bool {
    replica.with_state(|state| state.descriptor.keyspace == Keyspace::User)
}

/// Proposes an entry of the writes that wait, if there are any whose deadline has not passed.
async fn propose_next<E: Env>(
    replica: &Rc<Replica<E>>,
    raft: &RaftGroup<E>,
    len_max: usize,
) -> Result<(), Fatal> {
    let proposer = &replica.proposer;
    let mut proposals = proposer.gather(len_max);
    if proposals.is_empty() {
        return Ok(());
    }
    // Nothing more is served of the keys that a split or a freeze closes, so this is final.
    if let [only] = proposals.as_mut_slice() {
        let served = replica.timestamps.served().0;
        match &mut only.kind {
            ProposalKind::Order(RangeOrder::Split(split)) => split.served = served,
            ProposalKind::Order(RangeOrder::Freeze(freeze)) => freeze.served = served,
            _ => {}
        }
    }
    let bytes = encode(replica, &proposals)?;
    let number = proposer.depart(proposals);
    let owner = replica.clone();
    raft.propose(bytes, move |result| finished(&owner, number, result))
        .await
}

/// Waits while the tree is behind with flushes and compactions: the further it is, the longer. A range that
/// writes little beside others does not wait, and one that writes much is held back before the tree is
/// so far behind that no range may write.
async fn await_tree<E: Env>(replica: &Replica<E>) {
    let mut held = Duration::ZERO;
    loop {
        let pressure = replica.store.pressure();
        let weight = replica.proposer.admission.weight();
        if pressure <= 0.0 || weight == Weight::Light {
            return;
        }
        let pause = THROTTLE_MAX.mul_f32(pressure * pressure);
        E::Runtime::sleep(pause).await;
        held += pause;
        if weight != Weight::Heavy || pressure < HELD_PRESSURE || held >= HELD_MAX {
            return;
        }
    }
}

fn encode<E: Env>(replica: &Replica<E>, proposals: &[Proposal]) -> Result<Body, Fatal> {
    let last = replica.with_state(|state| state.last_ts);
    let first = replica.timestamps.take(last, proposals.len() as u64);
    let commands: Vec<Command<'_>> = proposals
        .iter()
        .zip(first.0..)
        .map(|(proposal, timestamp)| Command {
            timestamp,
            epoch: Epoch {
                version: proposal.version,
                conf: 0,
            },
            action: proposal.kind.action(),
        })
        .collect();
    let last = Timestamp(first.0 + proposals.len() as u64 - 1);
    let ceiling = replica.timestamps.ceiling(last);
    let entry = Entry {
        ceiling: ceiling.0,
        commands,
    };
    let len_max = proposals.iter().map(|proposal| proposal.len_max).sum();
    command::encode(&entry, len_max)
}

/// Answers the proposals of an entry; openraft calls it when the entry was applied or refused.
fn finished<E: Env>(replica: &Rc<Replica<E>>, number: u64, result: ProposalResult<Replica<E>>) {
    let proposer = &replica.proposer;
    let (proposals, is_given_up_split) = proposer.arrive(number);
    match result {
        Ok(response) => {
            if is_given_up_split && response.data == [Applied::Repropose] {
                // Nobody proposes it again.
                replica.open_again();
            }
            answer(replica, proposals, response.data);
        }
        Err(ClientWriteError::ForwardToLeader(forward)) => {
            if forward.reason == ForwardReason::LeaseExpired {
                if is_given_up_split {
                    replica.open_again();
                }
                proposer.give_back(proposals.into_iter().flatten());
                pause(replica.clone());
            } else {
                let error = Error::NotLeader(Some(Box::new(replica.route())));
                complete_all(proposals, &error);
            }
        }
        Err(_) => complete_all(
            proposals,
            &Error::unknown("the entry was overwritten or refused"),
        ),
    }
    proposer.wake();
}

fn answer<E: Env>(replica: &Replica<E>, proposals: Vec<Option<Proposal>>, applied: Vec<Applied>) {
    assert_eq!(
        proposals.len(),
        applied.len(),
        "apply gives a result for each command"
    );
    let mut again = Vec::new();
    for (proposal, applied) in proposals.into_iter().zip(applied) {
        // This one was given up: it is answered already.
        let Some(proposal) = proposal else { continue };
        match applied {
            Applied::Repropose => again.push(proposal),
            Applied::Outcome(outcome) => {
                proposal
                    .sink
                    .complete(proposal.token, as_result(replica, outcome));
            }
        }
    }
    replica.proposer.give_back(again.into_iter());
}

fn as_result<E: Env>(replica: &Replica<E>, outcome: Outcome) -> Result<Outcome, Error> {
    match outcome {
        Outcome::Moved => Err(Error::Moved(vec![replica.route()])),
        Outcome::SessionExpired => Err(Error::SessionExpired),
        Outcome::NotANumber => Err(Error::NotANumber),
        Outcome::NumberOverflow => Err(Error::NumberOverflow),
        Outcome::Done { .. }
        | Outcome::Number { .. }
        | Outcome::Numbers { .. }
        | Outcome::ConditionFailed { .. } => Ok(outcome),
    }
}

/// Proposes nothing for a moment, in which openraft's lease can be renewed.
fn pause<E: Env>(replica: Rc<Replica<E>>) {
    replica.proposer.paused.set(true);
    drop(E::Runtime::spawn(async move {
        E::Runtime::sleep(LEASE_RETRY).await;
        replica.proposer.paused.set(false);
        replica.proposer.wake();
    }));
}
