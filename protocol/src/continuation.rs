//! The token by which a scan goes on. Opaque to clients; survives restarts of nodes.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | format, 2 |
//! | 1 | flags: 1, there is a snapshot; 2, there is an end |
//! | 8 | snapshot timestamp, little endian as all numbers; 0 without one |
//! | 2 | length of the next key |
//! | n | next key |
//! | n | end key |
//! | 4 | CRC-32C of all that stands before |
//!
//! The checksum is there because a token that was cut or changed may still look like one, and
//! would silently end the scan early or leave rows out. It keeps nothing secret and needs no key: a
//! token says no more than a client may ask for itself.

const FORMAT: u8 = 2;
const HAS_SNAPSHOT: u8 = 1;
const HAS_END: u8 = 2;

/// Where a scan goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// First key not yet looked at.
    pub next: Vec<u8>,
    /// End of the scan, exclusive; `None`: the end of the key space.
    pub end: Option<Vec<u8>>,
    /// The snapshot; `None` at the beginning of a range, which has its own.
    pub at: Option<u64>,
}

/// Why a token cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadContinuation {
    /// Written by another version.
    #[error(
        "the continuation has format {0}, this server reads format {FORMAT}: \
         it comes from another version of rangedb; begin the scan again"
    )]
    OtherFormat(u8),
    /// Not as it was given.
    #[error(
        "the continuation is not as a server gave it: it was cut, changed, or made up; \
         send all its bytes, or begin the scan again"
    )]
    Damaged,
}

impl Continuation {
    /// The token.
    pub fn encode(&self) -> Vec<u8> {
        let end = self.end.as_deref().unwrap_or(&[]);
        let mut bytes = Vec::with_capacity(16 + self.next.len() + end.len());
        let snapshot = if self.at.is_some() { HAS_SNAPSHOT } else { 0 };
        bytes.push(FORMAT);
        bytes.push(snapshot | if self.end.is_some() { HAS_END } else { 0 });
        bytes.extend_from_slice(&self.at.unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&(self.next.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&self.next);
        bytes.extend_from_slice(end);
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a token.
    ///
    /// # Errors
    /// It is none that a server of this version has given.
    pub fn decode(bytes: &[u8]) -> Result<Continuation, BadContinuation> {
        match bytes.first() {
            Some(&format) if format != FORMAT => return Err(BadContinuation::OtherFormat(format)),
            _ => {}
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
        let (&[_, flags], rest) = token.split_first_chunk::<2>()?;
        if flags & !(HAS_SNAPSHOT | HAS_END) != 0 {
            return None;
        }
        let (at, rest) = rest.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (next, end) = rest.split_at_checked(u16::from_le_bytes(*len) as usize)?;
        Some(Continuation {
            next: next.to_vec(),
            end: (flags & HAS_END != 0).then(|| end.to_vec()),
            at: (flags & HAS_SNAPSHOT != 0).then(|| u64::from_le_bytes(*at)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Continuation> {
        let parts = [
            (None, None),
            (Some(b"z".to_vec()), Some(7)),
            (Some(vec![]), None),
            (Some(vec![b'y'; 4096]), Some(u64::MAX)),
        ];
        let sample = |(end, at)| Continuation {
            next: b"next\0key".to_vec(),
            end,
            at,
        };
        parts.into_iter().map(sample).collect()
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
