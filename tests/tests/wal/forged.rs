//! Bytes of clients that look like the log's own: batches and first blocks of segments at every
//! block of large values. Segments are used again, so recovery meets them behind the last write.

use std::collections::BTreeMap;

use rangedb_engine::wal::{Body, LogEntry, Payload, WalOptions};
use tokio::sync::oneshot;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::bench::{BLOCK, Machine, created, generation, group, id, log_of};
use crate::fixture::crc32c;

/// Bytes of a batch before the payload of its only entry: the batch's header, the record's, a log
/// id and a checksum.
const BEFORE_PAYLOAD: usize = 40 + 21 + 24 + 4;

/// A record that removes group 1 for good.
pub fn removed() -> Vec<u8> {
    let mut record = vec![9];
    record.extend_from_slice(&1_u64.to_le_bytes());
    record.extend_from_slice(&1_u64.to_le_bytes());
    record.extend_from_slice(&[0; 4]);
    record
}

/// A batch as format 1 has it, or with another format a sealed block.
pub fn sealed(format: u8, generation: u64, number: u64, body: &[u8]) -> Vec<u8> {
    let mut block = b"RDBW".to_vec();
    block.extend_from_slice(&[format, 0, 0, 0]);
    block.extend_from_slice(&generation.to_le_bytes());
    block.extend_from_slice(&number.to_le_bytes());
    block.extend_from_slice(&(body.len() as u32).to_le_bytes());
    block.extend_from_slice(&[0; 4]);
    block.extend_from_slice(body);
    let crc = crc32c(&block);
    block[28..32].copy_from_slice(&crc.to_le_bytes());
    block
}

/// A batch of today's format under a secret.
fn batch(secret: u64, generation: u64, number: u64) -> Vec<u8> {
    let mut covered = generation.to_le_bytes().to_vec();
    covered.extend_from_slice(&number.to_le_bytes());
    covered.extend_from_slice(&(removed().len() as u64).to_le_bytes());
    covered.extend_from_slice(&removed());
    let mut batch = b"RDBW\x03\0\0\0".to_vec();
    batch.extend_from_slice(&xxh3_64_with_seed(&covered, secret).to_le_bytes());
    batch.extend_from_slice(&covered);
    batch
}

/// The secrets that segments have, and those that spare ones had, but for the newest segment's.
fn old_secrets(machine: &Machine) -> Vec<u64> {
    let newest = machine.segments().pop();
    let files = machine.platter.files().into_iter().map(|(name, _)| name);
    let old = files.filter(|name| Some(name) != newest.as_ref());
    let secrets = old.map(|name| secret(machine, &name));
    secrets.filter(|secret| *secret != 0).collect()
}

fn secret(machine: &Machine, segment: &str) -> u64 {
    let bytes = machine.platter.read(segment);
    u64::from_le_bytes(bytes[32..40].try_into().expect("8 bytes"))
}

/// A run of a log: how long its values are, and how many it takes.
#[derive(Clone, Copy)]
struct Run {
    seed: u64,
    value_len: usize,
    values: u64,
    options: WalOptions,
}

impl Run {
    /// Writes values that have `forged`, in turn, at the beginning of each block; then the power
    /// goes.
    fn write(self, forged: Vec<Vec<u8>>) -> Machine {
        let machine = Machine::new(self.seed);
        let open = machine.open_with(self.options);
        machine.life(async move {
            let (wal, _) = open.await.expect("opens");
            let log = wal.create_replica(created(1)).await.expect("created");
            for index in 0..self.values {
                // Of several lengths: then batches do not begin where others have begun.
                let len = self.value_len + (index * 7 % 5) as usize * BLOCK;
                let mut value = vec![0; len];
                let places = (BLOCK - BEFORE_PAYLOAD..len).step_by(BLOCK);
                for (at, forged) in places.zip(forged.iter().cycle()) {
                    let end = len.min(at + forged.len());
                    value[at..end].copy_from_slice(&forged[..end - at]);
                }
                let entry = LogEntry {
                    id: id(1, index),
                    payload: Payload::Commands(Body::seal(value.into())),
                };
                let (sender, receiver) = oneshot::channel();
                let done = move |result| sender.send(result).expect("awaited");
                log.append(vec![entry], Box::new(done));
                receiver.await.expect("told").expect("written");
                log.purge(id(1, index));
            }
        });
        machine
    }

    /// Where the log would go on: the newest segment, the offset in it, and the batch's number.
    fn end(self) -> (String, usize, u64) {
        let machine = self.write(vec![Vec::new()]);
        let newest = machine.segments().pop().expect("a segment");
        let begin = *machine.batches(&newest, true).last().expect("a batch");
        let bytes = machine.platter.read(&newest);
        let field = |at: usize, len: usize| {
            let mut number = [0; 8];
            number[..len].copy_from_slice(&bytes[begin + at..begin + at + len]);
            u64::from_le_bytes(number)
        };
        let len = (40 + field(32, 4) as usize).next_multiple_of(BLOCK);
        (newest, begin + len, field(24, 8) + 1)
    }

    /// Expects that nothing forged counts. Says whether any of it stood where it might have.
    fn check(self, (newest, end): (&str, usize), what: &str, forged: Vec<Vec<u8>>) -> bool {
        let machine = self.write(forged.clone());
        let bytes = machine.platter.read(newest);
        let met = forged
            .iter()
            .any(|forged| bytes[end.min(bytes.len())..].starts_with(forged));
        let open = machine.open_with(self.options);
        let (what, seed) = (what.to_owned(), self.seed);
        let last = self.values - 1;
        machine.life(async move {
            let opened = open.await;
            let (_, recovered) = opened.unwrap_or_else(|e| panic!("{what}, seed {seed}: {e}"));
            assert_eq!(recovered.removed, [], "{what}, seed {seed}");
            let log = log_of(&recovered, group(1));
            assert_eq!(log.state().last, Some(id(1, last)), "{what}, seed {seed}");
        });
        met
    }
}

fn runs() -> Vec<Run> {
    let small = WalOptions {
        segment_bytes: 128 << 10,
        entry_cache_bytes: 0,
        segments_max: 4,
        must_exist: false,
    };
    let large = WalOptions {
        segment_bytes: 4 << 20,
        ..small
    };
    let run = |seed, value_len, values, options| Run {
        seed,
        value_len,
        values,
        options,
    };
    let mut runs: Vec<Run> = (1..=12)
        .map(|seed| run(seed, 20_000, 40 + seed, small))
        .collect();
    runs.push(run(20, 100_000, 30, large));
    runs.push(run(21, 1_000_000, 17, large));
    runs
}

#[test]
fn wal_takes_no_forged_batch_for_its_own() {
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    for run in runs() {
        let (segment, end, next) = run.end();
        let newest = generation(&segment);
        // What a client could know at the most: secrets that older segments had.
        let known = old_secrets(&run.write(vec![Vec::new()]));
        let known: Vec<u64> = [0, 1, u64::MAX].into_iter().chain(known).collect();
        for ahead in [0, 1, 1000] {
            let number = next + ahead;
            let keyed = |secret: &u64| batch(*secret, newest, number);
            let kinds: [(&str, Vec<Vec<u8>>); 3] = [
                (
                    "a batch of format 1",
                    vec![sealed(1, newest, number, &removed())],
                ),
                (
                    "a batch of today's format",
                    known.iter().map(keyed).collect(),
                ),
                ("a first block", {
                    let mut body = 7_u64.to_le_bytes().to_vec();
                    body.extend_from_slice(&run.options.segment_bytes.to_le_bytes());
                    vec![sealed(2, newest, number, &body), batch(7, newest, number)]
                }),
            ];
            for (what, forged) in kinds {
                *met.entry(what).or_default() +=
                    usize::from(run.check((&segment, end), what, forged));
            }
        }
    }
    assert!(
        met.len() == 3 && met.values().all(|met| *met > 10),
        "{met:?}"
    );
}

#[test]
fn wal_gives_each_use_of_a_segment_another_secret() {
    let mut secrets = Vec::new();
    for run in runs() {
        let machine = run.write(vec![Vec::new()]);
        secrets.extend(old_secrets(&machine));
        let segments = machine.segments();
        secrets.extend(segments.last().map(|newest| secret(&machine, newest)));
    }
    let count = secrets.len();
    secrets.sort_unstable();
    secrets.dedup();
    assert!(count > 20 && secrets.len() == count, "{secrets:?}");
}
