//! Space: what is purged frees its segments, whatever idle groups there are, and what recycled
//! segments held before never counts.

use std::cell::Cell;
use std::rc::Rc;

use rangedb_engine::disk_fault::Lack;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::limits::WAL_WAITING_LEN_MAX;
use rangedb_engine::types::ReplicaId;
use rangedb_engine::wal::{Body, LogEntry, Payload, Vote, WalOptions};
use rangedb_tests::sim::runtime::SimRuntime;

use crate::bench::{Machine, OPTIONS, append, created, group, id, log_of, number, read, sleep_us};

/// More files there never are: the segments in use, one that is being begun, and spare ones.
const FILES_MAX: usize = OPTIONS.segments_max + 4;

#[test]
fn wal_keeps_its_size_while_idle_groups_keep_their_entries() {
    let machine = Machine::new(1);
    let vote = Vote {
        term: 7,
        leader: ReplicaId(5),
        committed: true,
    };
    let open = machine.open();
    let platter = machine.platter.clone();
    let most = Rc::new(Cell::new(0));
    let seen = most.clone();
    let last = machine.life(async move {
        let (wal, _) = open.await.expect("opens");
        let busy = wal.create_replica(created(1)).await.expect("created");
        // One idle group has a vote only, one has entries that are never purged, one has purged.
        let voter = wal.create_replica(created(2)).await.expect("created");
        voter.save_vote(vote).await.expect("saved");
        let holder = wal.create_replica(created(3)).await.expect("created");
        append(&holder, group(3), 0..5).await;
        let purger = wal.create_replica(created(4)).await.expect("created");
        append(&purger, group(4), 0..5).await;
        purger.purge(id(1, 4));
        wal.remove_replica(group(9)).await.expect("removed");
        wal.reserve_data_ids(rangedb_engine::types::DataId(77))
            .await
            .expect("reserved");
        drop(SimRuntime::spawn(async move {
            loop {
                seen.set(seen.get().max(platter.files().len()));
                sleep_us(50).await;
            }
        }));
        let budget = OPTIONS.segment_bytes * OPTIONS.segments_max as u64;
        let mut index = 0;
        while wal.stats().bytes < 10 * budget {
            append(&busy, group(1), index..index + 1).await;
            if index > 3 {
                busy.purge(id(1, index - 3));
            }
            index += 1;
        }
        assert!(wal.stats().segments <= OPTIONS.segments_max + 1);
        index - 1
    });
    assert!(most.get() <= FILES_MAX, "{} files", most.get());
    let newest = machine.segments().pop().expect("a segment");
    let generation: u64 = newest.trim_end_matches(".wal").parse().expect("a number");
    assert!(generation > 30, "{newest}");
    let open = machine.open();
    machine.life(async move {
        let (_, recovered) = open.await.expect("opens");
        let of = |number| log_of(&recovered, group(number));
        assert_eq!(of(1).state().last, Some(id(1, last)));
        assert_eq!(of(2).state().vote, Some(vote));
        let held: Vec<_> = (0..5).map(|index| id(1, index)).collect();
        assert_eq!(read(&of(3), group(3)).await, held);
        assert_eq!(of(4).state().purged, Some(id(1, 4)));
        assert_eq!(of(4).state().last, Some(id(1, 4)));
        assert_eq!(recovered.removed, [group(9)]);
        assert_eq!(recovered.data_ids_reserved.0, 77);
    });
}

#[test]
fn wal_never_counts_what_a_recycled_segment_held_before() {
    let mut with_old_batches = 0;
    let first = number("WAL_SEED", 1);
    for seed in first..first + number("WAL_CASES", 60) {
        let machine = Machine::new(seed);
        let open = machine.open();
        let (purged, last) = machine.life(async move {
            let (wal, _) = open.await.expect("opens");
            let log = wal.create_replica(created(1)).await.expect("created");
            let mut purged = 0;
            // Ends anywhere in a segment that was used before.
            let last = 150 + seed * 7 % 40;
            for index in 0..=last {
                append(&log, group(1), index..index + 1).await;
                if index % 5 == 4 {
                    purged = index - 3;
                    log.purge(id(1, purged));
                }
            }
            append(&log, group(1), last + 1..last + 2).await;
            (purged, last + 1)
        });
        let newest = machine.segments().pop().expect("a segment");
        let own = machine.batches(&newest, true);
        let old = machine.batches(&newest, false);
        let end = own.last().expect("a batch");
        with_old_batches += usize::from(old.iter().any(|old| old > end));
        let open = machine.open();
        machine.life(async move {
            let (_, recovered) = open.await.expect("opens");
            let log = log_of(&recovered, group(1));
            assert_eq!(log.state().purged, Some(id(1, purged)), "seed {seed}");
            let held: Vec<_> = (purged + 1..=last).map(|index| id(1, index)).collect();
            assert_eq!(read(&log, group(1)).await, held, "seed {seed}");
        });
    }
    assert!(with_old_batches > 30, "{with_old_batches} met old batches");
}

#[test]
fn wal_is_read_while_its_segments_are_used_again() {
    let machine = Machine::new(6);
    machine.platter.latency_max_us.set(30);
    machine.platter.slow_reads_us.set(4_000);
    let open = machine.open();
    let (reads, uses) = machine.life(async move {
        let (wal, _) = open.await.expect("opens");
        let log = wal.create_replica(created(1)).await.expect("created");
        let (writes, ended) = (log.clone(), Rc::new(Cell::new(false)));
        let end = ended.clone();
        drop(SimRuntime::spawn(async move {
            for index in 0..3000 {
                append(&writes, group(1), index..index + 1).await;
                if index % 5 == 4 {
                    writes.purge(id(1, index - 3));
                }
            }
            end.set(true);
        }));
        let mut reads = 0;
        while !ended.get() {
            // Checks the entries, if any are left when they have been read.
            drop(read(&log, group(1)).await);
            reads += 1;
            sleep_us(10).await;
        }
        (reads, wal.stats().bytes / OPTIONS.segment_bytes)
    });
    assert!(reads > 20 && uses > 20, "{reads} reads, {uses} segments");
}

#[test]
fn wal_bounds_what_waits_to_be_written() {
    let machine = Machine::new(7);
    let options = WalOptions {
        segment_bytes: 16 << 20,
        ..OPTIONS
    };
    let open = machine.open_with(options);
    machine.life(async move {
        let (wal, _) = open.await.expect("opens");
        let log = wal.create_replica(created(1)).await.expect("created");
        let body = Body::seal(vec![7; 1 << 20].into());
        let mut index = 0;
        while wal.has_room() {
            let entry = LogEntry {
                id: id(1, index),
                payload: Payload::Commands(body.clone()),
            };
            log.append(vec![entry], Box::new(|result| result.expect("written")));
            index += 1;
        }
        let most = wal.stats().pending_bytes;
        assert!(most > WAL_WAITING_LEN_MAX && most < WAL_WAITING_LEN_MAX + (2 << 20));
        wal.room().await;
        assert!(wal.has_room() && wal.stats().pending_bytes <= WAL_WAITING_LEN_MAX);
    });
}

#[test]
fn wal_waits_for_room_and_goes_on_where_it_was() {
    const LAST: u64 = 299;
    for (seed, makes_room) in [(1, true), (2, true), (3, false), (4, false)] {
        let machine = Machine::new(seed);
        let open = machine.open();
        let platter = machine.platter.clone();
        let durable = machine.life(async move {
            let (wal, _) = open.await.expect("opens");
            let log = wal.create_replica(created(1)).await.expect("created");
            let durable = Rc::new(Cell::new(0));
            let (writing, told) = (log.clone(), durable.clone());
            platter.full.set(true);
            drop(SimRuntime::spawn(async move {
                for index in 0..=LAST {
                    append(&writing, group(1), index..index + 1).await;
                    told.set(index);
                }
            }));
            sleep_us(5_000_000).await;
            let stands = durable.get();
            assert_eq!(wal.lack(), Some(Lack::Room), "seed {seed}");
            sleep_us(5_000_000).await;
            assert!(durable.get() == stands && stands < LAST, "seed {seed}");
            if makes_room {
                platter.full.set(false);
                sleep_us(5_000_000).await;
                assert_eq!((wal.lack(), durable.get()), (None, LAST), "seed {seed}");
            } else {
                // A stop does not wait for room.
                wal.close().await.expect("closed");
                platter.full.set(false);
            }
            durable.get()
        });
        let open = machine.open();
        machine.life(async move {
            let (_, recovered) = open.await.expect("opens");
            let found = read(&log_of(&recovered, group(1)), group(1)).await;
            let all: Vec<_> = (0..=durable).map(|index| id(1, index)).collect();
            assert!(found.starts_with(&all), "seed {seed}");
        });
    }
}
