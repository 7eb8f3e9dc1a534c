//! The handshake of another node, and the JSON with which a node joins, under bytes that were changed
//! at random.

use rangedb_engine::types::{Location, NodeId, ShardId};
use rangedb_fuzz::fuzz;

use super::Hello;
use super::enroll::{Reply, Request};
use super::incarnations::Welcome;
use crate::data_dir::Membership;

#[test]
fn handshakes() {
    let hello = |address: &str, secret: &str| Hello {
        cluster: 1 << 100,
        to: Location {
            node: NodeId(3),
            shard: ShardId(1),
        },
        from: NodeId(4),
        welcome: Welcome {
            incarnation: 7,
            yours: 0,
        },
        address: address.to_owned(),
        secret: secret.to_owned(),
    };
    let corpus = [hello("", ""), hello("10.0.0.1:7400", "some w\u{f6}rds")];
    let tally = fuzz(
        "greetings",
        &corpus.map(|hello| hello.encode()),
        |bytes, meter| {
            let Some(hello) = meter.decode(|| Hello::decode(bytes)) else {
                return false;
            };
            assert_eq!(Hello::decode(&hello.encode()), Some(hello));
            true
        },
    );
    assert!(tally.accepted > 100, "{tally:?}");
}

/// What serde reads is written and read again, and is the same.
fn fuzz_json<T>(name: &str, corpus: &[Vec<u8>])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let tally = fuzz(name, corpus, |bytes, meter| {
        let Ok(value) = meter.decode(|| serde_json::from_slice::<T>(bytes)) else {
            return false;
        };
        let again = serde_json::to_vec(&value).expect("text");
        let again: T = serde_json::from_slice(&again).expect("it can be read again");
        assert_eq!(again, value);
        true
    });
    assert!(tally.accepted > 100, "{tally:?}");
}

#[test]
fn requests_to_join() {
    let request = |secret: &str, address: &str| Request {
        secret: secret.to_owned(),
        token: format!("{:032x}", 1_u128 << 100),
        address: address.to_owned(),
    };
    let requests = [request("", ""), request("some w\u{f6}rds", "[::1]:7400")];
    let mut corpus = requests
        .map(|request| serde_json::to_vec(&request).expect("text"))
        .to_vec();
    // The address may be missing.
    corpus.push(br#"{"secret":"a \"b\" \u00e9","token":"ff"}"#.to_vec());
    fuzz_json::<Request>("requests to join", &corpus);
}

#[test]
fn replies_to_requests_to_join() {
    let membership = Membership {
        cluster: format!("{:032x}", 1_u128 << 100),
        node: 3,
        addresses: [(1, "10.0.0.1:7400".to_owned()), (2, String::new())].into(),
        system: vec![(1, 0), (2, u16::MAX)],
    };
    let replies = [
        Reply::Joined(membership),
        Reply::Refused("the secret is another one".to_owned()),
        Reply::Later("the cluster is being formed".to_owned()),
    ];
    let corpus = replies.map(|reply| serde_json::to_vec(&reply).expect("text"));
    fuzz_json::<Reply>("replies to requests to join", &corpus);
}
