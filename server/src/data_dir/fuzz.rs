//! `node.json` under bytes that were changed at random.

use std::path::Path;

use rangedb_fuzz::fuzz;

use super::identity::{FORMAT, Found, Identity, decode};

/// What this version and the two before it write.
fn corpus() -> Vec<Vec<u8>> {
    let mut identity = Identity {
        format: FORMAT,
        cluster: format!("{:032x}", 1_u128 << 100),
        node: 3,
        shards: 2,
        split_at: vec!["6d".to_owned()],
        addresses: [(3, "127.0.0.1:7400".to_owned())].into(),
        system: vec![(3, 0)],
        starts: 4,
        lives: [(1, format!("{:032x}", 7_u128 << 64))].into(),
        ..Identity::default()
    };
    identity.name_logs(Some(4));
    let newest = serde_json::to_vec(&identity).expect("text");
    let before =
        br#"{"format":2,"cluster":"ff","node":1,"shards":2,"split_at":["6d"],"system":[[1,0]]}"#;
    let first = br#"{"format":1,"cluster":"ff","node":1,"shards":1,"split_at":[],"nodes":[]}"#;
    vec![newest, before.to_vec(), first.to_vec()]
}

#[test]
fn what_a_folder_says_of_itself() {
    let path = Path::new("data");
    fuzz("node.json", &corpus(), |bytes, meter| {
        let Ok(Found { identity, .. }) = meter.decode(|| decode(path, bytes)) else {
            return false;
        };
        let again = serde_json::to_vec(&identity).expect("text");
        let again = decode(path, &again).expect("it can be read again");
        assert!(again.identity == identity && !again.is_older);
        true
    });
}
