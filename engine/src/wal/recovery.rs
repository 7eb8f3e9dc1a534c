//! Reads a log back: every batch of every segment that is left, in order.
//!
//! The chapter of [`super`] gives the rule for bad batches; [`read`] applies it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use rand::Rng;

use crate::env::{AsyncRuntime, Disk, Env, File};
use crate::limits::{BLOCK_LEN, WAL_BATCH_LEN_MAX};
use crate::types::DataId;
use crate::wal::batch::{self, FORMAT, FORMAT_WITHOUT_KEY, Found, Header, Key};
use crate::wal::clean_mark;
use crate::wal::log::{Log, RecordLocation, RecoveringLog};
use crate::wal::record::{self, Record};
use crate::wal::segment::{self, Beginning, CLEAN, Kind, Segments};
use crate::wal::tombstones::Tombstones;
use crate::wal::{Birth, Group, LogMark, WalError, WalOptions};

/// Segments are read in steps of this many bytes.
const STEP: usize = 1 << 20;

type FileOf<E> = <<E as Env>::Disk as Disk>::File;

/// The state of the log after it was read.
pub struct RecoveredState<E: Env> {
    /// Whether the last stop was clean.
    pub clean: bool,
    /// The groups' logs.
    pub logs: BTreeMap<Group, Log>,
    /// The replicas that were removed for good.
    pub removed: Tombstones,
    /// The highest data id reserved.
    pub data_ids: DataId,
    /// Identifies the log.
    pub mark: Option<LogMark>,
    /// Segments in use.
    pub segments: Segments<FileOf<E>>,
    /// The generation of the segment in which the log goes on.
    pub generation: u64,
    /// The open file of that segment.
    pub file: Rc<FileOf<E>>,
    /// The offset of the next batch in it.
    pub offset: u64,
    /// The secret of the segment's batches.
    pub secret: u64,
    /// The number of the next batch.
    pub number: u64,
    /// Spare segments.
    pub spares: VecDeque<String>,
    /// The highest number in a spare segment's name so far.
    pub spares_made: u64,
    /// Bytes of the batches that were read.
    pub bytes: u64,
}

/// Reads the log, or makes an empty one.
///
/// # Errors
/// The disk refuses, or its log is damaged or of another version.
pub async fn read<E: Env>(
    disk: &E::Disk,
    options: &WalOptions,
) -> Result<RecoveredState<E>, WalError> {
    let names = disk.list().await;
    let names = names.map_err(|e| WalError::io(".", "list", &e))?;
    let mut generations = BTreeSet::new();
    let mut spares = Spares::default();
    let mut has_mark = false;
    for name in names {
        match segment::kind(&name) {
            Kind::Segment(generation) => drop(generations.insert(generation)),
            Kind::Spare(number) => {
                spares.made = number.max(spares.made);
                spares.names.push_back(name);
            }
            Kind::Clean => has_mark = true,
            Kind::Foreign => tracing::warn!(file = %name, "a foreign file in the log's folder"),
        }
    }
    drop_short_spares::<E>(disk, &mut spares.names, options.segment_bytes).await?;
    let mark = if has_mark {
        Some(clean_mark::read::<E>(disk).await?)
    } else {
        None
    };
    if generations.is_empty() {
        if mark.is_some() {
            return Err(corrupt(
                CLEAN,
                0,
                "the log was stopped cleanly, but has no segment",
            ));
        }
        if options.must_exist {
            return Err(WalError::Missing);
        }
        begin_segment::<E>(disk, options, &mut spares, (1, 1)).await?;
        generations.insert(1);
    }
    let parts = open_segments::<E>(disk, options, &generations).await?;
    let mut scan = Scan::<E>::new(options);
    let mut parts = parts.into_iter().peekable();
    while let Some(part) = parts.next() {
        let next = parts.peek();
        let next = next.filter(|next| next.generation == part.generation + 1);
        let next = next.and_then(|next| next.beginning);
        scan.segment(part, next.map(|next| next.first)).await?;
    }
    if let Some(mark) = mark {
        if scan.last != mark {
            let (file, offset) = (segment::name(scan.generation), scan.offset);
            let what = format!(
                "the log was stopped cleanly after batch {mark}, but ends after batch {}",
                scan.last
            );
            return Err(WalError::Corrupt { file, offset, what });
        }
        disk.remove(CLEAN)
            .await
            .map_err(|e| WalError::io(CLEAN, "remove", &e))?;
    }
    if scan.format != FORMAT {
        // An older version must not take this one's batches for the end of its log.
        scan.go_on_in_new_segment(disk, options, &mut spares)
            .await?;
    }
    scan.finish(mark.is_some(), spares)
}

/// The spare segments.
#[derive(Default)]
struct Spares {
    names: VecDeque<String>,
    /// The highest number in a name so far.
    made: u64,
}

/// Takes a spare segment into use under this generation, its first batch under this number.
async fn begin_segment<E: Env>(
    disk: &E::Disk,
    options: &WalOptions,
    spares: &mut Spares,
    (generation, first): (u64, u64),
) -> Result<(FileOf<E>, Beginning), WalError> {
    let spare = match spares.names.pop_front() {
        Some(spare) => spare,
        None => {
            spares.made += 1;
            let spare = segment::spare_name(spares.made);
            let made = disk.create(&spare, options.segment_bytes).await;
            drop(made.map_err(|e| WalError::io(&spare, "create", &e))?);
            spare
        }
    };
    let secret = E::Runtime::thread_rng().next_u64();
    let beginning = Beginning {
        secret,
        first,
        format: FORMAT,
    };
    let file = segment::begin(disk, &spare, generation, beginning).await?;
    Ok((file, beginning))
}

fn corrupt(file: &str, offset: u64, what: &str) -> WalError {
    WalError::Corrupt {
        file: file.to_owned(),
        offset,
        what: what.to_owned(),
    }
}

/// Removes spare segments that a crash left half made.
async fn drop_short_spares<E: Env>(
    disk: &E::Disk,
    spares: &mut VecDeque<String>,
    len: u64,
) -> Result<(), WalError> {
    for name in std::mem::take(spares) {
        let file = disk
            .open(&name)
            .await
            .map_err(|e| WalError::io(&name, "open", &e))?;
        if file.len() == len {
            spares.push_back(name);
        } else {
            drop(file);
            disk.remove(&name)
                .await
                .map_err(|e| WalError::io(&name, "remove", &e))?;
        }
    }
    Ok(())
}

/// A segment that is about to be read.
struct Part<F> {
    generation: u64,
    file: Rc<F>,
    /// What its first block says; `None`: it is of format 1.
    beginning: Option<Beginning>,
}

/// Opens the segments and reads their first blocks: each says where the segment before it ends.
async fn open_segments<E: Env>(
    disk: &E::Disk,
    options: &WalOptions,
    generations: &BTreeSet<u64>,
) -> Result<Vec<Part<FileOf<E>>>, WalError> {
    let mut parts: Vec<Part<FileOf<E>>> = Vec::with_capacity(generations.len());
    for generation in generations.iter().copied() {
        let name = segment::name(generation);
        let file = disk.open(&name).await;
        let file = file.map_err(|e| WalError::io(&name, "open", &e))?;
        let len = file.len().min(2 * BLOCK_LEN as u64) as usize;
        let blocks = match len {
            0 => Vec::new(),
            _ => segment::read_exactly(&file, &name, 0, len).await?,
        };
        let beginning = segment::beginning(generation, file.len(), &blocks)?;
        // A first block says itself how long the file was made: `beginning` has compared it.
        if beginning.is_none() && file.len() < options.segment_bytes {
            return Err(corrupt(&name, 0, "the end of the file is missing"));
        }
        let before = parts.last().and_then(|part| part.beginning);
        if beginning.is_none() && before.is_some() {
            let what = "the first block is bad, but was durable before the segment had its name";
            return Err(corrupt(&name, 0, what));
        }
        parts.push(Part {
            generation,
            file: Rc::new(file),
            beginning,
        });
    }
    Ok(parts)
}

/// The state of the scan through the segments.
struct Scan<E: Env> {
    logs: BTreeMap<Group, RecoveringLog>,
    removed: Tombstones,
    data_ids: DataId,
    mark: Option<LogMark>,
    segments: RefCell<Segments<FileOf<E>>>,
    cache_left: usize,
    /// The number of the last good batch; 0 before the first.
    last: u64,
    /// The segment that is being read; `offset` is the position in it.
    generation: u64,
    file: Option<Rc<FileOf<E>>>,
    key: Key,
    /// The format of the segment being read.
    format: u16,
    offset: u64,
    bytes: u64,
}

impl<E: Env> Scan<E> {
    fn new(options: &WalOptions) -> Scan<E> {
        Scan {
            logs: BTreeMap::new(),
            removed: Tombstones::default(),
            data_ids: DataId(0),
            mark: None,
            segments: RefCell::default(),
            cache_left: options.entry_cache_bytes,
            last: 0,
            generation: 0,
            file: None,
            key: Key::None,
            format: FORMAT,
            offset: 0,
            bytes: 0,
        }
    }

    /// Begins a segment after one of an older format.
    async fn go_on_in_new_segment(
        &mut self,
        disk: &E::Disk,
        options: &WalOptions,
        spares: &mut Spares,
    ) -> Result<(), WalError> {
        let next = (self.generation + 1, self.last + 1);
        let (file, beginning) = begin_segment::<E>(disk, options, spares, next).await?;
        let file = Rc::new(file);
        self.generation = next.0;
        self.segments.borrow_mut().add(next.0, file.clone());
        self.file = Some(file);
        (self.key, self.offset) = segment::first_batch(Some(beginning));
        Ok(())
    }

    fn finish(self, clean: bool, spares: Spares) -> Result<RecoveredState<E>, WalError> {
        let mut logs = BTreeMap::new();
        let (name, offset) = (segment::name(self.generation), self.offset);
        for (group, log) in self.logs {
            let log = log.finish().map_err(|missing| {
                corrupt(
                    &name,
                    offset,
                    &format!("{group:?}: entry {missing} is missing"),
                )
            })?;
            logs.insert(group, log);
        }
        let (Some(file), Key::Secret(secret, _)) = (self.file, self.key) else {
            return Err(corrupt(".", 0, "there is no segment to go on in"));
        };
        Ok(RecoveredState {
            clean,
            logs,
            removed: self.removed,
            data_ids: self.data_ids,
            mark: self.mark,
            segments: self.segments.into_inner(),
            generation: self.generation,
            file,
            offset: self.offset,
            secret,
            number: self.last + 1,
            spares: spares.names,
            spares_made: spares.made,
            bytes: self.bytes,
        })
    }

    fn damaged(&self, what: impl Into<String>) -> WalError {
        WalError::Corrupt {
            file: segment::name(self.generation),
            offset: self.offset,
            what: what.into(),
        }
    }

    /// Reads one segment, the next in order. `until` is the number of the first batch of the
    /// segment after it, if that one says so.
    async fn segment(&mut self, part: Part<FileOf<E>>, until: Option<u64>) -> Result<(), WalError> {
        let generation = part.generation;
        let (before, ended) = (self.generation, self.offset);
        let is_first = self.file.is_none();
        if !is_first && generation != before + 1 {
            return Err(self.damaged(format!("segment {} is missing", segment::name(before + 1))));
        }
        if is_first && let Some(beginning) = part.beginning {
            self.last = beginning.first.saturating_sub(1);
        }
        let (key, begin) = segment::first_batch(part.beginning);
        let (name, file) = (segment::name(generation), part.file);
        self.segments.borrow_mut().add(generation, file.clone());
        self.generation = generation;
        self.file = Some(file.clone());
        self.key = key;
        self.format = part
            .beginning
            .map_or(FORMAT_WITHOUT_KEY, |beginning| beginning.format);
        self.offset = begin;
        let mut window = Window {
            file: &*file,
            name: &name,
            key,
            start: 0,
            bytes: Vec::new(),
        };
        // Each batch must have the next number, and this generation.
        while until != Some(self.last + 1) {
            let header = match window.batch_at(self.offset).await? {
                Found::Batch(header) if header.generation == generation => header,
                _ => break,
            };
            // The oldest segment of format 1 may begin with any number: nothing says which.
            let begins = self.offset == 0;
            let follows = header.number == self.last + 1 || (is_first && begins);
            if !follows && begins {
                (self.generation, self.offset) = (before, ended);
                return Err(self.lacks_batch_before(header.number));
            }
            if !follows {
                break;
            }
            let records = window.records(self.offset, header.len);
            self.batch(header, records)?;
        }
        match until {
            Some(next) if next != self.last + 1 => return Err(self.lacks_batch_before(next)),
            Some(_) => return Ok(()),
            None => {}
        }
        let has_none = is_first && self.offset == begin;
        if has_none && key == Key::None {
            return Err(self.damaged("the segment has neither a first block nor a good batch"));
        }
        if has_none && generation > 1 {
            return Err(self.damaged(
                "the segment's first batch is bad, but was durable before the segments that \
                 came before it went",
            ));
        }
        self.refuse_lost_batch(&mut window).await
    }

    fn lacks_batch_before(&self, next: u64) -> WalError {
        let last = self.last;
        self.damaged(format!(
            "batch {} is bad or missing: the segment ends after batch {last}, \
             the next begins with batch {next}",
            last + 1
        ))
    }

    /// Refuses the log if a valid batch follows a bad one: what was acknowledged is lost.
    async fn refuse_lost_batch(&self, window: &mut Window<'_, FileOf<E>>) -> Result<(), WalError> {
        let end = window
            .file
            .len()
            .min(self.offset + (WAL_BATCH_LEN_MAX + BLOCK_LEN) as u64);
        let mut at = self.offset + BLOCK_LEN as u64;
        while at < end {
            if let Found::Batch(header) = window.batch_at(at).await?
                && header.generation == self.generation
                && header.number > self.last + 1
            {
                let (bad, good) = (self.last + 1, header.number);
                return Err(self.damaged(format!(
                    "batch {bad} is bad, but batch {good} after it is good"
                )));
            }
            at += BLOCK_LEN as u64;
        }
        Ok(())
    }

    fn batch(&mut self, header: Header, records: &[u8]) -> Result<(), WalError> {
        let mut reader = record::Reader::new(records);
        loop {
            let begin = reader.offset();
            let record = reader.next().map_err(|bad| self.damaged(bad.to_string()))?;
            let Some(record) = record else { break };
            let location = RecordLocation {
                generation: header.generation,
                offset: self.offset + (self.key.header_len() + begin) as u64,
                len: reader.offset() - begin,
            };
            self.record(record, location)?;
        }
        let len = self.key.padded_len(header.len) as u64;
        self.offset += len;
        self.bytes += len;
        self.last = header.number;
        Ok(())
    }

    fn record(&mut self, record: Record, location: RecordLocation) -> Result<(), WalError> {
        match record {
            Record::Entry(group, entry) => {
                if self.removed.has(group) {
                    return Ok(());
                }
                let keep = entry.payload.len() <= self.cache_left;
                if keep {
                    self.cache_left -= entry.payload.len();
                }
                let Some(log) = self.logs.get_mut(&group) else {
                    return Err(self.damaged(format!("an entry of unknown {group:?}")));
                };
                let left = log.entry(entry, location, keep);
                self.segments
                    .borrow_mut()
                    .hold(location.generation, location.len);
                self.release(left.into_iter().collect());
            }
            Record::Created(created) => {
                let group = created.group;
                if let Some(Birth { parent, split }) = created.birth {
                    self.log(parent, |log| log.set_committed(split));
                }
                if !self.removed.has(group) {
                    self.logs
                        .entry(group)
                        .or_insert_with(|| RecoveringLog::new(created));
                }
            }
            Record::Removed(group) => {
                let log = self.logs.remove(&group);
                self.removed.add(group);
                let left = log.map(|mut log| log.truncate(None));
                self.release(left.unwrap_or_default());
            }
            Record::Mark(mark) => {
                if self.mark.is_some_and(|known| known.log != mark.log) {
                    return Err(self.damaged("this segment belongs to another log"));
                }
                self.mark = Some(mark);
            }
            Record::DataIds(up_to) => self.data_ids = self.data_ids.max(up_to),
            Record::Vote(group, vote) => self.log(group, |log| log.set_vote(vote)),
            Record::Commit(group, id) => self.log(group, |log| log.set_committed(id)),
            Record::Truncate(group, after) => {
                let left = self.logs.get_mut(&group).map(|log| log.truncate(after));
                self.release(left.unwrap_or_default());
            }
            Record::InstalledSnapshot(group, installed) => {
                let left = self
                    .logs
                    .get_mut(&group)
                    .map(|log| log.install_snapshot(installed));
                self.release(left.unwrap_or_default());
            }
            Record::Purge(group, id) => {
                let left = self.logs.get_mut(&group).map(|log| log.purge(id));
                self.release(left.unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Changes a log; does nothing if its replica was removed later.
    fn log(&mut self, group: Group, change: impl FnOnce(&mut RecoveringLog)) {
        if let Some(log) = self.logs.get_mut(&group) {
            change(log);
        }
    }

    fn release(&self, locations: Vec<RecordLocation>) {
        let mut segments = self.segments.borrow_mut();
        locations
            .iter()
            .for_each(|location| segments.release(location.generation, location.len));
    }
}

/// The part of a segment that is in memory.
struct Window<'a, F> {
    file: &'a F,
    name: &'a str,
    key: Key,
    start: u64,
    bytes: Vec<u8>,
}

impl<F: File> Window<'_, F> {
    /// What lies at an offset: a batch, or nothing.
    async fn batch_at(&mut self, offset: u64) -> Result<Found, WalError> {
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + BLOCK_LEN as u64 > end {
            self.load(offset, STEP).await?;
        }
        match batch::decode(self.key, self.at(offset)) {
            Found::Longer(len) if offset + len as u64 <= self.file.len() => {
                self.load(offset, len.max(STEP)).await?;
                Ok(batch::decode(self.key, self.at(offset)))
            }
            found => Ok(found),
        }
    }

    fn at(&self, offset: u64) -> &[u8] {
        self.bytes
            .get((offset - self.start) as usize..)
            .unwrap_or_default()
    }

    fn records(&self, offset: u64, len: usize) -> &[u8] {
        let from = (offset - self.start) as usize + self.key.header_len();
        self.bytes.get(from..from + len).unwrap_or_default()
    }

    async fn load(&mut self, offset: u64, len: usize) -> Result<(), WalError> {
        let len = len.min(self.file.len().saturating_sub(offset) as usize);
        self.start = offset;
        self.bytes = match len {
            0 => Vec::new(),
            _ => segment::read_exactly(self.file, self.name, offset, len).await?,
        };
        Ok(())
    }
}
