//! Faults of the disk for tests, in builds with debug assertions alone.
//!
//! The variable `RANGEDB_TEST_DISK` names a file that the test writes while the node runs. Each write of the
//! log, each piece of a table that is written and each read of a table's blocks reads it. It has words with
//! spaces between them. Without the file nothing happens.
//!
//! | word | |
//! |---|---|
//! | `200ms` | writes of the log take that much longer |
//! | `hang` | they do not end |
//! | `stuck=5s` | the thread of the shard that writes next stands still for so long; the file is removed before |
//! | `fail` | they fail with EIO |
//! | `tables=hang` | writes of tables do not end while it is there |
//! | `reads=200ms` | reads of tables take that much longer |
//! | `reads=fail` | they fail with EIO |
//! | `reads=fail/4` | those fail that begin in one of four pages of 4 KiB |
//! | `reads=fail@7` | those of the table file `7` fail |

use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use rangedb_engine::env::AsyncRuntime;

use super::GlommioRuntime;

/// The variable with the path of the file.
pub const VARIABLE: &str = "RANGEDB_TEST_DISK";
/// Longer than any test.
const FOR_EVER: Duration = Duration::from_hours(24);
/// What the words about reads begin with.
const READS: &str = "reads=";
/// The word about writes of tables.
const TABLES_HANG: &str = "tables=hang";
/// How often a write of a table looks whether the word is still there.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// What the word about the thread begins with.
const STUCK: &str = "stuck=";
/// Bytes of a page.
const PAGE_LEN: u64 = 4096;

static FAULT: LazyLock<Option<PathBuf>> =
    LazyLock::new(|| std::env::var_os(VARIABLE).map(Into::into));

/// The words of the file.
fn words() -> Vec<String> {
    let text = FAULT.as_ref().map(std::fs::read_to_string);
    let text = text.and_then(Result::ok).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn failure() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// The time that a word names.
fn time(word: &str) -> Duration {
    rangedb_duration::parse(word).unwrap_or_else(|error| {
        tracing::error!(%error, word, "{VARIABLE} names a file with another word");
        Duration::ZERO
    })
}

/// Stops this thread, if it is the first that reads the word.
fn stand_still(still: Duration) {
    let is_first = FAULT
        .as_ref()
        .is_some_and(|file| std::fs::remove_file(file).is_ok());
    if is_first {
        std::thread::sleep(still);
    }
}

/// Does to a write of the log what the test asks for.
pub async fn write() -> io::Result<()> {
    for word in words().iter().filter(|word| !word.starts_with(READS)) {
        match word.as_str() {
            TABLES_HANG => {}
            "fail" => return Err(failure()),
            "hang" => GlommioRuntime::sleep(FOR_EVER).await,
            word => match word.strip_prefix(STUCK) {
                Some(still) => stand_still(time(still)),
                None => GlommioRuntime::sleep(time(word)).await,
            },
        }
    }
    Ok(())
}

/// Does to a write of a piece of a table what the test asks for.
pub fn write_table() {
    while words().iter().any(|word| word == TABLES_HANG) {
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Does to a read of blocks of a table what the test asks for. One that may not wait fails instead.
pub fn read(file: &Path, offset: u64, may_wait: bool) -> io::Result<()> {
    for word in words().iter().filter_map(|word| word.strip_prefix(READS)) {
        let Some(which) = word.strip_prefix("fail") else {
            if !may_wait {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            std::thread::sleep(time(word));
            continue;
        };
        let fails = match (which.strip_prefix('/'), which.strip_prefix('@')) {
            (Some(one_in), _) => {
                let one_in = one_in.parse::<u64>().unwrap_or(1).max(1);
                (offset / PAGE_LEN).is_multiple_of(one_in)
            }
            (_, Some(name)) => file.file_name().is_some_and(|file| file == name),
            (None, None) => true,
        };
        if fails {
            return Err(failure());
        }
    }
    Ok(())
}
