//! Drives a database in memory.

use super::*;
use crate::distribution::Distribution;
use crate::keys::KeyLayout;
use crate::memory::{Faults, MemoryDatabase};
use crate::workload::Workload;

const RECORDS: u64 = 500;

fn plan(workload: Workload) -> Arc<Plan> {
    let layout = KeyLayout::new(16, RECORDS, false).unwrap();
    let distribution = Distribution::new(workload.usual_distribution(), RECORDS);
    Arc::new(Plan::new(workload, distribution, layout, (32, RECORDS, 1)))
}

fn settings() -> Drive {
    Drive {
        connections: 4,
        depth: 3,
        batch: 1,
        threads: 2,
        rate: None,
        warmup: Duration::ZERO,
        duration: Some(Duration::from_millis(100)),
        operations: None,
        seed: 1,
    }
}

/// Runs without anybody who watches.
fn measure<D: Database>(
    settings: Drive,
    plan: &Arc<Plan>,
    load: bool,
    connect: impl AsyncFn() -> Result<D, String> + Sync,
) -> Result<Measured, String> {
    let watch = Watch {
        stop: Stop::default(),
        each_second: &mut |_| {},
    };
    drive(settings, (plan, load), watch, connect)
}

#[test]
fn load_writes_every_record_once_in_spite_of_refusals() {
    let drive_settings = Drive {
        duration: None,
        ..settings()
    };
    let faults = Faults {
        refused_every: 50,
        ..Faults::default()
    };
    let connect = async || Ok(MemoryDatabase::new(faults));
    let measured = measure(drive_settings, &plan(Workload::A), true, connect).unwrap();
    assert_eq!(measured.probe.operations, RECORDS);
    assert!(measured.probe.errors["refused"] > 0);
    let kinds: Vec<_> = measured.probe.latencies().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [OperationKind::Insert]);
}

#[test]
fn gets_of_one_request_count_each_and_take_their_time_together() {
    let settings = Drive {
        batch: 7,
        ..settings()
    };
    let connect = async || Ok(MemoryDatabase::default());
    for (workload, others) in [(Workload::C, 0), (Workload::B, 1)] {
        let probe = measure(settings, &plan(workload), false, connect)
            .expect("measured")
            .probe;
        let gets = probe.latencies().next().expect("gets").1.len();
        assert!(gets > 0 && probe.operations > 6 * gets, "{probe:?}");
        // Nothing was loaded, and workload c writes nothing.
        assert!(others > 0 || probe.not_found == probe.operations);
        assert_eq!(probe.latencies().count(), 1 + others);
    }
}

#[test]
fn closed_loop_measures_every_kind_of_operation() {
    for (workload, kinds) in [
        (Workload::A, &[OperationKind::Get, OperationKind::Put][..]),
        (Workload::D, &[OperationKind::Get, OperationKind::Insert]),
        (Workload::E, &[OperationKind::Insert, OperationKind::Scan]),
        (
            Workload::F,
            &[OperationKind::Get, OperationKind::ReadModifyWrite],
        ),
        (Workload::Write, &[OperationKind::Put]),
    ] {
        let connect = async || Ok(MemoryDatabase::default());
        let measured = measure(settings(), &plan(workload), false, connect).unwrap();
        assert!(measured.probe.operations > 0);
        assert_eq!(
            measured
                .probe
                .latencies()
                .map(|(kind, _)| kind)
                .collect::<Vec<_>>(),
            kinds
        );
        assert!(measured.probe.errors.is_empty());
    }
}

#[test]
fn open_loop_keeps_its_rate() {
    let settings = Drive {
        rate: Some(10_000.0),
        ..settings()
    };
    let connect = async || Ok(MemoryDatabase::default());
    let measured = measure(settings, &plan(Workload::C), false, connect).unwrap();
    let begun = measured.probe.all_latencies().len();
    assert_eq!(begun + measured.probe.not_started, 1000, "in 100 ms");
}

/// Answers every get after 200 ms, far longer than the pause between two operations.
#[derive(Clone)]
struct SlowDatabase;

impl Database for SlowDatabase {
    type Value = Vec<u8>;

    async fn get(&self, _: &[u8]) -> Result<Option<crate::database::Found<Vec<u8>>>, Failure> {
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(None)
    }

    async fn put(&self, _: &[u8], _: &[u8]) -> Result<(), Failure> {
        Ok(())
    }

    async fn delete(&self, _: &[u8]) -> Result<bool, Failure> {
        Ok(false)
    }

    async fn compare_and_swap(
        &self,
        _: &[u8],
        _: Condition<'_>,
        _: Option<&[u8]>,
    ) -> Result<bool, Failure> {
        Ok(true)
    }

    async fn scan(&self, _: &[u8], _: usize) -> Result<usize, Failure> {
        Ok(0)
    }
}

#[test]
fn open_loop_counts_the_wait_for_a_free_place() {
    let settings = Drive {
        connections: 1,
        depth: 1,
        threads: 1,
        rate: Some(10.0),
        duration: Some(Duration::from_millis(1000)),
        ..settings()
    };
    let measured = measure(settings, &plan(Workload::C), false, async || {
        Ok(SlowDatabase)
    })
    .unwrap();
    // The n-th operation begins at n * 100 ms and is answered at (n + 1) * 200 ms at best.
    assert!(measured.probe.all_latencies().max() > 500_000_000);
    assert!(measured.probe.not_started > 0);
}

#[test]
fn a_run_ends_after_so_many_operations() {
    let settings = Drive {
        operations: Some(1001),
        duration: None,
        warmup: Duration::from_millis(20),
        ..settings()
    };
    let connect = async || Ok(MemoryDatabase::default());
    for rate in [None, Some(50_000.0)] {
        let settings = Drive { rate, ..settings };
        let measured = measure(settings, &plan(Workload::Write), false, connect).unwrap();
        // Those that began in the warm-up may end in the measured time.
        assert_eq!(measured.probe.all_latencies().len(), 1001, "{rate:?}");
        assert_eq!(measured.probe.not_started, 0);
        assert!(!measured.is_stopped);
    }
}

#[test]
fn a_run_that_is_told_to_stop_gives_what_was_measured() {
    for rate in [None, Some(1000.0)] {
        let settings = Drive {
            duration: Some(Duration::from_secs(3600)),
            rate,
            ..settings()
        };
        let stop = Stop::default();
        let mut seconds = 0;
        let watch = Watch {
            stop: stop.clone(),
            each_second: &mut |_| {
                seconds += 1;
                stop.tell();
            },
        };
        let plan = plan(Workload::Write);
        let connect = async || Ok(MemoryDatabase::default());
        let measured = drive(settings, (&plan, false), watch, connect).unwrap();
        assert!(measured.is_stopped && measured.probe.operations > 0);
        assert!(
            (1.0..60.0).contains(&measured.seconds),
            "{}",
            measured.seconds
        );
        assert_eq!(measured.series.len(), seconds);
        let of_seconds: u64 = measured.series.iter().map(|each| each.operations).sum();
        assert_eq!(of_seconds, measured.probe.operations);
    }
}

#[test]
fn records_that_were_loaded_must_be_found() {
    let connect = async || Ok(MemoryDatabase::default());
    for workload in [Workload::C, Workload::D, Workload::F] {
        let measured = measure(settings(), &plan(workload), false, connect).unwrap();
        assert!(measured.probe.missing > 0, "{workload:?}");
    }
}

#[test]
fn refused_connection_ends_the_run() {
    let connect = async || Err::<MemoryDatabase, _>("nobody listens".to_owned());
    let result = measure(settings(), &plan(Workload::C), false, connect);
    assert_eq!(result.unwrap_err(), "nobody listens");
}
