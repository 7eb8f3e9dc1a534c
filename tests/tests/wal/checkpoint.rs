//! Crashes while a log goes on in a new segment: what only the checkpoint carries forward is kept.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::types::{DataId, ReplicaId};
use rangedb_engine::wal::{Body, Created, LogEntry, Payload, Vote, WalOptions};
use rangedb_tests::sim::random::Random;
use rangedb_tests::sim::runtime::SimRuntime;

use crate::bench::{
    Machine, OPTIONS, append, created, entry, group, id, log_of, number, read, sleep_us,
};

fn vote(term: u64) -> Vote {
    Vote {
        term,
        leader: ReplicaId(1),
        committed: false,
    }
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let first = number("WAL_SEED", 1);
    first..first + number("WAL_CASES", count)
}

#[test]
fn wal_keeps_votes_of_idle_groups_over_a_crash_in_a_new_segment() {
    for seed in seeds(300) {
        let machine = Machine::new(seed);
        let random = Random::new(seed, 9);
        let votes: Rc<RefCell<BTreeMap<u64, u64>>> = Rc::default();
        let (open, acknowledged) = (machine.open(), votes.clone());
        machine.life(async move {
            let (wal, _) = open.await.expect("opens");
            let mut logs = Vec::new();
            for number in 1..=3 {
                let log = wal.create_replica(created(number)).await.expect("created");
                acknowledged.borrow_mut().insert(number, 0);
                logs.push((number, log));
            }
            let pick = random.clone();
            drop(SimRuntime::spawn(async move {
                for term in 1.. {
                    let (number, log) = &logs[pick.below(3) as usize];
                    log.save_vote(vote(term)).await.expect("saved");
                    acknowledged.borrow_mut().insert(*number, term);
                }
            }));
            sleep_us(random.below(40_000)).await;
        });
        let open = machine.open();
        machine.life(async move {
            let (_, recovered) = open.await.expect("opens");
            for (number, acknowledged) in votes.borrow().iter() {
                let state = log_of(&recovered, group(*number)).state();
                let term = state.vote.map_or(0, |vote| vote.term);
                assert!(term >= *acknowledged, "seed {seed}: group {number}");
            }
        });
    }
}

#[test]
fn wal_completes_a_checkpoint_that_a_crash_has_cut() {
    const GROUPS: u64 = 30;
    // A checkpoint is written in parts of a megabyte.
    let options = WalOptions {
        segment_bytes: 4 << 20,
        ..OPTIONS
    };
    let mut cut = 0;
    for seed in seeds(40) {
        let machine = Machine::new(seed);
        let open = machine.open_with(options);
        let platter = machine.platter.clone();
        let random = Random::new(seed, 9);
        machine.life(async move {
            let (wal, _) = open.await.expect("opens");
            for number in 1..=GROUPS {
                let created = Created {
                    descriptor: Bytes::from(vec![number as u8; 60_000]),
                    ..created(number)
                };
                let log = wal.create_replica(created).await.expect("created");
                log.save_vote(vote(number)).await.expect("saved");
                if number == 1 {
                    drop(SimRuntime::spawn(async move {
                        for index in 0.. {
                            append(&log, group(1), index..index + 1).await;
                            log.purge(id(1, index));
                        }
                    }));
                }
            }
            while platter.files().iter().all(|(name, _)| *name != SECOND) {
                sleep_us(20).await;
            }
            sleep_us(random.below(1000)).await;
        });
        let parts = machine.batches(SECOND, true).len();
        cut += u64::from(parts == 1);
        let open = machine.open_with(options);
        machine.life(async move {
            let (_, recovered) = open.await.expect("opens");
            let log = log_of(&recovered, group(1));
            let next = log.state().last.map_or(0, |last| last.index + 1);
            append(&log, group(1), next..next + 1).await;
            log.purge(id(1, next));
            append(&log, group(1), next + 1..next + 2).await;
            sleep_us(20_000).await;
        });
        assert_eq!(machine.segments(), [SECOND], "seed {seed}");
        let open = machine.open_with(options);
        machine.life(async move {
            let (_, recovered) = open.await.expect("opens");
            for number in 1..=GROUPS {
                let state = log_of(&recovered, group(number)).state();
                assert_eq!(state.vote, Some(vote(number)), "seed {seed}");
            }
        });
    }
    assert!(cut > 0, "no crash came between the parts of a checkpoint");
}

const SECOND: &str = "000000000002.wal";

#[test]
fn wal_does_not_take_entries_for_committed_that_a_crash_has_lost() {
    for seed in seeds(200) {
        let machine = Machine::new(seed);
        let random = Random::new(seed, 9);
        let open = machine.open();
        machine.life(async move {
            let (wal, _) = open.await.expect("opens");
            let log = wal.create_replica(created(1)).await.expect("created");
            let delays = random.clone();
            drop(SimRuntime::spawn(async move {
                // As a follower does that lags behind the quorum.
                for index in 0.. {
                    log.append(
                        vec![entry(group(1), id(1, index))],
                        Box::new(|result| result.expect("written")),
                    );
                    log.save_committed(id(1, index));
                    sleep_us(delays.below(200)).await;
                }
            }));
            sleep_us(random.below(20_000)).await;
        });
        let open = machine.open();
        machine.life(async move {
            let (_, recovered) = open.await.expect("opens");
            for (_, log) in &recovered.replicas {
                let state = log.state();
                assert!(state.committed <= state.last, "seed {seed}: {state:?}");
            }
        });
    }
}

#[test]
fn wal_closes_with_more_to_write_than_a_segment_holds() {
    let options = WalOptions {
        segment_bytes: 32 << 10,
        ..OPTIONS
    };
    let large = |index| LogEntry {
        id: id(1, index),
        payload: Payload::Commands(Body::seal(vec![7; 20_000].into())),
    };
    for seed in seeds(50) {
        let machine = Machine::new(seed);
        let random = Random::new(seed, 9);
        let open = machine.open_with(options);
        machine.life(async move {
            let (wal, _) = open.await.expect("opens");
            let log = wal.create_replica(created(1)).await.expect("created");
            sleep_us(2000).await;
            // Each needs a segment, and is written when the one before is.
            for index in 0..3 {
                let written = Box::new(|result: Result<(), _>| result.expect("written"));
                log.append(vec![large(index)], written);
                sleep_us(random.below(400)).await;
            }
            wal.close().await.expect("closes");
        });
        let open = machine.open_with(options);
        machine.life(async move {
            let (_, recovered) = open.await.expect("opens");
            assert!(recovered.clean);
            let state = log_of(&recovered, group(1)).state();
            assert_eq!(state.last, Some(id(1, 2)), "seed {seed}");
        });
    }
}

#[test]
fn wal_opens_after_a_crash_while_it_was_first_made() {
    for seed in seeds(100) {
        let machine = Machine::new(seed);
        let open = machine.open();
        let random = Random::new(seed, 9);
        machine.life(async move {
            drop(SimRuntime::spawn(async move { drop(open.await) }));
            sleep_us(random.below(1500)).await;
        });
        let open = machine.open();
        machine.life(async move {
            let (wal, _) = open.await.expect("opens");
            let log = wal.create_replica(created(1)).await.expect("created");
            for index in 0..60 {
                append(&log, group(1), index..index + 1).await;
            }
        });
        for segment in machine.segments() {
            let len = machine.platter.read(&segment).len() as u64;
            assert_eq!(len, OPTIONS.segment_bytes, "seed {seed}: {segment}");
        }
        let open = machine.open();
        let ids = machine.life(async move {
            let (_, recovered) = open.await.expect("opens");
            read(&log_of(&recovered, group(1)), group(1)).await
        });
        assert_eq!(ids.len(), 60, "seed {seed}");
    }
}

#[test]
fn wal_reads_on_while_what_is_read_is_purged_and_its_segment_used_again() {
    for seed in seeds(100) {
        let machine = Machine::new(seed);
        // A slow disk: a read may last longer than its segment.
        machine.platter.latency_max_us.set(3000);
        let options = WalOptions {
            segment_bytes: 32 << 10,
            segments_max: 2,
            ..OPTIONS
        };
        let open = machine.open_with(options);
        machine.life(async move {
            let (wal, _) = open.await.expect("opens");
            let log = wal.create_replica(created(1)).await.expect("created");
            // An idle group's entry is carried forward again and again.
            let idle = wal.create_replica(created(2)).await.expect("created");
            append(&idle, group(2), 0..1).await;
            let (mine, from_idle) = (log.clone(), idle.clone());
            drop(SimRuntime::spawn(async move {
                loop {
                    let ids = read(&mine, group(1)).await;
                    assert!(ids.windows(2).all(|two| two[0].index + 1 == two[1].index));
                    sleep_us(10).await;
                }
            }));
            drop(SimRuntime::spawn(async move {
                loop {
                    assert_eq!(read(&from_idle, group(2)).await, [id(1, 0)]);
                    sleep_us(10).await;
                }
            }));
            for index in 0..80 {
                append(&log, group(1), index..index + 1).await;
                if index > 2 {
                    log.purge(id(1, index - 2));
                }
            }
        });
    }
}

#[test]
fn wal_keeps_what_came_after_a_snapshot_over_several_starts() {
    let machine = Machine::new(1);
    let open = machine.open();
    machine.life(async move {
        let (wal, _) = open.await.expect("opens");
        let log = wal.create_replica(created(1)).await.expect("created");
        append(&log, group(1), 1..4).await;
        let state = Bytes::from_static(b"a state");
        log.install_snapshot(DataId(9), id(1, 100), state)
            .await
            .expect("installed");
        append(&log, group(1), 101..104).await;
    });
    // Each start writes what it knows at the head of the log anew, behind what is there.
    for start in 0..3 {
        let open = machine.open();
        machine.life(async move {
            let (_, recovered) = open.await.expect("opens");
            let log = log_of(&recovered, group(1));
            let next = 104 + start;
            append(&log, group(1), next..next + 1).await;
            let found = read(&log, group(1)).await;
            let indexes: Vec<u64> = found.iter().map(|id| id.index).collect();
            assert_eq!(indexes, (101..=next).collect::<Vec<_>>());
        });
    }
}
