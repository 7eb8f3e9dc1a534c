//! How a start learns how the run before it ended: by the file `running` in the folder of the history.
//!
//! A run makes it when it begins, touches it every minute or more often, writes its last words to it when it
//! ends by a fault, and removes it when it stops cleanly. So a start that finds it follows a crash, which
//! came soon after the file was changed for the last time. It is no part of the database: a
//! process that panics writes to an open file and needs no thread for that.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use super::record::TEXT_LEN_MAX;

const RUNNING: &str = "running";

/// The file of this run.
static FILE: OnceLock<File> = OnceLock::new();

fn path(folder: &Path) -> PathBuf {
    folder.join(RUNNING)
}

/// How a run ended that did not stop cleanly.
#[derive(Debug, PartialEq, Eq)]
pub struct Crash {
    /// When it last changed its file: when it ended, if it left words, or else at most about a minute
    /// before.
    pub t: u64,
    /// Its last words; empty if it had no time for any.
    pub words: String,
}

/// Says that a run begins; gives the crash of the run before.
///
/// # Errors
/// The system refuses.
pub fn begin(folder: &Path) -> io::Result<(Option<Crash>, File)> {
    fs::create_dir_all(folder)?;
    let crash = match File::open(path(folder)) {
        Ok(file) => Some(read(&file)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    Ok((crash, File::create(path(folder))?))
}

fn read(file: &File) -> io::Result<Crash> {
    let mut words = Vec::new();
    file.take(TEXT_LEN_MAX as u64).read_to_end(&mut words)?;
    let since = file.metadata()?.modified()?.duration_since(UNIX_EPOCH);
    Ok(Crash {
        t: since.map_or(0, |since| since.as_millis() as u64),
        words: String::from_utf8_lossy(&words).trim().to_owned(),
    })
}

/// Has this process leave its last words in a file.
pub fn keep_in(file: File) {
    // A process has one data folder.
    let _ = FILE.set(file);
}

/// Notes that this process still runs.
pub fn touch() {
    if let Some(file) = FILE.get() {
        touch_file(file);
    }
}

fn touch_file(file: &File) {
    // If that fails, the time of a crash is not known as well.
    let _ = file.set_modified(SystemTime::now());
}

/// Keeps the last words of this process for the next start.
pub fn keep(words: &str) {
    if let Some(mut file) = FILE.get() {
        // The process ends: there is nobody to tell that this failed.
        let _ = file.write_all(words.as_bytes());
    }
}

/// Says that this run stops cleanly.
pub fn end(folder: &Path) {
    // If it stays, the next start tells of a crash without words.
    let _ = fs::remove_file(path(folder));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_after_a_crash_finds_the_last_words() {
        let temp = tempfile::tempdir().expect("a temporary folder");
        let folder = temp.path().join("history");
        let (crash, mut file) = begin(&folder).expect("it begins");
        assert_eq!(crash, None);
        file.write_all(b"fatal: the disk is gone\n")
            .expect("written");
        let (crash, _) = begin(&folder).expect("it begins");
        let crash = crash.expect("there was a crash");
        assert_eq!(crash.words, "fatal: the disk is gone");
        assert!(crash.t > 0);
        let (crash, _) = begin(&folder).expect("it begins");
        assert_eq!(crash.expect("killed").words, "");
        // A run that is killed ended after it touched its file for the last time.
        let (_, file) = begin(&folder).expect("it begins");
        let long_ago = UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        file.set_modified(long_ago).expect("set");
        touch_file(&file);
        let (crash, _) = begin(&folder).expect("it begins");
        assert!(crash.expect("killed").t > 2_000_000_000);
        end(&folder);
        let (crash, _) = begin(&folder).expect("it begins");
        assert_eq!(crash, None);
    }
}
