//! Flipped bits: corruption is refused, and only the torn end of the last write is cut.

use bytes::Bytes;
use rangedb_engine::env::Disk;
use rangedb_engine::wal::{Body, GroupLog, LogEntry, Payload, WalError};
use rangedb_tests::sim::disk::SimDisk;
use rangedb_tests::sim::sim_env::SimEnv;
use tokio::sync::oneshot;

use crate::bench::{BLOCK, Machine, append, created, group, id, log_of, read, sleep_us};

const SEGMENT: &str = "000000000001.wal";
const ENTRIES: u64 = 20;

/// A machine whose log holds [`ENTRIES`] entries of group 1, each in a write of its own.
fn with_entries(clean: bool) -> Machine {
    let machine = Machine::new(1);
    let open = machine.open();
    machine.life(async move {
        let (wal, _) = open.await.expect("opens");
        let log = wal.create_replica(created(1)).await.expect("created");
        for index in 0..ENTRIES {
            append(&log, group(1), index..index + 1).await;
        }
        if clean {
            wal.close().await.expect("closes");
        }
    });
    machine
}

/// Opens the log and reads the entries of group 1.
fn recover(machine: &Machine) -> Vec<u64> {
    let open = machine.open();
    machine.life(async move {
        let (_, recovered) = open.await.expect("opens");
        let log: GroupLog<SimEnv> = log_of(&recovered, group(1));
        let ids = read(&log, group(1)).await;
        ids.into_iter().map(|id| id.index).collect()
    })
}

/// Expects that the log is refused for damage, and where.
#[track_caller]
fn refused_at(machine: &Machine, segment: &str, at: usize) {
    let refusal = machine.refusal();
    let WalError::Corrupt { file, offset, .. } = &refusal else {
        panic!("{refusal}");
    };
    assert_eq!((file.as_str(), *offset), (segment, at as u64), "{refusal}");
    let text = refusal.to_string();
    assert!(text.contains(segment), "{text}");
    assert!(text.contains(&at.to_string()), "{text}");
    assert!(text.contains("with an empty data folder"), "{text}");
    assert!(!text.contains("restore"), "{text}");
}

/// Bits of a batch that its checksum covers: some of the header and some of the records.
fn covered_bits() -> impl Iterator<Item = (usize, u8)> {
    let header = (0..40).map(|at| (at, (at % 8) as u8));
    header.chain([(40, 0), (48, 7), (78, 3)])
}

#[test]
fn wal_refuses_a_flipped_bit_that_good_writes_follow() {
    let machine = with_entries(false);
    let batches = machine.batches(SEGMENT, true);
    assert!(batches.len() as u64 >= ENTRIES);
    let (_, followed) = batches.split_last().expect("there are batches");
    for begin in followed {
        for (at, bit) in covered_bits() {
            machine.platter.flip(SEGMENT, begin + at, bit);
            refused_at(&machine, SEGMENT, *begin);
            machine.platter.flip(SEGMENT, begin + at, bit);
        }
    }
    assert_eq!(recover(&machine), (0..ENTRIES).collect::<Vec<_>>());
}

#[test]
fn wal_refuses_two_bad_writes_that_a_good_one_follows() {
    let machine = with_entries(false);
    let batches = machine.batches(SEGMENT, true);
    for pair in batches.windows(2).take(batches.len() - 2) {
        for begin in pair {
            machine.platter.flip(SEGMENT, begin + 41, 0);
        }
        refused_at(&machine, SEGMENT, pair[0]);
        for begin in pair {
            machine.platter.flip(SEGMENT, begin + 41, 0);
        }
    }
}

#[test]
fn wal_cuts_the_last_write_if_it_is_torn() {
    for (at, bit) in covered_bits() {
        let machine = with_entries(false);
        let last = *machine.batches(SEGMENT, true).last().expect("a batch");
        machine.platter.flip(SEGMENT, last + at, bit);
        assert_eq!(recover(&machine), (0..ENTRIES - 1).collect::<Vec<_>>());
        // The next write takes the torn one's place.
        let open = machine.open();
        machine.life(async move {
            let (_, recovered) = open.await.expect("opens");
            assert!(!recovered.clean);
            append(
                &log_of(&recovered, group(1)),
                group(1),
                ENTRIES - 1..ENTRIES + 3,
            )
            .await;
        });
        assert_eq!(recover(&machine), (0..ENTRIES + 3).collect::<Vec<_>>());
    }
}

#[test]
fn wal_does_not_mind_what_stands_between_writes() {
    let machine = with_entries(false);
    let batches = machine.batches(SEGMENT, true);
    for begin in &batches {
        let bytes = machine.platter.read(SEGMENT);
        let len = u32::from_le_bytes(bytes[begin + 32..begin + 36].try_into().expect("4 bytes"));
        let end = begin + 40 + len as usize;
        if !end.is_multiple_of(BLOCK) {
            machine.platter.flip(SEGMENT, end, 1);
        }
    }
    assert_eq!(recover(&machine), (0..ENTRIES).collect::<Vec<_>>());
}

#[test]
fn wal_refuses_a_torn_end_after_a_clean_stop() {
    let machine = with_entries(true);
    let last = *machine.batches(SEGMENT, true).last().expect("a batch");
    for (at, bit) in covered_bits() {
        machine.platter.flip(SEGMENT, last + at, bit);
        refused_at(&machine, SEGMENT, last);
        machine.platter.flip(SEGMENT, last + at, bit);
    }
    let open = machine.open();
    machine.life(async move {
        let (_, recovered) = open.await.expect("opens");
        assert!(recovered.clean);
    });
    // The mark is gone: from here on the end may be torn.
    machine.platter.flip(SEGMENT, last + 40, 0);
    assert_eq!(recover(&machine), (0..ENTRIES - 1).collect::<Vec<_>>());
}

#[test]
fn wal_refuses_a_bad_mark_of_a_clean_stop() {
    let machine = with_entries(true);
    machine.platter.flip("clean", 20, 0);
    refused_at(&machine, "clean", 0);
}

/// Fills segments until only one is left that is in use, not the first.
fn rolled_over() -> Machine {
    let machine = Machine::new(2);
    let open = machine.open();
    machine.life(async move {
        let (wal, _) = open.await.expect("opens");
        let log = wal.create_replica(created(1)).await.expect("created");
        for index in 0..200 {
            append(&log, group(1), index..index + 1).await;
            log.purge(id(1, index));
        }
        // The purge is durable, and what it frees is recycled.
        append(&log, group(1), 200..201).await;
        sleep_us(10_000).await;
    });
    machine
}

#[test]
fn wal_refuses_a_bad_first_write_of_the_oldest_segment() {
    let machine = rolled_over();
    let segments = machine.segments();
    let [segment] = segments.as_slice() else {
        panic!("{segments:?}");
    };
    assert_ne!(segment, SEGMENT);
    let batches = machine.batches(segment, true);
    assert!(batches.len() > 2, "{batches:?}");
    machine.platter.flip(segment, BLOCK + 41, 0);
    refused_at(&machine, segment, BLOCK);
    // Nor may all of it be lost: segments before it went when its first write was durable.
    for begin in &batches[1..] {
        machine.platter.flip(segment, begin + 41, 0);
    }
    refused_at(&machine, segment, BLOCK);
}

#[test]
fn wal_refuses_a_segment_whose_first_block_is_bad() {
    let machines: [fn() -> Machine; 3] =
        [|| with_entries(false), || with_entries(true), rolled_over];
    for make in machines {
        let machine = make();
        for segment in machine.segments() {
            for at in 0..48 {
                machine.platter.flip(&segment, at, (at % 8) as u8);
                refused_at(&machine, &segment, 0);
                machine.platter.flip(&segment, at, (at % 8) as u8);
            }
            // Nor may the block be lost as a whole, or the block of another segment stand there.
            let good = machine.platter.read(&segment);
            let mut bad = good.clone();
            bad[..BLOCK].fill(0);
            machine.platter.put(&segment, bad);
            refused_at(&machine, &segment, 0);
            machine.platter.put(&segment, good);
        }
    }
}

#[test]
fn wal_refuses_a_segment_that_was_cut_or_emptied() {
    let machine = with_entries(false);
    let good = machine.platter.read(SEGMENT);
    let batches = machine.batches(SEGMENT, true);
    for len in [
        0,
        1,
        512,
        BLOCK,
        batches[3],
        batches[4] + 100,
        good.len() - BLOCK,
    ] {
        machine.platter.put(SEGMENT, good[..len].to_vec());
        refused_at(&machine, SEGMENT, 0);
    }
    machine.platter.put(SEGMENT, vec![0; good.len()]);
    refused_at(&machine, SEGMENT, 0);
    machine.platter.put(SEGMENT, good);
    assert_eq!(recover(&machine), (0..ENTRIES).collect::<Vec<_>>());
}

#[test]
fn wal_takes_no_short_read_for_the_end_of_the_log() {
    let machine = with_entries(false);
    let mut met = 0;
    for reads in 0.. {
        machine.platter.reads_until_short.set(Some(reads));
        let open = machine.open();
        let opened = machine.life(async move { open.await.map(drop) });
        let left = machine.platter.reads_until_short.get();
        if left.is_some_and(|left| left <= reads) {
            opened.expect("no read was short");
            break;
        }
        assert!(matches!(opened, Err(WalError::Io { .. })), "{opened:?}");
        met += 1;
    }
    assert!(met >= 2, "{met}");
    machine.platter.reads_until_short.set(None);
    assert_eq!(recover(&machine), (0..ENTRIES).collect::<Vec<_>>());
}

#[test]
fn wal_refuses_a_missing_segment() {
    let machine = Machine::new(3);
    let open = machine.open();
    machine.life(async move {
        let (wal, _) = open.await.expect("opens");
        let log = wal.create_replica(created(1)).await.expect("created");
        for index in 0..100 {
            append(&log, group(1), index..index + 1).await;
        }
    });
    let segments = machine.segments();
    assert!(segments.len() > 3);
    let ends = machine.platter.read(&segments[0]).len();
    let lost = machine.platter.read(&segments[1]);
    let disk = SimDisk(machine.platter.clone());
    let second = segments[1].clone();
    machine.life(async move { disk.remove(&second).await.expect("removed") });
    let refusal = machine.refusal();
    let WalError::Corrupt { file, offset, what } = refusal else {
        panic!("{refusal}");
    };
    assert_eq!(file, segments[0]);
    assert!(offset as usize <= ends);
    assert!(what.contains(&segments[1]), "{what}");
    machine.platter.put(&segments[1], lost);
    assert_eq!(recover(&machine), (0..100).collect::<Vec<_>>());
}

#[test]
fn wal_refuses_an_entry_whose_bytes_are_not_those_of_its_leader() {
    let machine = Machine::new(4);
    let open = machine.open();
    machine.life(async move {
        let (wal, _) = open.await.expect("opens");
        let log = wal.create_replica(created(1)).await.expect("created");
        append(&log, group(1), 0..2).await;
        // The memory has changed a byte since the leader encoded the entry.
        let checksum = Body::seal(Bytes::from_static(b"some commands")).checksum();
        let body = Body::with_checksum(Bytes::from_static(b"some Commands"), checksum);
        let entry = LogEntry {
            id: id(1, 2),
            payload: Payload::Commands(body),
        };
        let (sender, receiver) = oneshot::channel();
        let done = move |result| sender.send(result).expect("awaited");
        log.append(vec![entry], Box::new(done));
        receiver.await.expect("told").expect("written");
        // The next append frees the memory of those that are on disk.
        append(&log, group(1), 3..4).await;
        let read = log.read(0, 2, usize::MAX).await.expect("readable");
        assert_eq!(read.len(), 2);
        let refusal = log.read(2, 3, usize::MAX).await.expect_err("refused");
        assert!(
            refusal.to_string().contains("entry 2 do not match"),
            "{refusal}"
        );
    });
    let refusal = machine.refusal();
    assert!(matches!(refusal, WalError::Corrupt { .. }), "{refusal}");
    assert!(
        refusal.to_string().contains("entry 2 do not match"),
        "{refusal}"
    );
}
