//! The session table: at most once, bounded, and the same on every replica.

use std::collections::BTreeMap;

use super::*;

fn request(sequence: u64, lowest: u64, first_tried_ms: u64) -> RequestId {
    RequestId {
        client: ClientId(7),
        sequence,
        lowest_unanswered: lowest,
        first_tried: Timestamp::from_ms(first_tried_ms),
    }
}

fn done(ms: u64) -> Outcome {
    Outcome::Done {
        version: Timestamp::from_ms(ms),
        existed: false,
    }
}

fn record(table: &mut Sessions, request: &RequestId, ms: u64) {
    table.record(
        request,
        Blob::from_static(b"k"),
        Timestamp::from_ms(ms),
        done(ms),
    );
}

#[test]
fn a_retry_gets_the_first_outcome() {
    let mut table = Sessions::default();
    let first = request(1, 1, 1000);
    assert_eq!(
        table.check(&first, Timestamp::from_ms(1000)),
        Verdict::Fresh
    );
    record(&mut table, &first, 1001);
    assert_eq!(
        table.check(&first, Timestamp::from_ms(2000)),
        Verdict::Seen(done(1001))
    );
}

#[test]
fn what_was_answered_is_refused() {
    let mut table = Sessions::default();
    record(&mut table, &request(1, 1, 1000), 1001);
    record(&mut table, &request(3, 3, 1002), 1003);
    let now = Timestamp::from_ms(1004);
    assert_eq!(table.check(&request(1, 1, 1000), now), Verdict::Expired);
    assert_eq!(table.check(&request(2, 2, 1000), now), Verdict::Expired);
    assert_eq!(table.check(&request(4, 3, 1000), now), Verdict::Fresh);
}

#[test]
fn a_client_whose_time_is_ahead_is_remembered_until_its_tries_are_too_old() {
    let (hour, mut table) = (3_600_000, Sessions::default());
    // It has its time from a node that is an hour ahead of the range's leader.
    let first = request(1, 1, 1000 + hour);
    record(&mut table, &first, 1000);
    // Then that node leads, and the range's time jumps.
    let other = RequestId {
        client: ClientId(8),
        ..request(1, 1, 2000 + hour)
    };
    record(&mut table, &other, 2000 + hour);
    assert_eq!(
        table.check(&first, Timestamp::from_ms(3000 + hour)),
        Verdict::Seen(done(1000))
    );
    let made_up = request(2, 1, 3000 + 30 * hour);
    let now = Timestamp::from_ms(3000 + hour);
    assert_eq!(table.check(&made_up, now), Verdict::Expired);
}

#[test]
fn a_client_that_was_forgotten_and_is_back_is_saved_once() {
    let mut table = Sessions::default();
    record(&mut table, &request(1, 1, 1000), 1000);
    assert_eq!(table.save(usize::MAX).len(), 2);
    let later = 1000 + 2 * CLIENT_WINDOW_MS;
    record(&mut table, &request(1, 1, later), later);
    let saved = table.save(usize::MAX);
    let mut keys = BTreeMap::new();
    for row in &saved {
        let (key, is_there) = match row {
            SessionRow::Client(id, marks) => ((*id, 0), marks.is_some()),
            SessionRow::Request {
                client,
                sequence,
                saved,
                ..
            } => ((*client, *sequence), saved.is_some()),
        };
        assert!(keys.insert(key, is_there).is_none(), "twice: {saved:?}");
        assert!(is_there, "{saved:?}");
    }
    assert_eq!(keys.len(), 2);
}

#[test]
fn what_was_first_tried_long_ago_is_refused() {
    let table = Sessions::default();
    let late = Timestamp::from_ms(1001 + SESSION_WINDOW_MS);
    assert_eq!(table.check(&request(1, 1, 1000), late), Verdict::Expired);
    assert_eq!(table.check(&request(1, 1, 1001), late), Verdict::Fresh);
}

#[test]
fn a_forgotten_client_cannot_apply_an_old_write_again() {
    let mut table = Sessions::default();
    let old = request(1, 1, 1000);
    record(&mut table, &old, 1001);
    let other = RequestId {
        client: ClientId(8),
        ..request(1, 1, 2_000_000)
    };
    record(&mut table, &other, 2_000_000);
    assert_eq!(table.len(), (1, 1));
    assert_eq!(
        table.check(&old, Timestamp::from_ms(2_000_001)),
        Verdict::Expired
    );
}

#[test]
fn a_client_with_too_many_requests_loses_the_oldest_for_good() {
    let mut table = Sessions::default();
    let count = SESSION_REQUESTS_OF_CLIENT_MAX as u64 + 5;
    for sequence in 1..=count {
        record(&mut table, &request(sequence, 1, 1000), 1000 + sequence);
    }
    let now = Timestamp::from_ms(1000 + count);
    assert_eq!(table.len().1, SESSION_REQUESTS_OF_CLIENT_MAX);
    assert_eq!(table.check(&request(5, 1, 1000), now), Verdict::Expired);
    assert!(matches!(
        table.check(&request(6, 1, 1000), now),
        Verdict::Seen(_)
    ));
}

#[test]
fn rows_saved_and_loaded_make_the_same_table() {
    let mut table = Sessions::default();
    record(&mut table, &request(1, 1, 1000), 1001);
    record(&mut table, &request(2, 1, 1000), 1002);
    let mut rows = table.save(usize::MAX);
    assert_eq!(table.save(usize::MAX), vec![]);
    record(&mut table, &request(3, 2, 1000), 1003);
    rows.extend(table.save(usize::MAX));
    let deleted = rows.iter().any(|row| {
        matches!(
            row,
            SessionRow::Request {
                sequence: 1,
                saved: None,
                ..
            }
        )
    });
    assert!(deleted, "the answered pair leaves the tree");
    // The tree keeps the newest row of each key.
    let mut tree = BTreeMap::new();
    for row in rows {
        let key = match &row {
            SessionRow::Client(client, _) => (0, client.0, 0),
            SessionRow::Request {
                client, sequence, ..
            } => (1, client.0, *sequence),
        };
        tree.insert(key, row);
    }
    let mut again = Sessions::default();
    tree.into_values().for_each(|row| again.load(row));
    let now = Timestamp::from_ms(1004);
    for sequence in 1..5 {
        let asked = request(sequence, 1, 1000);
        assert_eq!(table.check(&asked, now), again.check(&asked, now));
    }
}

#[test]
fn rows_round_trip() {
    let marks = ClientMarks {
        lowest_unanswered: 3,
        last_seen: Timestamp(9),
    };
    assert_eq!(ClientMarks::decode(&marks.encode()), Some(marks));
    let saved = SavedRequest {
        decided: Timestamp(4),
        outcome: done(1),
    };
    assert_eq!(
        SavedRequest::decode(&saved.encode().expect("encodes")).ok(),
        Some(saved)
    );
}

fn of_client(number: u128, sequence: u64, ms: u64) -> RequestId {
    RequestId {
        client: ClientId(number),
        ..request(sequence, 1, ms)
    }
}

/// The rows of a table, in an order of their own.
fn sorted(rows: impl Iterator<Item = SessionRow>) -> Vec<String> {
    let mut rows: Vec<String> = rows.map(|row| format!("{row:?}")).collect();
    rows.sort();
    rows
}

/// What is remembered, without keys and outcomes.
fn names(table: &Sessions) -> BTreeSet<(ClientId, u64, u64)> {
    let name = |row| match row {
        SessionRow::Client(id, marks) => (id, 0, marks.map_or(0, |marks| marks.last_seen.0)),
        SessionRow::Request {
            client, sequence, ..
        } => (client, sequence, 1),
    };
    table.rows().map(name).collect()
}

/// What a tree holds that has been given these rows.
fn reloaded(horizon: Timestamp, saved: Vec<SessionRow>) -> Sessions {
    let (mut clients, mut requests) = (BTreeMap::new(), BTreeMap::new());
    for row in saved {
        match &row {
            SessionRow::Client(client, _) => clients.insert(client.0, row),
            SessionRow::Request {
                client, sequence, ..
            } => requests.insert((client.0, *sequence), row),
        };
    }
    let mut table = Sessions::new(horizon);
    let rows = clients.into_values().chain(requests.into_values());
    rows.for_each(|row| table.load(row));
    table
}

#[test]
fn the_table_is_bounded_by_bytes_and_the_longest_silent_client_goes_first() {
    let key = Blob::from(vec![b'k'; 4000]);
    let mut table = Sessions::default();
    let count = 2 * SESSIONS_LEN_MAX / key.len();
    for number in 1..=count as u64 {
        let one = of_client(number.into(), 1, 1000 + number);
        let at = Timestamp::from_ms(1000 + number);
        table.record(&one, key.clone(), at, done(number));
        assert!(table.bytes() <= SESSIONS_LEN_MAX, "{} bytes", table.bytes());
    }
    assert!(table.bytes() > SESSIONS_LEN_MAX - 10_000);
    let now = Timestamp::from_ms(1000 + count as u64);
    assert_eq!(table.check(&of_client(1, 1, 1001), now), Verdict::Expired);
    let last = of_client(count as u128, 1, 1000);
    assert!(matches!(table.check(&last, now), Verdict::Seen(_)));
}

#[test]
fn one_client_cannot_take_the_whole_table() {
    let key = Blob::from(vec![b'k'; 4000]);
    let mut table = Sessions::default();
    for sequence in 1..=SESSION_REQUESTS_OF_CLIENT_MAX as u64 {
        let at = Timestamp::from_ms(1000 + sequence);
        table.record(&request(sequence, 1, 1000), key.clone(), at, done(sequence));
    }
    assert!(table.bytes() <= SESSION_CLIENT_LEN_MAX + 1000);
    let now = Timestamp::from_ms(100_000);
    assert_eq!(table.check(&request(1, 1, 1000), now), Verdict::Expired);
}

#[test]
fn a_replica_that_was_restarted_forgets_the_same_as_one_that_was_not() {
    let key = Blob::from(vec![b'k'; 3000]);
    let (mut steady, mut saved) = (Sessions::default(), Vec::new());
    let mut restarted = Sessions::default();
    let per_round = SESSIONS_LEN_MAX / key.len() / 3;
    for round in 0..6_u64 {
        for number in 0..per_round as u64 {
            // Some come again, others are too old by then.
            let client = (number * 7 + round * number % 3) % (2 * per_round as u64);
            let ms = 1000 + round * 300_000 + number;
            let one = of_client(client.into(), round + 1, ms);
            for table in [&mut steady, &mut restarted] {
                let verdict = table.check(&one, Timestamp::from_ms(ms));
                if verdict == Verdict::Fresh {
                    table.record(&one, key.clone(), Timestamp::from_ms(ms), done(ms));
                }
            }
        }
        saved.extend(restarted.save(usize::MAX));
        restarted = reloaded(restarted.horizon(), std::mem::take(&mut saved));
        saved.extend(restarted.rows());
        assert_eq!(steady.len(), restarted.len(), "round {round}");
        assert_eq!(steady.bytes(), restarted.bytes(), "round {round}");
        assert_eq!(steady.horizon(), restarted.horizon(), "round {round}");
        assert!(names(&steady) == names(&restarted), "round {round}");
    }
    assert!(steady.horizon() > Timestamp::ZERO, "some were pushed out");
}

const MANY: u128 = 100_000;

fn many() -> Sessions {
    let mut table = Sessions::default();
    for number in 1..=MANY {
        record(&mut table, &of_client(number, 1, 1000), 1000);
    }
    table
}

#[test]
fn a_table_of_many_clients_is_saved_few_at_a_time() {
    let mut table = many();
    assert_eq!(table.unsaved(), 2 * MANY as usize);
    let mut saved = Vec::new();
    loop {
        let before = table.unsaved();
        let some = table.save(100);
        assert!(some.len() <= 100);
        assert_eq!(table.unsaved(), before - some.len());
        if some.is_empty() {
            break;
        }
        saved.extend(some);
    }
    assert_eq!(table.unsaved(), 0);
    assert_eq!(sorted(saved.into_iter()), sorted(table.rows()));
}

#[test]
fn a_client_of_many_requests_is_saved_few_at_a_time() {
    let mut table = Sessions::default();
    for sequence in 1..=1000 {
        record(&mut table, &request(sequence, 1, 1000), 1000 + sequence);
    }
    let mut saved = Vec::new();
    while table.unsaved() > 0 {
        let some = table.save(64);
        assert!((1..=64).contains(&some.len()), "{}", some.len());
        saved.extend(some);
    }
    let again = reloaded(Timestamp::ZERO, saved);
    assert_eq!(sorted(again.rows()), sorted(table.rows()));
}

#[test]
fn after_a_long_rest_few_are_forgotten_by_each_write() {
    let mut table = many();
    let late = 1000 + 2 * CLIENT_WINDOW_MS;
    let mut left = table.len().0;
    for number in 1..10 {
        record(&mut table, &of_client(MANY + number, 1, late), late);
        assert!(table.len().0 >= left - FORGOTTEN_AT_ONCE_MAX);
        assert!(table.len().0 < left);
        left = table.len().0;
    }
}

#[test]
fn an_export_tells_of_its_beginning_while_the_table_changes() {
    let mut table = Sessions::default();
    for number in 1..=1000 {
        record(&mut table, &of_client(number, 1, 1000), 1000);
    }
    let (as_it_was, export) = (sorted(table.rows()), table.export());
    let other = table.export();
    let mut exported = Vec::new();
    let mut step = 0;
    loop {
        let some = table.next_rows(&export, 10).expect("it is of this table");
        assert!(some.len() <= 11, "whole clients: {}", some.len());
        if some.is_empty() {
            break;
        }
        exported.extend(some);
        // Some write again, some are new, and in the end the first ones are forgotten.
        step += 1;
        for number in [step * 3, 1000 - step, 2000 + step] {
            let at = 2000 + step as u64;
            record(&mut table, &of_client(number, at, 1000), at);
        }
        if step > 90 {
            let late = 1000 + 2 * CLIENT_WINDOW_MS;
            record(&mut table, &of_client(5000 + step, 1, late), late);
        }
    }
    assert!(table.len().0 < 1000, "some were forgotten");
    assert_eq!(sorted(exported.into_iter()), as_it_was);
    // One that comes later is of the same moment.
    let rows = table.next_rows(&other, usize::MAX).expect("of this table");
    assert_eq!(sorted(rows.into_iter()), as_it_was);
    assert!(Sessions::default().next_rows(&other, 1).is_none());
}

/// The name of a row, and whether it is there from now on.
fn place_of(row: &SessionRow) -> (String, bool) {
    match row {
        SessionRow::Client(id, marks) => (format!("{id:?}"), marks.is_some()),
        SessionRow::Request {
            first_key,
            client,
            sequence,
            saved,
        } => (
            format!("{client:?} {sequence} {first_key:?}"),
            saved.is_some(),
        ),
    }
}

#[test]
fn what_is_saved_a_few_rows_at_a_time_is_the_table_in_the_end() {
    for seed in 1..=300u64 {
        let mut state = seed;
        let mut below = |limit: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % limit
        };
        let (mut table, mut tree, mut ms) = (Sessions::default(), BTreeMap::new(), 1_000);
        let mut sequences = [1; 4];
        let save = |table: &mut Sessions, tree: &mut BTreeMap<String, ()>, rows_max| {
            let rows = table.save(rows_max);
            for row in &rows {
                let (name, is_there) = place_of(row);
                if is_there {
                    tree.insert(name, ());
                } else {
                    tree.remove(&name);
                }
            }
            !rows.is_empty()
        };
        for _ in 0..60 {
            // Now and then so late that clients are forgotten; then they begin anew.
            ms += match below(6) {
                0 => CLIENT_WINDOW_MS * 2,
                _ => 1 + below(50),
            };
            let client = below(4);
            let sequence = &mut sequences[client as usize];
            if below(4) == 0 {
                *sequence = 1;
            }
            let write = RequestId {
                client: ClientId(client.into()),
                ..request(*sequence, sequence.saturating_sub(2).max(1), ms)
            };
            *sequence += 1;
            if table.check(&write, Timestamp::from_ms(ms)) == Verdict::Fresh {
                record(&mut table, &write, ms);
            }
            if below(2) == 0 {
                save(&mut table, &mut tree, 1 + below(3) as usize);
            }
        }
        while save(&mut table, &mut tree, 2) {}
        let expected: BTreeMap<String, ()> =
            table.rows().map(|row| (place_of(&row).0, ())).collect();
        assert_eq!(tree, expected, "seed {seed}");
        assert_eq!(table.unsaved(), 0, "seed {seed}");
    }
}

#[test]
fn the_numbers_of_a_batch_count_for_the_bytes_of_its_client() {
    let len_of = |outcome: Outcome| {
        let mut table = Sessions::default();
        let (key, now) = (Blob::from_static(b"k"), Timestamp::from_ms(1001));
        table.record(&request(1, 1, 1000), key, now, outcome);
        table.len
    };
    let numbers = Outcome::Numbers {
        version: Timestamp::from_ms(1001),
        values: [7; 64].into(),
    };
    assert_eq!(len_of(numbers), len_of(done(1001)) + 64 * 8);
}
