//! The decoders of the log under bytes that were changed at random.

use bytes::Bytes;
use rangedb_fuzz::{Meter, fuzz, fuzz_repaired};

use crate::limits::BLOCK_LEN;
use crate::types::{DataId, RangeId, ReplicaId};
use crate::wal::batch::{self, Found, Header, Key};
use crate::wal::record::{self, Record};
use crate::wal::sealed::{self, Opened, Sealed};
use crate::wal::{
    Birth, Body, Created, Group, InstalledSnapshot, LogEntry, LogId, LogMark, Payload, Vote,
    segment,
};

const SECRET: u64 = 0x0123_4567_89ab_cdef;
/// Where the checksum of an entry's record stands, and what it covers.
const ENTRY_CRC_AT: usize = record::HEADER_LEN + 24;
const ENTRY_BODY_AT: usize = ENTRY_CRC_AT + 4;

fn records() -> Vec<Record> {
    let group = Group {
        range: RangeId(7),
        replica: ReplicaId(1 << 33),
    };
    let id = |index| LogId {
        term: 3,
        leader: ReplicaId(9),
        index,
    };
    let entry = |index, payload| {
        Record::Entry(
            group,
            LogEntry {
                id: id(index),
                payload,
            },
        )
    };
    let vote = Vote {
        term: 4,
        leader: ReplicaId(9),
        committed: true,
    };
    let created = |first| Created {
        group,
        data_id: DataId(5),
        descriptor: Bytes::from_static(b"descriptor"),
        membership: Bytes::from_static(b"membership"),
        first,
        birth: None,
    };
    let installed = InstalledSnapshot {
        data_id: DataId(6),
        last: id(8),
        keeps_later: true,
        state: Bytes::from_static(b"state"),
    };
    let mark = LogMark {
        log: 1 << 100,
        start: 2,
        flushes: 3,
    };
    vec![
        entry(1, Payload::Blank),
        entry(
            2,
            Payload::Commands(Body::seal(Bytes::from_static(b"commands"))),
        ),
        entry(
            3,
            Payload::Membership(Body::seal(Bytes::from_static(b"members"))),
        ),
        Record::Vote(group, vote),
        Record::Truncate(group, None),
        Record::Truncate(group, Some(2)),
        Record::Purge(group, id(1)),
        Record::Commit(group, id(3)),
        Record::Created(created(None)),
        Record::Created(created(Some(id(9)))),
        Record::Created(Created {
            birth: Some(Birth {
                parent: group,
                split: id(7),
            }),
            ..created(Some(id(9)))
        }),
        Record::Removed(group),
        Record::DataIds(DataId(1024)),
        Record::InstalledSnapshot(group, installed),
        Record::Mark(mark),
    ]
}

fn encoded(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    records
        .iter()
        .for_each(|record| record::encode(record, &mut bytes));
    bytes
}

fn decoded(bytes: &[u8]) -> Option<Vec<Record>> {
    let mut reader = record::Reader::new(bytes);
    let mut records = Vec::new();
    while let Some(record) = reader.next().ok()? {
        records.push(record);
    }
    assert_eq!(reader.offset(), bytes.len());
    Some(records)
}

/// Gives the entry at the beginning the checksum of its body.
fn repair_entry(bytes: &mut [u8]) {
    let is_entry = bytes.first().is_some_and(|kind| (1..=3).contains(kind));
    let len = bytes.get(record::HEADER_LEN - 4..record::HEADER_LEN);
    let len = len
        .and_then(|len| len.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    let end = (record::HEADER_LEN + len as usize).min(bytes.len());
    if is_entry && let Some(body) = bytes.get(ENTRY_BODY_AT..end) {
        let sum = crc32c::crc32c(body).to_le_bytes();
        bytes[ENTRY_CRC_AT..ENTRY_BODY_AT].copy_from_slice(&sum);
    }
}

#[test]
fn records_of_a_batch() {
    let mut corpus: Vec<Vec<u8>> = records().into_iter().map(|one| encoded(&[one])).collect();
    corpus.push(encoded(&records()));
    let tally = fuzz_repaired("records", &corpus, repair_entry, |bytes, meter| {
        let Some(records) = meter.decode(|| decoded(bytes)) else {
            return false;
        };
        assert_eq!(decoded(&encoded(&records)), Some(records));
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

fn header_of(bytes: &[u8], key: Key, meter: &mut Meter) -> Option<Header> {
    match meter.decode(|| batch::decode(key, bytes)) {
        Found::Batch(header) => Some(header),
        Found::Longer(_) | Found::Nothing => None,
    }
}

#[test]
fn batches() {
    let batch = |number, records: &[u8]| {
        let header = Header {
            generation: 3,
            number,
            len: records.len(),
        };
        let mut bytes = vec![0; batch::padded_len(records.len())];
        batch::encode(SECRET, header, [records], &mut bytes);
        bytes
    };
    let corpus = [batch(17, &encoded(&records())), batch(18, b"")];
    let repair = |bytes: &mut [u8]| {
        let len = bytes.get(32..36).and_then(|len| len.try_into().ok());
        let end = batch::HEADER_LEN + len.map_or(0, u32::from_le_bytes) as usize;
        if let Some(covered) = bytes.get(16..end) {
            let sum = xxhash_rust::xxh3::xxh3_64_with_seed(covered, SECRET);
            bytes[8..16].copy_from_slice(&sum.to_le_bytes());
        }
    };
    let tally = fuzz_repaired("batches", &corpus, repair, |bytes, meter| {
        let Some(header) = header_of(bytes, Key::Secret(SECRET, batch::FORMAT), meter) else {
            return false;
        };
        let records = &bytes[batch::HEADER_LEN..batch::HEADER_LEN + header.len];
        let mut again = vec![0; batch::padded_len(header.len)];
        batch::encode(SECRET, header, [records], &mut again);
        assert_eq!(
            batch::decode(Key::Secret(SECRET, batch::FORMAT), &again),
            Found::Batch(header)
        );
        meter.decode(|| decoded(records));
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

fn repair_sealed(bytes: &mut [u8]) {
    let len = bytes.get(24..28).and_then(|len| len.try_into().ok());
    let end = sealed::HEADER_LEN + len.map_or(0, u32::from_le_bytes) as usize;
    if bytes.get(..end).is_some() && bytes.len() >= sealed::HEADER_LEN {
        bytes[28..32].fill(0);
        let sum = crc32c::crc32c(&bytes[..end]);
        bytes[28..32].copy_from_slice(&sum.to_le_bytes());
    }
}

#[test]
fn sealed_blocks_and_batches_of_format_1() {
    let block = |format, body: &[u8]| {
        let mut bytes = vec![0; sealed::padded_len(body.len())];
        let block = Sealed {
            format,
            generation: 3,
            number: 17,
            body,
        };
        sealed::seal(block, &mut bytes);
        bytes
    };
    let corpus = [block(1, &encoded(&records())), block(2, b"8 bytes!")];
    let tally = fuzz_repaired("sealed blocks", &corpus, repair_sealed, |bytes, meter| {
        let Opened::Whole(found) = meter.decode(|| sealed::open(bytes)) else {
            return false;
        };
        let mut again = vec![0; sealed::padded_len(found.body.len())];
        sealed::seal(found, &mut again);
        assert_eq!(sealed::open(&again), Opened::Whole(found));
        if let Some(header) = header_of(bytes, Key::None, meter) {
            assert_eq!(
                (header.number, header.len),
                (found.number, found.body.len())
            );
        }
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

/// The first blocks of the segments that older versions wrote.
#[test]
fn beginnings_of_segments() {
    /// Of each segment; the fixtures leave the zeros at the end out.
    const LEN: u64 = 128 << 10;
    const OLD: [&[u8]; 2] = [
        include_bytes!("../../fixtures/wal-version-1/000000000001.wal"),
        include_bytes!("../../fixtures/wal-version-2/000000000001.wal"),
    ];
    let corpus = OLD.map(|segment| segment[..2 * BLOCK_LEN].to_vec());
    fuzz_repaired("beginnings", &corpus, repair_sealed, |bytes, meter| {
        meter.decode(|| segment::beginning(1, LEN, bytes)).is_ok()
    });
}

#[test]
fn names_of_segments() {
    let names = [
        segment::name(1),
        segment::spare_name(9),
        segment::CLEAN.to_owned(),
    ];
    fuzz("names", &names.map(String::into_bytes), |bytes, meter| {
        let Ok(name) = std::str::from_utf8(bytes) else {
            return false;
        };
        meter.decode(|| segment::kind(name)) != segment::Kind::Foreign
    });
}
