//! Fuzz tests of the decoders of rows and row keys.

use rangedb_fuzz::fuzz;

use crate::lsm::{keys, row};
use crate::types::{ClientId, DataId, ReplicaId, Timestamp};

#[test]
fn rows() {
    let corpus = [
        row::encode(Timestamp(7), Some(b"value")),
        row::encode(Timestamp::MAX, Some(b"")),
        row::encode(Timestamp::ZERO, None),
    ];
    let tally = fuzz("rows", &corpus, |bytes, meter| {
        let Some(found) = meter.decode(|| row::decode(bytes)) else {
            return false;
        };
        let again = row::encode(found.version, found.value);
        assert_eq!(row::decode(&again), Some(found));
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

fn key(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    bytes
}

#[test]
fn keys_of_rows() {
    let corpus = [
        key(|to| keys::state_key(ReplicaId(5), to)),
        key(|to| keys::client_key(ReplicaId(5), ClientId(6), to)),
        key(|to| keys::user_key(DataId(300), b"user\0key", to)),
        key(|to| keys::snapshot_client_key(DataId(u64::MAX), ClientId(6), to)),
        key(|to| keys::request_key(DataId(300), b"\0\xff", ClientId(9), 77, to)),
        keys::TREE_MARK.to_vec(),
    ];
    fuzz("keys", &corpus, |bytes, meter| {
        meter.decode(|| {
            let parts = (keys::user_part(bytes), keys::client_part(bytes));
            std::hint::black_box((parts, keys::after_data_id(bytes)));
            keys::parse(bytes).is_some()
        })
    });
    let pairs = &corpus[4..5];
    let tally = fuzz("keys of pairs", pairs, |bytes, meter| {
        let Some(parts) = meter.decode(|| keys::request_parts(bytes)) else {
            return false;
        };
        let (first_key, client, sequence) = &parts;
        let again = key(|to| keys::request_key(DataId(1), first_key, *client, *sequence, to));
        assert_eq!(keys::request_parts(&again), Some(parts));
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}
