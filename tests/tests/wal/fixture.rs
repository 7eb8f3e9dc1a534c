//! The formats of the log: bytes that versions have written lie in `engine/fixtures`.

use std::path::PathBuf;

use bytes::Bytes;
use rangedb_engine::types::{DataId, ReplicaId};
use rangedb_engine::wal::{Body, Created, LogEntry, LogState, Payload, Vote, WalError};

use crate::bench::{BLOCK, Machine, OPTIONS, append, created, group, id, log_of, read};

const SEGMENT: &str = "000000000001.wal";
const SECOND: &str = "000000000002.wal";
const CLEAN: &str = "clean";
const FORMATS: [u16; 3] = [1, 2, 3];

fn folder(format: u16) -> PathBuf {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../engine/fixtures");
    fixtures.join(format!("wal-version-{format}"))
}

const VOTE: Vote = Vote {
    term: 3,
    leader: ReplicaId(2),
    committed: true,
};

fn first() -> Created {
    Created {
        first: Some(id(1, 10)),
        ..created(1)
    }
}

fn blank(term: u64, index: u64) -> LogEntry {
    LogEntry {
        id: id(term, index),
        payload: Payload::Blank,
    }
}

/// What group 1 has in the end.
fn entries() -> Vec<LogEntry> {
    let commands = Payload::Commands(Body::seal(Bytes::from_static(b"some commands")));
    let membership = Payload::Membership(Body::seal(Bytes::from_static(b"another membership")));
    vec![
        blank(1, 13),
        LogEntry {
            id: id(1, 14),
            payload: commands,
        },
        LogEntry {
            id: id(2, 15),
            payload: membership,
        },
    ]
}

/// A machine with these bytes on its disk, and the zeros that were left out.
fn with_files(format: u16, segment: &[u8]) -> Machine {
    let machine = Machine::new(1);
    let padded = |bytes: &[u8], len: usize| {
        let mut bytes = bytes.to_vec();
        assert!(bytes.len() <= len);
        bytes.resize(len, 0);
        bytes
    };
    let len = OPTIONS.segment_bytes as usize;
    let clean = std::fs::read(folder(format).join(CLEAN)).expect("the fixture");
    machine.platter.put(SEGMENT, padded(segment, len));
    machine.platter.put(CLEAN, padded(&clean, BLOCK));
    machine
}

fn segment(format: u16) -> Vec<u8> {
    std::fs::read(folder(format).join(SEGMENT)).expect("the fixture")
}

/// Expects the records of the fixture.
fn check(machine: &Machine) {
    let open = machine.open();
    machine.life(async move {
        let (_, recovered) = open.await.expect("opens");
        assert!(recovered.clean);
        assert_eq!(recovered.data_ids_reserved, DataId(64));
        assert_eq!(recovered.removed, [group(2)]);
        let replicas = recovered.replicas.iter();
        let made: Vec<Created> = replicas.map(|(created, _)| created.clone()).collect();
        assert_eq!(made, [first(), created(3)]);
        let log = log_of(&recovered, group(1));
        let state = LogState {
            last: Some(id(2, 15)),
            purged: Some(id(1, 12)),
            vote: Some(VOTE),
            committed: Some(id(1, 13)),
        };
        assert_eq!(log.state(), state);
        let found = log.read(0, u64::MAX, usize::MAX).await.expect("readable");
        assert_eq!(found, entries());
        assert_eq!(log_of(&recovered, group(3)).state(), LogState::default());
    });
}

#[test]
fn wal_reads_what_each_version_wrote() {
    if std::env::var_os("RANGEDB_MAKE_FIXTURES").is_some() {
        write_fixture();
    }
    for format in FORMATS {
        check(&with_files(format, &segment(format)));
    }
}

/// Entries that come after those of the fixture.
async fn append_after(machine: &Machine) {
    let open = machine.open();
    let (_, recovered) = open.await.expect("opens");
    append(&log_of(&recovered, group(3)), group(3), 0..5).await;
}

/// Expects the entries of [`append_after`], and nothing else that is new.
fn check_after(machine: &Machine) {
    let open = machine.open();
    machine.life(async move {
        let (_, recovered) = open.await.expect("opens");
        assert!(!recovered.clean);
        assert_eq!(recovered.removed, [group(2)]);
        let held: Vec<_> = (0..5).map(|index| id(1, index)).collect();
        assert_eq!(read(&log_of(&recovered, group(3)), group(3)).await, held);
        let last = log_of(&recovered, group(1)).state().last;
        assert_eq!(last, Some(id(2, 15)));
    });
}

#[test]
fn wal_goes_on_after_version_1_in_a_segment_of_its_own() {
    let machine = std::rc::Rc::new(with_files(1, &segment(1)));
    let same = machine.clone();
    machine.life(async move { append_after(&same).await });
    check_after(&machine);
    // From then on nothing that stands behind the old batches can count, whatever it looks like.
    let mut bytes = machine.platter.read(SEGMENT);
    let end = segment(1).len().next_multiple_of(BLOCK);
    let number = bytes[..end]
        .chunks(BLOCK)
        .filter(|block| block.starts_with(b"RDBW"));
    let next = number.count() as u64 + 1;
    for forged in [next, next + 1, next + 1000] {
        let batch = crate::forged::sealed(1, 1, forged, &crate::forged::removed());
        bytes[end..end + batch.len()].copy_from_slice(&batch);
        machine.platter.put(SEGMENT, bytes.clone());
        check_after(&machine);
    }
    // What the old segment held before is still refused when it is damaged.
    machine.platter.flip(SEGMENT, 40, 0);
    let refusal = machine.refusal();
    assert!(matches!(refusal, WalError::Corrupt { .. }), "{refusal}");
    machine.platter.flip(SEGMENT, 40, 0);
    machine.platter.flip(SECOND, 9, 0);
    let refusal = machine.refusal();
    assert!(matches!(refusal, WalError::Corrupt { file, .. } if file == SECOND));
}

/// CRC-32C, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[test]
fn wal_refuses_another_version_and_says_what_to_do() {
    for format in FORMATS {
        let mut bytes = segment(format);
        let len = u32::from_le_bytes(bytes[24..28].try_into().expect("4 bytes")) as usize;
        let seal = |bytes: &mut [u8]| {
            bytes[28..32].fill(0);
            let crc = crc32c(&bytes[..32 + len]);
            bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        };
        seal(&mut bytes);
        assert_eq!(bytes, segment(format));
        bytes[4] = 4;
        seal(&mut bytes);
        let refusal = with_files(format, &bytes).refusal();
        let expected = WalError::OtherFormat {
            file: SEGMENT.to_owned(),
            found: 4,
        };
        assert_eq!(refusal, expected);
        let text = refusal.to_string();
        assert!(
            text.contains(SEGMENT) && text.contains("format 4"),
            "{text}"
        );
        assert!(text.contains("start the version that wrote it"), "{text}");
    }
}

/// Writes the files anew; see `engine/fixtures/README.md` for when.
fn write_fixture() {
    let machine = Machine::new(1);
    let open = machine.open();
    machine.life(async move {
        let (wal, _) = open.await.expect("opens");
        // Together, so that they become few writes.
        let (log, gone, idle) = futures_util::join!(
            wal.create_replica(first()),
            wal.create_replica(created(2)),
            wal.create_replica(created(3)),
        );
        drop((gone.expect("created"), idle.expect("created")));
        let log = log.expect("created");
        let old = (11..=16).map(|index| match index {
            14 => entries().swap_remove(1),
            _ => blank(1, index),
        });
        log.append(old.collect(), Box::new(|result| result.expect("written")));
        log.save_committed(id(1, 13));
        log.purge(id(1, 12));
        log.truncate_after(Some(id(1, 14)));
        let new = vec![entries().swap_remove(2)];
        log.append(new, Box::new(|result| result.expect("written")));
        let (voted, removed, reserved) = futures_util::join!(
            log.save_vote(VOTE),
            wal.remove_replica(group(2)),
            wal.reserve_data_ids(DataId(64)),
        );
        voted.and(removed).and(reserved).expect("durable");
        wal.close().await.expect("closes");
    });
    let folder = folder(3);
    std::fs::create_dir_all(&folder).expect("a folder");
    for name in [SEGMENT, CLEAN] {
        let mut bytes = machine.platter.read(name);
        let len = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        bytes.truncate(len);
        std::fs::write(folder.join(name), bytes).expect("written");
    }
    check(&machine);
}
