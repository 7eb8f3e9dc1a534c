//! Turns and pages end by work, and what is left comes with the next ones.

use super::*;
use crate::lsm::{HeldBlocks, Lsm, MemoryDisk, MemoryTables};
use crate::types::DataId;

const DATA_ID: DataId = DataId(3);

fn tree() -> Lsm<MemoryTables> {
    Lsm::new(
        MemoryTables::open(Rc::new(MemoryDisk::default()), 1 << 20),
        0,
    )
}

fn name(number: usize) -> String {
    format!("key-{number:07}")
}

/// Adds versions; a key whose number is a multiple of `every` gets a value, the others a tombstone.
fn insert(lsm: &mut Lsm<MemoryTables>, keys: usize, every: usize) {
    let mut row_key = Vec::new();
    for number in 0..keys {
        keys::user_key(DATA_ID, name(number).as_bytes(), &mut row_key);
        let value = number.is_multiple_of(every).then_some(&b"value"[..]);
        lsm.insert(&row_key, Timestamp(number as u64 + 1), value);
    }
}

/// One turn of a scan, and how many versions it looked at.
fn turn(
    lsm: &Lsm<MemoryTables>,
    interval: &Interval,
    page: &mut Page,
    is_late: impl FnMut(usize) -> bool,
) -> (Turn, usize) {
    let (mut low, mut high) = (Vec::new(), Vec::new());
    let keys = (&*interval.start, interval.end.as_deref());
    keys::users_of(DATA_ID, keys, &mut low, &mut high);
    let bounds = (
        Bound::Included(low.as_slice()),
        Bound::Excluded(high.as_slice()),
    );
    let held = HeldBlocks::default();
    let scan = lsm.try_scan(page.direction, bounds, Timestamp::MAX, &held);
    let mut scan = scan.expect("readable");
    let turn = page.fill(&mut scan, &mut Work::new(is_late));
    (turn.expect("readable"), scan.looked())
}

/// Goes on until a page ends: gives the page, the turns that it took, and where the next one begins.
fn page(
    lsm: &Lsm<MemoryTables>,
    scan: &ScanRequest,
    mut is_late: impl FnMut(usize) -> bool,
) -> (Page, usize, Option<ScanRequest>) {
    let mut page = Page::new(scan);
    let (mut interval, _) = within(scan, &KeyRange::all());
    for turns in 1.. {
        let (ended, looked) = turn(lsm, &interval, &mut page, &mut is_late);
        assert!(looked > 0 && looked <= SCAN_STEPS_PER_TURN + 1, "{looked}");
        match ended {
            Turn::Exhausted => return (page, turns, None),
            Turn::Full(border) => {
                return (page, turns, Some(from_border(scan.clone(), Some(border))));
            }
            Turn::GoOn(border) if page.is_done() => {
                return (page, turns, Some(from_border(scan.clone(), Some(border))));
            }
            Turn::GoOn(border) if scan.reverse => interval.end = Some(border),
            Turn::GoOn(border) => interval.start = border,
            Turn::Cold(..) => panic!("all blocks are in memory"),
        }
    }
    unreachable!("a scan ends")
}

fn names(page: Page) -> Vec<String> {
    let rows = page.rows.build();
    let name = |row: Row<'_>| String::from_utf8_lossy(row.key).into_owned();
    rows.iter().map(name).collect()
}

#[test]
fn turns_end_by_work_among_delete_marks() {
    let mut lsm = tree();
    insert(&mut lsm, 5000, 2500);
    for reverse in [false, true] {
        let scan = ScanRequest {
            reverse,
            ..ScanRequest::default()
        };
        let mut wanted = vec![name(0), name(2500)];
        if reverse {
            wanted.reverse();
        }
        let (found, turns, next) = page(&lsm, &scan, |_| false);
        assert_eq!((names(found), next), (wanted.clone(), None));
        assert_eq!(turns, 5000_usize.div_ceil(SCAN_STEPS_PER_TURN));
        // However little time there is, each turn takes a key.
        let (found, turns, next) = page(&lsm, &scan, |_| true);
        assert_eq!((names(found), next), (wanted, None));
        assert_eq!(turns, 5000);
    }
}

#[test]
fn the_time_is_looked_at_by_work_and_not_by_rows() {
    let mut lsm = tree();
    insert(&mut lsm, 3000, 5000);
    let mut steps = 0;
    let (found, turns, _) = page(&lsm, &ScanRequest::default(), |more| {
        steps += more;
        // The time is up after each hundred versions.
        let is_late = steps >= 100;
        if is_late {
            steps = 0;
        }
        is_late
    });
    assert_eq!((names(found).len(), turns), (1, 30));
}

#[test]
fn a_page_ends_by_work_without_a_row_and_the_scan_goes_on() {
    let keys = SCAN_STEPS_MAX + 2000;
    let mut lsm = tree();
    insert(&mut lsm, keys, keys - 1);
    for reverse in [false, true] {
        let first = ScanRequest {
            reverse,
            ..ScanRequest::default()
        };
        let (mut found, mut pages, mut next) = (Vec::new(), 0, Some(first));
        while let Some(scan) = next {
            let (page, _, rest) = page(&lsm, &scan, |_| false);
            assert!(page.looked <= SCAN_STEPS_MAX + SCAN_STEPS_PER_TURN);
            found.extend(names(page));
            pages += 1;
            next = rest;
        }
        assert_eq!(pages, 2);
        assert_eq!(found.len(), 2);
    }
}

#[test]
fn a_page_that_has_all_its_rows_ends_with_the_turn() {
    let mut lsm = tree();
    insert(&mut lsm, 50_000, 50_000 - 1);
    let scan = ScanRequest {
        rows_max: 1,
        ..ScanRequest::default()
    };
    let (found, turns, next) = page(&lsm, &scan, |_| false);
    assert_eq!((names(found), turns), (vec![name(0)], 1));
    let next = next.expect("one row is left");
    let (found, _, next) = page(&lsm, &next, |_| false);
    assert_eq!((names(found), next), (vec![name(49_999)], None));
}

fn descriptor(version: u32, start: &str, end: Option<&str>) -> Descriptor {
    Descriptor {
        range: crate::types::RangeId(1),
        epoch: crate::types::Epoch { version, conf: 1 },
        keyspace: crate::range::Keyspace::User,
        keys: KeyRange {
            start: start.into(),
            end: end.map(Into::into),
        },
        replicas: Vec::new(),
    }
}

#[test]
fn a_scan_ends_at_the_border_that_its_range_gets_meanwhile() {
    let forward = ScanRequest {
        end: Some("t".into()),
        ..ScanRequest::default()
    };
    let before = descriptor(1, "", None);
    let after = descriptor(2, "", Some("m"));
    let mut reach = Reach::new(&forward, &before);
    assert_eq!(reach.interval.end.as_deref(), Some(&b"t"[..]));
    assert!(reach.go_on(Some(&"f".into()), &forward, &before));
    assert!(reach.go_on(Some(&"g".into()), &forward, &after));
    assert_eq!(&*reach.interval.start, b"g", "what was read stays read");
    assert_eq!(reach.interval.end.as_deref(), Some(&b"m"[..]));
    assert_eq!(reach.border.as_deref(), Some(&b"m"[..]));
    // What comes next is in another range already.
    let mut reach = Reach::new(&forward, &before);
    assert!(!reach.go_on(Some(&"m".into()), &forward, &after));

    let reverse = ScanRequest {
        reverse: true,
        start: Some("c".into()),
        ..ScanRequest::default()
    };
    let mut reach = Reach::new(&reverse, &before);
    assert!(!reach.go_on(Some(&"n".into()), &reverse, &after));
    let mut reach = Reach::new(&reverse, &before);
    assert!(reach.go_on(Some(&"m".into()), &reverse, &after));
    assert_eq!(&*reach.interval.start, b"c");
    assert_eq!(reach.interval.end.as_deref(), Some(&b"m"[..]));
    assert_eq!(reach.border, None);
    // Nothing was read before a block was waited for.
    let mut reach = Reach::new(&reverse, &before);
    assert!(reach.go_on(None, &reverse, &before));
    assert!(!reach.go_on(None, &reverse, &after));
    let mut reach = Reach::new(&reverse, &before);
    let later = descriptor(2, "e", None);
    assert!(reach.go_on(None, &reverse, &later));
    assert_eq!(
        (&*reach.interval.start, reach.interval.end),
        (&b"e"[..], None)
    );
}

#[test]
fn a_scan_goes_on_at_its_timestamp_in_keys_that_were_in_its_range_when_it_began() {
    let at = Timestamp(7);
    let blob = |key: &str| Some(Blob::from(key.to_owned()));
    let begun_in = |keys: (&str, Option<&str>), reverse| {
        let first = ScanRequest {
            reverse,
            ..ScanRequest::default()
        };
        let reach = Reach::new(&first, &descriptor(1, keys.0, keys.1));
        let border = if reverse { blob("x") } else { blob("c") };
        reach.rest(first, border, at)
    };
    // Split at k and at t since: it goes on in the child, and in the child's child.
    let scan = begun_in(("", Some("t")), false);
    assert_eq!((scan.at, &scan.until), (Some(at), &blob("t")));
    let parent = Reach::new(&scan, &descriptor(2, "", Some("k")));
    let scan = parent.beyond(scan, at).expect("keys are left");
    assert_eq!((&scan.start, scan.at), (&blob("k"), Some(at)));
    let child = Reach::new(&scan, &descriptor(3, "k", Some("p")));
    let scan = child.beyond(scan, at).expect("keys are left");
    assert_eq!((&scan.start, scan.at), (&blob("p"), Some(at)));
    // Beyond where its range ended it takes another one.
    let last = Reach::new(&scan, &descriptor(3, "p", Some("t")));
    let scan = last.beyond(scan, at).expect("keys are left");
    assert_eq!((&scan.start, scan.at), (&blob("t"), None));
    assert_eq!(scan.until, None);
    let next = Reach::new(&scan, &descriptor(1, "t", None));
    assert_eq!(next.beyond(scan, at), None);

    let scan = begun_in(("d", None), true);
    assert_eq!((scan.at, &scan.until), (Some(at), &blob("d")));
    let child = Reach::new(&scan, &descriptor(2, "k", None));
    let scan = child.beyond(scan, at).expect("keys are left");
    assert_eq!((&scan.end, scan.at), (&blob("k"), Some(at)));
    let parent = Reach::new(&scan, &descriptor(2, "d", Some("k")));
    let scan = parent.beyond(scan, at).expect("keys are left");
    assert_eq!((&scan.end, scan.at), (&blob("d"), None));

    // All keys were in one range.
    let scan = begun_in(("", None), false);
    assert_eq!((scan.at, &scan.until), (Some(at), &None));
    let parent = Reach::new(&scan, &descriptor(2, "", Some("k")));
    let scan = parent.beyond(scan, at).expect("keys are left");
    assert_eq!((&scan.start, scan.at), (&blob("k"), Some(at)));
}
