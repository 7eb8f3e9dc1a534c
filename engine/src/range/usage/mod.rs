//! The use of a range at this replica: the time of the last write, the rates of reads and writes, their CPU
//! time, and the size of the range. The figures are plain cells of the shard's thread; the shard's status
//! and its reports have copies.
//!
//! Counters only rise. Twice a second, when the shard reports, [`Usage::measure`] makes rates of them that
//! forget the past exponentially: one over 10 s and one over 5 min. A range that is split shares its rates
//! with the new one ([`Usage::split`]): so a split makes no load invisible.
//!
//! CPU time is the time that reads, checks of writes, turns of scans, and applied entries take on the
//! shard's thread. Looking at the clock twice costs about as much as a twentieth of a get, so only one get
//! and one write in [`SAMPLED_ONE_IN`] is timed and counts that often. What a request costs besides, such
//! as its frame and its part of a log entry, is not known by range: [`crate::shard`] shares
//! the CPU time of its whole thread out among its replicas by what is counted here.
//!
//! The keys of the same requests, and of as many pages of scans, are the samples of [`HotKeys`], in ranges
//! that have some load. The next one comes after a random number of others, so that requests that come in
//! turn are all met.

pub mod hot_keys;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use crate::boot_time::{BootClock, BootTime};
use crate::lsm::Size;
use crate::types::{DataId, KeyRange, Timestamp};
use hot_keys::{HotKey, HotKeys, LoadCut, Sample};

/// Of so many requests one is timed and its keys are sampled, on average.
const SAMPLED_ONE_IN: u32 = 16;
/// Keys are sampled in ranges that take at least as much timed CPU time, in nanoseconds a second, and until
/// they take less than half of it. So a bounded number of a shard's ranges has samples.
const HOT_KEYS_FROM: f64 = 1e6;
/// The time over which the shorter rates forget.
const SHORT: Duration = Duration::from_secs(10);
/// The time over which the longer rates forget.
const LONG: Duration = Duration::from_mins(5);
/// A rate below this a second is none.
const RATE_MIN: f64 = 0.01;
/// After so many bytes of writes the size is measured anew.
const SIZE_WRITTEN_MAX: u64 = 1 << 20;

/// The size of a range, and of what it was measured.
#[derive(Clone, Copy)]
struct MeasuredSize {
    /// Where the rows are, and the version of the range's bounds.
    of: (DataId, u32),
    size: Size,
    /// The bytes that had been written.
    written_bytes: u64,
}

/// What users did with a range: numbers that only rise, or rates of them a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Keys that were read and pages of scans.
    pub reads: f64,
    /// Writes that were taken to be proposed.
    pub writes: f64,
    /// Bytes of keys and values that were read.
    pub read_bytes: f64,
    /// Bytes of keys and values of those writes.
    pub written_bytes: f64,
    /// Nanoseconds of CPU time; see the module's chapter.
    pub cpu_nanos: f64,
}

impl Work {
    fn map(self, other: Work, of: impl Fn(f64, f64) -> f64) -> Work {
        Work {
            reads: of(self.reads, other.reads),
            writes: of(self.writes, other.writes),
            read_bytes: of(self.read_bytes, other.read_bytes),
            written_bytes: of(self.written_bytes, other.written_bytes),
            cpu_nanos: of(self.cpu_nanos, other.cpu_nanos),
        }
    }

    fn halved(self) -> Work {
        self.map(self, |rate, _| rate / 2.0)
    }
}

/// Rates a second over two times.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Over about 10 s.
    pub short: Work,
    /// Over about 5 min.
    pub long: Work,
}

/// What users did with a range.
pub struct Usage {
    clock: BootClock,
    /// When a user last wrote, to know whether old versions may exist.
    pub last_write: Cell<Timestamp>,
    reads: Cell<u64>,
    writes: Cell<u64>,
    read_bytes: Cell<u64>,
    written_bytes: Cell<u64>,
    cpu_nanos: Cell<u64>,
    /// When the rates were last made, and the counters at that time.
    measured: Cell<Option<(BootTime, Work)>>,
    rates: Cell<Rates>,
    size: Cell<Option<MeasuredSize>>,
    /// The requests that come before the next one that is sampled.
    unsampled: Cell<u32>,
    /// The random number that the next pause comes of.
    random: Cell<u32>,
    hot_keys: RefCell<Option<Box<HotKeys>>>,
}

/// How busy a replica of a range is. Only a leader's has any work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeLoad {
    /// Keys that were read and pages of scans, since the replica is here.
    pub reads: u64,
    /// Writes that were taken to be proposed, since the replica is here.
    pub writes: u64,
    /// Writes that wait to be proposed.
    pub waiting: usize,
    /// Entries in flight.
    pub in_flight: usize,
    /// About how many bytes its rows have, as last measured.
    pub size: Size,
    /// Bytes of keys and values that were read a second, over about 10 s.
    pub read_bytes_per_second: u64,
    /// Bytes of keys and values that were written a second, likewise.
    pub written_bytes_per_second: u64,
}

fn raise(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get().wrapping_add(by));
}

fn nanos(time: Duration) -> u64 {
    time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos())
}

/// The part of a rate that is kept after `elapsed`, if it forgets over a time.
fn kept(elapsed: Duration, over: Duration) -> f64 {
    (-elapsed.as_secs_f64() / over.as_secs_f64()).exp()
}

/// A rate of which so much is kept, after a time in which something happened `rate` times a second.
fn decayed(before: f64, rate: f64, kept: f64) -> f64 {
    let now = rate + (before - rate) * kept;
    if now < RATE_MIN { 0.0 } else { now }
}

impl Usage {
    /// No use yet; the last write may have been at this time.
    pub fn new(last_write: Timestamp, clock: BootClock) -> Usage {
        Usage {
            clock,
            last_write: Cell::new(last_write),
            reads: Cell::new(0),
            writes: Cell::new(0),
            read_bytes: Cell::new(0),
            written_bytes: Cell::new(0),
            cpu_nanos: Cell::new(0),
            measured: Cell::new(None),
            rates: Cell::default(),
            size: Cell::new(None),
            unsampled: Cell::new(0),
            random: Cell::new(1),
            hot_keys: RefCell::default(),
        }
    }

    /// The time at which the next read of a key or the next write begins, if it is one of those that are
    /// sampled.
    #[inline]
    pub fn begin(&self) -> Option<BootTime> {
        (self.unsampled.get() == 0).then(self.clock)
    }

    /// Counts the read of a key, with its value of so many bytes.
    #[inline]
    pub fn has_read(&self, key: &[u8], bytes: usize, began: Option<BootTime>) {
        raise(&self.reads, 1);
        raise(&self.read_bytes, bytes as u64);
        self.end(began, || Some(Sample::Point(key.to_vec())));
    }

    /// Counts a write of so many bytes. If it is sampled, its keys are given.
    #[inline]
    pub fn has_written(&self, keys: Option<Sample>, bytes: usize, began: Option<BootTime>) {
        raise(&self.writes, 1);
        raise(&self.written_bytes, bytes as u64);
        self.end(began, || keys);
    }

    #[inline]
    fn end(&self, began: Option<BootTime>, sample: impl FnOnce() -> Option<Sample>) {
        let Some(began) = began else {
            let unsampled = self.unsampled.get();
            return self.unsampled.set(unsampled.saturating_sub(1));
        };
        raise(
            &self.cpu_nanos,
            u64::from(SAMPLED_ONE_IN) * nanos((self.clock)() - began),
        );
        self.take_sample(began, sample);
    }

    fn take_sample(&self, now: BootTime, sample: impl FnOnce() -> Option<Sample>) {
        // Xorshift: any pause below twice the usual one is as likely.
        let mut random = self.random.get();
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        self.random.set(random);
        self.unsampled.set(random % (2 * SAMPLED_ONE_IN - 1));
        if let Some(hot_keys) = self.hot_keys.borrow_mut().as_mut() {
            hot_keys.offer(now, sample);
        }
    }

    /// Counts a page of a scan.
    pub fn has_scanned(&self) {
        raise(&self.reads, 1);
    }

    /// Samples the keys of a page of a scan, which ends before a key or with the range.
    pub fn has_scanned_keys(&self, first: &[u8], end: Option<&[u8]>) {
        match self.unsampled.get() {
            0 => self.take_sample((self.clock)(), || Some(Sample::interval(first, end))),
            unsampled => self.unsampled.set(unsampled - 1),
        }
    }

    /// Counts bytes of a scan, and the work of a turn of it.
    pub fn has_scanned_for(&self, bytes: usize, since: BootTime) {
        raise(&self.read_bytes, bytes as u64);
        self.has_worked(since);
    }

    /// Counts work that began then and ends now.
    pub fn has_worked(&self, since: BootTime) {
        raise(&self.cpu_nanos, nanos((self.clock)() - since));
    }

    /// The numbers of reads and writes.
    pub fn counts(&self) -> (u64, u64) {
        (self.reads.get(), self.writes.get())
    }

    fn counted(&self) -> Work {
        Work {
            reads: self.reads.get() as f64,
            writes: self.writes.get() as f64,
            read_bytes: self.read_bytes.get() as f64,
            written_bytes: self.written_bytes.get() as f64,
            cpu_nanos: self.cpu_nanos.get() as f64,
        }
    }

    /// Makes the rates of what was counted since they were last made, and gives them. The first time
    /// only begins to measure.
    pub fn measure(&self, now: BootTime) -> Rates {
        let counted = self.counted();
        let before = self.measured.get();
        let elapsed = before.map_or(Duration::ZERO, |(at, _)| now - at);
        if let Some((_, last)) = before
            && elapsed > Duration::ZERO
        {
            let seconds = elapsed.as_secs_f64();
            let Rates { short, long } = self.rates.get();
            // Most of a shard's ranges may be ones that nobody uses.
            let is_idle = counted == last && long == Work::default() && short == long;
            if !is_idle {
                let rate = counted.map(last, |now, last| (now - last) / seconds);
                let (short_kept, long_kept) = (kept(elapsed, SHORT), kept(elapsed, LONG));
                self.rates.set(Rates {
                    short: short.map(rate, |before, rate| decayed(before, rate, short_kept)),
                    long: long.map(rate, |before, rate| decayed(before, rate, long_kept)),
                });
            }
        }
        if before.is_none() || elapsed > Duration::ZERO {
            self.measured.set(Some((now, counted)));
        }
        let rates = self.rates.get();
        let mut hot_keys = self.hot_keys.borrow_mut();
        if rates.short.cpu_nanos < HOT_KEYS_FROM / 2.0 {
            *hot_keys = None;
        } else if rates.short.cpu_nanos >= HOT_KEYS_FROM {
            hot_keys.get_or_insert_with(|| Box::new(HotKeys::new(now)));
        }
        rates
    }

    /// The keys with the most requests, the hottest first, at most so many; none if the range has no load.
    pub fn hottest(&self, now: BootTime, keys_max: usize) -> Vec<HotKey> {
        let hot_keys = self.hot_keys.borrow();
        let top = |hot_keys: &HotKeys| hot_keys.top(now, keys_max);
        hot_keys.as_deref().map_or_else(Vec::new, top)
    }

    /// Where the load of the range, which has these keys, is best split.
    pub fn load_cut(&self, now: BootTime, keys: &KeyRange) -> LoadCut {
        let hot_keys = self.hot_keys.borrow();
        let cut = |hot_keys: &HotKeys| hot_keys.cut(now, keys);
        hot_keys.as_deref().map_or(LoadCut::NoKey, cut)
    }

    /// The rates as they were last made.
    pub fn rates(&self) -> Rates {
        self.rates.get()
    }

    /// Whether the size was ever measured.
    pub fn has_size(&self) -> bool {
        self.size.get().is_some()
    }

    /// The size of the range, whose rows are there and whose bounds have this version. It is measured
    /// if `is_due`; besides, once it is known, if the bounds have changed or much was written. Before it
    /// is known it is nothing.
    pub fn size(&self, of: (DataId, u32), is_due: bool, measure: impl FnOnce() -> Size) -> Size {
        let written_bytes = self.written_bytes.get();
        let known = self.size.get();
        let is_old = known.is_some_and(|known| {
            known.of != of || written_bytes - known.written_bytes > SIZE_WRITTEN_MAX
        });
        if !is_due && !is_old {
            return known.map_or(Size::default(), |known| known.size);
        }
        let size = measure();
        self.size.set(Some(MeasuredSize {
            of,
            size,
            written_bytes,
        }));
        size
    }

    /// The use of a range that is split off this one at a key: half of the rates are its, and half stay
    /// here. The samples go with their keys.
    #[must_use]
    pub fn split(&self, key: &[u8]) -> Usage {
        let Rates { short, long } = self.rates.get();
        let half = Rates {
            short: short.halved(),
            long: long.halved(),
        };
        self.rates.set(half);
        let other = Usage::new(self.last_write.get(), self.clock);
        other.rates.set(half);
        let begun = self.measured.get();
        other
            .measured
            .set(begun.map(|(at, _)| (at, Work::default())));
        let mut hot_keys = self.hot_keys.borrow_mut();
        let right = hot_keys.as_mut().map(|left| Box::new(left.split_off(key)));
        other.hot_keys.replace(right);
        other
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::boot_time::test_clock;

    /// Half a second after half a second, `reads` reads in each.
    fn pass(usage: &Usage, now: &mut BootTime, seconds: u32, reads: u32) -> Rates {
        for _ in 0..seconds * 2 {
            (0..reads).for_each(|_| usage.has_read(b"k", 10, None));
            *now += Duration::from_millis(500);
            usage.measure(*now);
        }
        usage.measure(*now)
    }

    fn is_near(found: f64, wanted: f64) -> bool {
        (found - wanted).abs() < wanted / 50.0 + 0.1
    }

    #[test]
    fn rates_follow_what_happens_and_forget_it() {
        let (usage, mut now) = (Usage::new(Timestamp(1), test_clock::now), test_clock::now());
        usage.measure(now);
        let rates = pass(&usage, &mut now, 60, 50);
        assert!(is_near(rates.short.reads, 100.0), "{rates:?}");
        assert!(is_near(rates.short.read_bytes, 1000.0), "{rates:?}");
        assert!(
            is_near(rates.long.reads, 100.0 * (1.0 - (-0.2_f64).exp())),
            "{rates:?}"
        );
        let rates = pass(&usage, &mut now, 10, 0);
        assert!(
            is_near(rates.short.reads, 100.0 * (-1.0_f64).exp()),
            "{rates:?}"
        );
        assert_eq!(rates.short.writes, 0.0);
    }

    #[test]
    fn a_split_shares_the_rates_and_forgets_nothing() {
        let (usage, mut now) = (Usage::new(Timestamp(7), test_clock::now), test_clock::now());
        usage.measure(now);
        let before = pass(&usage, &mut now, 30, 40);
        let child = usage.split(b"m");
        assert_eq!(child.last_write.get(), Timestamp(7));
        for half in [usage.measure(now), child.measure(now)] {
            assert!(
                is_near(half.short.reads, before.short.reads / 2.0),
                "{half:?}"
            );
            assert!(
                is_near(half.long.reads, before.long.reads / 2.0),
                "{half:?}"
            );
        }
        assert_eq!(usage.counts().0, 30 * 2 * 40);
        // From then on each goes its own way.
        let end = now;
        let parent = pass(&usage, &mut now, 60, 0);
        let child = pass(&child, &mut end.clone(), 60, 40);
        assert!(parent.short.reads < 1.0 && is_near(child.short.reads, 80.0));
    }

    #[test]
    fn a_size_is_measured_when_it_is_due_or_old() {
        let usage: Usage = Usage::new(Timestamp(1), test_clock::now);
        let size = |bytes| Size {
            bytes,
            live_bytes: bytes,
        };
        let here = (DataId(3), 1);
        let look = |of, is_due, now| usage.size(of, is_due, || size(now)).bytes;
        assert_eq!(look(here, false, 5), 0, "not known yet");
        assert_eq!(look(here, true, 6), 6);
        assert_eq!(look(here, false, 7), 6);
        usage.has_written(None, 1 << 20, None);
        assert_eq!(look(here, false, 8), 6);
        usage.has_written(None, 1, None);
        assert_eq!(look(here, false, 9), 9, "much was written");
        assert_eq!(look((DataId(3), 2), false, 4), 4, "other bounds");
        assert_eq!(look((DataId(5), 2), false, 10), 10, "another snapshot");
        assert_eq!(look((DataId(5), 2), false, 11), 10);
    }

    #[test]
    fn timed_requests_stand_for_all() {
        const REQUESTS: u32 = 4000;
        let usage: Usage = Usage::new(Timestamp(1), test_clock::now);
        let mut timed = 0;
        for _ in 0..REQUESTS {
            let began = usage.begin();
            if began.is_some() {
                timed += 1;
                test_clock::advance(Duration::from_micros(100));
            }
            usage.has_read(b"k", 1, began);
        }
        assert!(
            (REQUESTS / 20..REQUESTS / 12).contains(&timed),
            "{timed} of {REQUESTS}"
        );
        let nanos = usage.counted().cpu_nanos;
        assert_eq!(nanos, f64::from(SAMPLED_ONE_IN * timed) * 100_000.0);
    }

    /// Lets a range have load, and reads these keys in turn.
    fn read_in_turn(usage: &Usage, keys: &[&[u8]], times: usize) -> BootTime {
        let now = test_clock::now();
        usage.measure(now);
        raise(&usage.cpu_nanos, 1_000_000_000);
        let now = now + Duration::from_secs(1);
        usage.measure(now);
        for key in keys.iter().cycle().take(keys.len() * times) {
            usage.has_read(key, 1, usage.begin());
        }
        now
    }

    #[test]
    fn keys_that_come_in_turn_are_all_sampled() {
        let usage = Usage::new(Timestamp(1), test_clock::now);
        let keys: Vec<Vec<u8>> = (0..16).map(|n| vec![b'a' + n]).collect();
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let now = read_in_turn(&usage, &keys, 4000);
        let hot = usage.hottest(now, 100);
        assert_eq!(hot.len(), 16, "{hot:?}");
        assert!(hot[0].share < 200, "{hot:?}");
    }

    #[test]
    fn samples_need_load_go_with_their_keys_at_a_split_and_go_when_the_load_has_gone() {
        let usage: Usage = Usage::new(Timestamp(1), test_clock::now);
        for _ in 0..100 {
            usage.has_read(b"a", 1, usage.begin());
        }
        assert_eq!(
            usage.hottest(test_clock::now(), 9),
            [],
            "it has no load yet"
        );
        let keys: [&[u8]; 4] = [b"a", b"b", b"x", b"y"];
        let now = read_in_turn(&usage, &keys, 1000);
        assert_eq!(usage.hottest(now, 9).len(), 4);
        assert_eq!(usage.hottest(now, 2).len(), 2);
        let right = usage.split(b"m");
        for (side, keys) in [(&usage, [b"a", b"b"]), (&right, [b"x", b"y"])] {
            let mut found: Vec<Vec<u8>> = side
                .hottest(now, 9)
                .into_iter()
                .map(|hot| hot.key)
                .collect();
            found.sort();
            assert_eq!(found, keys.map(|key| key.to_vec()));
        }
        usage.measure(now + Duration::from_mins(5));
        assert_eq!(usage.hottest(now, 9), []);
    }

    #[test]
    fn batches_and_pages_are_spans() {
        let usage: Usage = Usage::new(Timestamp(1), test_clock::now);
        let now = read_in_turn(&usage, &[], 0);
        let batch: [&[u8]; 3] = [b"k", b"c", b"p"];
        for _ in 0..1000 {
            usage.has_written(Sample::of_all(batch.into_iter()), 1, usage.begin());
            usage.has_scanned_keys(b"s", Some(b"t"));
        }
        let hot = usage.hottest(now, 9);
        let mut keys: Vec<&[u8]> = hot.iter().map(|hot| hot.key.as_slice()).collect();
        keys.sort_unstable();
        assert_eq!(keys, [b"c", b"p", b"s", b"t"], "{hot:?}");
        assert!(hot.iter().all(|hot| hot.share > 100), "{hot:?}");
    }
}
