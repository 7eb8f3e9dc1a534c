//! The log against a model, over random operations and crashes.
//!
//! What the log is told forms one order over all groups, and becomes durable as a prefix. So after
//! a crash the entries must be those after some prefix of the operations, one that covers all that
//! were acknowledged. What a checkpoint carries (votes, purge positions, creations, tombstones,
//! data ids) may be further ahead, never behind. After a clean stop the prefix is everything.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;

use futures_util::FutureExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::types::{DataId, ReplicaId};
use rangedb_engine::wal::{GroupLog, LogId, LogState, Vote, Wal, WalError, WalOptions};
use rangedb_tests::sim::runtime::SimRuntime;
use rangedb_tests::sim::sim_env::SimEnv;

use crate::bench::{Machine, Opened, created, entry, group, id, number, read, sleep_us};

/// One operation on the log, of the group with this number.
#[derive(Clone, Debug)]
enum Op {
    Create(u64),
    Remove(u64),
    Append(u64, LogId),
    Truncate(u64, Option<LogId>),
    Purge(u64, LogId),
    Vote(u64, Vote),
    Commit(u64, LogId),
    DataIds(u64),
}

/// One group's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    entries: BTreeMap<u64, LogId>,
    purged: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

impl Group {
    fn last(&self) -> Option<LogId> {
        let last = self.entries.last_key_value().map(|(_, id)| *id);
        last.or(self.purged)
    }

    fn state(&self) -> LogState {
        LogState {
            last: self.last(),
            purged: self.purged,
            vote: self.vote,
            committed: self.committed,
        }
    }
}

/// What a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    groups: BTreeMap<u64, Group>,
    removed: BTreeSet<u64>,
    data_ids: u64,
}

impl Content {
    fn apply(&mut self, op: &Op) {
        let group = match op {
            Op::Create(group)
            | Op::Append(group, _)
            | Op::Truncate(group, _)
            | Op::Purge(group, _)
            | Op::Vote(group, _)
            | Op::Commit(group, _) => self.groups.entry(*group).or_default(),
            Op::Remove(group) => {
                self.groups.remove(group);
                self.removed.insert(*group);
                return;
            }
            Op::DataIds(up_to) => {
                self.data_ids = self.data_ids.max(*up_to);
                return;
            }
        };
        match op {
            Op::Append(_, id) => drop(group.entries.insert(id.index, *id)),
            Op::Truncate(_, after) => {
                let from = after.map_or(0, |after| after.index + 1);
                drop(group.entries.split_off(&from));
            }
            Op::Purge(_, id) => {
                group.entries = group.entries.split_off(&(id.index + 1));
                group.purged = group.purged.max(Some(*id));
            }
            Op::Vote(_, vote) => group.vote = Some(*vote),
            Op::Commit(_, id) => group.committed = group.committed.max(Some(*id)),
            Op::Create(_) | Op::Remove(_) | Op::DataIds(_) => {}
        }
    }
}

/// What is known of the operations: the content they began on, and those since.
struct History {
    base: Content,
    ops: Vec<Op>,
    /// So many operations are acknowledged to be durable.
    acknowledged: usize,
}

impl History {
    /// The content after each prefix that may be durable, the shortest first.
    fn prefixes(&self) -> Vec<Content> {
        let mut content = self.base.clone();
        let mut prefixes = Vec::new();
        for (at, op) in self.ops.iter().enumerate() {
            if at >= self.acknowledged {
                prefixes.push(content.clone());
            }
            content.apply(op);
        }
        prefixes.push(content);
        prefixes
    }

    /// Whether a crash may have left this.
    fn allows(&self, found: &Content) -> bool {
        let prefixes = self.prefixes();
        (0..prefixes.len()).any(|at| allows(&prefixes[at..], found))
    }
}

/// Whether `found` has the entries of the first of these contents, and besides them what one of
/// these contents has.
fn allows(ahead: &[Content], found: &Content) -> bool {
    let Some(durable) = ahead.first() else {
        return false;
    };
    let all: BTreeSet<u64> = ahead
        .iter()
        .flat_map(|c| c.groups.keys().copied())
        .collect();
    let removed: BTreeSet<u64> = ahead.iter().flat_map(|c| c.removed.clone()).collect();
    let data_ids = ahead.iter().any(|c| c.data_ids == found.data_ids);
    let tombstones =
        found.removed.is_superset(&durable.removed) && found.removed.is_subset(&removed);
    data_ids
        && tombstones
        && all
            .iter()
            .all(|number| group_allowed(ahead, found, *number))
        && found.groups.keys().all(|number| all.contains(number))
}

fn group_allowed(ahead: &[Content], found: &Content, number: u64) -> bool {
    let durable = ahead
        .first()
        .and_then(|content| content.groups.get(&number));
    let Some(group) = found.groups.get(&number) else {
        return durable.is_none() || found.removed.contains(&number);
    };
    if found.removed.contains(&number) {
        return false;
    }
    let later: Vec<&Group> = ahead.iter().filter_map(|c| c.groups.get(&number)).collect();
    let durable = durable.cloned().unwrap_or_default();
    let mut entries = durable.entries;
    if let Some(purged) = group.purged {
        entries = entries.split_off(&(purged.index + 1));
    }
    let has = |id: LogId| group.entries.get(&id.index) == Some(&id) || group.purged >= Some(id);
    group.entries == entries
        && (group.vote == durable.vote || later.iter().any(|g| g.vote == group.vote))
        && (group.purged == durable.purged || later.iter().any(|g| g.purged == group.purged))
        && group.committed.is_none_or(has)
}

/// What an open log holds; every entry is read, and its payload compared.
async fn content_of(opened: &Opened) -> Content {
    let (_, recovered) = opened;
    let mut content = Content {
        data_ids: recovered.data_ids_reserved.0,
        removed: recovered.removed.iter().map(|g| g.range.0).collect(),
        ..Content::default()
    };
    for (made, log) in &recovered.replicas {
        let number = made.group.range.0;
        assert_eq!(*made, created(number));
        let state = log.state();
        let ids = read(log, made.group).await;
        let group = Group {
            entries: ids.into_iter().map(|id| (id.index, id)).collect(),
            purged: state.purged,
            vote: state.vote,
            committed: state.committed,
        };
        assert_eq!(group.state(), state);
        content.groups.insert(number, group);
    }
    content
}

type Shared = Rc<RefCell<History>>;

/// Does random operations on a log.
struct Driver {
    random: StdRng,
    wal: Wal<SimEnv>,
    logs: BTreeMap<u64, GroupLog<SimEnv>>,
    /// Where the model stands after all operations.
    content: Content,
    history: Shared,
    /// The term of new entries: a new one after every start and truncation.
    term: Rc<Cell<u64>>,
}

impl Driver {
    /// Notes an operation; gives what acknowledges it, and all before it.
    fn begin(&mut self, op: Op) -> impl FnOnce() + use<> {
        self.content.apply(&op);
        let mut history = self.history.borrow_mut();
        history.ops.push(op);
        let (count, shared) = (history.ops.len(), self.history.clone());
        move || {
            let mut history = shared.borrow_mut();
            history.acknowledged = history.acknowledged.max(count);
        }
    }

    /// Starts an operation that is durable when its future ends; may wait for it.
    async fn durable(
        &mut self,
        op: Op,
        work: impl Future<Output = Result<(), WalError>> + 'static,
    ) {
        let acknowledge = self.begin(op);
        let mut work = Box::pin(work.map(move |result| {
            result.expect("durable");
            acknowledge();
        }));
        // It takes its place in the order now.
        if (&mut work).now_or_never().is_some() {
            return;
        }
        if self.random.random_ratio(1, 2) {
            work.await;
        } else {
            drop(SimRuntime::spawn(work));
        }
    }

    async fn step(&mut self) {
        let numbers: Vec<u64> = self.content.groups.keys().copied().collect();
        let fresh = numbers
            .iter()
            .chain(&self.content.removed)
            .max()
            .map_or(1, |n| n + 1);
        if numbers.is_empty() || (numbers.len() < 5 && self.random.random_ratio(1, 20)) {
            let wal = self.wal.clone();
            let create = async move { wal.create_replica(created(fresh)).await };
            // Its log is needed for what follows.
            let acknowledge = self.begin(Op::Create(fresh));
            let log = create.await.expect("created");
            acknowledge();
            self.logs.insert(fresh, log);
            return;
        }
        let number = numbers[self.random.random_range(0..numbers.len())];
        let (log, group) = (
            self.logs[&number].clone(),
            self.content.groups[&number].clone(),
        );
        match self.random.random_range(0..40) {
            0..20 => self.append(number, &log, &group),
            20..26 => {
                let vote = Vote {
                    term: self.term.get() + self.random.random_range(0..3),
                    leader: ReplicaId(self.random.random_range(1..4)),
                    committed: self.random.random_ratio(1, 2),
                };
                self.durable(
                    Op::Vote(number, vote),
                    async move { log.save_vote(vote).await },
                )
                .await;
            }
            26..32 => {
                // Commits may run ahead of what is durable here.
                let open = group
                    .entries
                    .values()
                    .filter(|id| Some(**id) > group.committed);
                let open: Vec<LogId> = open.copied().collect();
                if !open.is_empty() {
                    let id = open[self.random.random_range(0..open.len())];
                    drop(self.begin(Op::Commit(number, id)));
                    log.save_committed(id);
                }
            }
            32..36 => {
                // Only what is committed is purged, and only when that is durable here.
                let durable = self.history.borrow().prefixes().swap_remove(0);
                let known = durable.groups.get(&number).cloned().unwrap_or_default();
                let ripe = group.entries.values().filter(|id| {
                    Some(**id) <= known.committed && known.entries.get(&id.index) == Some(*id)
                });
                if let Some(id) = ripe.max().copied() {
                    drop(self.begin(Op::Purge(number, id)));
                    log.purge(id);
                }
            }
            36..38 => {
                // Never what is committed.
                let from = group.committed.max(group.purged).map(|id| id.index);
                let low = from.map_or(0, |from| from + 1);
                let high = group.last().map_or(0, |last| last.index + 1);
                if low < high {
                    let cut = self.random.random_range(low..high);
                    let after = cut
                        .checked_sub(1)
                        .and_then(|at| group.entries.get(&at).copied().or(group.purged));
                    drop(self.begin(Op::Truncate(number, after)));
                    log.truncate_after(after);
                    self.term.set(self.term.get() + 1);
                }
            }
            38 => {
                let up_to = self.content.data_ids + self.random.random_range(1..9);
                let wal = self.wal.clone();
                self.durable(Op::DataIds(up_to), async move {
                    wal.reserve_data_ids(DataId(up_to)).await
                })
                .await;
            }
            _ if numbers.len() > 3 => {
                self.logs.remove(&number);
                let wal = self.wal.clone();
                self.durable(Op::Remove(number), async move {
                    wal.remove_replica(crate::bench::group(number)).await
                })
                .await;
            }
            _ => {}
        }
    }

    fn append(&mut self, number: u64, log: &GroupLog<SimEnv>, known: &Group) {
        let next = known.last().map_or(0, |last| last.index + 1);
        let count = self.random.random_range(1..4);
        let ids: Vec<LogId> = (next..next + count)
            .map(|at| id(self.term.get(), at))
            .collect();
        let entries = ids.iter().map(|id| entry(group(number), *id)).collect();
        // Entries of one call may become durable in several writes.
        let acknowledge: Vec<_> = ids
            .iter()
            .map(|id| self.begin(Op::Append(number, *id)))
            .collect();
        let done = move |result: Result<(), WalError>| {
            result.expect("durable");
            acknowledge
                .into_iter()
                .for_each(|acknowledge| acknowledge());
        };
        log.append(entries, Box::new(done));
    }

    async fn run(mut self) {
        for _ in 0..self.random.random_range(1..150) {
            // What gathers for one write must fit into a small segment.
            while self.wal.stats().pending_bytes > 24 << 10 {
                sleep_us(100).await;
            }
            self.step().await;
            if self.random.random_ratio(1, 3) {
                sleep_us(self.random.random_range(0..400)).await;
            }
        }
    }
}

fn run_case(seed: u64) -> (usize, usize) {
    let mut random = StdRng::seed_from_u64(seed);
    let machine = Machine::new(seed);
    let options = WalOptions {
        segment_bytes: 1 << random.random_range(16..18),
        entry_cache_bytes: [0, 20_000, 1 << 20][random.random_range(0..3)],
        segments_max: random.random_range(2..5),
        must_exist: false,
    };
    let term = Rc::new(Cell::new(1));
    let history: Shared = Rc::new(RefCell::new(History {
        base: Content::default(),
        ops: Vec::new(),
        acknowledged: 0,
    }));
    let (mut ops, mut lost) = (0, 0);
    let mut stopped_cleanly = false;
    for life in 0..random.random_range(3..8) {
        let stop_cleanly = random.random_ratio(1, 4);
        let open = machine.open_with(options);
        let (history, term) = (history.clone(), term.clone());
        let random = StdRng::from_rng(&mut random);
        let counts = machine.life(async move {
            let opened = open
                .await
                .unwrap_or_else(|e| panic!("seed {seed}, life {life}: {e}"));
            let found = content_of(&opened).await;
            let (wal, recovered) = opened;
            assert_eq!(recovered.clean, stopped_cleanly, "seed {seed}, life {life}");
            let counts = {
                let mut history = history.borrow_mut();
                if stopped_cleanly {
                    history.acknowledged = history.ops.len();
                }
                assert!(
                    history.allows(&found),
                    "seed {seed}, life {life}: found {found:#?}\nprefixes {:#?}",
                    history.prefixes()
                );
                let counts = (history.ops.len(), history.ops.len() - history.acknowledged);
                *history = History {
                    base: found.clone(),
                    ops: Vec::new(),
                    acknowledged: 0,
                };
                counts
            };
            term.set(term.get() + 1);
            let replicas = recovered.replicas.into_iter();
            let driver = Driver {
                random,
                wal: wal.clone(),
                logs: replicas
                    .map(|(made, log)| (made.group.range.0, log))
                    .collect(),
                content: found,
                history,
                term,
            };
            driver.run().await;
            if stop_cleanly {
                wal.close().await.expect("closes");
            }
            counts
        });
        stopped_cleanly = stop_cleanly;
        (ops, lost) = (ops + counts.0, lost + counts.1);
    }
    (ops, lost)
}

#[test]
fn wal_recovers_what_a_model_says() {
    let first = number("WAL_SEED", 1);
    let (mut ops, mut lost) = (0, 0);
    for seed in first..first + number("WAL_CASES", 300) {
        let counts = run_case(seed);
        (ops, lost) = (ops + counts.0, lost + counts.1);
    }
    println!("{ops} operations, {lost} of them not acknowledged at a crash");
}
