//! The token by which a scan goes on. Opaque to clients; survives restarts of nodes.
//!
//! One byte of format, 1; one byte of flags (1: has a snapshot, 2: has an end); 8 bytes of
//! snapshot timestamp; 2 bytes of the next key's length and the key; the end key. Little endian.

const FORMAT: u8 = 1;
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

impl Continuation {
    /// The token.
    pub fn encode(&self) -> Vec<u8> {
        let end = self.end.as_deref().unwrap_or(&[]);
        let mut bytes = Vec::with_capacity(12 + self.next.len() + end.len());
        let snapshot = if self.at.is_some() { HAS_SNAPSHOT } else { 0 };
        bytes.push(FORMAT);
        bytes.push(snapshot | if self.end.is_some() { HAS_END } else { 0 });
        bytes.extend_from_slice(&self.at.unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&(self.next.len() as u16).to_le_bytes());
        bytes.extend_from_slice(&self.next);
        bytes.extend_from_slice(end);
        bytes
    }

    /// Reads a token; `None` if it is none of this version.
    pub fn decode(bytes: &[u8]) -> Option<Continuation> {
        let (&[format, flags], rest) = bytes.split_first_chunk::<2>()?;
        if format != FORMAT || flags & !(HAS_SNAPSHOT | HAS_END) != 0 {
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

    #[test]
    fn tokens_are_read_back() {
        for (end, at) in [
            (None, None),
            (Some(b"z".to_vec()), Some(7)),
            (Some(vec![]), None),
        ] {
            let token = Continuation {
                next: b"next\0key".to_vec(),
                end,
                at,
            };
            assert_eq!(Continuation::decode(&token.encode()), Some(token));
        }
        assert_eq!(Continuation::decode(b""), None);
        assert_eq!(Continuation::decode(&[2; 20]), None);
        assert_eq!(
            Continuation::decode(b"\x01\x01\0\0\0\0\0\0\0\0\xff\xffk"),
            None
        );
    }
}
