//! Every bound of the engine, related by assertions at compile time. Sizes in bytes.
//!
//! Those that a client can meet are the wire protocol's and the client's, too: they lie in a crate of
//! their own, with the checks of them.

use std::time::Duration;

pub use rangedb_limits::{
    BATCH_ADDITIONS_MAX, BATCH_LEN_MAX, BATCH_OPS_MAX, KEY_LEN_MAX, MULTI_GET_ERRORS_MAX,
    MULTI_GET_KEYS_LEN_MAX, MULTI_GET_KEYS_MAX, MULTI_GET_VALUES_LEN_MAX, SCAN_BYTES_MAX,
    SCAN_ROWS_MAX, VALUE_LEN_MAX,
};

/// Payload of one log entry, user bytes and framing.
pub const ENTRY_LEN_MAX: usize = 4 << 20;
/// Commands of one log entry.
pub const ENTRY_COMMANDS_MAX: usize = 4096;
/// Commands, and reads of conditional ones, that a leader gathers into one entry. An entry is applied in
/// one turn of the shard's thread, in which no other range is served.
pub const ENTRY_COMMANDS_GATHERED: usize = 512;
/// Bytes that a leader gathers into one entry, unless a single write is longer: entries of other ranges
/// wait while they are written to the log.
pub const ENTRY_LEN_GATHERED: usize = 1 << 20;
/// Entries of one range that its leader keeps in flight.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 8;
/// Bytes of writes that wait or are in flight, of all ranges of a shard: see
/// [`crate::tree::budget`].
pub const SHARD_WRITES_LEN_MAX: usize = 128 << 20;
/// Commands that wait for a place in an entry, of one range.
pub const PROPOSALS_WAITING_MAX: usize = 16 << 10;
/// Bytes that wait for a place in an entry, of one range.
pub const PROPOSAL_BYTES_WAITING_MAX: usize = 32 << 20;

/// Keys at which one order splits a range.
pub const SPLIT_KEYS_MAX: usize = 1024;
/// Ranges that one question for the hottest shows.
pub const HOT_RANGES_MAX: u32 = 100;

/// How far a client's timestamp may lie above a node's wall clock, in milliseconds: the clocks of the
/// nodes that the client has asked may differ by this much.
pub const MAX_CLOCK_OFFSET_MS: u64 = 500;
/// How long a leader may serve reads above its last entry before it must write again, in
/// milliseconds. Also the read lease of a group of several voters.
pub const LEASE_MS: u64 = 500;
/// How far two clocks may drift apart during one lease, with room to spare. A leader's lease ends
/// earlier by this, and a restarted replica withholds its vote longer by it.
pub const DRIFT_MARGIN: Duration = Duration::from_millis(LEASE_MS / 7);

/// How long the tasks that can stop (scans, multi-gets and snapshots) work, all together, before others
/// run.
pub const TIME_SLICE: Duration = Duration::from_micros(500);

/// Routes that one refusal names: those of the ranges that hold the keys which the caller has asked for
/// in one range.
pub const MOVED_ROUTES_MAX: usize = 16;
/// How long a request of a caller that follows no routes waits for its range to have a leader: the last
/// leader's lease, and an election.
pub const LEADER_WAIT_MAX: Duration = Duration::from_secs(1);
/// Bytes of the requests of a shard that wait so; of those for one range alone, half.
pub const LEADER_WAIT_LEN_MAX: usize = 32 << 20;

/// Blocks of tables that a shard's reads wait for, queued, or being read from the disk; of the reads of one
/// range alone, half.
pub const COLD_BLOCKS_MAX: usize = 16 << 10;

/// Versions that one turn of a scan looks at before it lets others run, about: those of one key are not
/// left half read.
pub const SCAN_STEPS_PER_TURN: usize = 1024;
/// Versions that a scan looks at for one page, about, whether they are sent or not. Tombstones and old
/// versions may be far more than rows: the page ends, and the scan goes on with the next one.
pub const SCAN_STEPS_MAX: usize = 256 << 10;
/// Bytes of keys and values that one turn of a scan reads, whether they are sent or not, before it lets
/// others run.
pub const SCAN_BYTES_PER_TURN: usize = SCAN_BYTES_MAX;

/// How long a request is remembered that its client has not reported as answered, in log time.
pub const SESSION_WINDOW_MS: u64 = 10 * 60 * 1000;
/// Bytes of clients and requests that one range remembers, as [`crate::range::sessions`] reckons them; the
/// client silent longest goes first. Part of what replicas must agree on: a change needs a new version
/// of the entries in the log.
pub const SESSIONS_LEN_MAX: usize = 64 << 20;
/// Unanswered requests of one client that one range remembers, and their bytes; the oldest go first, for
/// good. As above.
pub const SESSION_REQUESTS_OF_CLIENT_MAX: usize = 16 << 10;
/// See [`SESSION_REQUESTS_OF_CLIENT_MAX`].
pub const SESSION_CLIENT_LEN_MAX: usize = 8 << 20;
/// Rows of session tables that a shard leaves to its next freeze, which writes them in one turn.
pub const SESSION_ROWS_UNSAVED_MAX: usize = 4096;
/// Rows of a session table that are saved, exported or loaded in one turn.
pub const SESSION_ROWS_PER_TURN: usize = 256;

/// Log bytes that are read at once for a follower: one message, unless a single entry is longer.
pub const LOG_READ_LEN_MAX: usize = 4 << 20;

/// A longer append belongs to the bulk class: what a slow network carries in a few milliseconds.
pub const SMALL_APPEND_LEN_MAX: usize = 256 << 10;

/// Entries that are durable in the tree and yet kept, for a replica that is a little behind.
pub const ENTRIES_KEPT: u64 = 1_000;
/// With more segments of the log than this nothing is kept for replicas that are behind.
pub const WAL_SEGMENTS_FULL: usize = 8;
/// And only when it has been so for this long: what was just purged has time to go.
pub const LOG_FULL_TIMEOUT: Duration = Duration::from_secs(2);
/// Log bytes that a shard keeps for replicas that install a snapshot.
pub const PINNED_LEN_MAX: u64 = 64 << 30;
/// And no more than this part of what is free on the disk, which a node's shards share.
pub const PINNED_DISK_PART: u64 = 4;
/// And no more entries: each takes some memory.
pub const PINNED_ENTRIES_MAX: usize = 4 << 20;
/// Size of a WAL segment.
pub const SEGMENT_LEN: usize = 64 << 20;
/// Unit of the WAL's writes: what O_DIRECT asks for.
pub const BLOCK_LEN: usize = 4 << 10;
/// One durable write of the WAL.
pub const WAL_BATCH_LEN_MAX: usize = 8 << 20;
/// Log bytes of a shard that wait to be written. Past it the entries of other leaders are refused
/// until later, and those of its own ranges wait where they are counted: with their proposers.
pub const WAL_WAITING_LEN_MAX: usize = 64 << 20;
/// Log bytes of a shard that a start may have to read again; writers are held back before it.
pub const REPLAY_LEN_MAX: u64 = 64 << 20;
/// Log bytes after which a shard freezes its memtable.
pub const REPLAY_LEN_FREEZE: u64 = 32 << 20;

const _: () = {
    assert!(BATCH_LEN_MAX <= ENTRY_LEN_MAX);
    assert!(BATCH_OPS_MAX <= ENTRY_COMMANDS_MAX);
    assert!(ENTRY_COMMANDS_GATHERED <= ENTRY_COMMANDS_MAX);
    assert!(ENTRY_LEN_GATHERED <= ENTRY_LEN_MAX);
    assert!(
        PROPOSAL_BYTES_WAITING_MAX + ENTRIES_IN_FLIGHT_MAX * ENTRY_LEN_MAX
            <= SHARD_WRITES_LEN_MAX / 2
    );
    assert!(VALUE_LEN_MAX <= MULTI_GET_VALUES_LEN_MAX);
    // One range has at most half of the places.
    assert!(MULTI_GET_KEYS_MAX * 2 <= COLD_BLOCKS_MAX);
    assert!(ENTRY_LEN_MAX * 3 / 2 <= WAL_BATCH_LEN_MAX);
    assert!(WAL_BATCH_LEN_MAX.is_multiple_of(BLOCK_LEN));
    assert!(SEGMENT_LEN.is_multiple_of(BLOCK_LEN));
    assert!(WAL_BATCH_LEN_MAX < SEGMENT_LEN);
    assert!(WAL_BATCH_LEN_MAX * 2 <= WAL_WAITING_LEN_MAX);
    assert!(REPLAY_LEN_FREEZE < REPLAY_LEN_MAX);
    assert!(SESSION_CLIENT_LEN_MAX < SESSIONS_LEN_MAX);
    assert!(KEY_LEN_MAX < u16::MAX as usize);
    assert!(SCAN_ROWS_MAX < SCAN_STEPS_MAX && SCAN_STEPS_PER_TURN < SCAN_STEPS_MAX);
};
