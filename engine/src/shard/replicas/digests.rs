//! Replicas compare what they hold: after a minute without writes to a range, and under load once a
//! day.
//!
//! The leader of a range lets all replicas make a [`Digest`] of the same state, and asks each voter
//! for its digest. A replica that differs from a majority holds rows that nobody wrote: it must
//! remove itself, and the cluster's manager gives the range another one. If the voters differ and
//! no majority agrees, no one can know which are right, and the range serves nothing more. Either
//! happens only if a second digest, made at once, confirms the first. Both are logged as errors and
//! counted.
//!
//! A shard reads rows for one digest at a time, off its thread and at a bounded rate, and compares
//! one of the ranges that it leads at a time. The thread that reads them may wait for the disk; it has other
//! work too, such as making log segments, so it reads in pieces of a few reads each.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

use openraft::async_runtime::{Oneshot, OneshotSender};

use crate::boot_time::BootTime;
use crate::cluster::{ClusterRequest, ClusterResponse};
use crate::env::{AsyncRuntime, Env};
use crate::error::Fatal;
use crate::lsm::{LsmError, keys};
use crate::raft;
use crate::range::command::RangeOrder;
use crate::range::digest::{Digest, Rows};
use crate::range::proposer::sink::Once;
use crate::range::proposer::{Proposal, ProposalKind};
use crate::range::replica::Replica;
use crate::shard::{RangeHandle, ShardInner};
use crate::types::{Location, RangeId, ReplicaId, Timestamp};
use crate::wal::Group;
use crate::words::listed;

/// How many bytes of rows are read in one go.
const PIECE_LEN: usize = 256 << 10;
/// How often voters are asked for a digest that they are making.
/// By time: they are on other shards.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// Time limit of one such request.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How much longer than the leader the other voters may take.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Pause before the flusher is asked again to take the active memtable.
/// By time: writes, which wait for the same room by an event, go first.
const FLUSH_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// If not all voters could be compared, a range is compared again after this many times the time of
/// rest.
const AGAIN_AFTER_RESTS: u32 = 10;
/// How long another replica has to take the lead, before this one, which differs, is removed.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(1);

/// When replicas compare their digests, and how fast they read for them.
#[derive(Clone, Copy, Debug)]
pub struct DigestOptions {
    /// A range without writes for this long is at rest, and is compared.
    pub rest: Duration,
    /// A range that is never at rest is compared this often.
    pub every: Duration,
    /// How many bytes of rows a shard reads per second.
    pub bytes_per_second: u64,
}

impl Default for DigestOptions {
    fn default() -> DigestOptions {
        DigestOptions {
            rest: Duration::from_mins(1),
            every: Duration::from_hours(24),
            bytes_per_second: 16 << 20,
        }
    }
}

/// The results of comparing, since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DigestStats {
    /// How often ranges led here were compared.
    pub compared: u64,
    /// How many replicas were found to differ.
    pub different: u64,
    /// How many bytes of rows were read.
    pub bytes: u64,
}

/// The state of a shard's comparisons.
pub(in crate::shard) struct Digests {
    options: DigestOptions,
    /// For each range led here: when it was last compared (or first seen), and its last write then.
    known: RefCell<BTreeMap<RangeId, (BootTime, Timestamp)>>,
    /// Whether rows are being read.
    reads: Cell<bool>,
    /// Whether a range is being compared.
    compares: Cell<bool>,
    stats: Cell<DigestStats>,
}

impl Digests {
    /// Starts without any comparison.
    pub fn new(options: DigestOptions) -> Digests {
        Digests {
            options,
            known: RefCell::default(),
            reads: Cell::new(false),
            compares: Cell::new(false),
            stats: Cell::default(),
        }
    }

    /// The results of comparing.
    pub fn stats(&self) -> DigestStats {
        self.stats.get()
    }

    fn count(&self, count: impl FnOnce(&mut DigestStats)) {
        let mut stats = self.stats.get();
        count(&mut stats);
        self.stats.set(stats);
    }

    /// Notes that a range was compared, as of this write; `None` if not all voters were there.
    fn compared<E: Env>(&self, replica: &Replica<E>, write: Option<Timestamp>) {
        let range = replica.group.range;
        let now = E::now();
        let next = match write {
            Some(write) => (now, write),
            // Again, when the voters that were away may be back.
            None => (now + self.options.rest * AGAIN_AFTER_RESTS, Timestamp::ZERO),
        };
        self.known.borrow_mut().insert(range, next);
    }

    /// Whether a range that is led here must be compared now.
    fn is_due<E: Env>(&self, replica: &Replica<E>, now: BootTime) -> bool {
        let mut known = self.known.borrow_mut();
        let first = (now, Timestamp::ZERO);
        let (at, write) = *known.entry(replica.group.range).or_insert(first);
        let last = replica.last_write();
        let rest_ms = self.options.rest.as_millis() as u64;
        let is_at_rest = last.plus_ms(rest_ms) <= replica.timestamps.now();
        let is_new = last > write && now >= at + self.options.rest;
        (is_at_rest && is_new) || now >= at + self.options.every
    }
}

/// What the voters' digests show.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Those that are known are the same, or cannot be compared.
    Alike,
    /// These replicas differ from a majority.
    Differ(Vec<ReplicaId>),
    /// They differ, and no majority agrees.
    Undecided,
}

/// Judges the digests of all voters; some may be unknown.
fn judge(digests: &[(ReplicaId, Option<Digest>)]) -> Verdict {
    let known = || {
        digests
            .iter()
            .filter_map(|(id, digest)| digest.map(|d| (*id, d)))
    };
    let count = |digest: Digest| known().filter(|(_, other)| *other == digest).count();
    let most = known().max_by_key(|(_, digest)| count(*digest));
    let Some((_, most)) = most else {
        return Verdict::Alike;
    };
    let comparable = |digest: &Digest| digest.threshold == most.threshold;
    let differ = known().filter(|(_, digest)| comparable(digest) && *digest != most);
    let differ: Vec<ReplicaId> = differ.map(|(id, _)| id).collect();
    if differ.is_empty() {
        Verdict::Alike
    } else if count(most) * 2 > digests.len() {
        Verdict::Differ(differ)
    } else {
        Verdict::Undecided
    }
}

impl<E: Env> ShardInner<E> {
    /// Begins to read and to compare what is due.
    pub(in crate::shard) fn look_after_digests(self: &Rc<Self>) {
        if self.closing.get() {
            return;
        }
        let asked = || {
            let mut replicas = self.ranges.replicas().into_iter();
            replicas.find_map(|replica| Some((replica.begin_digest()?.number, replica)))
        };
        if !self.digests.reads.get()
            && let Some((number, replica)) = asked()
        {
            self.digests.reads.set(true);
            let inner = self.clone();
            drop(E::Runtime::spawn(async move {
                if let Err(fatal) = inner.read_rows(&replica, number).await {
                    inner.store.fail(fatal);
                }
                inner.digests.reads.set(false);
            }));
        }
        if self.digests.compares.get() {
            return;
        }
        let now = E::now();
        let is_due = |RangeHandle { replica, raft }: &RangeHandle<E>| {
            let is_led = replica.leading().is_some() && !raft.is_alone() && !raft.is_changing();
            is_led && !replica.is_halted() && self.digests.is_due(replica, now)
        };
        if let Some((replica, raft)) = self.ranges.groups_that(is_due).into_iter().next() {
            self.digests.compares.set(true);
            let inner = self.clone();
            drop(E::Runtime::spawn(async move {
                // A write during the comparison makes another one due.
                let write = replica.last_write();
                let running = RangeHandle { replica, raft };
                match inner.compare(&running).await {
                    Ok(whole) => inner
                        .digests
                        .compared(&running.replica, whole.then_some(write)),
                    Err(fatal) => inner.store.fail(fatal),
                }
                inner.digests.compares.set(false);
            }));
        }
    }

    /// Reads the rows for the digest that a replica was asked for.
    async fn read_rows(&self, replica: &Replica<E>, number: u64) -> Result<(), Fatal> {
        let wanted = || replica.is_digesting(number) && !self.closing.get();
        // The digest reads frozen memtables and tables only, so everything it covers must be
        // frozen.
        while wanted() && !self.store.freeze_all()? {
            E::Runtime::sleep(FLUSH_RETRY_INTERVAL).await;
        }
        let Some(digesting) = replica.digesting().filter(|_| wanted()) else {
            return Ok(());
        };
        let mut rows = Rows::new(digesting.at, digesting.threshold);
        let mut left: VecDeque<_> = replica.intervals().into();
        let (mut from, mut end) = (Vec::new(), Vec::new());
        let mut begin_next = |from: &mut Vec<u8>, end: &mut Vec<u8>| {
            let next = left.pop_front();
            if let Some((data_id, keys)) = &next {
                keys::users_of(*data_id, keys.interval(), from, end);
            }
            next.is_some()
        };
        begin_next(&mut from, &mut end);
        while wanted() {
            let begun = E::now();
            let bounds = (
                Bound::Included(from.as_slice()),
                Bound::Excluded(end.as_slice()),
            );
            let part = self.store.part(bounds);
            let (first, last) = (from.clone(), end.clone());
            let read = E::beside(move || {
                let bounds = (
                    Bound::Included(first.as_slice()),
                    Bound::Excluded(last.as_slice()),
                );
                let read = rows.read(part, bounds, PIECE_LEN);
                (rows, read)
            });
            let Ok((read_on, read)) = read.await else {
                replica.give_up_digest();
                return Ok(());
            };
            rows = read_on;
            let (len, next) = match read {
                Ok(read) => read,
                Err(error @ LsmError::Unreadable { .. }) => {
                    replica.found_unreadable(&error);
                    replica.give_up_digest();
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            self.digests.count(|stats| stats.bytes += len as u64);
            match next {
                Some(next) => from = next,
                None if begin_next(&mut from, &mut end) => {}
                None => {
                    replica.end_digest(number, digesting.end(&rows));
                    return Ok(());
                }
            }
            let per_second = self.digests.options.bytes_per_second.max(1);
            let time = Duration::from_secs_f64(len as f64 / per_second as f64);
            E::Runtime::sleep(time.saturating_sub(E::now() - begun)).await;
        }
        Ok(())
    }

    /// Compares the replicas of a range that is led here, and acts on the result. Gives whether the
    /// digests of all voters were known.
    async fn compare(self: &Rc<Self>, running: &RangeHandle<E>) -> Result<bool, Fatal> {
        let Some(first) = self.compare_once(running).await else {
            return Ok(false);
        };
        self.digests.count(|stats| stats.compared += 1);
        let (range, replicas) = (running.replica.group.range, shown(&first));
        if judge(&first) == Verdict::Alike {
            tracing::debug!(%range, replicas, "replicas are alike");
            return Ok(first.iter().all(|(_, digest)| digest.is_some()));
        }
        tracing::warn!(%range, replicas, "replicas differ: they are compared once more");
        let Some(second) = self.compare_once(running).await else {
            return Ok(false);
        };
        let verdict = judge(&second);
        if verdict == judge(&first) {
            self.act_on(running, verdict, &shown(&second)).await?;
        }
        Ok(false)
    }

    async fn act_on(
        self: &Rc<Self>,
        running: &RangeHandle<E>,
        verdict: Verdict,
        replicas: &str,
    ) -> Result<(), Fatal> {
        let range = running.replica.group.range;
        match verdict {
            Verdict::Alike => {}
            Verdict::Differ(differ) => {
                let count = differ.len() as u64;
                self.digests.count(|stats| stats.different += count);
                tracing::error!(
                    %range, differ = placed(running, &differ), replicas,
                    "replicas hold other rows than the majority: they are removed, and replaced"
                );
                self.remove_differing(running, &differ).await?;
            }
            Verdict::Undecided => {
                self.digests.count(|stats| stats.different += 1);
                tracing::error!(
                    %range, replicas,
                    "replicas hold different rows, and no majority the same: the range stops"
                );
                self.halt_range(running).await;
            }
        }
        Ok(())
    }

    /// Lets every replica make a digest, and gives those of the voters; `None` if none could be
    /// asked for.
    async fn compare_once(
        self: &Rc<Self>,
        RangeHandle { replica, raft }: &RangeHandle<E>,
    ) -> Option<Vec<(ReplicaId, Option<Digest>)>> {
        let number = replica.timestamps.random_id() as u64;
        let (sender, receiver) = <E::Runtime as AsyncRuntime>::Oneshot::channel();
        let order = ProposalKind::Order(RangeOrder::Digest { number });
        let version = replica.with_state(|state| state.descriptor.epoch.version);
        let sink = Rc::new(Once::new(|result| drop(sender.send(result))));
        let proposal = Proposal::new(order, version, None, (sink, 0));
        replica.proposer.push(proposal);
        let proposed = E::Runtime::timeout(TIMEOUT, receiver).await;
        proposed.ok()?.ok()?.ok()?;
        let voters = replica.with_state(|state| {
            let voters = raft::voters(&state.membership.body).unwrap_or_default().0;
            let place = |id| Some((id, state.descriptor.location(id)?));
            voters.into_iter().filter_map(place).collect::<Vec<_>>()
        });
        let mut digests: Vec<_> = voters.iter().map(|(id, _)| (*id, None)).collect();
        let range = replica.group.range;
        let mut own_at = None;
        loop {
            E::Runtime::sleep(ASK_INTERVAL).await;
            for ((id, location), (_, digest)) in voters.iter().zip(&mut digests) {
                if digest.is_none() {
                    *digest = self.digest_of(range, *id, *location, number).await;
                }
            }
            let now = E::now();
            if replica.digest(number).is_some() {
                own_at.get_or_insert(now);
            }
            let all = digests.iter().all(|(_, digest)| digest.is_some());
            // After this replica's own digest, the others get some more time.
            let is_late = own_at.is_some_and(|at| now >= at + TIMEOUT);
            let is_off = replica.leading().is_none() || raft.is_retired() || self.closing.get();
            // Another replica leads by now, or this replica's digest was given up.
            if is_off || (own_at.is_none() && !replica.is_digesting(number)) {
                return None;
            }
            if all || is_late {
                return Some(digests);
            }
        }
    }

    async fn digest_of(
        self: &Rc<Self>,
        range: RangeId,
        replica: ReplicaId,
        at: Location,
        number: u64,
    ) -> Option<Digest> {
        let request = ClusterRequest::Digest {
            range,
            replica,
            number,
        };
        match self.ask(at, &request, ASK_TIMEOUT).await {
            Some(ClusterResponse::Digest(digest)) => digest,
            _ => None,
        }
    }

    /// The digest of a replica on this shard.
    pub(in crate::shard) fn digest_response(
        &self,
        range: RangeId,
        replica: ReplicaId,
        number: u64,
    ) -> ClusterResponse {
        let here = self.running(Group { range, replica });
        ClusterResponse::Digest(here.and_then(|here| here.replica.digest(number)))
    }

    /// Removes the replicas that differ from the majority. If this one does, another takes the lead
    /// first.
    async fn remove_differing(
        self: &Rc<Self>,
        running: &RangeHandle<E>,
        differ: &[ReplicaId],
    ) -> Result<(), Fatal> {
        let RangeHandle { replica, raft } = running;
        let (range, me) = (replica.group.range, replica.group.replica);
        for id in differ.iter().filter(|id| **id != me) {
            let location = replica.with_state(|state| state.descriptor.location(*id));
            if let Some(location) = location {
                let remove = ClusterRequest::Remove {
                    range,
                    replica: *id,
                };
                // If it cannot be reached, the next comparison finds it again.
                self.ask(location, &remove, ASK_TIMEOUT).await;
            }
        }
        if !differ.contains(&me) {
            return Ok(());
        }
        let mut transfer_targets = raft.transfer_targets();
        transfer_targets.retain(|id| !differ.contains(id));
        let Some(transfer_target) = self.transfer_target(replica, transfer_targets).await else {
            // No replica can take the lead now: no answer is better than a wrong one. The next
            // leader compares again.
            replica.halt();
            return Ok(());
        };
        replica.stop_leading();
        raft.transfer_to(transfer_target.replica).await?;
        E::Runtime::sleep(TRANSFER_TIMEOUT).await;
        self.remove_replica(range, me).await.map(drop)
    }

    /// Makes all replicas of a range stop serving.
    async fn halt_range(self: &Rc<Self>, RangeHandle { replica, .. }: &RangeHandle<E>) {
        replica.halt();
        let places = replica.with_state(|state| state.descriptor.replicas.clone());
        for place in places {
            let halt = ClusterRequest::Halt {
                range: replica.group.range,
                replica: place.replica,
            };
            // A replica that cannot be reached compares again when it leads.
            self.ask(place.location, &halt, ASK_TIMEOUT).await;
        }
    }

    /// Makes a replica on this shard stop serving.
    pub(in crate::shard) fn halt_replica(
        &self,
        range: RangeId,
        replica: ReplicaId,
    ) -> ClusterResponse {
        if let Some(here) = self.running(Group { range, replica }) {
            tracing::error!(%range, %replica, shard = %self.location, "the range stops: its replicas hold different rows");
            here.replica.halt();
        }
        ClusterResponse::Done
    }
}

/// Replicas and where they are, for the log.
fn placed<E: Env>(running: &RangeHandle<E>, replicas: &[ReplicaId]) -> String {
    running.replica.with_state(|state| {
        let place = |id: &ReplicaId| match state.descriptor.location(*id) {
            Some(at) => format!("{id} at {at}"),
            None => id.to_string(),
        };
        listed(replicas.iter().map(place))
    })
}

/// The digests of replicas, shortened for the log.
fn shown(digests: &[(ReplicaId, Option<Digest>)]) -> String {
    let short = |(id, digest): &(ReplicaId, Option<Digest>)| match digest {
        Some(digest) => format!(
            "{id}: {:016x} {:016x}",
            digest.rows as u64, digest.state as u64
        ),
        None => format!("{id}: unknown"),
    };
    digests.iter().map(short).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(of: &[(u128, u64)]) -> Vec<(ReplicaId, Option<Digest>)> {
        let digest = |(rows, threshold): &(u128, u64)| Digest {
            threshold: Timestamp(*threshold),
            rows: *rows,
            state: 1,
        };
        // 0 stands for an unknown digest.
        let each = (1..).zip(of);
        each.map(|(id, of)| (ReplicaId(id), (of.0 > 0).then(|| digest(of))))
            .collect()
    }

    #[test]
    fn a_replica_is_judged_by_a_majority_of_all_voters() {
        let differ = |ids: &[u64]| Verdict::Differ(ids.iter().map(|id| ReplicaId(*id)).collect());
        for (of, verdict) in [
            (vec![(7, 1), (7, 1), (7, 1)], Verdict::Alike),
            (vec![(7, 1), (8, 1), (7, 1)], differ(&[2])),
            (vec![(8, 1), (7, 1), (7, 1)], differ(&[1])),
            (vec![(7, 1), (7, 1), (0, 1)], Verdict::Alike),
            (vec![(7, 1), (8, 1), (0, 1)], Verdict::Undecided),
            (vec![(7, 1), (8, 1), (9, 1)], Verdict::Undecided),
            (vec![(7, 1), (8, 1)], Verdict::Undecided),
            (vec![(7, 1), (0, 1), (0, 1)], Verdict::Alike),
            (vec![(0, 1), (0, 1), (0, 1)], Verdict::Alike),
            (
                vec![(7, 1), (7, 1), (7, 1), (8, 1), (9, 1)],
                differ(&[4, 5]),
            ),
            (
                vec![(7, 1), (7, 1), (8, 1), (8, 1), (9, 1)],
                Verdict::Undecided,
            ),
            // With another threshold other versions count.
            (vec![(7, 1), (7, 1), (8, 2)], Verdict::Alike),
            (vec![(7, 1), (8, 2), (9, 3)], Verdict::Alike),
        ] {
            assert_eq!(judge(&digests(&of)), verdict, "{of:?}");
        }
    }
}
