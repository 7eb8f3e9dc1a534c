//! Which keys are hot, and where the load is split, for requests of several kinds.

use super::*;
use crate::boot_time::BootTime;
use crate::boot_time::test_clock;

/// Samples of a range that has all keys.
struct Case {
    hot_keys: HotKeys,
    now: BootTime,
    keys: KeyRange,
}

impl Case {
    fn new() -> Case {
        let now = test_clock::now();
        Case {
            hot_keys: HotKeys::new(now),
            now,
            keys: KeyRange::all(),
        }
    }

    /// Lets a second pass in which these requests come in turn.
    fn pass(&mut self, seconds: u32, samples: &[Sample]) {
        for number in 0..seconds * 1000 {
            let sample = samples[number as usize % samples.len()].clone();
            self.hot_keys.offer(self.now, || Some(sample));
            self.now += Duration::from_millis(1);
        }
    }

    fn cut(&self) -> LoadCut {
        self.hot_keys.cut(self.now, &self.keys)
    }

    /// The share of a key in thousandths.
    fn share(&self, key: &str) -> u32 {
        let top = self.hot_keys.top(self.now, SAMPLES_MAX * 2);
        let found = top.iter().find(|hot| hot.key == key.as_bytes());
        found.map_or(0, |hot| hot.share)
    }
}

fn point(key: &str) -> Sample {
    Sample::Point(key.into())
}

fn scan(first: &str, before: &str) -> Sample {
    Sample::Span(first.into(), SpanEnd::Before(before.into()))
}

/// Keys that are evenly spread.
fn uniform(count: u32) -> Vec<Sample> {
    let keys = (0..count).map(|number| number.wrapping_mul(0x9e37_79b1));
    keys.map(|key| point(&format!("{key:08x}"))).collect()
}

#[test]
fn evenly_spread_keys_are_split_in_the_middle() {
    let mut case = Case::new();
    case.pass(20, &uniform(10_000));
    let LoadCut::At(cuts, None) = case.cut() else {
        panic!("it can be split: {:?}", case.cut());
    };
    assert_eq!(cuts.len(), 1);
    let cut = String::from_utf8(cuts[0].clone()).expect("it is text");
    assert!(("60000000".."a0000000").contains(&&*cut), "{cut}");
    assert!(case.hot_keys.samples.len() <= SAMPLES_MAX);
}

#[test]
fn a_key_with_most_requests_is_cut_out_and_then_it_is_alone() {
    let mut case = Case::new();
    let mut requests = uniform(300);
    requests.extend(vec![point("50000000"); 700]);
    case.pass(20, &requests);
    let hot = b"50000000".to_vec();
    let wanted = LoadCut::At(vec![hot.clone(), after(&hot)], Some(hot.clone()));
    assert_eq!(case.cut(), wanted);
    assert!((550..850).contains(&case.share("50000000")));
    assert_eq!(case.hot_keys.top(case.now, 1)[0].key, hot);
    // It is the range's first key: one cut is enough.
    case.keys.start = hot.clone();
    let wanted = LoadCut::At(vec![after(&hot)], Some(hot.clone()));
    assert_eq!(case.cut(), wanted);
    // And its last one.
    case.keys = KeyRange {
        start: Vec::new(),
        end: Some(after(&hot)),
    };
    let wanted = LoadCut::At(vec![hot.clone()], Some(hot.clone()));
    assert_eq!(case.cut(), wanted);
    case.keys.start = hot.clone();
    assert_eq!(case.cut(), LoadCut::SingleKey(hot.clone()));
    // Also if nothing was sampled.
    case.now += AGE_MAX;
    assert_eq!(case.cut(), LoadCut::SingleKey(hot));
}

#[test]
fn a_key_that_is_as_long_as_a_key_may_be_cannot_be_cut_out() {
    let mut case = Case::new();
    let long = "k".repeat(KEY_LEN_MAX);
    case.pass(20, &[point(&long)]);
    assert_eq!(case.cut(), LoadCut::LongKey(long.into()));
    assert!(case.hot_keys.len <= KEYS_LEN_MAX);
    assert!(case.hot_keys.samples.len() >= SAMPLES_MIN);
}

#[test]
fn two_hot_keys_are_parted() {
    let mut case = Case::new();
    let mut requests = uniform(200);
    requests.extend(vec![point("40000000"); 400]);
    requests.extend(vec![point("c0000000"); 400]);
    case.pass(20, &requests);
    let LoadCut::At(cuts, hot) = case.cut() else {
        panic!("it can be split: {:?}", case.cut());
    };
    let parted = cuts
        .iter()
        .any(|cut| cut[..] > b"40000000"[..] && cut[..] <= b"c0000000"[..]);
    assert!(parted, "{cuts:?} {hot:?}");
    for key in ["40000000", "c0000000"] {
        assert!((250..550).contains(&case.share(key)), "{}", case.share(key));
    }
}

#[test]
fn spans_count_at_both_ends_and_a_range_that_all_of_them_cross_is_not_split() {
    let mut case = Case::new();
    case.pass(20, &[scan("a", "y"), scan("b", "z")]);
    for key in ["a", "b", "y", "z"] {
        assert!((150..350).contains(&case.share(key)), "{}", case.share(key));
    }
    assert_eq!(case.cut(), LoadCut::NoKey);
    // Spans to the end of the range cross, too.
    let mut case = Case::new();
    let all = ["a", "d", "m", "t"].map(|first| Sample::Span(first.into(), SpanEnd::OfRange));
    case.pass(20, &all);
    assert_eq!(case.cut(), LoadCut::NoKey);
    // Those that end before a key do not cross it; a batch that ends with it does.
    let mut case = Case::new();
    case.pass(20, &[scan("a", "m"), scan("m", "x")]);
    assert_eq!(case.cut(), LoadCut::At(vec![b"m".to_vec()], None));
    let mut case = Case::new();
    let batches = [Sample::keys(b"a", b"m"), Sample::keys(b"m", b"x")];
    case.pass(20, &batches);
    assert_eq!(case.cut(), LoadCut::NoKey);
    // A scan of one key is as good as a get.
    let mut case = Case::new();
    case.pass(20, &[Sample::interval(b"k", Some(b"k\0"))]);
    assert_eq!(case.share("k"), 1000);
    // A quarter of the requests may cross.
    let mut case = Case::new();
    let mut requests = uniform(900);
    requests.extend(vec![scan("00000000", "ffffffff"); 200]);
    case.pass(20, &requests);
    assert!(
        matches!(case.cut(), LoadCut::At(_, None)),
        "{:?}",
        case.cut()
    );
}

#[test]
fn a_hot_key_that_scans_cross_is_not_cut_out() {
    let mut case = Case::new();
    let mut requests = vec![point("m"); 55];
    requests.extend(vec![scan("a", "z"); 45]);
    case.pass(20, &requests);
    assert_eq!(case.cut(), LoadCut::NoKey);
}

#[test]
fn with_few_samples_or_only_old_ones_nothing_is_split() {
    let mut case = Case::new();
    for sample in uniform(SAMPLES_MIN as u32 - 1) {
        case.hot_keys.offer(case.now, || Some(sample));
    }
    assert_eq!(case.cut(), LoadCut::NoKey);
    case.hot_keys.offer(case.now, || Some(point("80000000")));
    assert!(matches!(case.cut(), LoadCut::At(..)));
    case.now += AGE_MAX;
    assert_eq!(case.cut(), LoadCut::NoKey);
    assert_eq!(case.hot_keys.top(case.now, 9), []);
}

#[test]
fn what_was_hot_before_is_forgotten() {
    let mut case = Case::new();
    case.pass(60, &[point("old")]);
    case.pass(10, &[point("new")]);
    // Two thirds of the weight are of the last 10 s.
    assert!(
        (480..780).contains(&case.share("new")),
        "{}",
        case.share("new")
    );
    case.pass(30, &[point("new")]);
    assert!(case.share("old") < 60, "{}", case.share("old"));
}

#[test]
fn long_keys_leave_room_for_few_samples() {
    let mut case = Case::new();
    let long: Vec<Sample> = (0..1000)
        .map(|number| point(&format!("{number:04}{}", "k".repeat(KEY_LEN_MAX - 4))))
        .collect();
    case.pass(5, &long);
    let len: usize = case
        .hot_keys
        .samples
        .iter()
        .map(|ranked| ranked.sample.len())
        .sum();
    assert_eq!(len, case.hot_keys.len);
    assert!(len <= KEYS_LEN_MAX);
    assert!(matches!(case.cut(), LoadCut::At(..)), "{:?}", case.cut());
}

#[test]
fn samples_are_cut_at_a_key_and_none_is_lost() {
    let mut case = Case::new();
    let requests = [
        point("a"),
        point("m"),
        scan("b", "m"),
        scan("c", "x"),
        Sample::keys(b"d", b"m"),
        Sample::keys(b"x", b"y"),
    ];
    case.pass(10, &requests);
    let before = case.hot_keys.samples.len();
    let right = case.hot_keys.split_off(b"m");
    let of = |hot_keys: &HotKeys| {
        let mut samples: Vec<Sample> = Vec::new();
        for ranked in &hot_keys.samples {
            if !samples.contains(&ranked.sample) {
                samples.push(ranked.sample.clone());
            }
        }
        samples
    };
    let to_the_end = |first: &str| Sample::Span(first.into(), SpanEnd::OfRange);
    let left_wanted = [point("a"), scan("b", "m"), to_the_end("c"), to_the_end("d")];
    let right_wanted = [point("m"), scan("m", "x"), Sample::keys(b"x", b"y")];
    for (found, wanted) in [
        (of(&case.hot_keys), &left_wanted[..]),
        (of(&right), &right_wanted[..]),
    ] {
        assert!(
            wanted.iter().all(|sample| found.contains(sample)),
            "{found:?}"
        );
        assert_eq!(found.len(), wanted.len(), "{found:?}");
    }
    assert!(case.hot_keys.samples.len() + right.samples.len() >= before);
    for side in [&case.hot_keys, &right] {
        let len: usize = side.samples.iter().map(|ranked| ranked.sample.len()).sum();
        assert_eq!(side.len, len);
    }
}
