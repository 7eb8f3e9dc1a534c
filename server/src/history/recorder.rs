//! What is written to the history and read from it: it sums minutes up to hours, bounds the events of
//! each kind, waits while the disk is full, and puts a damaged database aside. All of it runs on the
//! history's thread.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rangedb_engine::env::Clock;
use rangedb_protocol::admin::{NodeEvent, NodeHistory, Period, Step};

use super::Query;
use super::fault::Fault;
use super::record::{Event, HOUR_MS, Work};
use super::store::{Kind, Store, put_aside};
use crate::data_dir::{DAMAGED_HISTORY, HISTORY};
use crate::env::SystemClock;

/// After a write that failed for want of room, rows wait for so long.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// Rows that wait for that; older ones are dropped.
const WAITING_MAX: usize = 4096;
/// Events of one kind that are kept in [`RATE_INTERVAL`]; the others are counted.
const RATE_MAX: u64 = 20;
const RATE_INTERVAL: Duration = Duration::from_secs(60);
/// Kinds whose events are counted at a time; those of further kinds are dropped.
const KINDS_MAX: usize = 256;
/// Events of one answer, the newest ones: the answer has to fit into a reply.
const EVENTS_TOLD_MAX: usize = 2000;

/// Whose history it is, and where it lies.
#[derive(Clone, Debug)]
pub struct Place {
    /// The data folder.
    pub data_dir: PathBuf,
    /// The node's id.
    pub node: u64,
}

impl Place {
    /// The folder of the history.
    pub fn folder(&self) -> PathBuf {
        self.data_dir.join(HISTORY)
    }

    /// Puts a database that cannot be used aside, and says so.
    pub fn put_aside(&self, why: &str) {
        let aside = self.data_dir.join(DAMAGED_HISTORY);
        match put_aside(&self.folder(), &aside, SystemClock.wall_ms()) {
            Ok(Some(to)) => tracing::warn!(
                event = "history_damaged",
                why,
                to = %to.display(),
                "the history of this node is damaged: it was put aside and begins anew; no data of \
                 clients is concerned"
            ),
            Ok(None) => tracing::warn!(why, "the history of this node cannot be written"),
            Err(error) => tracing::warn!(
                why,
                %error,
                "the history of this node is damaged, and could not be put aside"
            ),
        }
    }
}

/// The events of one kind in the present interval.
struct Rate {
    begun: Instant,
    kept: u64,
    left_out: u64,
    t: u64,
}

/// See the module's chapter.
pub struct Recorder {
    place: Place,
    store: Option<Store>,
    /// The beginning of the present hour, and its work so far.
    hour: Option<(u64, Work)>,
    rates: BTreeMap<String, Rate>,
    waiting: VecDeque<(Kind, u64, Vec<u8>)>,
    /// While the history is paused: when the next attempt is made.
    retry_at: Option<Instant>,
    dropped: u64,
}

impl Recorder {
    /// A recorder that opens its database with the first row.
    pub fn new(place: Place) -> Recorder {
        Recorder {
            place,
            store: None,
            hour: None,
            rates: BTreeMap::new(),
            waiting: VecDeque::new(),
            retry_at: None,
            dropped: 0,
        }
    }

    /// Opens the database, and reads the present hour from it.
    pub fn open(&mut self) {
        if self.store.is_some() || self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let opened = Store::open(&self.place.folder()).or_else(|fault| match fault {
            Fault::Damaged(why) => {
                self.place.put_aside(&why);
                Store::open(&self.place.folder())
            }
            lacking => Err(lacking),
        });
        match opened {
            Ok(store) => {
                self.store = Some(store);
                if self.retry_at.take().is_some() {
                    tracing::info!(
                        event = "history_resumed",
                        "the history of this node is written again"
                    );
                }
                if self.hour.is_none() {
                    let read = self.read_hour();
                    self.note(read);
                }
            }
            Err(fault) => self.pause(&fault),
        }
    }

    /// Sums up the minutes since the last hour that was written.
    fn read_hour(&mut self) -> Result<(), Fault> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let first = store.last(Kind::Hour)?.map_or(0, |(number, _)| number + 1);
        for row in store.rows(Kind::Minute, first, |_| true)? {
            if let Ok(work) = serde_json::from_slice(&row.value) {
                self.add_to_hour(row.t, &work);
            }
        }
        Ok(())
    }

    /// Adds the work of a minute to its hour; the hour before is over then.
    fn add_to_hour(&mut self, t: u64, work: &Work) {
        let begin = t - t % HOUR_MS;
        match &mut self.hour {
            Some((hour, sum)) if *hour == begin => sum.add(work),
            _ => {
                if let Some((hour, sum)) = self.hour.replace((begin, work.clone())) {
                    self.push(Kind::Hour, hour, &sum);
                }
            }
        }
    }

    fn push(&mut self, kind: Kind, t: u64, row: &impl serde::Serialize) {
        let Ok(value) = serde_json::to_vec(row) else {
            self.dropped += 1;
            return;
        };
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
            self.dropped += 1;
        }
        self.waiting.push_back((kind, t, value));
    }

    /// The time of the last event, if there is one and it can be read now.
    pub fn last_t(&mut self) -> Option<u64> {
        self.open();
        let last = self.store.as_ref()?.last(Kind::Event);
        match last {
            Ok(last) => last.map(|(_, t)| t),
            Err(fault) => {
                self.note(Err(fault));
                None
            }
        }
    }

    /// Records the work of the minute that began at this time.
    pub fn minute(&mut self, t: u64, work: &Work) {
        self.open();
        self.add_to_hour(t, work);
        self.push(Kind::Minute, t, work);
        self.flush();
    }

    /// Records an event, unless there are too many of its kind.
    pub fn event(&mut self, t: u64, event: &Event) {
        if !self.rates.contains_key(&event.kind) && self.rates.len() >= KINDS_MAX {
            self.dropped += 1;
            return;
        }
        let rate = self
            .rates
            .entry(event.kind.clone())
            .or_insert_with(|| Rate {
                begun: Instant::now(),
                kept: 0,
                left_out: 0,
                t,
            });
        if rate.kept >= RATE_MAX {
            rate.left_out += 1;
            rate.t = t;
            return;
        }
        rate.kept += 1;
        self.push(Kind::Event, t, event);
        self.flush();
    }

    /// What is due as time passes: it tells how many events were left out, and tries a disk that was
    /// full again.
    pub fn tick(&mut self) {
        let over = |rate: &Rate| rate.begun.elapsed() >= RATE_INTERVAL;
        for (kind, rate) in self
            .rates
            .extract_if(.., |_, rate| over(rate))
            .collect::<Vec<_>>()
        {
            if rate.left_out > 0 {
                let text = format!("{} more events of this kind were left out", rate.left_out);
                self.push(Kind::Event, rate.t, &Event::new(&kind, &text));
            }
        }
        self.flush();
    }

    /// Writes what waits.
    pub fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        self.open();
        let written = self.write();
        self.note(written);
    }

    fn write(&mut self) -> Result<(), Fault> {
        while let Some(store) = &mut self.store
            && let Some((kind, t, value)) = self.waiting.front()
        {
            store.add(*kind, *t, value)?;
            self.waiting.pop_front();
        }
        if self.store.as_ref().is_some_and(Store::is_due)
            && let Some(store) = self.store.take()
        {
            self.store = Some(store.renew()?);
        }
        Ok(())
    }

    /// Makes all that was written durable.
    pub fn sync(&mut self) {
        self.flush();
        let synced = self.store.as_ref().map_or(Ok(()), Store::sync);
        self.note(synced);
    }

    /// Deals with a fault, after which the store cannot be used any more.
    fn note(&mut self, done: Result<(), Fault>) {
        let Err(fault) = done else { return };
        self.store = None;
        match fault {
            Fault::Damaged(why) => {
                self.place.put_aside(&why);
                // One attempt at once; if that fails as well, the disk is to blame.
                self.open();
            }
            lacking => self.pause(&lacking),
        }
    }

    fn pause(&mut self, fault: &Fault) {
        let was_paused = self
            .retry_at
            .replace(Instant::now() + RETRY_INTERVAL)
            .is_some();
        if !was_paused {
            tracing::warn!(
                event = "history_paused",
                why = %fault,
                "the history of this node pauses, as it cannot be written; it goes on by itself"
            );
        }
    }

    /// Reads a part of the history.
    ///
    /// # Errors
    /// It cannot be read now; the text says why.
    pub fn tell(&mut self, query: &Query) -> Result<NodeHistory, String> {
        self.flush();
        self.open();
        match self.read(query) {
            Ok(told) => Ok(told),
            Err(fault) => {
                let why = format!("the history cannot be read: {fault}");
                self.note(Err(fault));
                Err(why)
            }
        }
    }

    fn read(&self, query: &Query) -> Result<NodeHistory, Fault> {
        let Some(store) = &self.store else {
            let why = "the disk is full, or the process has no more files or memory";
            return Err(Fault::Lacking(why.to_owned()));
        };
        let mut told = NodeHistory::default();
        told.node = self.place.node;
        told.dropped = self.dropped;
        let kind = match query.step {
            Step::Minute => Kind::Minute,
            Step::Hour => Kind::Hour,
        };
        // A clock that was set back tells a time twice.
        let mut works: BTreeMap<u64, Work> = BTreeMap::new();
        for row in store.rows(kind, 0, |t| query.holds(t))? {
            if let Ok(work) = serde_json::from_slice(&row.value) {
                works.entry(row.t).or_default().add(&work);
            }
        }
        match &self.hour {
            Some((t, work)) if query.step == Step::Hour && query.holds(*t) => {
                works.entry(*t).or_default().add(work);
            }
            _ => {}
        }
        let periods = works.into_iter().map(|(t, work)| {
            let period = work.period(t);
            match query.histograms {
                true => Period {
                    latency_us: work.latency,
                    ..period
                },
                false => period,
            }
        });
        let periods: Vec<Period> = periods.collect();
        match query.step {
            Step::Minute => told.minutes = periods,
            Step::Hour => told.hours = periods,
        }
        let events = store.rows(Kind::Event, 0, |t| query.holds(t))?;
        let newest = events.len().saturating_sub(EVENTS_TOLD_MAX);
        for row in events.into_iter().skip(newest) {
            if let Ok(Event { kind, text }) = serde_json::from_slice(&row.value) {
                let (t, node) = (row.t, self.place.node);
                told.events.push(NodeEvent {
                    t,
                    node,
                    kind,
                    text,
                });
            }
        }
        // A crash is recorded after the start that has learnt of it.
        told.events.sort_by_key(|event| event.t);
        Ok(told)
    }
}
