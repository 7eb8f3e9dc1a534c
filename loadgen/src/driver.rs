//! Performs operations: threads, connections, and slots for operations in flight.
//!
//! Hot path: an operation costs at most two allocations of its own (none once its buffers have
//! grown) besides the client's. Each thread has its own runtime and counters; threads share only
//! the plan, to which only inserts write. A thread's connections carry `depth` operations each.
//! Each slot is a task that begins its next operation when the last one is answered.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::LocalRuntime;

use crate::database::{Condition, Database, Failure};
use crate::pace::Pace;
use crate::probe::Probe;
use crate::workload::{OperationKind, Plan, Step, Steps};

/// How often `load` tries a record before it gives it up.
const LOAD_TRIES_MAX: u32 = 20;
/// Pause of a slot after a failure, so that a database that refuses is not flooded.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);
/// Time between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How fast, and with how many connections, operations are performed.
#[derive(Clone, Copy, Debug)]
pub struct Drive {
    /// Clients, each with its own connections.
    pub connections: usize,
    /// Operations in flight on each client.
    pub depth: usize,
    /// Threads that share the connections.
    pub threads: usize,
    /// How many gets are one request; each counts as an operation.
    pub batch: usize,
    /// Requests a second (open loop); `None`: as fast as answers come.
    pub rate: Option<f64>,
    /// Time before the measured time.
    pub warmup: Duration,
    /// Measured time; `None`: until everything is loaded.
    pub duration: Option<Duration>,
    /// Seed of the random choice of operations.
    pub seed: u64,
    /// Whether a line is printed to standard error each second.
    pub is_progress_shown: bool,
}

/// The result of a run.
#[derive(Debug)]
pub struct Measured {
    /// The counts of all threads.
    pub probe: Probe,
    /// The measured time in seconds.
    pub seconds: f64,
}

/// Counters for the progress line; each written by one thread.
#[derive(Debug, Default)]
struct Progress {
    operations: AtomicU64,
    errors: AtomicU64,
}

/// The source of operations.
enum Source {
    Mix(Steps),
    Load(Steps, std::ops::Range<u64>),
}

impl Source {
    fn next_step(&mut self) -> Option<Step> {
        match self {
            Source::Mix(steps) => Some(steps.next_step()),
            Source::Load(_, records) => {
                let record = records.next()?;
                Some(Step {
                    kind: OperationKind::Insert,
                    record,
                    rows: 0,
                })
            }
        }
    }

    fn steps(&mut self) -> &mut Steps {
        match self {
            Source::Mix(steps) | Source::Load(steps, _) => steps,
        }
    }

    fn tries_max(&self) -> u32 {
        match self {
            Source::Mix(_) => 1,
            Source::Load(..) => LOAD_TRIES_MAX,
        }
    }
}

/// The state of one thread, shared by its slots.
struct Worker {
    source: RefCell<Source>,
    probe: RefCell<Probe>,
    pace: Pace,
    measured_from: Instant,
    measured_until: Option<Instant>,
    /// How many gets are one request.
    batch: usize,
    progress: Arc<Vec<Progress>>,
    index: usize,
}

/// Connects, performs operations, and waits for the last answer. Fails if a connection cannot be
/// made.
pub fn drive<D, C>(
    drive: Drive,
    plan: &Arc<Plan>,
    load: bool,
    connect: C,
) -> Result<Measured, String>
where
    D: Database,
    C: AsyncFn() -> Result<D, String> + Sync,
{
    let threads = drive.threads.clamp(1, drive.connections);
    let drive = Drive { threads, ..drive };
    let barriers = [Barrier::new(threads + 1), Barrier::new(threads + 1)];
    // Set between the barriers, unless a connection could not be made.
    let start: OnceLock<Instant> = OnceLock::new();
    let has_failed = AtomicBool::new(false);
    let progress: Arc<Vec<Progress>> =
        Arc::new((0..threads).map(|_| Progress::default()).collect());
    std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for index in 0..threads {
            let (barriers, start, has_failed) = (&barriers, &start, &has_failed);
            let (connect, progress, plan) = (&connect, progress.clone(), plan.clone());
            handles.push(scope.spawn(move || {
                let share = share(drive.connections as u64, threads, index);
                let connected = connect_all(share.end - share.start, connect);
                has_failed.fetch_or(connected.is_err(), Ordering::Relaxed);
                for barrier in barriers {
                    barrier.wait();
                }
                let (runtime, clients) = connected?;
                let Some(&start) = start.get() else {
                    return Ok(Probe::default());
                };
                let worker = new_worker(&drive, &plan, load, (start, index, progress));
                Ok(runtime.block_on(run_worker(worker, clients, drive.depth)))
            }));
        }
        // Between the two barriers every thread has connected or failed, and none has begun.
        barriers[0].wait();
        let began = Instant::now();
        if !has_failed.load(Ordering::Relaxed) {
            start.get_or_init(|| began);
        }
        barriers[1].wait();
        show_progress(&drive, &progress, || {
            handles.iter().all(|handle| handle.is_finished())
        });
        let mut probe = Probe::default();
        let mut failure: Option<String> = None;
        for handle in handles {
            match handle.join() {
                Ok(Ok(counted)) => probe.merge(counted),
                Ok(Err(message)) => failure = Some(message),
                Err(_) => failure = Some("a thread of the load generator panicked".to_owned()),
            }
        }
        let seconds = drive
            .duration
            .unwrap_or_else(|| began.elapsed())
            .as_secs_f64();
        failure.map_or(Ok(Measured { probe, seconds }), Err)
    })
}

/// Part `index` of `parts` nearly equal ones.
fn share(all: u64, parts: usize, index: usize) -> std::ops::Range<u64> {
    let border = |index: usize| (u128::from(all) * index as u128 / parts as u128) as u64;
    border(index)..border(index + 1)
}

/// Makes the runtime of one thread, and its clients.
fn connect_all<D>(
    count: u64,
    connect: &impl AsyncFn() -> Result<D, String>,
) -> Result<(LocalRuntime, Vec<D>), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    let clients = runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(connect().await?);
        }
        Ok::<_, String>(clients)
    })?;
    Ok((runtime, clients))
}

fn new_worker(
    drive: &Drive,
    plan: &Arc<Plan>,
    load: bool,
    (start, index, progress): (Instant, usize, Arc<Vec<Progress>>),
) -> Worker {
    // The threads of a run choose different operations.
    let steps = Steps::new(
        plan.clone(),
        drive.seed.wrapping_mul(0x1_0000).wrapping_add(index as u64),
    );
    let source = if load {
        let records = plan.records.load(Ordering::Relaxed);
        Source::Load(steps, share(records, drive.threads, index))
    } else {
        Source::Mix(steps)
    };
    let measured_from = start + drive.warmup;
    let measured_until = drive.duration.map(|duration| measured_from + duration);
    let rate = drive.rate.map(|rate| rate / drive.threads as f64);
    // The threads begin their operations one after the other, not at the same moment.
    let offset = drive.rate.map_or(Duration::ZERO, |rate| {
        Duration::from_secs_f64(index as f64 / rate)
    });
    let pace = Pace::new(start + offset, measured_until, rate);
    let probe = RefCell::default();
    let source = RefCell::new(source);
    Worker {
        source,
        probe,
        pace,
        measured_from,
        measured_until,
        batch: drive.batch,
        progress,
        index,
    }
}

async fn run_worker<D: Database>(worker: Worker, clients: Vec<D>, depth: usize) -> Probe {
    let worker = Rc::new(worker);
    let mut places = Vec::new();
    for client in &clients {
        for _ in 0..depth {
            places.push(tokio::task::spawn_local(run_client(
                worker.clone(),
                client.clone(),
            )));
        }
    }
    let pacer = tokio::task::spawn_local({
        let worker = worker.clone();
        async move { worker.pace.drive().await }
    });
    for place in places {
        place.await.expect("a place does not panic");
    }
    worker.pace.finish();
    let paced = pacer.await.expect("the pacer does not panic");
    paced.expect("the kernel gives a timer");
    let mut probe = worker.probe.take();
    probe.not_started = worker.pace.not_started();
    probe
}

/// Performs one operation after another.
async fn run_client<D: Database>(worker: Rc<Worker>, client: D) {
    let mut buffers = Buffers::default();
    let tries_max = {
        let mut source = worker.source.borrow_mut();
        buffers.key.resize(source.steps().key_size(), 0);
        source.tries_max()
    };
    let mut now = Instant::now();
    while let Some(intended) = worker.pace.next(now).await {
        let Some(step) = worker.prepare(&mut buffers) else {
            // Everything is loaded: slots that wait for their moment must end, too.
            worker.pace.finish();
            break;
        };
        for attempt in 1..=tries_max {
            let result = perform(&client, step, &buffers).await;
            now = Instant::now();
            let has_failed = result.is_err();
            worker.record(step.kind, intended, now, result);
            if !has_failed {
                break;
            }
            if attempt < tries_max || worker.pace.is_closed() {
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                now = Instant::now();
            }
        }
    }
}

#[derive(Default)]
struct Buffers {
    key: Vec<u8>,
    value: Vec<u8>,
    /// The keys of gets that are one request.
    keys: Vec<Vec<u8>>,
}

/// The results of the operations of one request, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Met {
    operations: u64,
    absent: u64,
    conflicts: u64,
}

impl Met {
    /// One operation that found its record and met no other writer.
    const ONE: Met = Met {
        operations: 1,
        absent: 0,
        conflicts: 0,
    };
}

async fn perform<D: Database>(client: &D, step: Step, buffers: &Buffers) -> Result<Met, Failure> {
    let (key, value) = (buffers.key.as_slice(), buffers.value.as_slice());
    match step.kind {
        OperationKind::Get if !buffers.keys.is_empty() => {
            let absent = client.get_many(&buffers.keys).await?;
            let operations = buffers.keys.len() as u64;
            Ok(Met {
                operations,
                absent,
                conflicts: 0,
            })
        }
        OperationKind::Get => {
            let found = client.get(key).await?;
            let absent = u64::from(found.is_none());
            Ok(Met { absent, ..Met::ONE })
        }
        OperationKind::Put | OperationKind::Insert => {
            client.put(key, value).await?;
            Ok(Met::ONE)
        }
        OperationKind::Scan => {
            client.scan(key, step.rows).await?;
            Ok(Met::ONE)
        }
        OperationKind::ReadModifyWrite => {
            let found = client.get(key).await?;
            let condition = match &found {
                Some(found) => Condition::Version(found.version),
                None => Condition::Absent,
            };
            let is_swapped = client.compare_and_swap(key, condition, Some(value)).await?;
            let conflicts = u64::from(!is_swapped);
            Ok(Met {
                conflicts,
                ..Met::ONE
            })
        }
    }
}

impl Buffers {
    /// Makes the keys of a request of several gets: that of the step, and others.
    fn fill_keys(&mut self, steps: &mut Steps, count: usize) {
        self.keys.resize(count, vec![0; self.key.len()]);
        for (place, key) in self.keys.iter_mut().enumerate() {
            match place {
                0 => key.copy_from_slice(&self.key),
                _ => {
                    let record = steps.record();
                    steps.write_key(record, key);
                }
            }
        }
    }
}

impl Worker {
    fn prepare(&self, buffers: &mut Buffers) -> Option<Step> {
        let mut source = self.source.borrow_mut();
        let step = source.next_step()?;
        let steps = source.steps();
        steps.write_key(step.record, &mut buffers.key);
        if self.batch > 1 && step.kind == OperationKind::Get {
            buffers.fill_keys(steps, self.batch);
        }
        if !matches!(step.kind, OperationKind::Get | OperationKind::Scan) {
            steps.write_value(&mut buffers.value);
        }
        Some(step)
    }

    /// Latencies count for operations that began in the measured time, throughput for those that
    /// ended in it. So a slow last operation is counted, but does not make the measured time
    /// longer.
    fn record(
        &self,
        kind: OperationKind,
        begun: Instant,
        ended: Instant,
        result: Result<Met, Failure>,
    ) {
        let progress = &self.progress[self.index];
        let met = match result {
            Ok(met) => met,
            Err(failure) => {
                progress.errors.fetch_add(1, Ordering::Relaxed);
                if begun >= self.measured_from {
                    self.probe.borrow_mut().fail(failure.code);
                }
                return;
            }
        };
        // This thread alone writes it, so no read-modify-write instruction is needed.
        let done = progress.operations.load(Ordering::Relaxed) + met.operations;
        progress.operations.store(done, Ordering::Relaxed);
        let mut probe = self.probe.borrow_mut();
        if begun >= self.measured_from {
            probe.record(kind, ended - begun);
        }
        if ended >= self.measured_from && self.measured_until.is_none_or(|until| ended < until) {
            probe.operations += met.operations;
            probe.not_found += met.absent;
            probe.conflicts += met.conflicts;
        }
    }
}

fn show_progress(drive: &Drive, progress: &[Progress], is_done: impl Fn() -> bool) {
    let start = Instant::now();
    let mut shown_at = start;
    let mut operations_before = 0;
    while !is_done() {
        // Short naps, so that the end of the run is noticed soon.
        std::thread::sleep(Duration::from_millis(5));
        let elapsed = shown_at.elapsed();
        if elapsed < PROGRESS_INTERVAL {
            continue;
        }
        let sum = |counter: fn(&Progress) -> &AtomicU64| -> u64 {
            progress
                .iter()
                .map(|one| counter(one).load(Ordering::Relaxed))
                .sum()
        };
        let (operations, errors) = (sum(|one| &one.operations), sum(|one| &one.errors));
        let rate = (operations - operations_before) as f64 / elapsed.as_secs_f64();
        if drive.is_progress_shown {
            let seconds = start.elapsed().as_secs();
            let phase = if start.elapsed() < drive.warmup {
                " (warm-up)"
            } else {
                ""
            };
            eprintln!("{seconds:>5} s  {rate:>10.0} ops/s  {errors} errors{phase}");
        }
        (shown_at, operations_before) = (Instant::now(), operations);
    }
}

#[cfg(test)]
mod tests;
