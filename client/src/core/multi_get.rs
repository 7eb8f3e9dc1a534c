//! Multi-gets: which keys are requested together, and which keys are requested again.
//!
//! The keys are split into parts by the shard that leads their ranges. Each part is a [call](super::call)
//! of its own, which goes to the shard of its first key, and all parts are made at the same time. A reply
//! has a result for each key. Keys that were not read, or that another shard leads by now, are split into
//! new parts: so a stale route is corrected. Every reply that counts answers at least one more key. A reply
//! that answers no key is a [refusal] of the whole call, and the rules of a call say whether and when it is
//! tried again.

use rangedb_protocol::limits::{MULTI_GET_KEYS_LEN_MAX, MULTI_GET_KEYS_MAX};
use rangedb_protocol::{ErrorReply, KeyRead};

use super::ClientCore;
use super::directory::{Destination, Endpoint, names_no_leader};
use crate::error::{Error, ErrorCode, Fate, passes};

/// Keys that are asked for together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where the route says that they are; `None`: there is no route.
    endpoint: Option<Endpoint>,
    /// The places of the keys in the caller's list.
    pub keys: Vec<usize>,
    /// Bytes of the keys.
    len: usize,
}

/// Where a reply came from.
#[derive(Clone, Debug)]
pub struct Source {
    /// The id of the node that has answered.
    pub node: u64,
    /// Where the request was sent.
    pub endpoint: Option<Endpoint>,
}

/// What becomes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyOutcome<'a> {
    /// It was read: its value and version, if it has one.
    Read(Option<(&'a [u8], u64)>),
    /// It is asked for again.
    Again,
    /// It cannot be read.
    Failed(Error),
}

fn may_pass(error: &ErrorReply) -> bool {
    error.code.is_ok_and(passes)
}

/// The error by which a reply without an end for any key counts as a refusal of the whole request.
/// `None`: at least one key was read, or cannot be read at all.
pub fn refusal<'a, 'e>(reads: impl Iterator<Item = KeyRead<'a, 'e>>) -> Option<ErrorReply> {
    let mut refusal = None;
    for read in reads {
        match read {
            KeyRead::Failed(error) if may_pass(error) => {
                refusal = refusal.or(Some(error));
            }
            KeyRead::NotRead => {}
            KeyRead::Absent | KeyRead::Value { .. } | KeyRead::Failed(_) => return None,
        }
    }
    Some(refusal.cloned().unwrap_or_else(|| ErrorReply {
        code: Ok(ErrorCode::Internal),
        fate: Fate::NotApplied,
        retry_after_ms: 0,
        message: "the server's reply has nothing for any key".to_owned(),
        routes: Vec::new(),
    }))
}

impl ClientCore {
    /// Splits those of the keys whose places are `wanted`.
    pub fn parts(&self, keys: &[&[u8]], wanted: impl IntoIterator<Item = usize>) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for at in wanted {
            let key = keys.get(at).copied().unwrap_or_default();
            let endpoint = self.directory.find(key).map(|found| found.endpoint);
            let has_room = |part: &&mut Part| {
                part.endpoint == endpoint
                    && part.keys.len() < MULTI_GET_KEYS_MAX
                    && part.len + key.len() <= MULTI_GET_KEYS_LEN_MAX
            };
            match parts.iter_mut().rev().find(has_room) {
                Some(part) => {
                    part.keys.push(at);
                    part.len += key.len();
                }
                None => parts.push(Part {
                    endpoint,
                    keys: vec![at],
                    len: key.len(),
                }),
            }
        }
        parts
    }

    /// Takes the result of a key in the reply of a node.
    pub fn take_key<'a>(
        &self,
        key: &[u8],
        read: KeyRead<'a, '_>,
        source: &Source,
    ) -> KeyOutcome<'a> {
        match read {
            KeyRead::Absent => KeyOutcome::Read(None),
            KeyRead::Value { value, version } => KeyOutcome::Read(Some((value, version))),
            KeyRead::NotRead => KeyOutcome::Again,
            KeyRead::Failed(error) if may_pass(error) => {
                self.follow(key, error, source);
                KeyOutcome::Again
            }
            KeyRead::Failed(error) => {
                let mut error = Error::from(error.clone());
                // Nothing that reads is ever applied.
                error.fate = Fate::NotApplied;
                KeyOutcome::Failed(error)
            }
        }
    }

    /// Learns the routes in the error, and forgets the route of a key that is elsewhere by now. A key
    /// whose range has no leader yet keeps its route: the shard there learns first which replica leads.
    fn follow(&self, key: &[u8], error: &ErrorReply, source: &Source) {
        let (Ok(code), Some(endpoint)) = (error.code, &source.endpoint) else {
            return;
        };
        let is_unled = match code {
            ErrorCode::NotLeader => names_no_leader(&error.routes, source.node, endpoint),
            ErrorCode::Moved | ErrorCode::NoQuorum => false,
            _ => return,
        };
        if is_unled {
            return;
        }
        // A route that others have corrected meanwhile leads elsewhere, and stays.
        let tried = Destination {
            target: self.directory.find(key).and_then(|found| found.target),
            endpoint: endpoint.clone(),
        };
        let from = (source.node, &endpoint.address);
        self.directory.correct(key, &tried, &error.routes, from);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use rangedb_protocol::Route;

    use super::*;

    fn route(range: u64, version: u32, (start, end): (&str, &str), leader: u64) -> Route {
        Route {
            range,
            version,
            conf: 1,
            start: start.into(),
            end: Some(end.into()),
            leader: Some((leader, 0)),
            address: format!("node{leader}:1"),
        }
    }

    /// A client that has heard of three ranges, of which node 1 leads the first and the last.
    fn core() -> ClientCore {
        let from: Arc<str> = Arc::from("node1:1");
        let core = ClientCore::new(vec![from.clone()], 7, Instant::now());
        let routes = vec![
            route(1, 1, ("a", "g"), 1),
            route(2, 1, ("g", "n"), 2),
            route(3, 1, ("n", "t"), 1),
        ];
        core.take_directory(routes, 1, (1, &from), Instant::now());
        core
    }

    fn places(parts: &[Part]) -> Vec<&[usize]> {
        parts.iter().map(|part| &part.keys[..]).collect()
    }

    fn source(node: u64) -> Source {
        let endpoint = Endpoint {
            address: Arc::from(format!("node{node}:1")),
            shard: Some(0),
        };
        Source {
            node,
            endpoint: Some(endpoint),
        }
    }

    fn error(code: ErrorCode, routes: Vec<Route>) -> ErrorReply {
        ErrorReply {
            code: Ok(code),
            fate: Fate::NotApplied,
            retry_after_ms: 0,
            message: "why".to_owned(),
            routes,
        }
    }

    #[test]
    fn keys_of_one_place_are_asked_for_together_within_the_limits() {
        let core = core();
        let keys: [&[u8]; 6] = [b"b", b"h", b"o", b"z", b"b", b"zz"];
        let all = core.parts(&keys, 0..keys.len());
        assert_eq!(places(&all), [&[0, 2, 4][..], &[1], &[3, 5]]);
        assert_eq!(places(&core.parts(&keys, [5, 1])), [&[5][..], &[1]]);
        assert!(core.parts(&keys, []).is_empty());
        let many = vec![&b"b"[..]; MULTI_GET_KEYS_MAX + 1];
        let sizes = |parts: &[Part]| parts.iter().map(|p| p.keys.len()).collect::<Vec<_>>();
        let split = core.parts(&many, 0..many.len());
        assert_eq!(sizes(&split), [MULTI_GET_KEYS_MAX, 1]);
        let longest = [b'b'; 4096];
        let long = vec![&longest[..]; 1025];
        let split = core.parts(&long, 0..long.len());
        assert_eq!(sizes(&split), [1024, 1]);
    }

    #[test]
    fn a_key_that_is_elsewhere_is_asked_for_there() {
        let core = core();
        let keys: [&[u8]; 2] = [b"b", b"o"];
        let moved = error(ErrorCode::Moved, vec![route(3, 2, ("n", "t"), 2)]);
        let taken = core.take_key(keys[1], KeyRead::Failed(&moved), &source(1));
        assert_eq!(taken, KeyOutcome::Again);
        assert_eq!(places(&core.parts(&keys, 0..2)), [[0], [1]]);
        // Without a route the key's one is forgotten, if it still leads to the node that has answered.
        let lost = error(ErrorCode::NotLeader, Vec::new());
        core.take_key(keys[1], KeyRead::Failed(&lost), &source(1));
        assert!(core.directory.find(keys[1]).is_some());
        core.take_key(keys[1], KeyRead::Failed(&lost), &source(2));
        assert!(core.directory.find(keys[1]).is_none());
        assert!(core.directory.find(keys[0]).is_some());
    }

    #[test]
    fn after_a_split_the_keys_of_both_halves_are_asked_for_where_they_are() {
        let core = core();
        let keys: [&[u8]; 3] = [b"o", b"p", b"s"];
        assert_eq!(places(&core.parts(&keys, 0..3)), [[0, 1, 2]]);
        let halves = vec![route(9, 2, ("p", "t"), 3), route(3, 2, ("n", "p"), 1)];
        let moved = error(ErrorCode::Moved, halves);
        let taken = core.take_key(keys[2], KeyRead::Failed(&moved), &source(1));
        assert_eq!(taken, KeyOutcome::Again);
        assert_eq!(places(&core.parts(&keys, 0..3)), [&[0][..], &[1, 2]]);
        // The new half has no leader yet: its shard is asked again.
        let unled = Route {
            leader: None,
            ..route(9, 2, ("p", "t"), 3)
        };
        let unled = error(ErrorCode::NotLeader, vec![unled]);
        let before = core.directory.find(keys[1]);
        core.take_key(keys[1], KeyRead::Failed(&unled), &source(3));
        assert_eq!(core.directory.find(keys[1]), before);
    }

    #[test]
    fn a_key_has_a_value_or_none_or_an_error_or_another_try() {
        let core = core();
        let take = |read| core.take_key(b"b", read, &source(1));
        let value = KeyRead::Value {
            value: b"v",
            version: 7,
        };
        assert_eq!(take(value), KeyOutcome::Read(Some((b"v", 7))));
        assert_eq!(take(KeyRead::Absent), KeyOutcome::Read(None));
        assert_eq!(take(KeyRead::NotRead), KeyOutcome::Again);
        let later = error(ErrorCode::Overloaded, Vec::new());
        assert_eq!(take(KeyRead::Failed(&later)), KeyOutcome::Again);
        let never = error(ErrorCode::Diverged, Vec::new());
        let KeyOutcome::Failed(why) = take(KeyRead::Failed(&never)) else {
            panic!("it never passes");
        };
        assert_eq!(why.code, ErrorCode::Diverged);
    }

    #[test]
    fn a_reply_without_an_end_for_any_key_is_a_refusal() {
        let later = error(ErrorCode::NotLeader, Vec::new());
        let never = error(ErrorCode::Invalid, Vec::new());
        let code =
            |reads: &[KeyRead<'_, '_>]| refusal(reads.iter().copied()).map(|error| error.code);
        let (again, failed) = (KeyRead::Failed(&later), KeyRead::Failed(&never));
        assert_eq!(
            code(&[KeyRead::NotRead, again]),
            Some(Ok(ErrorCode::NotLeader))
        );
        assert_eq!(code(&[KeyRead::NotRead]), Some(Ok(ErrorCode::Internal)));
        assert_eq!(code(&[again, failed]), None);
        assert_eq!(code(&[again, KeyRead::Absent]), None);
    }
}
