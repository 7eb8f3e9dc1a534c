//! The limits of keys, values, writes and scans, and the one check of each.
//!
//! The client checks a request before it sends it, a server when it has decoded the frame, and the
//! engine when a shard serves the request, which another node may have forwarded. All three call
//! the checks below, so that they agree and say the same. It is a crate of its own because the
//! engine does not depend on the wire protocol, nor the client on the engine. The limits of frames
//! and connections are the protocol's, and those of queues and logs the engine's. It does no I/O.
//!
//! Lengths are in bytes.

/// Longest key. The shortest key has one byte.
pub const KEY_LEN_MAX: usize = 4 << 10;
/// Longest bound of a scan: the first key after the longest key has one byte more.
pub const BOUND_LEN_MAX: usize = KEY_LEN_MAX + 1;
/// Longest value.
pub const VALUE_LEN_MAX: usize = 1 << 20;
/// All keys and values of one write together.
pub const BATCH_LEN_MAX: usize = 4 << 20;
/// Conditions and mutations of one write together.
pub const BATCH_OPS_MAX: usize = 4096;
/// Mutations of one write that add to a number. Each leaves a number in the session table, where a
/// retry finds it.
pub const BATCH_ADDITIONS_MAX: usize = 64;
/// Keys of one multi-get.
pub const MULTI_GET_KEYS_MAX: usize = 4096;
/// All keys of one multi-get together.
pub const MULTI_GET_KEYS_LEN_MAX: usize = 4 << 20;
/// All values of one reply to a multi-get together.
pub const MULTI_GET_VALUES_LEN_MAX: usize = 4 << 20;
/// Different errors in one reply to a multi-get.
pub const MULTI_GET_ERRORS_MAX: usize = 256;
/// Rows of one scan reply.
pub const SCAN_ROWS_MAX: usize = 10_000;
/// All keys and values of one scan reply together.
pub const SCAN_BYTES_MAX: usize = 4 << 20;

const _: () = {
    assert!(KEY_LEN_MAX + VALUE_LEN_MAX <= BATCH_LEN_MAX);
    assert!(BATCH_ADDITIONS_MAX <= BATCH_OPS_MAX);
};

/// The limit that a request breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenLimit {
    /// A key has no byte.
    #[error("the key is empty; a key has 1 to {KEY_LEN_MAX} bytes")]
    EmptyKey,
    /// A key has this many bytes.
    #[error("the key has {0} bytes; a key has 1 to {KEY_LEN_MAX}")]
    LongKey(usize),
    /// A bound of a scan has this many bytes.
    #[error("a bound of the scan has {0} bytes; a bound has at most {BOUND_LEN_MAX}")]
    LongBound(usize),
    /// A value has this many bytes.
    #[error("the value has {0} bytes; a value has at most {VALUE_LEN_MAX}")]
    LongValue(usize),
    /// A write has no mutation.
    #[error("the write has no mutation; a write has at least one")]
    NoMutation,
    /// A write has this many conditions and mutations.
    #[error("the write has {0} conditions and mutations; a write has at most {BATCH_OPS_MAX}")]
    ManyOperations(usize),
    /// A write has this many additions.
    #[error("the write has {0} additions; a write has at most {BATCH_ADDITIONS_MAX}")]
    ManyAdditions(usize),
    /// A write has this many bytes.
    #[error("the write has {0} bytes of keys and values; a write has at most {BATCH_LEN_MAX}")]
    LongWrite(usize),
    /// A multi-get has this many keys.
    #[error("the multi-get has {0} keys; a multi-get has 1 to {MULTI_GET_KEYS_MAX}")]
    ManyKeys(usize),
    /// The keys of a multi-get have this many bytes.
    #[error("the keys have {0} bytes together; a multi-get has at most {MULTI_GET_KEYS_LEN_MAX}")]
    LongKeys(usize),
}

/// Checks a key.
///
/// # Errors
/// See [`BrokenLimit`].
pub fn check_key(key: &[u8]) -> Result<(), BrokenLimit> {
    match key.len() {
        0 => Err(BrokenLimit::EmptyKey),
        len if len > KEY_LEN_MAX => Err(BrokenLimit::LongKey(len)),
        _ => Ok(()),
    }
}

/// Checks the number of keys of a multi-get, and their bytes; not each key.
///
/// # Errors
/// See [`BrokenLimit`].
pub fn check_multi_get(keys: &[&[u8]]) -> Result<(), BrokenLimit> {
    let count = keys.len();
    if !(1..=MULTI_GET_KEYS_MAX).contains(&count) {
        return Err(BrokenLimit::ManyKeys(count));
    }
    let len = keys.iter().map(|key| key.len()).sum();
    if len > MULTI_GET_KEYS_LEN_MAX {
        return Err(BrokenLimit::LongKeys(len));
    }
    Ok(())
}

/// Checks the bounds of a scan.
///
/// # Errors
/// See [`BrokenLimit`].
pub fn check_bounds(start: Option<&[u8]>, end: Option<&[u8]>) -> Result<(), BrokenLimit> {
    let bounds = [start, end].into_iter().flatten();
    match bounds.map(<[u8]>::len).max() {
        Some(len) if len > BOUND_LEN_MAX => Err(BrokenLimit::LongBound(len)),
        _ => Ok(()),
    }
}

/// What an operation of a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// It must hold for the write to be made.
    Condition,
    /// It sets or removes its key.
    Mutation,
    /// It is a mutation that adds to a number.
    Addition,
}

/// A condition or a mutation of a write, reduced to what limits bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation<'a> {
    /// What it is.
    pub kind: OperationKind,
    /// The user's key.
    pub key: &'a [u8],
    /// The value that it expects or sets; empty if it has none.
    pub value: &'a [u8],
}

/// Checks a write, given all its operations.
///
/// # Errors
/// See [`BrokenLimit`].
pub fn check_write<'a>(
    operations: impl IntoIterator<Item = Operation<'a>>,
) -> Result<(), BrokenLimit> {
    let (mut count, mut mutations, mut additions, mut len) = (0, 0, 0, 0);
    for Operation { kind, key, value } in operations {
        check_key(key)?;
        if value.len() > VALUE_LEN_MAX {
            return Err(BrokenLimit::LongValue(value.len()));
        }
        count += 1;
        mutations += usize::from(kind != OperationKind::Condition);
        additions += usize::from(kind == OperationKind::Addition);
        len += key.len() + value.len();
    }
    if mutations == 0 {
        return Err(BrokenLimit::NoMutation);
    }
    if count > BATCH_OPS_MAX {
        return Err(BrokenLimit::ManyOperations(count));
    }
    if additions > BATCH_ADDITIONS_MAX {
        return Err(BrokenLimit::ManyAdditions(additions));
    }
    if len > BATCH_LEN_MAX {
        return Err(BrokenLimit::LongWrite(len));
    }
    Ok(())
}

/// The greatest key before `end`, or the greatest of all keys if there is no end. It is the empty
/// key if no key is before `end`. A scan in reverse begins in the range that holds this key.
pub fn last_key_before(end: Option<&[u8]>) -> Vec<u8> {
    let Some(end) = end else {
        return vec![u8::MAX; KEY_LEN_MAX];
    };
    if end.len() > KEY_LEN_MAX {
        return end.split_at(KEY_LEN_MAX).0.to_vec();
    }
    // Lower the last byte by one and pad with `ff`. If it is 0, the key without it is the greatest.
    let mut key = end.to_vec();
    if let Some(lower) = key.pop().and_then(|last| last.checked_sub(1)) {
        key.push(lower);
        key.resize(KEY_LEN_MAX, u8::MAX);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_bounds_at_their_limits_pass_and_longer_ones_do_not() {
        let long = vec![1; KEY_LEN_MAX + 2];
        let of = |len: usize| long.split_at(len).0;
        assert_eq!(check_key(b""), Err(BrokenLimit::EmptyKey));
        assert_eq!(check_key(of(1)), Ok(()));
        assert_eq!(check_key(of(KEY_LEN_MAX)), Ok(()));
        let refused = Err(BrokenLimit::LongKey(KEY_LEN_MAX + 1));
        assert_eq!(check_key(of(KEY_LEN_MAX + 1)), refused);
        assert_eq!(check_bounds(None, None), Ok(()));
        let longest = Some(of(BOUND_LEN_MAX));
        assert_eq!(check_bounds(longest, longest), Ok(()));
        let refused = Err(BrokenLimit::LongBound(BOUND_LEN_MAX + 1));
        assert_eq!(check_bounds(Some(&long), None), refused);
        assert_eq!(check_bounds(Some(b""), Some(&long)), refused);
    }

    #[test]
    fn a_multi_get_at_its_limits_passes_and_a_larger_one_does_not() {
        let longest = [b'k'; KEY_LEN_MAX];
        let fit = MULTI_GET_KEYS_LEN_MAX / longest.len();
        assert_eq!(
            check_multi_get(&vec![&b"k"[..]; MULTI_GET_KEYS_MAX]),
            Ok(())
        );
        assert_eq!(check_multi_get(&vec![&longest[..]; fit]), Ok(()));
        assert_eq!(check_multi_get(&[]), Err(BrokenLimit::ManyKeys(0)));
        let more = vec![&b"k"[..]; MULTI_GET_KEYS_MAX + 1];
        let refused = Err(BrokenLimit::ManyKeys(MULTI_GET_KEYS_MAX + 1));
        assert_eq!(check_multi_get(&more), refused);
        let refused = Err(BrokenLimit::LongKeys(MULTI_GET_KEYS_LEN_MAX + KEY_LEN_MAX));
        assert_eq!(check_multi_get(&vec![&longest[..]; fit + 1]), refused);
    }

    fn operations(kind: OperationKind, count: usize, value: &[u8]) -> Vec<Operation<'_>> {
        let operation = Operation {
            kind,
            key: b"k",
            value,
        };
        vec![operation; count]
    }

    #[test]
    fn a_write_at_each_limit_passes_and_a_larger_one_does_not() {
        use OperationKind::{Addition, Condition, Mutation};
        let check = |parts: &[(OperationKind, usize, &[u8])]| {
            let parts = parts.iter();
            check_write(parts.flat_map(|(kind, count, value)| operations(*kind, *count, value)))
        };
        assert_eq!(check(&[]), Err(BrokenLimit::NoMutation));
        assert_eq!(check(&[(Condition, 1, b"")]), Err(BrokenLimit::NoMutation));
        assert_eq!(check(&[(Addition, 1, b"")]), Ok(()));
        let most = [
            (Condition, 1, &b""[..]),
            (Mutation, BATCH_OPS_MAX - 1, b"v"),
        ];
        assert_eq!(check(&most), Ok(()));
        let more = [(Condition, 1, &b""[..]), (Mutation, BATCH_OPS_MAX, b"v")];
        let refused = Err(BrokenLimit::ManyOperations(BATCH_OPS_MAX + 1));
        assert_eq!(check(&more), refused);
        assert_eq!(check(&[(Addition, BATCH_ADDITIONS_MAX, b"")]), Ok(()));
        let refused = Err(BrokenLimit::ManyAdditions(BATCH_ADDITIONS_MAX + 1));
        assert_eq!(check(&[(Addition, BATCH_ADDITIONS_MAX + 1, b"")]), refused);
        let value = vec![1; VALUE_LEN_MAX + 1];
        let longest = value.split_at(VALUE_LEN_MAX).0;
        let refused = Err(BrokenLimit::LongValue(VALUE_LEN_MAX + 1));
        assert_eq!(check(&[(Mutation, 1, &value)]), refused);
        assert_eq!(check(&[(Condition, 1, &value)]), refused);
        // Keys and values of conditions count as well.
        let half = [(Condition, 1, longest), (Mutation, 2, longest)];
        assert_eq!(check(&half), Ok(()));
        let whole = [(Condition, 1, longest), (Mutation, 3, longest)];
        let refused = Err(BrokenLimit::LongWrite(BATCH_LEN_MAX + 4));
        assert_eq!(check(&whole), refused);
    }

    #[test]
    fn the_last_key_before_an_end_is_the_greatest_within_the_limits() {
        let longest = |start: &[u8]| {
            let mut key = start.to_vec();
            key.resize(KEY_LEN_MAX, u8::MAX);
            key
        };
        let before = |end: &[u8]| last_key_before(Some(end));
        assert_eq!(last_key_before(None), longest(b""));
        assert_eq!(before(b"b"), longest(b"a"));
        assert_eq!(before(b"\x01"), longest(b"\x00"));
        assert_eq!(before(b"b\x00"), b"b");
        assert_eq!(before(b"b\x00\x01"), longest(b"b\x00\x00"));
        assert_eq!(before(b"\x00"), b"");
        assert_eq!(before(b""), b"");
        let full = vec![b'k'; KEY_LEN_MAX];
        assert_eq!(before(&full), [&full[1..], b"j"].concat());
        // Keys are no longer than this, so that nothing lies between.
        assert_eq!(before(&[&full[..], b"\x00"].concat()), full);
        assert_eq!(before(&[&full[..], b"x"].concat()), full);
    }
}
