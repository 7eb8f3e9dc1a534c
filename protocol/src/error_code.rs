//! Error codes, and the fate of a write that failed.

/// Whether a write that failed was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fate {
    /// The write was not applied and will not be.
    NotApplied = 0,
    /// The write may have been applied, or may still be.
    Unknown = 1,
    /// The write was applied.
    Applied = 2,
}

impl Fate {
    /// Reads the number in an error table. An unknown number counts as [`Fate::Unknown`].
    pub fn from_u8(number: u8) -> Fate {
        match number {
            0 => Fate::NotApplied,
            2 => Fate::Applied,
            _ => Fate::Unknown,
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal,)*) => {
        /// What went wrong. A number never changes its meaning; new numbers are only added.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[$doc])* $name = $number,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name),*];

            /// Reads the number in an error table; `None` if it is unknown.
            pub fn from_u16(number: u16) -> Option<ErrorCode> {
                match number {
                    $($number => Some(ErrorCode::$name),)*
                    _ => None,
                }
            }

            /// The code's name in logs, metrics and JSON.
            pub fn name(self) -> &'static str {
                match self {
                    $(ErrorCode::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    /// The frame or its table cannot be read. The connection is closed.
    MalformedFrame = 1 "malformed_frame",
    /// The frame is longer than the limit. The connection is closed.
    FrameTooLarge = 2 "frame_too_large",
    /// The server does not know this kind of request. The connection stays open.
    UnknownKind = 3 "unknown_kind",
    /// The request breaks a limit or a rule that does not depend on data.
    Invalid = 4 "invalid",
    /// More requests are in flight on the connection than the limit.
    TooManyInFlight = 5 "too_many_in_flight",
    /// The range, node, replica or setting that an admin command names does not exist.
    NotFound = 6 "not_found",
    /// Another shard has the key's range, or the range's epoch has changed; the route says where.
    Moved = 10 "moved",
    /// The replica does not lead the range; the route names the leader, if it is known.
    NotLeader = 11 "not_leader",
    /// The keys lie in several ranges.
    SeveralRanges = 12 "several_ranges",
    /// The range is being recovered.
    Recovering = 13 "recovering",
    /// A queue is full or the disk lags behind; try again after the time given.
    Overloaded = 20 "overloaded",
    /// The deadline passed before the request was proposed.
    DeadlineExceeded = 21 "deadline_exceeded",
    /// The request was proposed, but its result is not known.
    Unknown = 22 "unknown",
    /// The write may have been applied long ago: the range no longer remembers its session.
    SessionExpired = 23 "session_expired",
    /// An admin command cannot be carried out now because of a temporary state; try again after the
    /// time given.
    Busy = 24 "busy",
    /// An admin command was refused because of the cluster's present state, which somebody must change
    /// first; the message says how.
    Conflict = 25 "conflict",
    /// The versions of the scan's snapshot were garbage-collected.
    SnapshotTooOld = 30 "snapshot_too_old",
    /// The value is not a signed 64-bit decimal number.
    NotANumber = 31 "not_a_number",
    /// The sum does not fit into a signed 64-bit number.
    NumberOverflow = 32 "number_overflow",
    /// The node is shutting down.
    ShuttingDown = 40 "shutting_down",
    /// The disk has no room for writes.
    DiskFull = 41 "disk_full",
    /// The request failed because of a fault in the server.
    Internal = 50 "internal",
    /// No server could be reached. Clients report this code; servers never send it.
    Unreachable = 60 "unreachable",
    /// No majority of the range's replicas has been reachable for more than a second.
    NoQuorum = 61 "no_quorum",
    /// A timestamp of the request is further ahead of the node's clock than clocks may differ.
    /// Nothing was done. If the reply gives a time to try again, the same timestamp is accepted
    /// then; otherwise use the `now` of the reply instead.
    ClockOutOfBounds = 62 "clock_out_of_bounds",
    /// The range's replicas were found to hold different rows, and no majority of them holds the
    /// same: the range serves nothing until a person has decided.
    Diverged = 63 "diverged",
    /// A block of a table that the answer needs cannot be read from the disk, or is damaged. Nothing was
    /// done. Where the range has other replicas, one of them leads soon and answers.
    Unreadable = 64 "unreadable",
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_back() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_u16(*code as u16), Some(*code));
        }
        assert_eq!(ErrorCode::from_u16(9999), None);
        for fate in [Fate::NotApplied, Fate::Unknown, Fate::Applied] {
            assert_eq!(Fate::from_u8(fate as u8), fate);
        }
    }
}
