//! What a shard does when the disk of its log is slow: it lets others lead.
//!
//! A leader's own disk is only one of a majority, but a leader with a slow disk also applies late, answers
//! late, and accepts new entries late. Every shard measures its durable writes ([`crate::wal::WriteSpeed`])
//! and tells the figure in its heartbeats. A shard is slow if the 99th percentile of its last two seconds
//! is above [`SLOW_WRITE`] and [`TIMES_SLOWER`] times the median of the shards with which it shares ranges,
//! if several writes were slow (one or two are a hiccup), and if that is so for [`LASTS`]: a disk that all
//! share becomes slow for all, but one shard notices it first. Then it hands leaderships over to voters
//! that are as much faster, at most a third of them a second, and accepts none for a minute. If none is
//! faster, as on a disk that all nodes share, nothing moves.
//!
//! A write of the log that hangs for [`HANGS_AFTER`] makes the shard hand over everything at once to
//! any voter that accepts; one that hangs for [`GIVEN_UP_AFTER`] ends the process. A log that waits
//! for room on a full disk does not hang, and time in which the process did not run does not count.
//! A shard whose tables take no more writes, because compactions fail ([`crate::tree::Store::is_stuck`]),
//! also hands over everything.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::env::{AsyncRuntime, Env};
use crate::error::Fatal;
use crate::range::RaftGroup;
use crate::range::replica::Replica;
use crate::shard::{RangeHandle, ShardInner};
use crate::types::{Location, ReplicaId};
use crate::wal::{SLOW_WRITE, WriteSpeed};

/// How many times slower than the median of the others a shard must be.
const TIMES_SLOWER: u32 = 5;
/// How long a shard must be slow beside the others before it acts.
const LASTS: Duration = Duration::from_secs(1);
/// The figure of another shard counts for this long.
const FIGURE_KEPT: Duration = Duration::from_secs(10);
/// How long a shard that was slow accepts no leadership.
const KEEPS_AWAY: Duration = Duration::from_mins(1);
/// At most a third of the leaderships are handed over within this time.
const STEP_INTERVAL: Duration = Duration::from_secs(1);
/// A write of the log that takes this long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(5);
/// A write of the log that takes this long will not end.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(30);
/// Why a shard hands over everything, as its log says.
const LOG_HANGS: &str = "a write of the log has taken 5 s";
const TABLES_ARE_STUCK: &str =
    "compactions fail (see the event compaction_failed), and level 0 of the tables is full";
/// The most that counts of the time between two looks at a write: if more has passed, the process
/// did not run.
const LOOK_MAX: Duration = Duration::from_millis(500);

/// A write of the log that is under way.
#[derive(Clone, Copy)]
struct UnderWay {
    since: BootTime,
    looked: BootTime,
    /// For how long it has been seen.
    seen: Duration,
}

/// What a shard does because its disk is slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowDiskStatus {
    /// Whether it accepts no leadership, because its disk was slow within the last minute.
    pub stays_away: bool,
    /// How many leaderships it has handed over because of its disk.
    pub handed_over: u64,
}

/// What a shard knows of the speed of its disk and of those of others. See the module's chapter.
#[derive(Default)]
pub(in crate::shard) struct SlowDisk {
    others: RefCell<BTreeMap<Location, (BootTime, Duration)>>,
    under_way: Cell<Option<UnderWay>>,
    away_until: Cell<Option<BootTime>>,
    /// Since when the shard is slow beside the others.
    slow_since: Cell<Option<BootTime>>,
    stepped_at: Cell<Option<BootTime>>,
    /// How many leaderships one step hands over at most.
    step: Cell<usize>,
    /// Why it hands over everything, if it does.
    all_because: Cell<Option<&'static str>>,
    handed_over: Cell<u64>,
}

impl SlowDisk {
    /// Takes the figure in another shard's heartbeat.
    pub fn heard(&self, from: Location, p99_micros: Option<u32>, now: BootTime) {
        if let Some(micros) = p99_micros {
            let p99 = Duration::from_micros(micros.into());
            self.others.borrow_mut().insert(from, (now, p99));
        }
    }

    /// Whether the shard accepts no leadership, because its disk was slow a moment ago.
    pub fn stays_away(&self, now: BootTime) -> bool {
        self.away_until.get().is_some_and(|until| now < until)
    }

    /// What it does now, and has done.
    pub fn status(&self, now: BootTime) -> SlowDiskStatus {
        SlowDiskStatus {
            stays_away: self.stays_away(now),
            handed_over: self.handed_over.get(),
        }
    }

    fn p99_of(&self, shard: Location, now: BootTime) -> Option<Duration> {
        let others = self.others.borrow();
        let (at, p99) = *others.get(&shard)?;
        (now < at + FIGURE_KEPT).then_some(p99)
    }

    /// The lower median of the other shards' figures.
    fn median(&self, now: BootTime) -> Option<Duration> {
        let mut others = self.others.borrow_mut();
        others.retain(|_, (at, _)| now < *at + FIGURE_KEPT);
        let mut figures: Vec<Duration> = others.values().map(|(_, p99)| *p99).collect();
        figures.sort_unstable();
        figures.get(figures.len().checked_sub(1)? / 2).copied()
    }

    /// The median of the others if this shard is slow beside them.
    fn slow_beside(&self, speed: Option<WriteSpeed>, now: BootTime) -> Option<Duration> {
        let speed = speed.filter(|speed| speed.is_steadily_slow && speed.p99 > SLOW_WRITE)?;
        self.median(now)
            .filter(|median| speed.p99 > *median * TIMES_SLOWER)
    }

    /// The same if it has been so for [`LASTS`].
    fn stays_slow_beside(&self, speed: Option<WriteSpeed>, now: BootTime) -> Option<Duration> {
        let median = self.slow_beside(speed, now);
        let since = median.map(|_| self.slow_since.get().unwrap_or(now));
        self.slow_since.set(since);
        median.filter(|_| since.is_some_and(|since| now >= since + LASTS))
    }

    /// For how long the write that began at `since` has been seen under way.
    fn hangs_for(&self, since: Option<BootTime>, now: BootTime) -> Duration {
        let before = self.under_way.get();
        let next = since.map(
            |since| match before.filter(|before| before.since == since) {
                None => UnderWay {
                    since,
                    looked: now,
                    seen: (now - since).min(LOOK_MAX),
                },
                Some(before) => UnderWay {
                    since,
                    looked: now,
                    seen: before.seen + (now - before.looked).min(LOOK_MAX),
                },
            },
        );
        self.under_way.set(next);
        next.map_or(Duration::ZERO, |next| next.seen)
    }

    /// Whether leaderships may be handed over now, again. If so, a step begins.
    fn begin_step(&self, now: BootTime) -> bool {
        let at = self.stepped_at.get();
        let due = at.is_none_or(|at| now >= at + STEP_INTERVAL);
        if due {
            self.stepped_at.set(Some(now));
        }
        due
    }

    /// How many of `led` leaderships may be handed over now: at most a third, but a single one may.
    fn step(&self, led: usize, now: BootTime) -> usize {
        if !self.begin_step(now) {
            return 0;
        }
        if !self.stays_away(now) {
            self.step.set(led / 3);
        }
        self.step.get().max(1)
    }
}

/// A range that this shard leads, and the voters that may take over, the fastest first.
struct Leaving<E: Env> {
    replica: Rc<Replica<E>>,
    raft: RaftGroup<E>,
    targets: Vec<ReplicaId>,
}

/// What the shard does with its leaderships, of which so many can be taken by others.
fn handing_over(leaderships: usize) -> &'static str {
    match leaderships {
        0 => "the shard has no leadership that another shard could take now",
        _ => "the shard hands leaderships over",
    }
}

/// Looks at the disk's speed, and hands leaderships over if it is slow.
pub(in crate::shard) fn look<E: Env>(
    inner: &Rc<ShardInner<E>>,
    speed: Option<WriteSpeed>,
    now: BootTime,
) {
    let slow_disk = &inner.liveness.slow_disk;
    let waits_for_room = inner.wal.lack().is_some();
    let writing = inner.wal.writing_since().filter(|_| !waits_for_room);
    let hangs_for = slow_disk.hangs_for(writing, now);
    if hangs_for >= GIVEN_UP_AFTER {
        return inner.store.fail(Fatal::LogHangs(GIVEN_UP_AFTER));
    }
    let all_because = match hangs_for >= HANGS_AFTER {
        true => Some(LOG_HANGS),
        false => inner.store.is_stuck().then_some(TABLES_ARE_STUCK),
    };
    let is_news = slow_disk.all_because.replace(all_because) != all_because;
    if let Some(why) = all_because {
        slow_disk.away_until.set(Some(now + KEEPS_AWAY));
        if slow_disk.begin_step(now) || is_news {
            let leaving = leaving(inner, |_| Some(Duration::ZERO));
            if is_news {
                tracing::warn!(
                    event = "slow_disk",
                    shard = %inner.location,
                    leaderships = leaving.len(),
                    "{why}: {}, and accepts none; look at the disk of the node's data folder",
                    handing_over(leaving.len())
                );
            }
            hand_over(inner, leaving);
        }
        return;
    }
    let (Some(speed), Some(median)) = (speed, slow_disk.stays_slow_beside(speed, now)) else {
        return;
    };
    let most_of_target = speed.p99 / TIMES_SLOWER;
    let p99_of = |shard| {
        slow_disk
            .p99_of(shard, now)
            .filter(|p99| *p99 < most_of_target)
    };
    let mut leaving = leaving(inner, p99_of);
    let step = slow_disk.step(leaving.len(), now);
    let was_away = slow_disk.stays_away(now);
    slow_disk.away_until.set(Some(now + KEEPS_AWAY));
    leaving.truncate(step);
    if !was_away || !leaving.is_empty() {
        tracing::warn!(
            event = "slow_disk",
            shard = %inner.location,
            p99_ms = speed.p99.as_millis() as u64,
            others_p99_ms = median.as_secs_f64() * 1e3,
            leaderships = leaving.len(),
            "writes of the log take much longer here than on the other nodes: {}, and accepts none for a \
             minute; look at the disk of the node's data folder",
            handing_over(leaving.len())
        );
    }
    hand_over(inner, leaving);
}

/// The ranges that this shard leads and that another could lead: a voter whose shard is there and
/// for which `p99_of` gives a figure, the smallest first.
fn leaving<E: Env>(
    inner: &ShardInner<E>,
    p99_of: impl Fn(Location) -> Option<Duration>,
) -> Vec<Leaving<E>> {
    let now = E::now();
    let leads =
        |running: &RangeHandle<E>| running.replica.leading().is_some() && !running.raft.is_alone();
    let led = inner.ranges.groups_that(leads).into_iter();
    let leaving = led.filter_map(|(replica, raft)| {
        let figure = |id: &ReplicaId| {
            let at = replica.with_state(|state| state.descriptor.location(*id))?;
            let p99 = p99_of(at).filter(|_| inner.liveness.is_there(at, now))?;
            Some((p99, *id))
        };
        let mut targets: Vec<(Duration, ReplicaId)> =
            raft.transfer_targets().iter().filter_map(figure).collect();
        targets.sort_by_key(|(p99, _)| *p99);
        let targets: Vec<ReplicaId> = targets.into_iter().map(|(_, id)| id).collect();
        (!targets.is_empty()).then_some(Leaving {
            replica,
            raft,
            targets,
        })
    });
    leaving.collect()
}

/// Hands leaderships over, all at once, in a task of their own.
fn hand_over<E: Env>(inner: &Rc<ShardInner<E>>, leaving: Vec<Leaving<E>>) {
    for Leaving {
        replica,
        raft,
        targets,
    } in leaving
    {
        let shard = Rc::downgrade(inner);
        drop(E::Runtime::spawn(async move {
            let Some(inner) = shard.upgrade() else { return };
            match inner.hand_over(&replica, &raft, targets).await {
                Ok(true) => {
                    let handed_over = &inner.liveness.slow_disk.handed_over;
                    handed_over.set(handed_over.get() + 1);
                }
                Ok(false) => {}
                Err(fatal) => {
                    if !inner.closing.get() {
                        inner.store.fail(fatal);
                    }
                }
            }
        }));
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;
    use crate::types::{NodeId, ShardId};

    const MS: Duration = Duration::from_millis(1);

    fn at(node: u64) -> Location {
        Location {
            node: NodeId(node),
            shard: ShardId(0),
        }
    }

    fn steadily(p99: Duration) -> Option<WriteSpeed> {
        Some(WriteSpeed {
            p99,
            is_steadily_slow: true,
        })
    }

    #[test]
    fn a_shard_is_slow_beside_others_that_are_five_times_faster() {
        let (disk, now) = (SlowDisk::default(), test_clock::now());
        assert_eq!(disk.slow_beside(steadily(MS * 200), now), None, "alone");
        disk.heard(at(2), Some(5_000), now);
        disk.heard(at(3), Some(190_000), now);
        assert_eq!(disk.slow_beside(steadily(MS * 200), now), Some(MS * 5));
        assert_eq!(
            disk.slow_beside(steadily(MS * 49), now),
            None,
            "fast enough"
        );
        let hiccup = Some(WriteSpeed {
            p99: MS * 200,
            is_steadily_slow: false,
        });
        assert_eq!(disk.slow_beside(hiccup, now), None);
        disk.heard(at(2), Some(100_000), now);
        assert_eq!(
            disk.slow_beside(steadily(MS * 200), now),
            None,
            "all are slow"
        );
        disk.heard(at(2), Some(1_000), now);
        let later = now + FIGURE_KEPT;
        assert_eq!(disk.slow_beside(steadily(MS * 200), later), None, "too old");
    }

    #[test]
    fn it_must_be_slow_for_a_second() {
        let (disk, now) = (SlowDisk::default(), test_clock::now());
        let slow = steadily(MS * 200);
        disk.heard(at(2), Some(5_000), now);
        assert_eq!(disk.stays_slow_beside(slow, now), None);
        disk.heard(at(2), Some(200_000), now);
        assert_eq!(disk.stays_slow_beside(slow, now + LASTS), None);
        disk.heard(at(2), Some(5_000), now);
        assert_eq!(disk.stays_slow_beside(slow, now + LASTS), None, "anew");
        let later = now + LASTS * 2;
        assert_eq!(disk.stays_slow_beside(slow, later), Some(MS * 5));
    }

    #[test]
    fn a_third_of_the_leaderships_goes_each_second() {
        let (disk, now) = (SlowDisk::default(), test_clock::now());
        assert_eq!(disk.step(10, now), 3);
        disk.away_until.set(Some(now + KEEPS_AWAY));
        assert_eq!(disk.step(7, now + STEP_INTERVAL / 2), 0);
        assert_eq!(disk.step(7, now + STEP_INTERVAL), 3, "a third of all ten");
        for few in 1..3 {
            let disk = SlowDisk::default();
            assert_eq!(disk.step(few, now), 1, "one of {few}");
        }
    }

    #[test]
    fn time_in_which_the_process_did_not_run_is_no_hang() {
        let (disk, began) = (SlowDisk::default(), test_clock::now());
        assert_eq!(disk.hangs_for(None, began), Duration::ZERO);
        let mut now = began + MS * 200;
        assert_eq!(disk.hangs_for(Some(began), now), MS * 200);
        now += GIVEN_UP_AFTER;
        assert_eq!(disk.hangs_for(Some(began), now), MS * 200 + LOOK_MAX);
        assert_eq!(
            disk.hangs_for(Some(now), now),
            Duration::ZERO,
            "another write"
        );
        for _ in 0..30 {
            now += MS * 200;
            let _ = disk.hangs_for(Some(began), now);
        }
        assert!(disk.hangs_for(Some(began), now) > HANGS_AFTER);
    }
}
