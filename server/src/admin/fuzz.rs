//! The JSON bodies of the API under bytes that were changed at random.

use rangedb_fuzz::fuzz;

use super::orders::{self, MoveReplica, ScatterRanges, SplitRange};
use super::{batch, json, multi_get};

#[test]
fn batches() {
    let corpus = [
        &br#"{"conditions":[{"if":"absent","key":"a"},{"if":"version","key":"c","version":"7"}],
            "mutations":[{"op":"put","key":"a","value_hex":"ff"},{"op":"delete","key":"b"}]}"#[..],
        br#"{"mutations":[{"op":"add","key":"n","delta":-2},{"op":"put","key_hex":"00","value":""}]}"#,
        br#"{"conditions":[{"if":"value","key":"b","value":""},{"if":"exists","key":"e"}],
            "mutations":[{"op":"put","key":"a","value":"b"}]}"#,
    ];
    let tally = fuzz(
        "batches in JSON",
        &corpus.map(<[u8]>::to_vec),
        |bytes, meter| {
            let read = meter.decode(|| batch::of_body(bytes));
            // The message stays short, however long the body is.
            assert!(read.as_ref().is_ok_and(|batch| !batch.is_empty()) || is_told(&read, bytes));
            read.is_ok()
        },
    );
    assert!(tally.accepted > 100, "{tally:?}");
}

/// Whether a refusal says what is wrong, and does not repeat a long body.
fn is_told<T>(read: &Result<T, String>, body: &[u8]) -> bool {
    let fits = |why: &String| !why.is_empty() && why.len() <= 1000 + 4 * body.len();
    read.as_ref().err().is_some_and(fits)
}

#[test]
fn lists_of_keys() {
    let corpus = [
        br#"{"keys":[{"key":"a"},{"key_hex":"00ff"},{"key":""}]}"#.to_vec(),
        br#"{"keys":[{"key":"a"}]}"#.to_vec(),
    ];
    let tally = fuzz("lists of keys", &corpus, |bytes, meter| {
        let read = meter.decode(|| multi_get::of_body(bytes));
        assert!(read.as_ref().is_ok_and(|keys| !keys.is_empty()) || is_told(&read, bytes));
        read.is_ok()
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

fn orders_of<T: orders::Body>(name: &str, corpus: &[&[u8]]) {
    let corpus: Vec<Vec<u8>> = corpus.iter().map(|body| body.to_vec()).collect();
    fuzz(name, &corpus, |bytes, meter| {
        let read = meter.decode(|| json::object::<T>(bytes, T::SHAPE));
        assert!(read.is_ok() || is_told(&read, bytes));
        read.is_ok()
    });
}

#[test]
fn bodies_of_orders() {
    orders_of::<MoveReplica>(
        "orders to move",
        &[
            br#"{"from":1,"to_node":2,"to_shard":3}"#,
            br#"{"from":1,"to_node":2}"#,
        ],
    );
    orders_of::<SplitRange>(
        "orders to split",
        &[
            br#"{"at":["m"],"at_hex":["00ff"],"hold_ms":0}"#,
            br#"{"into":4}"#,
        ],
    );
    orders_of::<ScatterRanges>(
        "orders to scatter",
        &[br#"{"start":"a","end":"m"}"#, br#"{"start_hex":"00ff"}"#],
    );
}
