//! The hottest keys of a range at this replica, and where its load is best split: from samples of the
//! requests that were served.
//!
//! At most [`SAMPLES_MAX`] samples are kept, and at most [`KEYS_LEN_MAX`] bytes of their keys. They are a
//! weighted reservoir (Efraimidis and Spirakis): a sample gets a random priority that grows with its time,
//! and those with the highest priorities stay. So a request is as likely to be among them as its weight
//! says, which falls to a third in [`FORGET_OVER`]. A scan, or a batch of several keys, is a span: it counts
//! at both ends, half at each.
//!
//! Which requests are sampled is decided by [`crate::range::usage`]. The caller says what time it is. Lives on the
//! shard's thread.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::limits::KEY_LEN_MAX;
use crate::types::KeyRange;

/// Most samples of a range.
const SAMPLES_MAX: usize = 128;
/// Most bytes of their keys.
const KEYS_LEN_MAX: usize = 96 << 10;
/// The time in which the weight of a sample falls to a third.
const FORGET_OVER: Duration = Duration::from_secs(10);
/// A sample that is as old says nothing of the load now.
const AGE_MAX: Duration = Duration::from_secs(30);
/// With fewer samples than this no key is chosen.
const SAMPLES_MIN: usize = 20;
/// A point counts as much as both ends of a span.
const POINT: u64 = 2;

/// The keys that a request read or wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sample {
    /// One key.
    Point(Vec<u8>),
    /// The keys from the first one on.
    Span(Vec<u8>, SpanEnd),
}

/// Where a span ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanEnd {
    /// At this key, which is in it.
    At(Vec<u8>),
    /// Before this key.
    Before(Vec<u8>),
    /// Where the range ends.
    OfRange,
}

impl SpanEnd {
    fn key(&self) -> Option<&[u8]> {
        match self {
            SpanEnd::At(key) | SpanEnd::Before(key) => Some(key),
            SpanEnd::OfRange => None,
        }
    }
}

impl Sample {
    /// The keys from one to another, which is in it.
    fn keys(first: &[u8], last: &[u8]) -> Sample {
        match first == last {
            true => Sample::Point(first.to_vec()),
            false => Sample::Span(first.to_vec(), SpanEnd::At(last.to_vec())),
        }
    }

    /// The keys from one on, before another, or to the end of the range.
    pub fn interval(first: &[u8], end: Option<&[u8]>) -> Sample {
        match end {
            Some(end) if is_after(end, first) => Sample::Point(first.to_vec()),
            Some(end) => Sample::Span(first.to_vec(), SpanEnd::Before(end.to_vec())),
            None => Sample::Span(first.to_vec(), SpanEnd::OfRange),
        }
    }

    /// A span that has all these keys; `None` if there are none.
    pub fn of_all<'k>(keys: impl Iterator<Item = &'k [u8]>) -> Option<Sample> {
        let ends = keys.fold(None, |ends: Option<(&[u8], &[u8])>, key| {
            let (first, last) = ends.unwrap_or((key, key));
            Some((first.min(key), last.max(key)))
        });
        ends.map(|(first, last)| Sample::keys(first, last))
    }

    fn len(&self) -> usize {
        match self {
            Sample::Point(key) => key.len(),
            Sample::Span(first, end) => first.len() + end.key().map_or(0, <[u8]>::len),
        }
    }

    fn first(&self) -> &[u8] {
        match self {
            Sample::Point(first) | Sample::Span(first, _) => first,
        }
    }

    /// Whether it has keys on both sides of a border.
    fn crosses(&self, border: &[u8]) -> bool {
        let Sample::Span(first, end) = self else {
            return false;
        };
        let ends_after = match end {
            SpanEnd::At(last) => last.as_slice() >= border,
            SpanEnd::Before(end) => end.as_slice() > border,
            SpanEnd::OfRange => true,
        };
        first.as_slice() < border && ends_after
    }

    /// Its parts on both sides of a border, if it has any.
    fn cut(self, border: &[u8]) -> [Option<Sample>; 2] {
        if !self.crosses(border) {
            return match self.first() < border {
                true => [Some(self), None],
                false => [None, Some(self)],
            };
        }
        let left = Sample::Span(self.first().to_vec(), SpanEnd::OfRange);
        let right = match self {
            Sample::Span(_, SpanEnd::At(last)) => Sample::keys(border, &last),
            Sample::Span(_, end) => Sample::Span(border.to_vec(), end),
            point @ Sample::Point(_) => point,
        };
        [Some(left), Some(right)]
    }

    /// Adds what it counts to its ends, but not to the end of the range.
    fn count<'a>(&'a self, counts: &mut BTreeMap<&'a [u8], Count>) {
        let mut at = |key: &'a [u8], by| counts.entry(key).or_default().at += by;
        match self {
            Sample::Point(key) => at(key, POINT),
            Sample::Span(first, SpanEnd::At(last)) => {
                at(first, 1);
                at(last, 1);
            }
            Sample::Span(first, SpanEnd::Before(end)) => {
                at(first, 1);
                counts.entry(end).or_default().before += 1;
            }
            Sample::Span(first, SpanEnd::OfRange) => at(first, 1),
        }
    }
}

/// How much a key counts.
#[derive(Clone, Copy, Default)]
struct Count {
    /// Of requests that have the key.
    at: u64,
    /// Of spans that end before it.
    before: u64,
}

impl Count {
    fn all(self) -> u64 {
        self.at + self.before
    }
}

/// A sample and its priority.
#[derive(Clone)]
struct Ranked {
    priority: f64,
    at: BootTime,
    sample: Sample,
}

/// A key and its share of the requests of its range.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct HotKey {
    /// The user's key.
    pub key: Vec<u8>,
    /// Its share, in thousandths.
    pub share: u32,
}

/// Where the load of a range is best split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoadCut {
    /// At these keys. If a key is named, it has more than half of the requests, and is alone then.
    At(Vec<Vec<u8>>, Option<Vec<u8>>),
    /// Nowhere: this key has more than half of the requests, and is the only one of the range.
    SingleKey(Vec<u8>),
    /// Nowhere: this key has more than half of the requests, and no key can follow right after it, as it
    /// would be longer than a key may be.
    LongKey(Vec<u8>),
    /// Nowhere: on one side of every key there would be too little, too many spans cross, or too few
    /// requests were sampled.
    NoKey,
}

/// The samples of a range.
#[derive(Clone)]
pub struct HotKeys {
    begun: BootTime,
    samples: Vec<Ranked>,
    /// Bytes of the keys.
    len: usize,
    /// The state of the random numbers.
    random: u64,
}

impl HotKeys {
    /// No samples yet.
    pub fn new(now: BootTime) -> HotKeys {
        HotKeys {
            begun: now,
            samples: Vec::new(),
            len: 0,
            random: 1,
        }
    }

    /// Takes a sample, which is made only if it stays; a request without keys gives none.
    pub fn offer(&mut self, now: BootTime, sample: impl FnOnce() -> Option<Sample>) {
        let age = (now - self.begun).as_secs_f64();
        // Of samples with these priorities, the highest are a random choice by weights that grow with the
        // time: the noise is Gumbel's.
        let noise = -(-self.uniform().ln()).ln();
        let priority = age / FORGET_OVER.as_secs_f64() + noise;
        let is_full = self.samples.len() >= SAMPLES_MAX;
        let least = self.least().filter(|_| is_full);
        if least.is_some_and(|least| self.samples[least].priority >= priority) {
            return;
        }
        let Some(sample) = sample() else { return };
        if let Some(least) = least {
            self.remove(least);
        }
        self.len += sample.len();
        let at = now;
        self.samples.push(Ranked {
            priority,
            at,
            sample,
        });
        while self.len > KEYS_LEN_MAX
            && let Some(least) = self.least()
        {
            self.remove(least);
        }
    }

    /// A random number between 0 and 1, neither of them (SplitMix64).
    fn uniform(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// The sample with the lowest priority.
    fn least(&self) -> Option<usize> {
        let all = self.samples.iter().enumerate();
        let least = all.min_by(|(_, one), (_, other)| one.priority.total_cmp(&other.priority));
        least.map(|(at, _)| at)
    }

    fn remove(&mut self, at: usize) {
        self.len -= self.samples.swap_remove(at).sample.len();
    }

    /// Keeps what lies before a key, and gives the rest.
    #[must_use]
    pub fn split_off(&mut self, key: &[u8]) -> HotKeys {
        let mut right = HotKeys {
            samples: Vec::new(),
            len: 0,
            ..*self
        };
        let (samples, left) = (std::mem::take(&mut self.samples), self);
        left.len = 0;
        for Ranked {
            priority,
            at,
            sample,
        } in samples
        {
            for (side, sample) in [&mut *left, &mut right].into_iter().zip(sample.cut(key)) {
                let Some(sample) = sample else { continue };
                side.len += sample.len();
                side.samples.push(Ranked {
                    priority,
                    at,
                    sample,
                });
            }
        }
        right
    }

    /// The samples that are not too old.
    fn fresh(&self, now: BootTime) -> Vec<&Sample> {
        let fresh = self
            .samples
            .iter()
            .filter(|ranked| now < ranked.at + AGE_MAX);
        fresh.map(|ranked| &ranked.sample).collect()
    }

    /// The keys with the most requests, the hottest first.
    pub fn top(&self, now: BootTime, keys_max: usize) -> Vec<HotKey> {
        let samples = self.fresh(now);
        let whole = POINT * samples.len() as u64;
        let counts = counts(&samples).into_iter();
        let mut keys: Vec<(&[u8], u64)> = counts.map(|(key, count)| (key, count.all())).collect();
        keys.sort_by_key(|(key, count)| (Reverse(*count), *key));
        keys.truncate(keys_max);
        let hot = keys.into_iter().map(|(key, count)| HotKey {
            key: key.to_vec(),
            share: u32::try_from(count * 1000 / whole.max(1)).unwrap_or(1000),
        });
        hot.collect()
    }

    /// Where the load of the range, which has these keys, is best split.
    pub fn cut(&self, now: BootTime, keys: &KeyRange) -> LoadCut {
        if keys
            .end
            .as_deref()
            .is_some_and(|end| is_after(end, &keys.start))
        {
            return LoadCut::SingleKey(keys.start.clone());
        }
        let samples = self.fresh(now);
        if samples.len() < SAMPLES_MIN {
            return LoadCut::NoKey;
        }
        let counts = counts(&samples);
        let whole = POINT * samples.len() as u64;
        let few_cross = |border: &[u8]| {
            let spans = samples.iter().filter(|sample| sample.crosses(border));
            spans.count() * 10 <= samples.len() * 3
        };
        let inside = |key: &[u8]| key > keys.start.as_slice() && keys.contains(key);
        if let Some((hot, _)) = counts.iter().find(|(_, count)| count.all() * 2 > whole) {
            let right = after(hot);
            let cuts = [hot.to_vec(), right].into_iter();
            let cuts: Vec<Vec<u8>> = cuts.filter(|cut| inside(cut)).collect();
            return match cuts.last() {
                None => LoadCut::SingleKey(hot.to_vec()),
                Some(last) if last.len() > KEY_LEN_MAX => LoadCut::LongKey(hot.to_vec()),
                Some(_) if cuts.iter().all(|cut| few_cross(cut)) => {
                    LoadCut::At(cuts, Some(hot.to_vec()))
                }
                Some(_) => LoadCut::NoKey,
            };
        }
        let (mut left, mut best) = (0_u64, None::<(u64, &[u8])>);
        for (key, count) in &counts {
            left += count.before;
            let off = (2 * left).abs_diff(whole);
            let has_room = left * 4 >= whole && left * 4 <= whole * 3;
            let is_better = best.is_none_or(|(least, _)| off < least);
            if has_room && is_better && inside(key) && few_cross(key) {
                best = Some((off, key));
            }
            left += count.at;
        }
        best.map_or(LoadCut::NoKey, |(_, key)| {
            LoadCut::At(vec![key.to_vec()], None)
        })
    }
}

/// How much each key counts.
fn counts<'a>(samples: &[&'a Sample]) -> BTreeMap<&'a [u8], Count> {
    let mut counts = BTreeMap::new();
    samples.iter().for_each(|sample| sample.count(&mut counts));
    counts
}

/// Whether a key follows right after another.
fn is_after(key: &[u8], other: &[u8]) -> bool {
    key.strip_suffix(b"\0") == Some(other)
}

/// The key that follows right after another.
fn after(key: &[u8]) -> Vec<u8> {
    [key, b"\0"].concat()
}

#[cfg(test)]
#[path = "hot_keys_tests.rs"]
mod tests;
