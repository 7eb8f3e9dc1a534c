//! What the history reads of its folder, under bytes that were changed at random.

use rangedb_fuzz::fuzz;

use super::record::{Event, Work, raise};
use super::{seal, store};

fn works() -> Vec<Vec<u8>> {
    let mut work = Work::default();
    raise(&mut work.operations, "get", 90);
    raise(&mut work.operations, "put", u64::MAX);
    raise(&mut work.refused, "busy", 1);
    work.latency.extend([(10, 90), (5000, u64::MAX)]);
    let works = [work, Work::default()];
    works
        .map(|work| serde_json::to_vec(&work).expect("JSON"))
        .to_vec()
}

#[test]
fn rows_of_work() {
    let tally = fuzz("rows of work", &works(), |bytes, meter| {
        let Ok(work) = meter.decode(|| serde_json::from_slice::<Work>(bytes)) else {
            return false;
        };
        let again = serde_json::to_vec(&work).expect("JSON");
        assert_eq!(
            serde_json::from_slice::<Work>(&again).expect("a work"),
            work
        );
        // What is read is added up and told.
        let mut sum = work.clone();
        sum.add(&work);
        let told = sum.period(0);
        assert!(told.p50_us <= told.p99_us && told.p99_us <= told.p999_us);
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn rows_of_events() {
    let event = Event::new("kind", "words \"in quotes\"");
    let corpus = [serde_json::to_vec(&event).expect("JSON")];
    let tally = fuzz("rows of events", &corpus, |bytes, meter| {
        let Ok(event) = meter.decode(|| serde_json::from_slice::<Event>(bytes)) else {
            return false;
        };
        let again = serde_json::to_vec(&event).expect("JSON");
        assert_eq!(
            serde_json::from_slice::<Event>(&again).expect("an event"),
            event
        );
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn keys_of_rows() {
    let corpus = [store::key(store::Kind::Hour, 7, u64::MAX).to_vec()];
    fuzz("keys of the history", &corpus, |bytes, meter| {
        let parts = meter.decode(|| store::parts(bytes));
        assert_eq!(parts.is_some(), bytes.len() >= 17);
        parts.is_some()
    });
}

/// The journal is cut behind its last whole batch.
#[test]
fn batches_of_the_journal() {
    let mut batch = vec![1, 1, 0, 0, 0];
    batch.extend([9; 8]);
    batch.extend([2, 0, 0]);
    batch.extend([0; 8]);
    batch.extend([3, 0, 2, 0, 0, 0, 2, 0, 0, 0]);
    batch.extend(*b"keyva");
    batch.push(3);
    batch.extend([0; 8]);
    batch.extend(seal::BATCH_END);
    let twice = [batch.clone(), batch.clone()].concat();
    fuzz("batches of the journal", &[batch, twice], |bytes, meter| {
        let Some(rest) = meter.decode(|| seal::after_batch(bytes)) else {
            return false;
        };
        assert!(rest.len() < bytes.len() && bytes.ends_with(rest));
        true
    });
}
