//! Row keys: the keys under which the rows of a shard are stored in its LSM tree.
//!
//! | row | key |
//! |---|---|
//! | a replica's state | `0`, replica id (8 bytes), `0` |
//! | a client's session marks in a range | `0`, replica id (8), `1`, client id (16) |
//! | a user's row | data id, `1`, user key |
//! | a client's session marks in a snapshot | data id, `3`, client id (16) |
//! | a request of a session | data id, `2`, first key escaped, client id (16), sequence (8) |
//! | which log the tree belongs to | `ff` |
//!
//! Numbers are big endian, so that rows sort by them. A data id is encoded as its length in bytes
//! (1 to 8), followed by its bytes without leading zeros. While ids are small, only three bytes
//! come before the user's key, which matters because the memtable compares the first sixteen bytes
//! of a key fast. In the escaped first key each `00` becomes `00 ff`, and `00 01` follows at the
//! end, so that escaped keys sort as the keys do.

use xxhash_rust::xxh3::xxh3_64;

use crate::types::{ClientId, DataId, ReplicaId};

/// The row that says which log the tree belongs to.
pub const TREE_MARK: &[u8] = &[0xff];
const BY_REPLICA: u8 = 0;
const STATE: u8 = 0;
const CLIENT: u8 = 1;
const USER: u8 = 1;
const REQUEST: u8 = 2;
const SNAPSHOT_CLIENT: u8 = 3;

/// How snapshots and garbage collection treat the rows of one kind. What a split does with a row follows
/// from its [`Owner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRule {
    /// Whether snapshots carry these rows, and from where.
    pub in_snapshot: InSnapshot,
    /// Which versions garbage collection may drop.
    pub collected: Collected,
}

/// Whether snapshots carry the rows of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InSnapshot {
    /// Yes. The export reads those of the range's interval from the tree.
    FromTree,
    /// Yes. The export makes them of the session table in memory, which is newer than the tree.
    FromSessions,
    /// No: the receiver makes such rows itself, and refuses a snapshot that has one.
    No,
}

/// Which versions of a row garbage collection may drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Those that no read above the range's threshold needs.
    BelowThreshold,
    /// All but the newest.
    AllButNewest,
    /// None, while a live replica has the row's data id.
    WithData,
}

/// Declares the kinds of rows, each with its rule: a kind without one does not compile.
macro_rules! row_kinds {
    ($($(#[$doc:meta])* $kind:ident: $in_snapshot:ident, $collected:ident;)*) => {
        /// The kind of a row.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum RowKind {
            $($(#[$doc])* $kind,)*
        }

        impl RowKind {
            /// Every kind.
            pub const ALL: &[RowKind] = &[$(RowKind::$kind,)*];

            /// The rule for this kind.
            pub const fn rule(self) -> RowRule {
                match self {
                    $(RowKind::$kind => RowRule {
                        in_snapshot: InSnapshot::$in_snapshot,
                        collected: Collected::$collected,
                    },)*
                }
            }
        }
    };
}

row_kinds! {
    /// A replica's state.
    State: No, AllButNewest;
    /// A client's session marks in a range.
    Client: No, AllButNewest;
    /// A row of a user.
    User: FromTree, BelowThreshold;
    /// A request of a session.
    Request: FromSessions, BelowThreshold;
    /// A client's session marks, as they came with a snapshot.
    SnapshotClient: FromSessions, WithData;
    /// The row under [`TREE_MARK`].
    TreeMark: No, AllButNewest;
}

impl RowKind {
    /// Writes the bounds of the rows of this kind that belong to an interval of user keys: the inclusive
    /// lower bound to `low`, the exclusive upper bound to `high`. Session marks belong to every interval.
    /// `false`: rows of this kind have no data id in their keys.
    pub fn bounds(
        self,
        data_id: DataId,
        keys: (&[u8], Option<&[u8]>),
        low: &mut Vec<u8>,
        high: &mut Vec<u8>,
    ) -> bool {
        match self {
            RowKind::User => users_of(data_id, keys, low, high),
            RowKind::Request => requests_of(data_id, keys, low, high),
            RowKind::SnapshotClient => snapshot_clients_of(data_id, low, high),
            RowKind::State | RowKind::Client | RowKind::TreeMark => return false,
        }
        true
    }
}

/// The hash of a row's key, for the filters of memtables and tables. It is the hash of `lsm-tree`,
/// by which the filters in the table files are made.
#[inline]
pub fn row_hash(row_key: &[u8]) -> u64 {
    xxh3_64(row_key)
}

/// The owner of a row, as the row's key names it. It says what becomes of the row at a split, where the
/// parts go on with one data id: a row with a user key stays in place and belongs to the part that has the
/// key; each part writes rows of its own in place of those that belong to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A replica.
    Replica(ReplicaId),
    /// The replica whose data id this is and whose range holds this user key.
    Key(DataId, std::borrow::Cow<'a, [u8]>),
    /// The replica whose data id this is.
    Data(DataId),
    /// The tree itself.
    Tree,
}

fn put_data_id(data_id: DataId, to: &mut Vec<u8>) {
    let bytes = data_id.0.to_be_bytes();
    let zeros = (data_id.0.leading_zeros() as usize / 8).min(7);
    let (_, short) = bytes.split_at(zeros);
    to.push(short.len() as u8);
    to.extend_from_slice(short);
}

/// Writes the key of a user's row to `to`.
pub fn user_key(data_id: DataId, key: &[u8], to: &mut Vec<u8>) {
    to.clear();
    put_data_id(data_id, to);
    to.push(USER);
    to.extend_from_slice(key);
}

/// Writes the bounds of the user rows whose user keys lie in an interval: the inclusive lower bound
/// to `low`, the exclusive upper bound to `high`. An interval without an end reaches to the last
/// user row of the data id.
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

/// The user key within the key of a user's row.
pub fn user_part(key: &[u8]) -> &[u8] {
    split_data_id(key)
        .and_then(|(_, rest)| rest.split_first())
        .map_or(&[], |(_, key)| key)
}

/// Writes the key of a replica's state to `to`.
pub fn state_key(replica: ReplicaId, to: &mut Vec<u8>) {
    to.clear();
    to.push(BY_REPLICA);
    to.extend_from_slice(&replica.0.to_be_bytes());
    to.push(STATE);
}

/// The interval of all rows that are stored by replica id, from this id on.
pub fn by_replica_from(replica: ReplicaId, low: &mut Vec<u8>, high: &mut Vec<u8>) {
    low.clear();
    low.push(BY_REPLICA);
    low.extend_from_slice(&replica.0.to_be_bytes());
    high.clear();
    high.push(BY_REPLICA + 1);
}

/// Writes the key of a client's session marks in a range to `to`.
pub fn client_key(replica: ReplicaId, client: ClientId, to: &mut Vec<u8>) {
    to.clear();
    to.push(BY_REPLICA);
    to.extend_from_slice(&replica.0.to_be_bytes());
    to.push(CLIENT);
    to.extend_from_slice(&client.0.to_be_bytes());
}

/// The interval of all session marks in a range.
pub fn clients_of(replica: ReplicaId, low: &mut Vec<u8>, high: &mut Vec<u8>) {
    for (to, last) in [(low, CLIENT), (high, CLIENT + 1)] {
        to.clear();
        to.push(BY_REPLICA);
        to.extend_from_slice(&replica.0.to_be_bytes());
        to.push(last);
    }
}

/// The client id in the key of a row of session marks.
pub fn client_part(key: &[u8]) -> Option<ClientId> {
    let (_, id) = key.split_last_chunk::<16>()?;
    Some(ClientId(u128::from_be_bytes(*id)))
}

/// Writes the key of a request of a session to `to`.
pub fn request_key(
    data_id: DataId,
    first_key: &[u8],
    client: ClientId,
    sequence: u64,
    to: &mut Vec<u8>,
) {
    to.clear();
    put_data_id(data_id, to);
    to.push(REQUEST);
    put_escaped(first_key, to);
    to.extend_from_slice(&[0, 1]);
    to.extend_from_slice(&client.0.to_be_bytes());
    to.extend_from_slice(&sequence.to_be_bytes());
}

/// The interval of the requests of sessions of a data id whose first key lies between these; without an
/// end, of all from the start on.
pub fn requests_of(
    data_id: DataId,
    (start, end): (&[u8], Option<&[u8]>),
    low: &mut Vec<u8>,
    high: &mut Vec<u8>,
) {
    low.clear();
    put_data_id(data_id, low);
    low.push(REQUEST);
    put_escaped(start, low);
    high.clear();
    put_data_id(data_id, high);
    match end {
        Some(end) => {
            high.push(REQUEST);
            put_escaped(end, high);
        }
        None => high.push(REQUEST + 1),
    }
}

fn put_escaped(key: &[u8], to: &mut Vec<u8>) {
    for byte in key {
        to.push(*byte);
        if *byte == 0 {
            to.push(0xff);
        }
    }
}

/// Writes the key of a client's session marks in a snapshot to `to`.
pub fn snapshot_client_key(data_id: DataId, client: ClientId, to: &mut Vec<u8>) {
    to.clear();
    put_data_id(data_id, to);
    to.push(SNAPSHOT_CLIENT);
    to.extend_from_slice(&client.0.to_be_bytes());
}

/// The interval of all session marks in a snapshot.
pub fn snapshot_clients_of(data_id: DataId, low: &mut Vec<u8>, high: &mut Vec<u8>) {
    for (to, kind) in [(low, SNAPSHOT_CLIENT), (high, SNAPSHOT_CLIENT + 1)] {
        to.clear();
        put_data_id(data_id, to);
        to.push(kind);
    }
}

/// The part of a row's key after the data id; `None` if the key has no data id.
pub fn after_data_id(key: &[u8]) -> Option<&[u8]> {
    split_data_id(key).map(|(_, rest)| rest)
}

/// Writes to `to` the key that has `rest` after its data id.
pub fn with_data_id(data_id: DataId, rest: &[u8], to: &mut Vec<u8>) {
    to.clear();
    put_data_id(data_id, to);
    to.extend_from_slice(rest);
}

/// First key, client and sequence in the key of a request of a session.
pub fn request_parts(key: &[u8]) -> Option<(Vec<u8>, ClientId, u64)> {
    let (_, rest) = split_data_id(key)?;
    let (_, rest) = rest.split_first()?;
    let (first_key, rest) = unescape(rest)?;
    let (client, rest) = rest.split_first_chunk::<16>()?;
    let sequence = u64::from_be_bytes(rest.try_into().ok()?);
    Some((first_key, ClientId(u128::from_be_bytes(*client)), sequence))
}

/// Reads an escaped key, and returns it with the bytes after it.
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

/// Parses a row's key. `None` means that it has none of the forms in the module's table.
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
        (&REQUEST, request) => {
            let first_key = unescape(request)?.0;
            Some((RowKind::Request, Owner::Key(data_id, first_key.into())))
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
    fn requests_sort_by_their_first_key_and_are_read_back() {
        let keys: [&[u8]; 6] = [b"\0", b"\0\x01", b"\0\xff", b"a", b"a\0", b"b"];
        let mut rows = Vec::new();
        for key in keys {
            let mut row = Vec::new();
            request_key(DataId(300), key, ClientId(9), 77, &mut row);
            assert_eq!(request_parts(&row), Some((key.to_vec(), ClientId(9), 77)));
            let owner = Owner::Key(DataId(300), key.into());
            assert_eq!(parse(&row), Some((RowKind::Request, owner)));
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
            key(&|to| request_key(DataId(7), b"k", ClientId(6), 1, to)),
            key(&|to| snapshot_client_key(DataId(7), ClientId(6), to)),
            TREE_MARK.to_vec(),
        ];
        assert_eq!(rows.len(), RowKind::ALL.len());
        for (row, kind) in rows.iter().zip(RowKind::ALL) {
            let (found, owner) = parse(row).expect("a row of ours");
            assert_eq!(found, *kind);
            let rule = kind.rule();
            // Ranges share a data id after a split. Only rows that are stored by a user key are read
            // within its bounds then.
            let lies_by_key = matches!(owner, Owner::Key(..));
            assert_eq!(rule.collected == Collected::BelowThreshold, lies_by_key);
            // A row that snapshots carry has a data id in its key, which the receiver replaces.
            let travels = rule.in_snapshot != InSnapshot::No;
            assert_eq!(travels, after_data_id(row).is_some(), "{kind:?}");
            // The export and the reader of saved sessions find it by the bounds of its kind.
            let (mut low, mut high) = (Vec::new(), Vec::new());
            assert_eq!(
                kind.bounds(DataId(7), (b"k", Some(b"l")), &mut low, &mut high),
                travels
            );
            assert_eq!(low <= *row && *row < high, travels, "{kind:?}");
            for (data_id, keys) in [(8, (&b""[..], None)), (7, (b"a", Some(&b"k"[..])))] {
                kind.bounds(DataId(data_id), keys, &mut low, &mut high);
                let is_marks = data_id == 7 && *kind == RowKind::SnapshotClient;
                assert_eq!(low <= *row && *row < high, is_marks, "{kind:?}");
            }
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
