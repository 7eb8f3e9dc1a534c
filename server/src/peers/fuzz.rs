//! The greeting of another node, under bytes that were changed at random.

use rangedb_engine::types::{Location, NodeId, ShardId};
use rangedb_fuzz::fuzz;

use super::Hello;
use super::lives::Welcome;

#[test]
fn greetings() {
    let hello = |address: &str, secret: &str| Hello {
        cluster: 1 << 100,
        to: Location {
            node: NodeId(3),
            shard: ShardId(1),
        },
        from: NodeId(4),
        welcome: Welcome { life: 7, yours: 0 },
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
