//! Checks the list of tables, which `lsm-tree` does not check when it opens a folder.
//!
//! Every block of a table has a checksum, which is compared whenever the block is read, and so does
//! a table's list of sections. The list of tables (`vN`) has no checksum in itself. Its checksum is
//! in the file `current`, where `lsm-tree` writes it but never compares it. A flipped bit in the
//! list would leave tables out (and their files would be removed as left over), or shift their
//! versions.

use std::fs;
use std::io;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

/// The file that names the list of tables and holds the list's checksum.
const CURRENT: &str = "current";

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Checks the list of tables in a folder. A folder without such a list is an empty store.
///
/// # Errors
/// A file cannot be read, or is damaged.
pub fn verify(folder: &Path) -> io::Result<()> {
    let current = match fs::read(folder.join(CURRENT)) {
        Ok(current) => current,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // The file has the number of the list, its checksum, and the kind of checksum: 0 is XXH3.
    let Ok(current) = <[u8; 25]>::try_from(current) else {
        return Err(damaged(format!("the file {CURRENT} has the wrong length")));
    };
    let (number, rest) = current.split_at(8);
    let (checksum, kind) = rest.split_at(16);
    let number = number.try_into().map_or(0, u64::from_le_bytes);
    let name = format!("v{number}");
    let list = fs::read(folder.join(&name))
        .map_err(|e| damaged(format!("the file {CURRENT} names {name}: {e}")))?;
    if kind != [0] || xxh3_128(&list).to_le_bytes() != checksum {
        return Err(damaged(format!(
            "the list of tables, {name}, does not match the checksum in {CURRENT}"
        )));
    }
    Ok(())
}
