//! Faults of the log's disk for tests, in builds with debug assertions alone.
//!
//! The variable `RANGEDB_TEST_DISK` names a file that the test writes while the node runs. Each write
//! of the log reads it. `200ms` means that the write takes that much longer, `hang` that it does not
//! end, and `fail` that it fails with EIO. Without the file nothing happens.

use std::io;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;

use super::GlommioRuntime;

/// The variable with the path of the file.
pub const VARIABLE: &str = "RANGEDB_TEST_DISK";
/// Longer than any test.
const FOR_EVER: Duration = Duration::from_hours(24);

static FAULT: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os(VARIABLE).map(Into::into));

/// Does to a write of the log what the test asks for.
pub async fn write() -> io::Result<()> {
    let Some(path) = FAULT.as_ref() else {
        return Ok(());
    };
    let fault = std::fs::read_to_string(path).unwrap_or_default();
    match fault.trim() {
        "" => return Ok(()),
        "fail" => return Err(io::Error::from_raw_os_error(libc::EIO)),
        "hang" => GlommioRuntime::sleep(FOR_EVER).await,
        time => match rangedb_duration::parse(time) {
            Ok(time) => GlommioRuntime::sleep(time).await,
            Err(error) => {
                tracing::error!(%error, time, "{VARIABLE} names a file with another word")
            }
        },
    }
    Ok(())
}
