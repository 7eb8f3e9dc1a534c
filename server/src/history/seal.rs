//! Whether the files of a database are as they were written, checked before fjall opens them: it takes
//! lengths from damaged files as they are, and a process that asks for as much memory ends.
//!
//! Only the journal of a database changes after it was made. All other files are listed, with their
//! checksums, in the file `sealed`. The journal is looked through, and cut where its entries make no
//! sense, as they do after the end of a process in the middle of a write; fjall checks the checksums of
//! those before.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use super::fault::Fault;

/// The list of files.
const SEALED: &str = "sealed";
/// The only journal; see [`super::store`].
const JOURNAL: &str = "0.jnl";
/// Files that are not on the list.
const UNLISTED: [&str; 3] = [SEALED, JOURNAL, "lock"];
/// The longest part of a journal that is read. It never becomes as long.
const JOURNAL_LEN_MAX: u64 = 8 << 20;
/// How fjall ends a batch.
pub(super) const BATCH_END: &[u8] = b"FJL\x03";

/// Lists the files of a database that was just made and is closed.
///
/// # Errors
/// The system refuses.
pub fn seal(folder: &Path) -> io::Result<()> {
    let mut file = File::create(folder.join(SEALED))?;
    file.write_all(list(folder)?.as_bytes())?;
    file.sync_all()
}

/// Checks the files of a database, and cuts its journal to what is whole.
///
/// # Errors
/// A file was changed, or cannot be read.
pub fn check(folder: &Path) -> Result<(), Fault> {
    let sealed = match fs::read(folder.join(SEALED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read?,
    };
    // fjall removes files that it needs no more, and says so itself if it lacks one.
    let sealed = String::from_utf8_lossy(&sealed);
    let sealed: HashSet<&str> = sealed.lines().collect();
    if !list(folder)?.lines().all(|line| sealed.contains(line)) {
        let why = format!("files in {} are not as they were written", folder.display());
        return Err(Fault::Damaged(why));
    }
    cut_journal(&folder.join(JOURNAL))
}

/// The path, length and checksum of each file, one a line.
fn list(folder: &Path) -> io::Result<String> {
    let mut lines = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            let name = path
                .strip_prefix(folder)
                .unwrap_or(&path)
                .display()
                .to_string();
            if path.is_dir() {
                folders.push(path);
            } else if !UNLISTED.contains(&name.as_str()) {
                let bytes = fs::read(&path)?;
                lines.push(format!(
                    "{name} {} {:08x}\n",
                    bytes.len(),
                    crc32c::crc32c(&bytes)
                ));
            }
        }
    }
    lines.sort_unstable();
    Ok(lines.concat())
}

fn cut_journal(path: &Path) -> Result<(), Fault> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Fault::Damaged(format!("{} is missing", path.display())));
        }
        opened => opened?,
    };
    let mut bytes = Vec::new();
    (&file).take(JOURNAL_LEN_MAX).read_to_end(&mut bytes)?;
    let mut rest = bytes.as_slice();
    while let Some(after) = after_batch(rest) {
        rest = after;
    }
    let whole = (bytes.len() - rest.len()) as u64;
    if file.metadata()?.len() > whole {
        file.set_len(whole)?;
    }
    Ok(())
}

/// What follows a batch of one row that is not compressed: the history writes no others.
pub(super) fn after_batch(bytes: &[u8]) -> Option<&[u8]> {
    // The start: its tag, the number of rows, and the sequence number.
    let (rows, bytes) = bytes.strip_prefix(&[1])?.split_first_chunk::<4>()?;
    let bytes = bytes.get(8..)?;
    // The row: its tag, kind and compression, the keyspace, and lengths.
    let bytes = bytes.strip_prefix(&[2, 0, 0])?.get(8..)?;
    let (key_len, bytes) = bytes.split_first_chunk::<2>()?;
    let (value_len, bytes) = bytes.split_first_chunk::<4>()?;
    let (stored_len, bytes) = bytes.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*rows) != 1 || value_len != stored_len {
        return None;
    }
    let len = usize::from(u16::from_le_bytes(*key_len)) + u32::from_le_bytes(*value_len) as usize;
    // The end: its tag, and the checksum.
    let bytes = bytes.get(len..)?.strip_prefix(&[3])?;
    bytes.get(8..)?.strip_prefix(BATCH_END)
}
