//! Performs operations: threads, connections, and slots for operations in flight.
//!
//! Hot path: an operation costs at most two allocations of its own (none once its buffers have
//! grown) besides the client's. Each thread has its own runtime and counters; threads share only
//! the plan, to which only inserts write. A thread's connections carry `depth` operations each.
//! Each slot is a task that begins its next operation when the last one is answered. Another task of the
//! thread tells the main thread each second what was done ([`crate::series`]).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Barrier, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::LocalRuntime;

use crate::database::{Condition, Database, Failure};
use crate::pace::Pace;
use crate::probe::Probe;
use crate::series::{self, Interval, Second, SecondSummary, Seconds, Told};
use crate::stop::Stop;
use crate::workload::{OperationKind, Plan, Step, Steps};

/// How often `load` tries a record before it gives it up.
const LOAD_TRIES_MAX: u32 = 20;
/// Pause of a slot after a failure, so that a database that refuses is not flooded.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

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
    /// Measured time; `None`: until everything is loaded, or all operations are done.
    pub duration: Option<Duration>,
    /// Operations to measure; `None`: as many as the time allows.
    pub operations: Option<u64>,
    /// Seed of the random choice of operations.
    pub seed: u64,
}

/// The result of a run.
#[derive(Debug)]
pub struct Measured {
    /// The counts of all threads.
    pub probe: Probe,
    /// The measured time in seconds.
    pub seconds: f64,
    /// Each second of the run, the warm-up too.
    pub series: Vec<SecondSummary>,
    /// Whether it was told to stop before its end.
    pub is_stopped: bool,
}

impl Measured {
    /// The result of a run whose seconds were not counted.
    pub fn whole(probe: Probe, seconds: f64) -> Measured {
        Measured {
            probe,
            seconds,
            series: Vec::new(),
            is_stopped: false,
        }
    }
}

/// How a run is watched and ended from outside.
pub struct Watch<'w> {
    /// Ends the run.
    pub stop: Stop,
    /// Hears of each second when it is over.
    pub each_second: &'w mut dyn FnMut(&Interval),
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
    start: Instant,
    measured_from: Instant,
    measured_until: Option<Instant>,
    /// How many gets are one request.
    batch: usize,
    /// How many operations are left to measure, if that is bounded.
    left: Cell<Option<u64>>,
    second: RefCell<Second>,
    /// Of how many seconds the main thread was told.
    told: Cell<u64>,
    index: usize,
}

/// Connects, performs operations, and waits for the last answer. Fails if a connection cannot be
/// made.
pub fn drive<D, C>(
    drive: Drive,
    (plan, load): (&Arc<Plan>, bool),
    watch: Watch<'_>,
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
    let (sender, told) = mpsc::channel();
    std::thread::scope(|scope| {
        let mut handles = Vec::new();
        for index in 0..threads {
            let (barriers, start, has_failed) = (&barriers, &start, &has_failed);
            let (connect, sender, plan) = (&connect, sender.clone(), plan.clone());
            let stop = watch.stop.clone();
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
                let worker = new_worker(&drive, (&plan, load), (start, index), stop);
                let work = run_worker(worker, clients, drive.depth, sender);
                Ok(runtime.block_on(work))
            }));
        }
        // Between the two barriers every thread has connected or failed, and none has begun.
        barriers[0].wait();
        let began = Instant::now();
        if !has_failed.load(Ordering::Relaxed) {
            start.get_or_init(|| began);
        }
        barriers[1].wait();
        drop(sender);
        let series = series_of(&drive, &told, watch.each_second);
        let mut probe = Probe::default();
        let mut failure: Option<String> = None;
        for handle in handles {
            match handle.join() {
                Ok(Ok(counted)) => probe.merge(counted),
                Ok(Err(message)) => failure = Some(message),
                Err(_) => failure = Some("a thread of the load generator panicked".to_owned()),
            }
        }
        // A run that a signal ended is shorter than it was meant to be.
        let elapsed = began.elapsed().saturating_sub(drive.warmup);
        let seconds = drive.duration.map_or(elapsed, |time| time.min(elapsed));
        let measured = Measured {
            probe,
            seconds: seconds.as_secs_f64(),
            series,
            is_stopped: watch.stop.is_told(),
        };
        failure.map_or(Ok(measured), Err)
    })
}

/// The seconds of the run, as the threads tell of them.
fn series_of(
    drive: &Drive,
    told: &mpsc::Receiver<Told>,
    each_second: &mut dyn FnMut(&Interval),
) -> Vec<SecondSummary> {
    let mut series = Vec::new();
    let warmup = drive.warmup;
    let end = drive.duration.map(|duration| warmup + duration);
    series::collect(Seconds { warmup }, (drive.threads, told), |interval| {
        // After the time of the run only the last answers come.
        if end.is_none_or(|end| interval.begin < end) && !interval.length.is_zero() {
            each_second(&interval);
            series.push(SecondSummary::from(&interval));
        }
    });
    series
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
    (plan, load): (&Arc<Plan>, bool),
    (start, index): (Instant, usize),
    stop: Stop,
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
    let left = drive.operations.map(|all| {
        let share = share(all, drive.threads, index);
        share.end - share.start
    });
    Worker {
        source: RefCell::new(source),
        probe: RefCell::default(),
        pace: Pace::new((start + offset, measured_until), rate, stop),
        start,
        measured_from,
        measured_until,
        batch: drive.batch,
        left: Cell::new(left),
        second: RefCell::default(),
        told: Cell::new(0),
        index,
    }
}

async fn run_worker<D: Database>(
    worker: Worker,
    clients: Vec<D>,
    depth: usize,
    sender: Sender<Told>,
) -> Probe {
    let worker = Rc::new(worker);
    let teller = tokio::task::spawn_local({
        let (worker, sender) = (worker.clone(), sender.clone());
        async move { worker.tell_each_second(&sender).await }
    });
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
    teller.abort();
    worker.tell(&sender, worker.start.elapsed());
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
        let Some(step) = worker.prepare(intended, &mut buffers) else {
            // Everything is done: slots that wait for their moment must end, too.
            worker.pace.exhaust();
            break;
        };
        for attempt in 1..=tries_max {
            let result = perform(&client, step, &buffers).await;
            now = Instant::now();
            let has_failed = result.is_err();
            worker.record(step, (intended, now), result);
            if !has_failed {
                break;
            }
            if worker.pace.is_stopped() {
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
            let absent = u64::from(found.is_none());
            let condition = match &found {
                Some(found) => Condition::Version(found.version),
                None => Condition::Absent,
            };
            let is_swapped = client.compare_and_swap(key, condition, Some(value)).await?;
            let conflicts = u64::from(!is_swapped);
            Ok(Met {
                absent,
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
    /// The next operation and what it needs; `None`: there is none left.
    fn prepare(&self, begun: Instant, buffers: &mut Buffers) -> Option<Step> {
        if self.left.get() == Some(0) {
            return None;
        }
        let mut source = self.source.borrow_mut();
        let step = source.next_step()?;
        if let Some(left) = self.left.get().filter(|_| begun >= self.measured_from) {
            let is_many = step.kind == OperationKind::Get;
            let taken = if is_many { self.batch as u64 } else { 1 };
            self.left.set(Some(left.saturating_sub(taken)));
        }
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
    fn record(&self, step: Step, (begun, ended): (Instant, Instant), result: Result<Met, Failure>) {
        let mut second = self.second.borrow_mut();
        let mut probe = self.probe.borrow_mut();
        let met = match result {
            Ok(met) => met,
            Err(failure) => {
                second.errors += 1;
                if begun >= self.measured_from {
                    probe.fail(failure.code);
                }
                return;
            }
        };
        let latency = ended - begun;
        second.operations += met.operations;
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        second.latencies.saturating_record(nanos);
        if begun >= self.measured_from {
            probe.record(step.kind, latency);
        }
        if ended >= self.measured_from && self.measured_until.is_none_or(|until| ended < until) {
            probe.operations += met.operations;
            probe.not_found += met.absent;
            probe.conflicts += met.conflicts;
            if met.absent > 0 {
                let mut source = self.source.borrow_mut();
                let reads = (met.operations, met.absent);
                probe.missing += source.steps().missing(step.record, reads);
            }
        }
    }

    fn seconds(&self) -> Seconds {
        Seconds {
            warmup: self.measured_from - self.start,
        }
    }

    /// Tells the main thread of each second when it is over.
    async fn tell_each_second(&self, sender: &Sender<Told>) {
        for index in 0.. {
            let end = self.seconds().end(index);
            tokio::time::sleep_until((self.start + end).into()).await;
            self.tell(sender, end);
        }
    }

    /// Tells of the second that lasts at this moment or ends with it. If the main thread has gone, the run
    /// has failed.
    fn tell(&self, sender: &Sender<Told>, until: Duration) {
        let index = self.told.replace(self.told.get() + 1);
        let _ = sender.send(Told {
            worker: self.index,
            index,
            second: self.second.take(),
            until,
        });
    }
}

#[cfg(test)]
mod tests;
