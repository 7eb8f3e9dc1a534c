//! Continuation tokens, with which a client continues a scan. They are opaque to clients and
//! survive restarts of nodes.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | format, 4 |
//! | 1 | flags: 1, there is a snapshot; 2, there is an end; 4, in reverse; 8, keys only; 16, the snapshot ends |
//! | 8 | snapshot timestamp, little endian like all numbers; 0 if there is none |
//! | 2 | length of the start |
//! | n | start of the remaining interval, inclusive |
//! | 2 | length of the end of the snapshot; 0 if it does not end |
//! | n | end of the snapshot: beyond this key the scan takes another one |
//! | n | end of the remaining interval, exclusive |
//! | 4 | CRC-32C of all bytes before it |
//!
//! Format 3 is the same without the flag 16 and the end of the snapshot. It is still read, so that scans can
//! continue while the servers are upgraded: their snapshot ends where the range ends that goes on.
//!
//! The checksum is needed because a token that was truncated or changed might still decode, and
//! would end the scan early or leave rows out without an error. It protects no secret and needs no
//! key: a client may ask for everything that a token can say.

use rangedb_limits::last_key_before;

const FORMAT: u8 = 4;
/// The previous format, which has no [`HAS_UNTIL`].
const FORMAT_BEFORE: u8 = 3;
const HAS_SNAPSHOT: u8 = 1;
const HAS_END: u8 = 2;
const REVERSE: u8 = 4;
const KEYS_ONLY: u8 = 8;
const HAS_UNTIL: u8 = 16;

/// The remaining part of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Continuation {
    /// Start of the remaining interval, inclusive. It is empty at the beginning of the key space.
    pub start: Vec<u8>,
    /// End of the remaining interval, exclusive; `None` for the end of the key space.
    pub end: Option<Vec<u8>>,
    /// The snapshot's timestamp; `None` if the scan enters another range, which takes a new
    /// snapshot.
    pub at: Option<u64>,
    /// Where the keys of the snapshot end, exclusive; in reverse the first of them. Beyond it the scan takes
    /// a new snapshot. `None`: there are no keys beyond it.
    pub until: Option<Vec<u8>>,
    /// Whether the order is descending, from the last key before `end`.
    pub reverse: bool,
    /// Whether values are left out.
    pub keys_only: bool,
}

/// Why a token cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadContinuation {
    /// It comes from another version of RangeDB.
    #[error(
        "the continuation has format {0}, but this server reads formats {FORMAT_BEFORE} and \
         {FORMAT}: it comes from another version of rangedb; begin the scan again"
    )]
    OtherFormat(u8),
    /// It is not a token that a server has issued.
    #[error(
        "the continuation is not one that a server issued: it was truncated, changed or made up; \
         send all its bytes, or begin the scan again"
    )]
    Damaged,
}

impl Continuation {
    /// Encodes the token.
    pub fn encode(&self) -> Vec<u8> {
        let end = self.end.as_deref().unwrap_or(&[]);
        let until = self.until.as_deref().unwrap_or(&[]);
        let mut bytes = Vec::with_capacity(18 + self.start.len() + until.len() + end.len());
        let flags = [
            (self.at.is_some(), HAS_SNAPSHOT),
            (self.end.is_some(), HAS_END),
            (self.reverse, REVERSE),
            (self.keys_only, KEYS_ONLY),
            (self.until.is_some(), HAS_UNTIL),
        ];
        let flags = flags.iter().filter(|(is_set, _)| *is_set);
        bytes.push(FORMAT);
        bytes.push(flags.fold(0, |all, (_, flag)| all | flag));
        bytes.extend_from_slice(&self.at.unwrap_or(0).to_le_bytes());
        for key in [&self.start, until] {
            bytes.extend_from_slice(&(key.len() as u16).to_le_bytes());
            bytes.extend_from_slice(key);
        }
        bytes.extend_from_slice(end);
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes a token.
    ///
    /// # Errors
    /// See [`BadContinuation`].
    pub fn decode(bytes: &[u8]) -> Result<Continuation, BadContinuation> {
        match bytes.first() {
            None | Some(&(FORMAT | FORMAT_BEFORE)) => {}
            Some(&format) => return Err(BadContinuation::OtherFormat(format)),
        }
        let (token, checksum) = bytes
            .split_last_chunk::<4>()
            .ok_or(BadContinuation::Damaged)?;
        if crc32c::crc32c(token) != u32::from_le_bytes(*checksum) {
            return Err(BadContinuation::Damaged);
        }
        Continuation::parts(token).ok_or(BadContinuation::Damaged)
    }

    fn parts(token: &[u8]) -> Option<Continuation> {
        let (&[format, flags], rest) = token.split_first_chunk::<2>()?;
        let all = HAS_SNAPSHOT | HAS_END | REVERSE | KEYS_ONLY | HAS_UNTIL;
        let known = match format {
            FORMAT_BEFORE => all & !HAS_UNTIL,
            _ => all,
        };
        if flags & !known != 0 {
            return None;
        }
        let (at, rest) = rest.split_first_chunk::<8>()?;
        let (start, rest) = key(rest)?;
        let (until, end) = match format {
            FORMAT_BEFORE => (&[][..], rest),
            _ => key(rest)?,
        };
        let rest = Continuation {
            start: start.to_vec(),
            end: (flags & HAS_END != 0).then(|| end.to_vec()),
            at: (flags & HAS_SNAPSHOT != 0).then(|| u64::from_le_bytes(*at)),
            until: (flags & HAS_UNTIL != 0).then(|| until.to_vec()),
            reverse: flags & REVERSE != 0,
            keys_only: flags & KEYS_ONLY != 0,
        };
        Some(match format {
            FORMAT_BEFORE => rest.of_one_range(),
            _ => rest,
        })
    }

    /// The scan with a snapshot that ends with the range that goes on: no border is before what is left.
    fn of_one_range(self) -> Continuation {
        let until = match self.reverse {
            true => self.end.clone(),
            false => Some(self.start.clone()),
        };
        // A scan in reverse from the last key of all has given no row yet, and may begin anew.
        let at = self.at.filter(|_| until.is_some());
        Continuation {
            until: until.filter(|_| at.is_some()),
            at,
            ..self
        }
    }

    /// The first key that the scan may yield. The range that holds it continues the scan.
    pub fn first_key(&self) -> Vec<u8> {
        if self.reverse {
            last_key_before(self.end.as_deref())
        } else {
            self.start.clone()
        }
    }
}

/// A key that its length comes before, and what follows it.
fn key(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(u16::from_le_bytes(*len) as usize)
}

/// The exclusive end of the keys that begin with a prefix, which is the first key after them.
/// `None` means that they reach to the end of the key space.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    // Bytes `ff` at the end cannot be incremented; drop them.
    let len = prefix.iter().rposition(|byte| *byte != u8::MAX)? + 1;
    let mut end = prefix.split_at(len).0.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::KEY_LEN_MAX;

    fn samples() -> Vec<Continuation> {
        let parts = [
            (None, None),
            (Some(b"z".to_vec()), Some(7)),
            (Some(vec![]), None),
            (Some(vec![b'y'; 4096]), Some(u64::MAX)),
        ];
        let sample = |(end, at)| Continuation {
            start: b"next\0key".to_vec(),
            end,
            at,
            until: at.map(|at| vec![b'u'; (at % 4097) as usize]),
            reverse: false,
            keys_only: false,
        };
        let forward: Vec<Continuation> = parts.into_iter().map(sample).collect();
        let in_reverse = forward.iter().map(|sample| Continuation {
            reverse: true,
            keys_only: sample.at.is_some(),
            ..sample.clone()
        });
        let keys_only = Continuation {
            keys_only: true,
            ..Continuation::default()
        };
        let others: Vec<Continuation> = in_reverse.chain([keys_only]).collect();
        [forward, others].concat()
    }

    #[test]
    fn tokens_are_read_back() {
        for token in samples() {
            assert_eq!(Continuation::decode(&token.encode()), Ok(token));
        }
    }

    #[test]
    fn tokens_that_were_cut_lengthened_or_changed_are_refused() {
        for token in samples() {
            let good = token.encode();
            for len in 0..good.len() {
                let cut = Continuation::decode(&good[..len]);
                assert_eq!(cut, Err(BadContinuation::Damaged), "cut to {len}");
            }
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Continuation::decode(&bad).is_err(), "bit {bit}");
            }
            let longer = [good.as_slice(), b"x"].concat();
            assert_eq!(Continuation::decode(&longer), Err(BadContinuation::Damaged));
        }
    }

    /// A token with this format and these flags, with a good checksum.
    fn token(format: u8, flags: u8) -> Vec<u8> {
        let mut bytes = vec![format, flags];
        bytes.extend_from_slice(&7u64.to_le_bytes());
        bytes.extend_from_slice(b"\x01\0az");
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn the_snapshot_of_a_token_of_the_format_before_ends_with_the_range_that_goes_on() {
        let wanted = Continuation {
            start: b"a".to_vec(),
            end: Some(b"z".to_vec()),
            at: Some(7),
            until: Some(b"a".to_vec()),
            reverse: false,
            keys_only: false,
        };
        assert_eq!(Continuation::decode(&token(3, 3)), Ok(wanted.clone()));
        let in_reverse = Continuation {
            until: Some(b"z".to_vec()),
            reverse: true,
            ..wanted.clone()
        };
        assert_eq!(Continuation::decode(&token(3, 7)), Ok(in_reverse.clone()));
        let without_snapshot = Continuation {
            at: None,
            until: None,
            ..wanted
        };
        assert_eq!(Continuation::decode(&token(3, 2)), Ok(without_snapshot));
        // It has read nothing.
        let at_the_end = Continuation {
            end: None,
            at: None,
            until: None,
            ..in_reverse
        };
        assert_eq!(Continuation::decode(&token(3, 5)), Ok(at_the_end));
        for (format, flags) in [(3, 16), (3, 32), (4, 32)] {
            let unknown = Continuation::decode(&token(format, flags));
            assert_eq!(unknown, Err(BadContinuation::Damaged), "{format} {flags}");
        }
        let older = Continuation::decode(&token(2, 3));
        assert_eq!(older, Err(BadContinuation::OtherFormat(2)));
    }

    #[test]
    fn the_keys_with_a_prefix_end_before_the_next_prefix() {
        let end = |prefix: &[u8]| prefix_end(prefix);
        assert_eq!(end(b"a"), Some(b"b".to_vec()));
        assert_eq!(end(b"a\0"), Some(b"a\x01".to_vec()));
        assert_eq!(end(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(end(b"\xfe\xff"), Some(b"\xff".to_vec()));
        assert_eq!(end(b"\xff"), None);
        assert_eq!(end(b"\xff\xff"), None);
        assert_eq!(end(b""), None);
    }

    #[test]
    fn the_first_key_of_a_scan_in_reverse_is_the_greatest_before_its_end() {
        let longest = |start: &[u8]| {
            let mut key = start.to_vec();
            key.resize(KEY_LEN_MAX, u8::MAX);
            key
        };
        let first = |end: Option<&[u8]>| {
            let goes_on = Continuation {
                start: b"a".to_vec(),
                end: end.map(<[u8]>::to_vec),
                reverse: true,
                ..Continuation::default()
            };
            goes_on.first_key()
        };
        assert_eq!(first(None), longest(b""));
        assert_eq!(first(Some(b"b")), longest(b"a"));
        assert_eq!(first(Some(b"b\0")), b"b");
        assert_eq!(first(Some(b"\0")), b"");
        assert_eq!(first(Some(b"")), b"");
        let full = vec![b'k'; KEY_LEN_MAX];
        assert_eq!(first(Some(&full)), [&full[1..], b"j"].concat());
        assert_eq!(first(Some(&[&full[..], b"x"].concat())), full);
    }

    #[test]
    fn tokens_of_another_format_are_named() {
        let old = b"\x01\x03\0\0\0\0\0\0\0\0\x01\0ab";
        let refusal = Continuation::decode(old).expect_err("refused");
        assert_eq!(refusal, BadContinuation::OtherFormat(1));
        let text = refusal.to_string();
        assert!(
            text.contains("format 1") && text.contains("begin the scan again"),
            "{text}"
        );
    }
}
