//! What shards get when the view changes, and what they make of it.

use super::*;
use crate::cluster::{BoundsPhase, RangeStats};
use crate::range::{Descriptor, Keyspace};
use crate::types::{Epoch, KeyRange};

fn range(id: u64, version: u32) -> RangeView {
    RangeView {
        descriptor: Descriptor {
            range: RangeId(id),
            epoch: Epoch { version, conf: 1 },
            keyspace: Keyspace::User,
            keys: KeyRange::all(),
            replicas: Vec::new(),
        },
        voters: Vec::new(),
        leader: None,
        term: 0,
        applied: 0,
        lag: Vec::new(),
        faults: Vec::new(),
        under_replicated: false,
        unavailable: false,
        phase: BoundsPhase::None,
        born_ms: 0,
        parts: Vec::new(),
        held_until_ms: 0,
        split_blocked: None,
        stats: RangeStats::default(),
    }
}

fn publish(published: &mut Published, ranges: &[(u64, u32)]) {
    let ranges = ranges.iter().map(|(id, version)| range(*id, *version));
    published.publish(View {
        ranges: ranges.collect(),
        ..View::default()
    });
}

/// The news for a shard with this view.
fn news(published: &Published, view: &View) -> ViewNews {
    published.news(view.version).expect("there are news")
}

#[test]
fn news_have_what_has_changed_and_make_the_view_what_it_is_at_the_manager() {
    let mut published = Published::new(1);
    publish(&mut published, &[(1, 1), (2, 1), (5, 1)]);
    let mut view = View::default();
    let first = news(&published, &view);
    assert_eq!((first.since, first.view.ranges.len()), (None, 3));
    assert!(view.take(first));
    assert_eq!(view, published.view);
    assert_eq!(published.news(view.version), None);
    let mut late = view.clone();
    publish(&mut published, &[(1, 1), (2, 2), (4, 1), (5, 1)]);
    let second = news(&published, &view);
    assert_eq!(second.since, Some(view.version));
    let ids = |news: &ViewNews| {
        let ranges = news.view.ranges.iter();
        ranges
            .map(|range| range.descriptor.range.0)
            .collect::<Vec<u64>>()
    };
    assert_eq!(ids(&second), [2, 4]);
    assert!(view.take(second));
    assert_eq!(view, published.view);
    publish(&mut published, &[(1, 1), (2, 2), (4, 1)]);
    publish(&mut published, &[(1, 2), (2, 2), (4, 1)]);
    let third = news(&published, &view);
    assert_eq!((ids(&third), &third.gone), (vec![1], &vec![RangeId(5)]));
    let all = news(&published, &late);
    assert_eq!(ids(&all), [1, 2, 4]);
    for (view, news) in [(&mut view, third), (&mut late, all)] {
        assert!(view.take(news));
        assert_eq!(*view, published.view);
    }
    // A range that was gone is there again.
    publish(&mut published, &[(1, 2), (2, 2), (4, 1), (5, 3)]);
    let fourth = news(&published, &view);
    assert_eq!((ids(&fourth), fourth.gone.len()), (vec![5], 0));
}

#[test]
fn news_for_another_view_are_not_taken_and_another_managers_view_is_replaced_whole() {
    let mut published = Published::new(1);
    publish(&mut published, &[(1, 1)]);
    let mut view = View::default();
    assert!(view.take(news(&published, &View::default())));
    publish(&mut published, &[(1, 2)]);
    let late = news(&published, &view);
    publish(&mut published, &[(1, 3)]);
    assert!(view.take(news(&published, &view)));
    let before = view.clone();
    assert!(!view.take(late), "it is for an older view");
    assert_eq!(view, before);
    let mut next = Published::new(2);
    publish(&mut next, &[(3, 1)]);
    let whole = news(&next, &view);
    assert_eq!(whole.since, None);
    assert!(view.take(whole));
    assert_eq!(view, next.view);
    // The manager of an earlier term gives its own view, as before.
    assert_eq!(news(&published, &view).since, None);
}

#[test]
fn a_shard_whose_view_is_older_than_what_is_remembered_gets_a_whole_one() {
    let mut published = Published::new(1);
    let many: Vec<(u64, u32)> = (0..=GONE_MAX as u64).map(|id| (id, 1)).collect();
    publish(&mut published, &many);
    let old = published.view.clone();
    publish(&mut published, &[]);
    assert_eq!(news(&published, &old).since, None);
    let view = published.view.clone();
    publish(&mut published, &[(1, 1)]);
    assert_eq!(news(&published, &view).since, Some(view.version));
}
