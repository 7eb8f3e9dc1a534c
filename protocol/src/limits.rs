//! Limits of the protocol's messages. Lengths are in bytes. Those of keys, values, writes and scans
//! are the engine's, too, and lie in a crate of their own.

pub use rangedb_limits::{
    BATCH_ADDITIONS_MAX, BATCH_LEN_MAX, BATCH_OPS_MAX, BOUND_LEN_MAX, KEY_LEN_MAX,
    MULTI_GET_ERRORS_MAX, MULTI_GET_KEYS_LEN_MAX, MULTI_GET_KEYS_MAX, MULTI_GET_VALUES_LEN_MAX,
    SCAN_BYTES_MAX, SCAN_ROWS_MAX, VALUE_LEN_MAX, check_key,
};

/// Longest frame, without its length field.
pub const FRAME_LEN_MAX: usize = 8 << 20;
/// Requests of one connection that have no reply yet.
pub const IN_FLIGHT_MAX: usize = 1024;
/// Longest command of an admin request.
pub const ADMIN_COMMAND_LEN_MAX: usize = 16 << 10;
/// Longest answer to an admin request.
pub const ADMIN_JSON_LEN_MAX: usize = 7 << 20;

const _: () = {
    // The largest write: 64 bytes for each operation are enough for the tables around it.
    assert!(BATCH_LEN_MAX + BATCH_OPS_MAX * 64 < FRAME_LEN_MAX);
    assert!(MULTI_GET_KEYS_LEN_MAX + MULTI_GET_KEYS_MAX * 4 + 1024 < FRAME_LEN_MAX);
    // The largest value fits. An error has a message, an address and a route with two keys.
    assert!(VALUE_LEN_MAX <= MULTI_GET_VALUES_LEN_MAX);
    assert!(
        MULTI_GET_VALUES_LEN_MAX
            + MULTI_GET_KEYS_MAX * 16
            + MULTI_GET_ERRORS_MAX * (2 * KEY_LEN_MAX + 2048)
            < FRAME_LEN_MAX
    );
    assert!(ADMIN_JSON_LEN_MAX + 1024 < FRAME_LEN_MAX);
    assert!(SCAN_BYTES_MAX + VALUE_LEN_MAX + SCAN_ROWS_MAX * 64 < FRAME_LEN_MAX);
};
