//! Tests of each rule of a call, and of all rules together against a model cluster.

mod model_cluster;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rangedb_protocol::{ErrorReply, Route};

use super::{Action, Attempt, Call, ClientCore, Endpoint, Event, Kind, Lost};
use crate::error::{Error, ErrorCode, Fate};

const KEY: &[u8] = b"k";
const TIMEOUT: Duration = Duration::from_secs(5);
/// A time of the cluster.
const NOW: u64 = 9_000 << 16;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn route(version: u32, leader: u64) -> Route {
    Route {
        range: 2,
        version,
        conf: 1,
        start: Vec::new(),
        end: None,
        leader: Some((leader, 0)),
        address: format!("node{leader}:1"),
    }
}

/// A client of three nodes that has heard that node 1 leads the only range.
struct Client {
    core: ClientCore,
    now: Instant,
}

impl Client {
    fn new() -> Client {
        Client::with(&["node1:1", "node2:1", "node3:1"])
    }

    fn with(addresses: &[&str]) -> Client {
        let now = Instant::now();
        let addresses = addresses.iter().map(|&address| Arc::from(address));
        let core = ClientCore::new(addresses.collect(), 7 << 64 | 3, now);
        let client = Client { core, now };
        client.told(route(1, 1), 1);
        client
    }

    /// Node `by` sends the directory.
    fn told(&self, route: Route, by: u64) {
        let address = Arc::from(format!("node{by}:1"));
        (self.core).take_directory(vec![route], NOW, (by, &address), self.now);
    }

    fn begin(&self, kind: Kind) -> Call<'_> {
        self.core.begin(Some(KEY), kind, self.now + TIMEOUT)
    }

    /// Goes on until the request is sent; returns where it goes.
    fn send(&self, call: &mut Call<'_>) -> (Endpoint, Attempt) {
        match call.on(Event::Resume, self.now) {
            Action::Open { endpoint, .. } => match call.on(Event::Opened, self.now) {
                Action::Send(attempt) => (endpoint, attempt),
                other => panic!("{other:?} instead of a request"),
            },
            other => panic!("{other:?} instead of a connection"),
        }
    }
}

fn refusal(code: ErrorCode, fate: Fate) -> Event {
    refused_by(1, code, fate, None)
}

fn refused_by(node: u64, code: ErrorCode, fate: Fate, route: Option<Route>) -> Event {
    refused_with(node, code, fate, route.into_iter().collect())
}

fn refused_with(node: u64, code: ErrorCode, fate: Fate, routes: Vec<Route>) -> Event {
    Event::Refused {
        node,
        timestamp: NOW,
        error: Box::new(ErrorReply {
            code: Ok(code),
            fate,
            retry_after_ms: 0,
            message: "no".to_owned(),
            routes,
        }),
    }
}

fn broken() -> Event {
    Event::Lost(Lost::Broken("gone".into()))
}

fn paused(action: Action) -> Duration {
    match action {
        Action::Pause(pause) => pause,
        other => panic!("{other:?} instead of a pause"),
    }
}

fn failed(action: Action) -> Error {
    match action {
        Action::Fail(error) => error,
        other => panic!("{other:?} instead of a failure"),
    }
}

#[test]
fn a_known_route_is_followed_at_once() {
    let client = Client::new();
    let mut call = client.begin(Kind::Write);
    let (endpoint, attempt) = client.send(&mut call);
    assert_eq!((&*endpoint.address, endpoint.shard), ("node1:1", Some(0)));
    assert_eq!(attempt.target.map(|target| target.range), Some(2));
    assert_eq!(
        (attempt.request_id.client, attempt.request_id.sequence),
        (7 << 64 | 3, 1)
    );
    assert_eq!((attempt.request_id.first_tried, attempt.token), (NOW, NOW));
    assert_eq!(attempt.deadline_ms, 1_500);
    call.answered(NOW + 1, client.now);
    let mut next = client.begin(Kind::Write);
    let (_, attempt) = client.send(&mut next);
    assert_eq!(
        (
            attempt.request_id.sequence,
            attempt.request_id.lowest_unanswered
        ),
        (2, 2)
    );
    assert_eq!(attempt.token, NOW + 1);
}

#[test]
fn without_a_directory_a_call_asks_for_one_before_it_names_a_time() {
    for key in [Some(KEY), None] {
        let now = Instant::now();
        let core = ClientCore::new(vec![Arc::from("node1:1")], 7, now);
        let mut call = core.begin(key, Kind::Write, now + TIMEOUT);
        assert!(matches!(call.on(Event::Resume, now), Action::Refresh));
        let address = Arc::from("node1:1");
        core.take_directory(vec![route(1, 1)], NOW, (1, &address), now);
        let action = call.on(Event::Refreshed(Ok(())), now);
        assert!(matches!(action, Action::Open { .. }), "{action:?}");
        let Action::Send(attempt) = call.on(Event::Opened, now) else {
            panic!("nothing is sent");
        };
        assert_eq!(attempt.request_id.first_tried, NOW);
        assert_eq!(attempt.target.is_some(), key.is_some());
    }
}

#[test]
fn a_stale_route_heals_at_once_and_free_of_the_budget() {
    let client = Client::new();
    while client.core.budget.take() {}
    for code in [ErrorCode::Moved, ErrorCode::NotLeader] {
        client.told(route(1, 1), 1);
        let mut call = client.begin(Kind::Write);
        let (_, first) = client.send(&mut call);
        let stale = refused_by(1, code, Fate::NotApplied, Some(route(1, 2)));
        assert_eq!(paused(call.on(stale, client.now)), Duration::ZERO);
        let (endpoint, second) = client.send(&mut call);
        assert_eq!(&*endpoint.address, "node2:1", "{code}");
        assert_eq!(second.target, first.target);
        assert_eq!(second.request_id, first.request_id);
        // Routes that go stale again are paid for.
        let stale = refused_by(2, code, Fate::NotApplied, None);
        let error = failed(call.on(stale, client.now));
        assert_eq!((error.code, error.fate), (code, Fate::NotApplied));
    }
}

/// The routes of a range that was split at a key, that of the upper part first.
fn split_at(key: &str, version: u32, leaders: (u64, u64)) -> Vec<Route> {
    let lower = Route {
        end: Some(key.into()),
        ..route(version, leaders.0)
    };
    let upper = Route {
        range: 1 + u64::from(version),
        start: key.into(),
        ..route(version, leaders.1)
    };
    vec![upper, lower]
}

#[test]
fn a_split_is_followed_at_once_and_free_of_the_budget_however_often() {
    let client = Client::new();
    while client.core.budget.take() {}
    let mut call = client.begin(Kind::Write);
    let (_, first) = client.send(&mut call);
    for (version, key) in (2..9).zip(["a", "b", "c", "d", "e", "f", "g"]) {
        let routes = split_at(key, version, (1, 2));
        let by = if version == 2 { 1 } else { 2 };
        let moved = refused_with(by, ErrorCode::Moved, Fate::NotApplied, routes);
        assert_eq!(paused(call.on(moved, client.now)), Duration::ZERO);
        // It goes on without the directory.
        let (endpoint, again) = client.send(&mut call);
        assert_eq!(&*endpoint.address, "node2:1");
        let target = again.target.map(|target| (target.range, target.version));
        assert_eq!(target, Some((1 + u64::from(version), version)));
        assert_eq!(again.request_id, first.request_id);
        // Nor does a call for a key of the other part need it.
        let mut other = client
            .core
            .begin(Some(b""), Kind::Read, client.now + TIMEOUT);
        let (endpoint, attempt) = client.send(&mut other);
        assert_eq!(&*endpoint.address, "node1:1");
        assert_eq!(attempt.target.map(|target| target.version), Some(version));
    }
    // A route of the same version is a stale one that is corrected, and is paid for in the end.
    let stale = |leader| {
        let routes = split_at("g", 8, (1, leader));
        refused_with(2, ErrorCode::Moved, Fate::NotApplied, routes)
    };
    assert_eq!(paused(call.on(stale(3), client.now)), Duration::ZERO);
    client.send(&mut call);
    let error = failed(call.on(stale(1), client.now));
    assert_eq!(error.code, ErrorCode::Moved);
}

#[test]
fn routes_that_do_not_hold_the_key_let_the_directory_be_asked() {
    let client = Client::new();
    let mut call = client.begin(Kind::Read);
    client.send(&mut call);
    let lower = split_at("b", 2, (1, 1)).pop().expect("two parts");
    let moved = refused_by(1, ErrorCode::Moved, Fate::NotApplied, Some(lower));
    assert_eq!(paused(call.on(moved, client.now)), Duration::ZERO);
    let action = call.on(Event::Resume, client.now);
    assert!(matches!(action, Action::Refresh), "{action:?}");
    let mut lower = client
        .core
        .begin(Some(b"a"), Kind::Read, client.now + TIMEOUT);
    assert_eq!(
        client
            .send(&mut lower)
            .1
            .target
            .map(|target| target.version),
        Some(2)
    );
}

#[test]
fn the_shard_of_a_range_without_a_leader_is_asked_again_soon_and_then_others_too() {
    let unled = Route {
        leader: None,
        address: String::new(),
        ..route(1, 1)
    };
    // A replica that is about to lead names itself.
    for told in [unled, route(1, 1)] {
        let client = Client::new();
        while client.core.budget.take() {}
        let mut call = client.begin(Kind::Write);
        let (_, first) = client.send(&mut call);
        let refused = || {
            let mut event = refused_by(
                1,
                ErrorCode::NotLeader,
                Fate::NotApplied,
                Some(told.clone()),
            );
            if let Event::Refused { error, .. } = &mut event {
                error.retry_after_ms = 5;
            }
            event
        };
        for pause in [5, 10, 20] {
            assert_eq!(paused(call.on(refused(), client.now)), ms(pause));
            let (endpoint, again) = client.send(&mut call);
            assert_eq!((&*endpoint.address, endpoint.shard), ("node1:1", Some(0)));
            assert_eq!(again.request_id, first.request_id);
        }
        for _ in 0..20 {
            let pause = paused(call.on(refused(), client.now));
            assert!(ms(5) <= pause && pause <= ms(105), "{pause:?}");
            let action = call.on(Event::Resume, client.now);
            assert!(matches!(action, Action::Refresh), "{action:?}");
            client.told(route(1, 1), 2);
            client.send(&mut call);
        }
        // The other part of the split is born, and its leader named.
        let moved = refused_with(
            1,
            ErrorCode::Moved,
            Fate::NotApplied,
            split_at("b", 2, (1, 3)),
        );
        assert_eq!(paused(call.on(moved, client.now)), Duration::ZERO);
        assert_eq!(&*client.send(&mut call).0.address, "node3:1");
        call.answered(NOW + 1, client.now);
    }
}

#[test]
fn a_write_in_doubt_keeps_its_request_id_until_its_fate_is_known() {
    let doubts: [fn() -> Event; 3] = [
        broken,
        || Event::Lost(Lost::Late),
        || refusal(ErrorCode::Unknown, Fate::Unknown),
    ];
    for doubt in doubts {
        let client = Client::new();
        while client.core.budget.take() {}
        let mut call = client.begin(Kind::Write);
        let (_, first) = client.send(&mut call);
        for tries in 0..20 {
            let pause = paused(call.on(doubt(), client.now));
            assert_eq!(pause.is_zero(), tries == 0, "{pause:?}");
            client.told(route(1, 1), 1);
            let (_, again) = client.send(&mut call);
            assert_eq!(again.request_id, first.request_id);
        }
        // Later refusals do not tell what became of the first try.
        let refused = refusal(ErrorCode::Invalid, Fate::NotApplied);
        let error = failed(call.on(refused, client.now));
        assert_eq!(
            (error.code, error.fate),
            (ErrorCode::Invalid, Fate::Unknown)
        );
        // Until its deadline no later write lets the servers forget it.
        let mut next = client.begin(Kind::Write);
        assert_eq!(client.send(&mut next).1.request_id.lowest_unanswered, 1);
    }
}

#[test]
fn a_write_that_was_surely_not_applied_is_no_longer_unanswered() {
    let client = Client::new();
    let mut call = client.begin(Kind::Write);
    client.send(&mut call);
    let refused = refusal(ErrorCode::Invalid, Fate::NotApplied);
    let error = failed(call.on(refused, client.now));
    assert_eq!(error.fate, Fate::NotApplied);
    let mut next = client.begin(Kind::Write);
    assert_eq!(client.send(&mut next).1.request_id.lowest_unanswered, 2);
}

#[test]
fn reads_in_doubt_cost_the_budget_and_are_never_applied() {
    let client = Client::new();
    let mut call = client.begin(Kind::Read);
    let mut tries = 0;
    let error = loop {
        client.told(route(1, 1), 1);
        client.send(&mut call);
        match call.on(broken(), client.now) {
            Action::Pause(_) => tries += 1,
            action => break failed(action),
        }
    };
    // The first retry is free.
    assert_eq!(tries, 501);
    assert_eq!(
        (error.code, error.fate),
        (ErrorCode::DeadlineExceeded, Fate::NotApplied)
    );
}

#[test]
fn an_order_is_not_given_again_once_a_node_may_have_it() {
    let client = Client::new();
    let mut call = client.core.begin(None, Kind::Order, client.now + TIMEOUT);
    client.send(&mut call);
    let unsent = Event::Lost(Lost::NotSent("no room".into()));
    paused(call.on(unsent, client.now));
    client.send(&mut call);
    let error = failed(call.on(broken(), client.now));
    assert_eq!(error.fate, Fate::Unknown);
    let mut call = client.core.begin(None, Kind::Order, client.now + TIMEOUT);
    client.send(&mut call);
    let refused = refusal(ErrorCode::NoQuorum, Fate::Unknown);
    assert_eq!(failed(call.on(refused, client.now)).fate, Fate::Unknown);
}

#[test]
fn no_quorum_is_tried_anywhere_without_the_budget_and_told_at_the_end() {
    let client = Client::new();
    while client.core.budget.take() {}
    for (kind, fate) in [(Kind::Read, Fate::NotApplied), (Kind::Write, Fate::Unknown)] {
        client.told(route(1, 1), 1);
        let mut call = client.begin(kind);
        client.send(&mut call);
        for _ in 0..10 {
            let refused = refusal(ErrorCode::NoQuorum, Fate::NotApplied);
            paused(call.on(refused, client.now));
            // Its route is forgotten.
            let action = call.on(Event::Resume, client.now);
            assert!(matches!(action, Action::Refresh), "{action:?}");
            let action = call.on(Event::Refreshed(Ok(())), client.now);
            assert!(matches!(action, Action::Open { .. }), "{action:?}");
            let action = call.on(Event::Opened, client.now);
            assert!(matches!(action, Action::Send(_)), "{action:?}");
        }
        // That the last try was late tells less.
        let late = Event::Lost(Lost::Late);
        let error = failed(call.on(late, client.now + TIMEOUT));
        assert_eq!((error.code, error.fate), (ErrorCode::NoQuorum, fate));
    }
}

#[test]
fn a_call_ends_before_a_pause_that_would_outlast_it() {
    let client = Client::new();
    let mut call = client
        .core
        .begin(Some(KEY), Kind::Read, client.now + ms(100));
    let (_, attempt) = client.send(&mut call);
    assert_eq!(attempt.deadline_ms, 100);
    let mut busy = refusal(ErrorCode::Overloaded, Fate::NotApplied);
    if let Event::Refused { error, .. } = &mut busy {
        error.retry_after_ms = 100;
    }
    let error = failed(call.on(busy, client.now));
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert_eq!(error.retry_after, Some(ms(100)));
    // At the deadline nothing is sent any more.
    let mut call = client.begin(Kind::Write);
    call.on(Event::Resume, client.now);
    let error = failed(call.on(Event::Opened, client.now + TIMEOUT));
    assert_eq!(
        (error.code, error.fate),
        (ErrorCode::Unreachable, Fate::NotApplied)
    );
}

#[test]
fn a_try_at_one_of_several_nodes_leaves_time_for_the_others() {
    let client = Client::new();
    let mut call = client.begin(Kind::Read);
    let action = call.on(Event::Resume, client.now);
    let third = client.now + TIMEOUT / 3;
    assert!(matches!(action, Action::Open { until, .. } if until == third));
    let Action::Send(attempt) = call.on(Event::Opened, client.now) else {
        panic!("nothing is sent");
    };
    assert_eq!(attempt.until, client.now + ms(1500));
    assert_eq!(attempt.silence, Some(ms(500)));

    let alone = Client::with(&["node1:1"]);
    let mut call = alone.begin(Kind::Read);
    let (_, attempt) = alone.send(&mut call);
    assert_eq!(
        (attempt.until, attempt.silence),
        (alone.now + TIMEOUT, None)
    );
}

#[test]
fn a_call_at_its_deadline_asks_no_other_nodes() {
    let client = Client::new();
    let mut call = client.begin(Kind::Read);
    let action = call.on(Event::Resume, client.now);
    assert!(matches!(action, Action::Open { .. }), "{action:?}");
    let late = client.now + TIMEOUT - Duration::from_micros(3);
    let action = call.on(Event::Opened, late);
    assert!(
        matches!(&action, Action::Send(attempt) if attempt.silence.is_none()),
        "{action:?}"
    );
}

#[test]
fn a_silent_try_is_given_up_only_if_the_range_has_moved() {
    let client = Client::new();
    let mut call = client.begin(Kind::Write);
    let (_, first) = client.send(&mut call);
    for _ in 0..3 {
        let action = call.on(Event::Silence, client.now);
        assert!(matches!(action, Action::LookElsewhere));
        assert!(client.core.avoided.is_left_out("node1:1", client.now));
        let action = call.on(Event::Looked, client.now);
        assert!(matches!(action, Action::Wait), "{action:?}");
    }
    call.on(Event::Silence, client.now);
    client.told(route(2, 3), 3);
    assert_eq!(paused(call.on(Event::Looked, client.now)), Duration::ZERO);
    let (endpoint, again) = client.send(&mut call);
    assert_eq!(&*endpoint.address, "node3:1");
    assert_eq!(again.request_id, first.request_id);
}

#[test]
fn a_clock_out_of_bounds_is_waited_for_or_stepped_back_from() {
    let client = Client::new();
    let ahead = NOW + (3_600_000 << 16);
    client.core.session.observe(ahead, client.now);
    let out_of_bounds = |retry_after_ms| {
        let mut event = refusal(ErrorCode::ClockOutOfBounds, Fate::NotApplied);
        if let Event::Refused { error, .. } = &mut event {
            error.retry_after_ms = retry_after_ms;
        }
        event
    };
    let mut call = client.begin(Kind::Write);
    let (_, first) = client.send(&mut call);
    assert_eq!((first.request_id.first_tried, first.token), (ahead, ahead));
    // It becomes possible soon.
    assert!(paused(call.on(out_of_bounds(100), client.now)) >= ms(100));
    assert_eq!(client.send(&mut call).1.token, ahead);
    // It does not.
    paused(call.on(out_of_bounds(101), client.now));
    let (_, again) = client.send(&mut call);
    assert_eq!((again.request_id.first_tried, again.token), (NOW, NOW));
    assert_eq!(again.request_id.sequence, first.request_id.sequence);
    for _ in 0..2 {
        paused(call.on(out_of_bounds(0), client.now));
        client.send(&mut call);
    }
    let error = failed(call.on(out_of_bounds(0), client.now));
    assert_eq!(error.code, ErrorCode::ClockOutOfBounds);
}

#[test]
fn a_reply_that_makes_no_sense_leaves_the_fate_of_a_write_open() {
    for (kind, fate) in [(Kind::Write, Fate::Unknown), (Kind::Read, Fate::NotApplied)] {
        let client = Client::new();
        let mut call = client.begin(kind);
        client.send(&mut call);
        let error = failed(call.on(Event::Unreadable("?".to_owned()), client.now));
        assert_eq!((error.code, error.fate), (ErrorCode::Internal, fate));
    }
}

#[test]
fn complaints_about_frames_are_internal_errors() {
    for code in [ErrorCode::MalformedFrame, ErrorCode::UnknownKind] {
        let client = Client::new();
        let mut call = client.begin(Kind::Read);
        client.send(&mut call);
        let refused = refusal(code, Fate::NotApplied);
        assert_eq!(
            failed(call.on(refused, client.now)).code,
            ErrorCode::Internal
        );
    }
}

#[test]
fn nodes_that_failed_a_short_time_ago_are_asked_last() {
    let client = Client::new();
    let address: Arc<str> = Arc::from("node2:1");
    client.core.leave_out(&address, client.now);
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let (order, delay) = client.core.order(client.now + ms(300), client.now);
        assert_eq!(order.last(), Some(&address));
        assert_eq!(delay, ms(50));
        first.extend(order.first().cloned());
        let endpoint = client.core.any_endpoint(client.now);
        assert!(endpoint.address != address && endpoint.shard.is_none());
    }
    assert_eq!(first.len(), 2, "it starts with any of the others");
}
