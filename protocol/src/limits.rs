//! Limits of the protocol's messages. Lengths are in bytes.

/// Longest key. The shortest key has one byte.
pub const KEY_LEN_MAX: usize = 4 << 10;
/// Longest value.
pub const VALUE_LEN_MAX: usize = 1 << 20;
/// All keys and values of one write together.
pub const BATCH_LEN_MAX: usize = 4 << 20;
/// Conditions and mutations of one write together.
pub const BATCH_OPS_MAX: usize = 4096;
/// Mutations of one write that add to a number.
pub const BATCH_ADDITIONS_MAX: usize = 64;
/// Keys of one multi-get.
pub const MULTI_GET_KEYS_MAX: usize = 4096;
/// All keys of one multi-get together.
pub const MULTI_GET_KEYS_LEN_MAX: usize = 4 << 20;
/// All values of one reply to a multi-get together.
pub const MULTI_GET_VALUES_LEN_MAX: usize = 4 << 20;
/// Different errors in one reply to a multi-get.
pub const MULTI_GET_ERRORS_MAX: usize = 256;
/// Longest frame, without its length field.
pub const FRAME_LEN_MAX: usize = 8 << 20;
/// Requests of one connection that have no reply yet.
pub const IN_FLIGHT_MAX: usize = 1024;
/// Rows of one scan reply.
pub const SCAN_ROWS_MAX: usize = 10_000;
/// All keys and values of one scan reply together.
pub const SCAN_BYTES_MAX: usize = 4 << 20;
/// Longest command of an admin request.
pub const ADMIN_COMMAND_LEN_MAX: usize = 16 << 10;
/// Longest answer to an admin request.
pub const ADMIN_JSON_LEN_MAX: usize = 7 << 20;

const _: () = {
    assert!(KEY_LEN_MAX + VALUE_LEN_MAX <= BATCH_LEN_MAX);
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
