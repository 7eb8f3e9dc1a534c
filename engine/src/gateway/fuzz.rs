//! Forwarded requests and their replies, under bytes that were changed at random.

use bytes::Bytes;
use rangedb_fuzz::fuzz;

use super::message::{
    Body, Found, Reply, Request, decode_reply, decode_request, encode_reply, encode_request,
};
use super::values::{KeyRead, Values};
use crate::error::{Error, Fate};
use crate::request::{
    Batch, Expected, Outcome, RequestId, Row, ScanReply, ScanRequest, Target, Versioned,
};
use crate::types::{
    Blob, ClientId, Epoch, KeyRange, Location, NodeId, RangeId, Route, ShardId, Timestamp,
};

fn requests() -> Vec<Request> {
    let session = RequestId {
        client: ClientId(1 << 100),
        sequence: 7,
        lowest_unanswered: 5,
        first_tried: Timestamp(99),
    };
    let (key, value) = (Blob::from("key"), Blob::from("some value"));
    let swap = Batch::compare_and_swap(key.clone(), Expected::Version(Timestamp(3)), None);
    let changes = [(key.clone(), Some(value.clone())), (value.clone(), None)];
    let writes = [
        Batch::put(key.clone(), value),
        Batch::add(key.clone(), -4),
        swap,
        Batch::set_all(changes),
    ];
    let writes = writes.map(|batch| Body::Write { batch, session });
    let scan = Body::Scan(ScanRequest {
        start: Some(key.clone()),
        reverse: true,
        rows_max: 9,
        at: Some(Timestamp(8)),
        until: Some(key.clone()),
        ..ScanRequest::default()
    });
    let target = Target {
        range: RangeId(4),
        epoch: Epoch {
            version: 1,
            conf: 2,
        },
    };
    let keys = vec![key.clone(), Blob::new(), key.clone()];
    let reads = [Body::Get { key }, scan, Body::MultiGet { keys }];
    let bodies = writes.into_iter().chain(reads);
    let request = |(number, body): (u64, Body)| Request {
        left_us: (number % 2 == 0).then_some(number * 1_000),
        token: Timestamp(number),
        target: (number % 3 == 0).then_some(target),
        body,
    };
    (0..).zip(bodies).map(request).collect()
}

fn replies() -> Vec<Reply> {
    let versioned = Versioned {
        value: Blob::from("some value"),
        version: Timestamp(6),
    };
    let route = Route {
        range: RangeId(4),
        epoch: Epoch {
            version: 1,
            conf: 2,
        },
        keys: KeyRange {
            start: b"a".to_vec(),
            end: Some(b"m".to_vec()),
        },
        leader: Some(Location {
            node: NodeId(3),
            shard: ShardId(1),
        }),
    };
    let row = |key: &'static [u8; 3]| Row {
        key,
        value: b"some value",
        version: Timestamp(6),
    };
    let rows = ScanReply {
        rows: [b"key", b"yek"].map(row).into_iter().collect(),
        at: Timestamp(6),
        next: Some(ScanRequest::default()),
    };
    let mut values = Values::default();
    values.push(KeyRead::Found(Some((b"some value", Timestamp(6)))));
    values.push(KeyRead::Found(None));
    values.push(KeyRead::Failed(&Error::NotLeader(Some(Box::new(
        route.clone(),
    )))));
    values.push(KeyRead::NotRead);
    let numbers = Outcome::Numbers {
        version: Timestamp(5),
        values: [1, -2].into(),
    };
    let results = [
        Ok(Found::Value(Some(versioned))),
        Ok(Found::Value(None)),
        Ok(Found::Written(numbers)),
        Ok(Found::Rows(rows)),
        Ok(Found::Values(values)),
        Err(Error::NotLeader(Some(Box::new(route.clone())))),
        Err(Error::Moved(vec![route.clone(), route])),
        Err(Error::Moved(Vec::new())),
        Err(Error::overloaded("the queue is full", 7)),
        Err(Error::unknown("a reason")),
        Err(Error::NoQuorum(Fate::Unknown)),
        Err(Error::Invalid("a rule".to_owned())),
    ];
    let reply = |result| Reply {
        now: Timestamp(77),
        result,
    };
    results.map(reply).into()
}

#[test]
fn forwarded_requests_and_replies() {
    let corpus: Vec<Vec<u8>> = requests().iter().map(encode_request).collect();
    let tally = fuzz("forwarded requests", &corpus, |bytes, meter| {
        let Some(request) = meter.decode(|| decode_request(bytes)) else {
            return false;
        };
        assert_eq!(decode_request(&encode_request(&request)), Some(request));
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
    let corpus: Vec<Vec<u8>> = replies().iter().map(encode_reply).collect();
    let tally = fuzz("forwarded replies", &corpus, |bytes, meter| {
        let bytes = Bytes::copy_from_slice(bytes);
        let Some(reply) = meter.decode(|| decode_reply(&bytes)) else {
            return false;
        };
        let encoded = Bytes::from(encode_reply(&reply));
        assert_eq!(decode_reply(&encoded), Some(reply));
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn messages_are_read_as_they_are_written_and_by_this_version_alone() {
    for request in requests() {
        let mut bytes = encode_request(&request);
        assert_eq!(decode_request(&bytes), Some(request));
        bytes[0] += 1;
        assert_eq!(decode_request(&bytes), None);
    }
    for reply in replies() {
        let mut bytes = encode_reply(&reply);
        assert_eq!(decode_reply(&bytes.clone().into()), Some(reply));
        bytes[0] += 1;
        assert_eq!(decode_reply(&bytes.into()), None);
    }
}
