//! The rows of the history on disk: a database of fjall, written anew from time to time.
//!
//! fjall's journal grows to 64 MiB before it begins another, and a start reads all of it. So the
//! database lives in a folder with a number, and when its journal has [`JOURNAL_LEN_MAX`] bytes, the
//! rows that are to be kept are written as tables into a folder with the next number, which then takes
//! its place. That is also how old rows go: nothing is ever deleted, and no memtable is flushed. So
//! fjall needs no threads of its own, and all its work is done by the thread that calls.
//!
//! A row's key is its kind, a number that rises with every row, and its time. Rows are kept by their
//! number: a wall clock that jumps makes no row older than it is.
//!
//! A database is opened only if its files are as they were written ([`seal`]). If fjall fails by a panic
//! nevertheless, the chapter of [`super`] says what becomes of that. After an error a store must be
//! dropped: fjall takes no more writes then.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::fault::Fault;
use super::seal;

/// Once the journal is as long, the database is written anew. A memtable holds all of it.
const JOURNAL_LEN_MAX: u64 = 4 << 20;
/// fjall's cache of blocks.
const CACHE_BYTES: u64 = 1 << 20;
/// Files that fjall keeps open.
const FILES_MAX: usize = 16;
/// What a row takes in the journal besides its key and value, at most.
const ROW_COST: u64 = 64;
/// The folder of a database that is being written anew.
const MAKING: &str = "making";
const ROWS: &str = "rows";

/// The kinds of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The work of a minute.
    Minute,
    /// The work of an hour.
    Hour,
    /// An event.
    Event,
}

impl Kind {
    /// In the order of their letters, which is that of the keys.
    const ALL: [Kind; 3] = [Kind::Event, Kind::Hour, Kind::Minute];

    fn letter(self) -> u8 {
        match self {
            Kind::Minute => b'm',
            Kind::Hour => b'h',
            Kind::Event => b'e',
        }
    }

    /// How many rows are kept when the database is written anew, and how many bytes: 24 hours by the
    /// minute and 90 days by the hour. Two databases of 20 MiB and a journal of 4 MiB stay far below
    /// the 64 MiB that the history may have.
    fn kept(self) -> (usize, usize) {
        match self {
            Kind::Minute => (24 * 60, 6 << 20),
            Kind::Hour => (90 * 24, 10 << 20),
            Kind::Event => (20_000, 4 << 20),
        }
    }
}

/// A row as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The row's number, which rises with every row of any kind.
    pub number: u64,
    /// Its time, in milliseconds since 1970.
    pub t: u64,
    /// What it says.
    pub value: Vec<u8>,
}

/// The open database.
pub struct Store {
    /// The folder of the folders with numbers.
    folder: PathBuf,
    generation: u64,
    rows: Keyspace,
    database: Database,
    journal_len: u64,
    /// The number of the next row.
    next: u64,
}

pub(super) fn key(kind: Kind, number: u64, t: u64) -> [u8; 17] {
    let mut key = [kind.letter(); 17];
    key[1..9].copy_from_slice(&number.to_be_bytes());
    key[9..].copy_from_slice(&t.to_be_bytes());
    key
}

/// The number and the time in a key.
pub(super) fn parts(key: &[u8]) -> Option<(u64, u64)> {
    let number = key.get(1..9)?.try_into().ok()?;
    let t = key.get(9..17)?.try_into().ok()?;
    Some((u64::from_be_bytes(number), u64::from_be_bytes(t)))
}

/// The numbers of the databases in a folder; only after a crash are there several.
fn generations(folder: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

fn open_database(path: &Path) -> Result<(Database, Keyspace), Fault> {
    let database = Database::builder(path)
        .cache_size(CACHE_BYTES)
        .max_cached_files(Some(FILES_MAX))
        .worker_threads_unchecked(0)
        .journal_compression(CompressionType::None)
        .open()?;
    // No memtable is ever full: nobody would flush it.
    let options = || KeyspaceCreateOptions::default().max_memtable_size(u64::MAX);
    let rows = database.keyspace(ROWS, options)?;
    Ok((database, rows))
}

/// Makes a database with the rows that `fill` writes; it is there when all of it is durable.
fn make(
    folder: &Path,
    generation: u64,
    fill: impl FnOnce(&Keyspace) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let making = folder.join(MAKING);
    remove(&making)?;
    let (database, rows) = open_database(&making)?;
    fill(&rows)?;
    database.persist(PersistMode::SyncAll)?;
    drop((rows, database));
    seal::seal(&making)?;
    fs::rename(&making, folder.join(generation.to_string()))?;
    Ok(File::open(folder)?.sync_all()?)
}

/// The bytes that the journals of a database take on the disk. A new one has 64 MiB without any.
fn journal_len(path: &Path) -> io::Result<u64> {
    let mut len = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|end| end == "jnl") {
            len += entry.metadata()?.blocks() * 512;
        }
    }
    Ok(len)
}

impl Store {
    /// Opens the database in a folder, or makes both.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn open(folder: &Path) -> Result<Store, Fault> {
        fs::create_dir_all(folder)?;
        let mut found = generations(folder)?;
        if found.is_empty() {
            make(folder, 1, |_| Ok(()))?;
        }
        let generation = found.pop().unwrap_or(1);
        for older in found {
            remove(&folder.join(older.to_string()))?;
        }
        let path = folder.join(generation.to_string());
        seal::check(&path)?;
        let (database, rows) = open_database(&path)?;
        let mut next = 0;
        for kind in Kind::ALL {
            if let Some(last) = rows.prefix([kind.letter()]).next_back() {
                next = next.max(parts(&last.key()?).map_or(0, |(number, _)| number + 1));
            }
        }
        Ok(Store {
            folder: folder.to_owned(),
            generation,
            rows,
            database,
            journal_len: journal_len(&path)?,
            next,
        })
    }

    /// Adds a row. It survives the end of the process when this returns, but not a loss of power.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn add(&mut self, kind: Kind, t: u64, value: &[u8]) -> Result<(), Fault> {
        self.rows.insert(key(kind, self.next, t), value)?;
        self.next += 1;
        self.journal_len += value.len() as u64 + ROW_COST;
        Ok(())
    }

    /// All rows of a kind whose number is at least `first` and whose time is wanted, oldest first.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn rows(
        &self,
        kind: Kind,
        first: u64,
        is_wanted: impl Fn(u64) -> bool,
    ) -> Result<Vec<Row>, Fault> {
        let mut found = Vec::new();
        for row in self
            .rows
            .range(key(kind, first, 0)..=key(kind, u64::MAX, u64::MAX))
        {
            let (key, value) = row.into_inner()?;
            if let Some((number, t)) = parts(&key).filter(|(_, t)| is_wanted(*t)) {
                let value = value.to_vec();
                found.push(Row { number, t, value });
            }
        }
        Ok(found)
    }

    /// The number and the time of the last row of a kind.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn last(&self, kind: Kind) -> Result<Option<(u64, u64)>, Fault> {
        let Some(row) = self.rows.prefix([kind.letter()]).next_back() else {
            return Ok(None);
        };
        Ok(parts(&row.key()?))
    }

    /// Whether the journal is so long that the database should be written anew.
    pub fn is_due(&self) -> bool {
        self.journal_len >= JOURNAL_LEN_MAX
    }

    /// Makes all rows durable.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn sync(&self) -> Result<(), Fault> {
        Ok(self.database.persist(PersistMode::SyncData)?)
    }

    /// Writes the rows that are to be kept into a new database, which takes this one's place. After an
    /// error the old one is opened next time.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn renew(self) -> Result<Store, Fault> {
        make(&self.folder, self.generation + 1, |rows| self.copy_to(rows))?;
        let folder = self.folder.clone();
        drop(self);
        Store::open(&folder)
    }

    fn copy_to(&self, rows: &Keyspace) -> Result<(), Fault> {
        let mut copy = rows.start_ingestion()?;
        for kind in Kind::ALL {
            let first = self.first_kept(kind)?;
            for row in self
                .rows
                .range(key(kind, first, 0)..=key(kind, u64::MAX, u64::MAX))
            {
                let (key, value) = row.into_inner()?;
                copy.write(key, value)?;
            }
        }
        Ok(copy.finish()?)
    }

    /// The number of the oldest row of a kind that is kept.
    fn first_kept(&self, kind: Kind) -> Result<u64, Fault> {
        let (mut rows_left, mut bytes_left) = kind.kept();
        let mut first = u64::MAX;
        for row in self.rows.prefix([kind.letter()]).rev() {
            let (key, value) = row.into_inner()?;
            let len = key.len() + value.len();
            if rows_left == 0 || len > bytes_left {
                break;
            }
            rows_left -= 1;
            bytes_left -= len;
            first = parts(&key).map_or(first, |(number, _)| number);
        }
        Ok(first)
    }
}

/// Removes a folder if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Moves the newest database away, to `PREFIX-TIME`, and removes those that were moved there before: a
/// new one can be made then. Gives the path.
///
/// # Errors
/// The system refuses.
pub fn put_aside(folder: &Path, aside: &Path, now_ms: u64) -> io::Result<Option<PathBuf>> {
    let Some(newest) = generations(folder)?.pop() else {
        return Ok(None);
    };
    let parent = aside.parent().unwrap_or(aside);
    let prefix = aside.file_name().unwrap_or_default().to_string_lossy();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name
            .strip_prefix(&*prefix)
            .is_some_and(|rest| rest.starts_with('-'))
        {
            remove(&entry.path())?;
        }
    }
    let to = parent.join(format!("{prefix}-{}", now_ms / 1000));
    fs::rename(folder.join(newest.to_string()), &to)?;
    Ok(Some(to))
}
