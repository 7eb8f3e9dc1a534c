//! The workloads: mixes of operations. Pure, seeded.
//!
//! The letters are YCSB's core workloads: a 50 % reads and 50 % updates, b 95 % and 5 %, c reads
//! alone, d 95 % reads of the latest records and 5 % inserts, e 95 % short scans and 5 % inserts, f
//! 50 % reads and 50 % read-modify-writes. `write` is puts alone, of records that may be absent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::distribution::{Distribution, DistributionKind};
use crate::keys::KeyLayout;

/// Longest scan in rows; lengths are uniform from 1.
const SCAN_ROWS_MAX: u64 = 100;
/// Length of the pool of random bytes from which values are cut.
const VALUE_POOL_LEN: usize = 1 << 20;

/// A mix of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Half reads, half updates.
    A,
    /// 95 % reads, 5 % updates.
    B,
    /// Reads.
    C,
    /// 95 % reads of the latest records, 5 % inserts.
    D,
    /// 95 % short scans, 5 % inserts.
    E,
    /// Half reads, half read-modify-writes.
    F,
    /// Puts, of absent keys too.
    Write,
}

/// The kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Read a record.
    Get,
    /// Set a record.
    Put,
    /// Set a record that is new.
    Insert,
    /// Read some records in key order.
    Scan,
    /// Read a record, then write it if nobody else has.
    ReadModifyWrite,
}

impl OperationKind {
    /// All kinds, in the order of their discriminants.
    pub const ALL: [OperationKind; 5] = [
        OperationKind::Get,
        OperationKind::Put,
        OperationKind::Insert,
        OperationKind::Scan,
        OperationKind::ReadModifyWrite,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            OperationKind::Get => "get",
            OperationKind::Put => "put",
            OperationKind::Insert => "insert",
            OperationKind::Scan => "scan",
            OperationKind::ReadModifyWrite => "read_modify_write",
        }
    }
}

impl Workload {
    /// The distribution that YCSB gives the workload; `write` is uniform.
    pub fn usual_distribution(self) -> DistributionKind {
        match self {
            Workload::D => DistributionKind::Latest,
            Workload::Write => DistributionKind::Uniform,
            _ => DistributionKind::Zipfian,
        }
    }

    fn choose(self, percent: u32) -> OperationKind {
        use OperationKind::{Get, Insert, Put, ReadModifyWrite, Scan};
        match self {
            Workload::A => {
                if percent < 50 {
                    Get
                } else {
                    Put
                }
            }
            Workload::B => {
                if percent < 95 {
                    Get
                } else {
                    Put
                }
            }
            Workload::C => Get,
            Workload::D => {
                if percent < 95 {
                    Get
                } else {
                    Insert
                }
            }
            Workload::E => {
                if percent < 95 {
                    Scan
                } else {
                    Insert
                }
            }
            Workload::F => {
                if percent < 50 {
                    Get
                } else {
                    ReadModifyWrite
                }
            }
            Workload::Write => Put,
        }
    }
}

/// One operation to perform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub kind: OperationKind,
    /// The number of the record.
    pub record: u64,
    /// The number of rows to read, if this is a scan.
    pub rows: usize,
}

/// The plan that all threads of a run share.
#[derive(Debug)]
pub struct Plan {
    /// The mix of operations.
    pub workload: Workload,
    /// Chooses records.
    pub distribution: Distribution,
    /// Makes keys.
    pub layout: KeyLayout,
    /// Length of a value in bytes.
    pub value_size: usize,
    /// How many records were loaded before the run.
    pub loaded: u64,
    /// How many records there are: those loaded, and those inserted since.
    pub records: AtomicU64,
    values: Vec<u8>,
}

impl Plan {
    /// A plan; `seed` decides the values.
    pub fn new(
        workload: Workload,
        distribution: Distribution,
        layout: KeyLayout,
        (value_size, records, seed): (usize, u64, u64),
    ) -> Plan {
        let mut random = SmallRng::seed_from_u64(seed);
        let pool = value_size + VALUE_POOL_LEN;
        let values = (0..pool)
            .map(|_| random.random_range(b'!'..=b'~'))
            .collect();
        let (loaded, records) = (records, AtomicU64::new(records));
        Plan {
            workload,
            distribution,
            layout,
            value_size,
            loaded,
            records,
            values,
        }
    }

    /// A printable, incompressible value.
    pub fn value(&self, random: &mut SmallRng) -> &[u8] {
        let start = random.random_range(0..=VALUE_POOL_LEN);
        &self.values[start..start + self.value_size]
    }
}

/// Chooses the operations of one thread.
#[derive(Debug)]
pub struct Steps {
    plan: Arc<Plan>,
    random: SmallRng,
}

impl Steps {
    /// The same `seed` gives the same operations, except that other threads' inserts change the
    /// choice.
    pub fn new(plan: Arc<Plan>, seed: u64) -> Steps {
        Steps {
            plan,
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// The next operation. An insert takes the next free record number.
    pub fn next_step(&mut self) -> Step {
        let kind = self.plan.workload.choose(self.random.random_range(0..100));
        let rows = match kind {
            OperationKind::Scan => self.random.random_range(1..=SCAN_ROWS_MAX) as usize,
            _ => 0,
        };
        let record = match kind {
            OperationKind::Insert => self.plan.records.fetch_add(1, Ordering::Relaxed),
            _ => self.record(),
        };
        Step { kind, record, rows }
    }

    /// A record that is there, by the plan's distribution.
    pub fn record(&mut self) -> u64 {
        let records = self.plan.records.load(Ordering::Relaxed);
        self.plan.distribution.draw(&mut self.random, records)
    }

    /// Writes a record's key into `out`.
    pub fn write_key(&self, record: u64, out: &mut [u8]) {
        self.plan.layout.write(record, out);
    }

    /// Writes a new value into `out`.
    pub fn write_value(&mut self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(self.plan.value(&mut self.random));
    }

    /// How many reads of a request must have found their records, of so many that found nothing. A
    /// record that the run itself adds may be read before it is there, so of workloads that add records
    /// only a single read of a record that was loaded is sure.
    pub fn missing(&self, record: u64, (asked, absent): (u64, u64)) -> u64 {
        let adds = matches!(self.plan.workload, Workload::D | Workload::E);
        let is_sure = !adds || (asked == 1 && record < self.plan.loaded);
        if is_sure { absent } else { 0 }
    }

    /// Length of a key in bytes.
    pub fn key_size(&self) -> usize {
        self.plan.layout.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(workload: Workload) -> Vec<u64> {
        let layout = KeyLayout::new(16, 1000, false).unwrap();
        let distribution = Distribution::new(workload.usual_distribution(), 1000);
        let plan = Arc::new(Plan::new(workload, distribution, layout, (8, 1000, 1)));
        let mut steps = Steps::new(plan.clone(), 1);
        let mut counts = vec![0; OperationKind::ALL.len()];
        for _ in 0..10_000 {
            let step = steps.next_step();
            assert!(step.record < plan.records.load(Ordering::Relaxed));
            counts[step.kind as usize] += 1;
        }
        counts
            .into_iter()
            .map(|count: u64| (count + 50) / 100)
            .collect()
    }

    #[test]
    fn mixes_are_those_of_ycsb() {
        let near = |found: Vec<u64>, wanted: [u64; 5]| {
            assert!(
                found.iter().zip(wanted).all(|(f, w)| f.abs_diff(w) <= 2),
                "{found:?}"
            );
        };
        near(shares(Workload::A), [50, 50, 0, 0, 0]);
        near(shares(Workload::B), [95, 5, 0, 0, 0]);
        near(shares(Workload::C), [100, 0, 0, 0, 0]);
        near(shares(Workload::D), [95, 0, 5, 0, 0]);
        near(shares(Workload::E), [0, 0, 5, 95, 0]);
        near(shares(Workload::F), [50, 0, 0, 0, 50]);
        near(shares(Workload::Write), [0, 100, 0, 0, 0]);
    }

    #[test]
    fn records_that_were_loaded_must_be_found() {
        let missing = |workload: Workload, record, reads| {
            let layout = KeyLayout::new(16, 1000, false).unwrap();
            let distribution = Distribution::new(workload.usual_distribution(), 1000);
            let plan = Plan::new(workload, distribution, layout, (8, 1000, 1));
            Steps::new(Arc::new(plan), 1).missing(record, reads)
        };
        assert_eq!(missing(Workload::C, 999, (1, 1)), 1);
        assert_eq!(missing(Workload::C, 999, (100, 7)), 7);
        assert_eq!(missing(Workload::C, 999, (100, 0)), 0);
        assert_eq!(missing(Workload::D, 999, (1, 1)), 1);
        // It is being inserted at this moment.
        assert_eq!(missing(Workload::D, 1000, (1, 1)), 0);
        assert_eq!(missing(Workload::D, 999, (100, 7)), 0);
    }
}
