//! The first bytes that each side sends on a connection. `PROTOCOL.md` has their layout.

use std::fmt;
use std::ops::RangeInclusive;

/// The newest protocol version of this crate.
pub const VERSION: u16 = 2;
/// The oldest protocol version that this crate still speaks.
pub const VERSION_MIN: u16 = 2;
/// Length of the client's handshake.
pub const HANDSHAKE_LEN: usize = 16;
/// Length of the server's answer.
pub const HANDSHAKE_REPLY_LEN: usize = 40;
/// Stands for any shard in a handshake.
pub const ANY_SHARD: u16 = u16::MAX;

const MAGIC: [u8; 4] = *b"RDB\n";
const REPLY_MAGIC: [u8; 4] = *b"RDB\r";
const FLAG_SMART: u8 = 1;
const FLAG_TLS: u8 = 2;

/// The kind of program that opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A client of the database.
    Client,
    /// Another node.
    Peer,
}

/// The first bytes that the side which opens a connection sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Oldest version that the sender speaks.
    pub version_min: u16,
    /// Newest version that the sender speaks.
    pub version_max: u16,
    /// The sender's role.
    pub role: Role,
    /// For a key that is elsewhere, the sender wants a route instead of having its request
    /// forwarded.
    pub smart: bool,
    /// The sender wants TLS after the handshake and its answer.
    pub tls: bool,
    /// The shard that the sender wants, or [`ANY_SHARD`].
    pub shard: u16,
}

/// Why a handshake cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHandshake {
    /// The bytes are not a handshake of this protocol.
    #[error("these bytes are not a handshake of the RangeDB protocol")]
    NotOurs,
    /// The handshake names an unknown role.
    #[error("role {0} is unknown")]
    UnknownRole(u8),
}

impl Handshake {
    /// A smart client's handshake.
    pub fn client(shard: u16) -> Handshake {
        Handshake {
            version_min: VERSION_MIN,
            version_max: VERSION,
            role: Role::Client,
            smart: true,
            tls: false,
            shard,
        }
    }

    /// Encodes the handshake.
    pub fn encode(&self) -> [u8; HANDSHAKE_LEN] {
        let mut bytes = [0; HANDSHAKE_LEN];
        let flags = if self.smart { FLAG_SMART } else { 0 } | if self.tls { FLAG_TLS } else { 0 };
        let role = match self.role {
            Role::Client => 0,
            Role::Peer => 1,
        };
        put(&mut bytes, 0, &MAGIC);
        put(&mut bytes, 4, &self.version_min.to_le_bytes());
        put(&mut bytes, 6, &self.version_max.to_le_bytes());
        put(&mut bytes, 8, &[role, flags]);
        put(&mut bytes, 10, &self.shard.to_le_bytes());
        bytes
    }

    /// Decodes a handshake.
    ///
    /// # Errors
    /// See [`BadHandshake`].
    pub fn decode(bytes: &[u8; HANDSHAKE_LEN]) -> Result<Handshake, BadHandshake> {
        if !bytes.starts_with(&MAGIC) {
            return Err(BadHandshake::NotOurs);
        }
        let [role, flags] = field(bytes, 8);
        let role = match role {
            0 => Role::Client,
            1 => Role::Peer,
            other => return Err(BadHandshake::UnknownRole(other)),
        };
        Ok(Handshake {
            version_min: u16::from_le_bytes(field(bytes, 4)),
            version_max: u16::from_le_bytes(field(bytes, 6)),
            role,
            smart: flags & FLAG_SMART != 0,
            tls: flags & FLAG_TLS != 0,
            shard: u16::from_le_bytes(field(bytes, 10)),
        })
    }

    /// The newest version that both sides speak, if the other side speaks `those`. `None` means
    /// that there is no such version.
    pub fn version(&self, those: RangeInclusive<u16>) -> Option<u16> {
        let version = self.version_max.min(*those.end());
        (version >= self.version_min.max(*those.start())).then_some(version)
    }
}

/// Whether a connection is accepted, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Verdict {
    /// The connection is accepted.
    Accepted = 0,
    /// There is no version that both sides speak.
    NoCommonVersion = 1,
    /// The node has no such shard.
    UnknownShard = 2,
    /// The node has no certificate, or does not offer TLS to this role.
    NoTls = 3,
    /// The role is unknown, or this node does not serve it: without a secret it takes no peers.
    RoleRefused = 4,
    /// There are too many connections.
    TooManyConnections = 5,
    /// The node is shutting down.
    ShuttingDown = 6,
    /// The node takes only clients that want TLS.
    TlsRequired = 7,
}

impl Verdict {
    fn from_u16(number: u16) -> Option<Verdict> {
        [
            Verdict::Accepted,
            Verdict::NoCommonVersion,
            Verdict::UnknownShard,
            Verdict::NoTls,
            Verdict::RoleRefused,
            Verdict::TooManyConnections,
            Verdict::ShuttingDown,
            Verdict::TlsRequired,
        ]
        .into_iter()
        .find(|verdict| *verdict as u16 == number)
    }
}

/// A sentence for people on the side that opened the connection.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Accepted => "the node accepts the connection",
            Verdict::NoCommonVersion => {
                "the node speaks other versions of the protocol: run the same release on both sides"
            }
            Verdict::UnknownShard => {
                "the node does not have this shard: it was started again with fewer shards"
            }
            Verdict::NoTls => "the node does not speak TLS on this connection",
            Verdict::RoleRefused => "the node does not take connections of this kind",
            Verdict::TooManyConnections => {
                "the node has as many connections as it may have: close some, or try again later"
            }
            Verdict::ShuttingDown => {
                "the node takes no requests now: it waits for its cluster, or it is shutting down; its \
                 page /readyz says which"
            }
            Verdict::TlsRequired => "the node takes only encrypted connections",
        })
    }
}

/// The server's answer to a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeReply {
    /// Whether the connection is accepted. If not, the server closes it after the answer.
    pub verdict: Verdict,
    /// The version spoken from here on.
    pub version: u16,
    /// The shard that serves the connection.
    pub shard: u16,
    /// Number of shards of the node.
    pub shards: u16,
    /// The node's id.
    pub node: u64,
    /// The cluster's id.
    pub cluster: u128,
}

impl HandshakeReply {
    /// Encodes the answer.
    pub fn encode(&self) -> [u8; HANDSHAKE_REPLY_LEN] {
        let mut bytes = [0; HANDSHAKE_REPLY_LEN];
        put(&mut bytes, 0, &REPLY_MAGIC);
        put(&mut bytes, 4, &(self.verdict as u16).to_le_bytes());
        put(&mut bytes, 6, &self.version.to_le_bytes());
        put(&mut bytes, 8, &self.shard.to_le_bytes());
        put(&mut bytes, 10, &self.shards.to_le_bytes());
        put(&mut bytes, 16, &self.node.to_le_bytes());
        put(&mut bytes, 24, &self.cluster.to_le_bytes());
        bytes
    }

    /// Decodes an answer. `None` means that it is not one of this protocol, or has an unknown
    /// verdict.
    pub fn decode(bytes: &[u8; HANDSHAKE_REPLY_LEN]) -> Option<HandshakeReply> {
        if !bytes.starts_with(&REPLY_MAGIC) {
            return None;
        }
        Some(HandshakeReply {
            verdict: Verdict::from_u16(u16::from_le_bytes(field(bytes, 4)))?,
            version: u16::from_le_bytes(field(bytes, 6)),
            shard: u16::from_le_bytes(field(bytes, 8)),
            shards: u16::from_le_bytes(field(bytes, 10)),
            node: u64::from_le_bytes(field(bytes, 16)),
            cluster: u128::from_le_bytes(field(bytes, 24)),
        })
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes
        .iter_mut()
        .skip(at)
        .zip(value)
        .for_each(|(to, from)| *to = *from);
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..at + N)
        .and_then(|field| field.try_into().ok())
        .unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_fixed() {
        let handshake = Handshake {
            role: Role::Client,
            smart: true,
            ..Handshake::client(3)
        };
        assert_eq!(
            &handshake.encode(),
            b"RDB\n\x02\0\x02\0\0\x01\x03\0\0\0\0\0"
        );
        assert_eq!(Handshake::decode(&handshake.encode()), Ok(handshake));
        let answer = HandshakeReply {
            verdict: Verdict::UnknownShard,
            version: 1,
            shard: 2,
            shards: 4,
            node: 5,
            cluster: 6,
        };
        let bytes = answer.encode();
        assert_eq!(bytes.get(..12), Some(&b"RDB\r\x02\0\x01\0\x02\0\x04\0"[..]));
        assert_eq!(HandshakeReply::decode(&bytes), Some(answer));
    }

    #[test]
    fn tls_is_a_flag_and_a_verdict() {
        let wanted = Handshake {
            tls: true,
            ..Handshake::client(ANY_SHARD)
        };
        assert_eq!(wanted.encode()[8..12], [0, 3, 0xff, 0xff]);
        assert_eq!(Handshake::decode(&wanted.encode()), Ok(wanted));
        let mut bytes = [0; HANDSHAKE_REPLY_LEN];
        put(&mut bytes, 0, &REPLY_MAGIC);
        for (number, verdict) in [
            (3, Some(Verdict::NoTls)),
            (7, Some(Verdict::TlsRequired)),
            (8, None),
        ] {
            put(&mut bytes, 4, &[number, 0]);
            let decoded = HandshakeReply::decode(&bytes);
            assert_eq!(decoded.map(|answer| answer.verdict), verdict);
        }
    }

    #[test]
    fn every_verdict_is_a_sentence_for_people() {
        let mut verdicts = 0;
        for verdict in (0..=u16::MAX).map_while(Verdict::from_u16) {
            let sentence = verdict.to_string();
            assert!(sentence.starts_with("the node "), "{sentence}");
            assert!(!sentence.contains(&format!("{verdict:?}")), "{sentence}");
            verdicts += 1;
        }
        assert_eq!(verdicts, Verdict::TlsRequired as usize + 1);
    }

    #[test]
    fn versions_are_negotiated() {
        let speaks = |version_min, version_max| {
            Handshake {
                version_min,
                version_max,
                ..Handshake::client(0)
            }
            .version(VERSION_MIN..=VERSION)
        };
        assert_eq!(speaks(2, 2), Some(2));
        assert_eq!(speaks(1, 9), Some(VERSION));
        assert_eq!(speaks(1, 1), None);
        assert_eq!(speaks(3, 9), None);
        assert_eq!(speaks(0, 0), None);
    }

    #[test]
    fn strangers_are_told_apart() {
        assert_eq!(
            Handshake::decode(b"GET / HTTP/1.1\r\n"),
            Err(BadHandshake::NotOurs)
        );
        let mut bytes = Handshake::client(0).encode();
        bytes[8] = 7;
        assert_eq!(Handshake::decode(&bytes), Err(BadHandshake::UnknownRole(7)));
    }
}
