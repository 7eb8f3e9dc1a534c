//! The log's disk. A completed write survives a crash; a write in flight survives it fully, partly,
//! or not at all, and so does one that fails. None arrives later than that.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use rangedb_engine::env::{AsyncRuntime, Disk, File};

use super::random::Random;
use super::runtime::SimRuntime;

/// The unit of writes: a crash may tear a write between two sectors.
const SECTOR_LEN: usize = 512;
/// How often an operation that hangs looks whether it still does.
const HANG_POLL_INTERVAL: Duration = Duration::from_millis(1);

type Content = Rc<RefCell<Vec<u8>>>;

struct InFlight {
    id: u64,
    content: Content,
    offset: usize,
    bytes: Vec<u8>,
}

impl InFlight {
    fn complete(&self) {
        let mut content = self.content.borrow_mut();
        content[self.offset..self.offset + self.bytes.len()].copy_from_slice(&self.bytes);
    }
}

/// The content and the faults of one simulated disk. It survives crashes.
pub struct Platter {
    random: Random,
    files: RefCell<BTreeMap<String, Content>>,
    in_flight: RefCell<Vec<InFlight>>,
    next_write: Cell<u64>,
    /// The longest time of an operation, in microseconds.
    pub latency_max_us: Cell<u64>,
    /// Whether operations hang until this is taken back.
    pub hangs: Cell<bool>,
    /// The additional time of a read, in microseconds.
    pub slow_reads_us: Cell<u64>,
    /// After this many more reads, one read returns fewer bytes than requested.
    pub reads_until_short: Cell<Option<u64>>,
    /// After this many more reads, all reads fail.
    pub reads_until_failure: Cell<Option<u64>>,
    /// Whether the disk is full: no file can be made.
    pub full: Cell<bool>,
    /// The free space that the disk reports if it is not full, in bytes.
    pub free_bytes: Cell<u64>,
    /// After this many more writes, all writes fail.
    pub writes_until_failure: Cell<Option<u64>>,
    /// Whether a read or a write has failed as a fault demanded.
    pub has_failed: Cell<bool>,
}

impl Platter {
    /// Makes an empty disk.
    pub fn new(random: Random) -> Rc<Platter> {
        Rc::new(Platter {
            random,
            files: RefCell::default(),
            in_flight: RefCell::default(),
            next_write: Cell::new(0),
            latency_max_us: Cell::new(300),
            hangs: Cell::new(false),
            slow_reads_us: Cell::new(0),
            reads_until_short: Cell::new(None),
            reads_until_failure: Cell::new(None),
            full: Cell::new(false),
            free_bytes: Cell::new(u64::MAX),
            writes_until_failure: Cell::new(None),
            has_failed: Cell::new(false),
        })
    }

    /// Cuts the power: each write in flight is completed, lost, or torn between sectors.
    pub fn crash(&self) {
        for write in self.in_flight.take() {
            self.tear(&write);
        }
    }

    /// Completes the writes in flight, as the kernel does before a process has ended. Later they could
    /// arrive over what the next process has written.
    pub fn process_ended(&self) {
        self.in_flight.take().iter().for_each(InFlight::complete);
    }

    /// Lets a write arrive fully, partly, or not at all.
    fn tear(&self, write: &InFlight) {
        let fate = self.random.below(4);
        let mut content = write.content.borrow_mut();
        for (at, sector) in write.bytes.chunks(SECTOR_LEN).enumerate() {
            let arrives = match fate {
                0 => true,
                1 => false,
                _ => self.random.once_in(2),
            };
            if arrives {
                let from = write.offset + at * SECTOR_LEN;
                content[from..from + sector.len()].copy_from_slice(sector);
            }
        }
    }

    /// Takes a write off the list of those in flight.
    fn take_in_flight(&self, id: u64) -> Option<InFlight> {
        let mut in_flight = self.in_flight.borrow_mut();
        let at = in_flight.iter().position(|write| write.id == id)?;
        Some(in_flight.swap_remove(at))
    }

    /// The names and lengths of all files.
    pub fn files(&self) -> Vec<(String, usize)> {
        let files = self.files.borrow();
        files
            .iter()
            .map(|(name, content)| (name.clone(), content.borrow().len()))
            .collect()
    }

    /// Copies all files. The machine must be off.
    pub fn copy(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.files.borrow();
        let copied = files
            .iter()
            .map(|(name, content)| (name.clone(), content.borrow().clone()));
        copied.collect()
    }

    /// Replaces all files by these, as a restore does.
    pub fn put_back(&self, files: &BTreeMap<String, Vec<u8>>) {
        self.files.borrow_mut().clear();
        for (name, bytes) in files {
            self.put(name, bytes.clone());
        }
    }

    /// Ends the faults of reads and writes.
    pub fn mend(&self) {
        self.writes_until_failure.set(None);
        self.reads_until_failure.set(None);
        self.has_failed.set(false);
    }

    /// Adds a file with this content.
    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let content = Rc::new(RefCell::new(bytes));
        self.files.borrow_mut().insert(name.to_owned(), content);
    }

    /// Flips one bit of a file.
    pub fn flip(&self, name: &str, at: usize, bit: u8) {
        let files = self.files.borrow();
        let content = files.get(name).expect("the file is there");
        content.borrow_mut()[at] ^= 1 << (bit % 8);
    }

    /// The bytes of a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        self.files
            .borrow()
            .get(name)
            .expect("the file is there")
            .borrow()
            .clone()
    }

    async fn delay(&self) {
        let micros = self.random.between(20, self.latency_max_us.get());
        SimRuntime::sleep(Duration::from_micros(micros)).await;
        while self.hangs.get() {
            SimRuntime::sleep(HANG_POLL_INTERVAL).await;
        }
    }

    fn find(&self, name: &str) -> io::Result<Content> {
        let found = self.files.borrow().get(name).cloned();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, name.to_owned()))
    }

    /// Fails if the counter has reached zero; otherwise counts down.
    fn fail_if_due(&self, left: &Cell<Option<u64>>) -> io::Result<()> {
        match left.get() {
            Some(0) => {
                self.has_failed.set(true);
                Err(io::Error::other("simulated input/output error"))
            }
            some => {
                left.set(some.map(|some| some - 1));
                Ok(())
            }
        }
    }
}

/// The folder of a log on a [`Platter`].
#[derive(Clone)]
pub struct SimDisk(pub Rc<Platter>);

/// An open file.
pub struct SimFile {
    platter: Rc<Platter>,
    content: Content,
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn list(&self) -> io::Result<Vec<String>> {
        self.0.delay().await;
        Ok(self.0.files.borrow().keys().cloned().collect())
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<SimFile> {
        self.0.delay().await;
        if self.0.full.get() {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "simulated full disk",
            ));
        }
        // A crash during the creation may leave a file of the wrong length.
        if len > 4096 {
            let half = Rc::new(RefCell::new(vec![0; len as usize / 2]));
            self.0.files.borrow_mut().insert(name.to_owned(), half);
            self.0.delay().await;
        }
        let content = Rc::new(RefCell::new(vec![0; len as usize]));
        self.0
            .files
            .borrow_mut()
            .insert(name.to_owned(), content.clone());
        Ok(SimFile {
            platter: self.0.clone(),
            content,
        })
    }

    async fn open(&self, name: &str) -> io::Result<SimFile> {
        self.0.delay().await;
        let content = self.0.find(name)?;
        Ok(SimFile {
            platter: self.0.clone(),
            content,
        })
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.delay().await;
        let content = self.0.find(from)?;
        let mut files = self.0.files.borrow_mut();
        files.remove(from);
        files.insert(to.to_owned(), content);
        Ok(())
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        self.0.delay().await;
        self.0.find(name)?;
        self.0.files.borrow_mut().remove(name);
        Ok(())
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        self.0.delay().await;
        let free = self.0.free_bytes.get();
        Ok(if self.0.full.get() { 0 } else { free })
    }
}

impl File for SimFile {
    type Buffer = Vec<u8>;

    fn len(&self) -> u64 {
        self.content.borrow().len() as u64
    }

    fn buffer(&self, len: usize) -> Vec<u8> {
        vec![0xee; len]
    }

    async fn write_at(&self, bytes: Vec<u8>, offset: u64) -> io::Result<()> {
        let offset = offset as usize;
        assert!(
            offset + bytes.len() <= self.content.borrow().len(),
            "files do not grow"
        );
        let id = self
            .platter
            .next_write
            .replace(self.platter.next_write.get() + 1);
        let content = self.content.clone();
        self.platter.in_flight.borrow_mut().push(InFlight {
            id,
            content,
            offset,
            bytes,
        });
        self.platter.delay().await;
        let ended = (self.platter).fail_if_due(&self.platter.writes_until_failure);
        if let Some(write) = self.platter.take_in_flight(id) {
            match ended {
                Ok(()) => write.complete(),
                Err(_) => self.platter.tear(&write),
            }
        }
        ended
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        self.platter.delay().await;
        let slow = Duration::from_micros(self.platter.slow_reads_us.get());
        SimRuntime::sleep(slow).await;
        self.platter
            .fail_if_due(&self.platter.reads_until_failure)?;
        let left = self.platter.reads_until_short.get();
        let read = left.map(|left| left.wrapping_sub(1));
        self.platter.reads_until_short.set(read);
        let len = if left == Some(0) { len / 2 } else { len };
        let content = self.content.borrow();
        let from = (offset as usize).min(content.len());
        let to = (from + len).min(content.len());
        Ok(content[from..to].to_vec())
    }
}
