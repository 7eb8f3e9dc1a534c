//! Row keys: where every row of a shard lies in its one tree.
//!
//! | row | key |
//! |---|---|
//! | a replica's state | `0`, replica id (8 bytes), `0` |
//! | a client's session marks in a range | `0`, replica id (8), `1`, client id (16) |
//! | a user's row | data id, `1`, user key |
//! | a client's session marks in a snapshot | data id, `3`, client id (16) |
//! | a session pair | data id, `2`, first key escaped, client id (16), sequence (8) |
//! | which log the tree belongs to | `ff` |
//!
//! Numbers are big endian, so that rows sort by them. A data id is its length in bytes (1 to 8) and
//! its bytes without leading zeros: three bytes before the user's key while ids are small, since
//! the memtable compares the first sixteen fast. The escaped first key has `00 ff` for each `00`
//! and ends with `00 01`, so that it sorts as the key does.

use crate::types::{ClientId, DataId, ReplicaId};

/// The row that says which log the tree belongs to.
pub const TREE_MARK: &[u8] = &[0xff];
const BY_REPLICA: u8 = 0;
const STATE: u8 = 0;
const CLIENT: u8 = 1;
const USER: u8 = 1;
const PAIR: u8 = 2;
const SNAPSHOT_CLIENT: u8 = 3;

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// A replica's state.
    State,
    /// A client's session marks in a range.
    Client,
    /// A row of a user.
    User,
    /// A session pair.
    Pair,
    /// A client's session marks, as a snapshot brought them.
    SnapshotClient,
    /// The row under [`TREE_MARK`].
    TreeMark,
}

/// How the rows of one kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRule {
    /// Whether snapshots carry such rows. What they do not carry, the receiver makes itself.
    pub travels: bool,
    /// To which part such rows go when a range is split.
    pub split: Split,
    /// Which versions go.
    pub collected: Collected,
}

/// To which part of a split range rows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// To the part that holds the user's key by which they lie. They stay where they are.
    ByKey,
    /// To each part, which makes its own.
    ByRange,
    /// To none: they do not belong to a range.
    Stays,
}

/// Which versions of a row may be collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Those that no read above the range's threshold needs.
    BelowThreshold,
    /// All but the newest.
    AllButNewest,
    /// None, as long as the data id is a replica's.
    WithData,
}

impl RowKind {
    /// Every kind.
    pub const ALL: [RowKind; 6] = [
        RowKind::State,
        RowKind::Client,
        RowKind::User,
        RowKind::Pair,
        RowKind::SnapshotClient,
        RowKind::TreeMark,
    ];

    /// The table of kinds.
    pub const fn rule(self) -> RowRule {
        let (travels, split, collected) = match self {
            RowKind::State => (false, Split::ByRange, Collected::AllButNewest),
            RowKind::Client => (false, Split::ByRange, Collected::AllButNewest),
            RowKind::User => (true, Split::ByKey, Collected::BelowThreshold),
            RowKind::Pair => (true, Split::ByKey, Collected::BelowThreshold),
            RowKind::SnapshotClient => (true, Split::ByRange, Collected::WithData),
            RowKind::TreeMark => (false, Split::Stays, Collected::AllButNewest),
        };
        RowRule {
            travels,
            split,
            collected,
        }
    }
}

/// To whom a row belongs, as its key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A replica.
    Replica(ReplicaId),
    /// The range that holds this key of a user.
    Key(DataId, std::borrow::Cow<'a, [u8]>),
    /// All rows with this data id.
    Data(DataId),
    /// The tree.
    Tree,
}

fn put_data_id(data_id: DataId, to: &mut Vec<u8>) {
    let bytes = data_id.0.to_be_bytes();
    let zeros = (data_id.0.leading_zeros() as usize / 8).min(7);
    let (_, short) = bytes.split_at(zeros);
    to.push(short.len() as u8);
    to.extend_from_slice(short);
}

/// The key of a user's row, into `to`.
pub fn user_key(data_id: DataId, key: &[u8], to: &mut Vec<u8>) {
    to.clear();
    put_data_id(data_id, to);
    to.push(USER);
    to.extend_from_slice(key);
}

/// The interval of the users' rows whose keys lie in an interval: its start, and its end, if it has
/// one.
pub fn users_of(
    data_id: DataId,
    (start, end): (&[u8], Option<&[u8]>),
    low: &mut Vec<u8>,
    high: &mut Vec<u8>,
) {
    user_key(data_id, start, low);
    match end {
        Some(end) => user_key(data_id, end, high),
        None => {
            high.clear();
            put_data_id(data_id, high);
            high.push(USER + 1);
        }
    }
}

/// The user's part of a user row's key.
pub fn user_part(key: &[u8]) -> &[u8] {
    split_data_id(key)
        .and_then(|(_, rest)| rest.split_first())
        .map_or(&[], |(_, key)| key)
}

/// The key of a replica's state.
pub fn state_key(replica: ReplicaId, to: &mut Vec<u8>) {
    to.clear();
    to.push(BY_REPLICA);
    to.extend_from_slice(&replica.0.to_be_bytes());
    to.push(STATE);
}

/// The interval of all rows that lie by the id of a replica, from this id on.
pub fn by_replica_from(replica: ReplicaId, low: &mut Vec<u8>, high: &mut Vec<u8>) {
    low.clear();
    low.push(BY_REPLICA);
    low.extend_from_slice(&replica.0.to_be_bytes());
    high.clear();
    high.push(BY_REPLICA + 1);
}

/// The key of a client's marks in a range.
pub fn client_key(replica: ReplicaId, client: ClientId, to: &mut Vec<u8>) {
    to.clear();
    to.push(BY_REPLICA);
    to.extend_from_slice(&replica.0.to_be_bytes());
    to.push(CLIENT);
    to.extend_from_slice(&client.0.to_be_bytes());
}

/// The interval of all clients' marks in a range.
pub fn clients_of(replica: ReplicaId, low: &mut Vec<u8>, high: &mut Vec<u8>) {
    for (to, last) in [(low, CLIENT), (high, CLIENT + 1)] {
        to.clear();
        to.push(BY_REPLICA);
        to.extend_from_slice(&replica.0.to_be_bytes());
        to.push(last);
    }
}

/// The client of a marks row's key.
pub fn client_part(key: &[u8]) -> Option<ClientId> {
    let (_, id) = key.split_last_chunk::<16>()?;
    Some(ClientId(u128::from_be_bytes(*id)))
}

/// The key of a session pair.
pub fn pair_key(
    data_id: DataId,
    first_key: &[u8],
    client: ClientId,
    sequence: u64,
    to: &mut Vec<u8>,
) {
    to.clear();
    put_data_id(data_id, to);
    to.push(PAIR);
    for byte in first_key {
        to.push(*byte);
        if *byte == 0 {
            to.push(0xff);
        }
    }
    to.extend_from_slice(&[0, 1]);
    to.extend_from_slice(&client.0.to_be_bytes());
    to.extend_from_slice(&sequence.to_be_bytes());
}

/// The interval of all session pairs of a data id.
pub fn pairs_of(data_id: DataId, low: &mut Vec<u8>, high: &mut Vec<u8>) {
    for (to, kind) in [(low, PAIR), (high, PAIR + 1)] {
        to.clear();
        put_data_id(data_id, to);
        to.push(kind);
    }
}

/// The key of a client's marks in a snapshot.
pub fn snapshot_client_key(data_id: DataId, client: ClientId, to: &mut Vec<u8>) {
    to.clear();
    put_data_id(data_id, to);
    to.push(SNAPSHOT_CLIENT);
    to.extend_from_slice(&client.0.to_be_bytes());
}

/// The interval of all clients' marks of a snapshot.
pub fn snapshot_clients_of(data_id: DataId, low: &mut Vec<u8>, high: &mut Vec<u8>) {
    for (to, kind) in [(low, SNAPSHOT_CLIENT), (high, SNAPSHOT_CLIENT + 1)] {
        to.clear();
        put_data_id(data_id, to);
        to.push(kind);
    }
}

/// What stands after the data id in a row's key.
pub fn after_data_id(key: &[u8]) -> Option<&[u8]> {
    split_data_id(key).map(|(_, rest)| rest)
}

/// The key of a row that has `rest` after its data id, into `to`.
pub fn with_data_id(data_id: DataId, rest: &[u8], to: &mut Vec<u8>) {
    to.clear();
    put_data_id(data_id, to);
    to.extend_from_slice(rest);
}

/// First key, client and sequence of a session pair's key.
pub fn pair_parts(key: &[u8]) -> Option<(Vec<u8>, ClientId, u64)> {
    let (_, rest) = split_data_id(key)?;
    let (_, rest) = rest.split_first()?;
    let (first_key, rest) = unescape(rest)?;
    let (client, rest) = rest.split_first_chunk::<16>()?;
    let sequence = u64::from_be_bytes(rest.try_into().ok()?);
    Some((first_key, ClientId(u128::from_be_bytes(*client)), sequence))
}

fn unescape(escaped: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut key = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    loop {
        let (byte, after) = rest.split_first()?;
        rest = after;
        if *byte == 0 {
            let (mark, after) = rest.split_first()?;
            rest = after;
            match mark {
                0xff => {}
                1 => return Some((key, rest)),
                _ => return None,
            }
        }
        key.push(*byte);
    }
}

fn split_data_id(key: &[u8]) -> Option<(DataId, &[u8])> {
    let (len, rest) = key.split_first()?;
    let (id, rest) = rest
        .split_at_checked(usize::from(*len))
        .filter(|_| (1..=8).contains(len))?;
    Some((
        DataId(id.iter().fold(0, |id, byte| id << 8 | u64::from(*byte))),
        rest,
    ))
}

/// Reads a row's key; `None` if it is none of ours.
pub fn parse(key: &[u8]) -> Option<(RowKind, Owner<'_>)> {
    if key == TREE_MARK {
        return Some((RowKind::TreeMark, Owner::Tree));
    }
    if let Some(rest) = key.strip_prefix(&[BY_REPLICA]) {
        let (replica, rest) = rest.split_first_chunk::<8>()?;
        let kind = match rest.first() {
            Some(&CLIENT) => RowKind::Client,
            _ => RowKind::State,
        };
        let replica = ReplicaId(u64::from_be_bytes(*replica));
        return Some((kind, Owner::Replica(replica)));
    }
    let (data_id, rest) = split_data_id(key)?;
    match rest.split_first()? {
        (&USER, user) => Some((RowKind::User, Owner::Key(data_id, user.into()))),
        (&PAIR, pair) => {
            let first_key = unescape(pair)?.0;
            Some((RowKind::Pair, Owner::Key(data_id, first_key.into())))
        }
        (&SNAPSHOT_CLIENT, _) => Some((RowKind::SnapshotClient, Owner::Data(data_id))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_keys_sort_as_their_keys_and_after_their_data_id() {
        let ids = [1, 2, 255, 256, 65_535, 65_536, u64::MAX];
        let keys: [&[u8]; 5] = [b"\0", b"\0\0", b"a", b"a\0", b"\xff"];
        let mut rows = Vec::new();
        for id in ids {
            for key in keys {
                let mut row = Vec::new();
                user_key(DataId(id), key, &mut row);
                let owner = Owner::Key(DataId(id), key.into());
                assert_eq!(parse(&row), Some((RowKind::User, owner)));
                assert_eq!(user_part(&row), key);
                rows.push(row);
            }
        }
        assert!(rows.is_sorted());
    }

    #[test]
    fn pairs_sort_by_their_first_key_and_are_read_back() {
        let keys: [&[u8]; 6] = [b"\0", b"\0\x01", b"\0\xff", b"a", b"a\0", b"b"];
        let mut rows = Vec::new();
        for key in keys {
            let mut row = Vec::new();
            pair_key(DataId(300), key, ClientId(9), 77, &mut row);
            assert_eq!(pair_parts(&row), Some((key.to_vec(), ClientId(9), 77)));
            let owner = Owner::Key(DataId(300), key.into());
            assert_eq!(parse(&row), Some((RowKind::Pair, owner)));
            rows.push(row);
        }
        assert!(rows.is_sorted());
    }

    #[test]
    fn rows_by_replica_are_read_back() {
        let mut row = Vec::new();
        state_key(ReplicaId(5), &mut row);
        let owner = || Owner::Replica(ReplicaId(5));
        assert_eq!(parse(&row), Some((RowKind::State, owner())));
        client_key(ReplicaId(5), ClientId(6), &mut row);
        assert_eq!(parse(&row), Some((RowKind::Client, owner())));
        assert_eq!(client_part(&row), Some(ClientId(6)));
        let (mut low, mut high) = (Vec::new(), Vec::new());
        clients_of(ReplicaId(5), &mut low, &mut high);
        assert!(low < row && row < high);
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"\x09123456789"), None);
    }

    #[test]
    fn the_rules_of_each_kind_fit_where_its_rows_lie() {
        let key = |put: &dyn Fn(&mut Vec<u8>)| {
            let mut key = Vec::new();
            put(&mut key);
            key
        };
        let rows = [
            key(&|to| state_key(ReplicaId(5), to)),
            key(&|to| client_key(ReplicaId(5), ClientId(6), to)),
            key(&|to| user_key(DataId(7), b"k", to)),
            key(&|to| pair_key(DataId(7), b"k", ClientId(6), 1, to)),
            key(&|to| snapshot_client_key(DataId(7), ClientId(6), to)),
            TREE_MARK.to_vec(),
        ];
        for (row, kind) in rows.iter().zip(RowKind::ALL) {
            let (found, owner) = parse(row).expect("a row of ours");
            assert_eq!(found, kind);
            let rule = kind.rule();
            // Only what lies by its key need not be moved when ranges share a data id.
            let lies_by_key = matches!(owner, Owner::Key(..));
            assert_eq!(rule.split == Split::ByKey, lies_by_key, "{kind:?}");
            assert_eq!(rule.collected == Collected::BelowThreshold, lies_by_key);
            // A row that travels lies under a data id, which its receiver replaces.
            assert_eq!(rule.travels, after_data_id(row).is_some(), "{kind:?}");
        }
    }

    #[test]
    fn the_rows_of_a_range_are_those_within_its_interval() {
        let (mut low, mut high, mut row) = (Vec::new(), Vec::new(), Vec::new());
        for (keys, inside) in [
            (("", None), [true, true, true]),
            (("b", None), [false, true, true]),
            (("", Some("b")), [true, false, false]),
            (("b", Some("c")), [false, true, false]),
        ] {
            let (start, end) = keys;
            let interval = (start.as_bytes(), end.map(str::as_bytes));
            users_of(DataId(7), interval, &mut low, &mut high);
            for (key, inside) in ["a", "b", "c"].iter().zip(inside) {
                user_key(DataId(7), key.as_bytes(), &mut row);
                assert_eq!(low <= row && row < high, inside, "{key} of {keys:?}");
            }
            user_key(DataId(8), b"b", &mut row);
            assert!(row >= high);
        }
    }
}
