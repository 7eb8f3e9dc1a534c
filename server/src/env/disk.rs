//! The log's folder: files with O_DIRECT and O_DSYNC.
//!
//! One write is one operation on the shard's ring, and durable when it ends; an fsync would be a
//! second one, on a kernel thread. What only happens now and then — making, opening, renaming and
//! removing files — runs on the shard's helper thread.
//!
//! A killed process may be gone before the kernel has finished the operations on its ring, so one
//! of its writes may still reach the disk. An operation under way keeps its file open, and the open
//! file keeps its lock. So a process that opens a file waits for the lock; from then on no other
//! process writes to the file.

use std::fs::{self, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rangedb_engine::env::{AsyncRuntime, Disk, File};
use rangedb_engine::limits::BLOCK_LEN;

use super::GlommioRuntime;
use super::reactor::{self, AlignedBuffer};

/// Zeros are written in pieces of this size.
const ZEROS_LEN: usize = 256 << 10;
/// Pause between two attempts to take a lock that an earlier process still holds.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(2);
/// Most attempts to take it, which take ten seconds.
const LOCK_ATTEMPTS_MAX: usize = 5000;

/// A folder.
#[derive(Clone, Debug)]
pub struct RingDisk {
    folder: Rc<PathBuf>,
}

/// An open file in it.
pub struct RingFile {
    file: Rc<fs::File>,
    len: u64,
}

impl Drop for RingFile {
    /// The kernel may close the file later; a task of this process that opens it again must not wait
    /// for that. No write is under way here, because a write borrows the file.
    fn drop(&mut self) {
        // If this fails, the lock ends when the kernel closes the file.
        let _ = self.file.unlock();
    }
}

impl RingDisk {
    /// A folder that exists.
    pub fn new(folder: PathBuf) -> RingDisk {
        RingDisk {
            folder: Rc::new(folder),
        }
    }

    /// Runs work that may block on the disk, on the helper thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let folder = PathBuf::clone(&self.folder);
        reactor::blocking(move || work(&folder)).await
    }
}

/// Waits until no operation of an earlier process is under way on the file.
async fn lock(file: &fs::File, name: &str) -> io::Result<()> {
    for _ in 0..LOCK_ATTEMPTS_MAX {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        GlommioRuntime::sleep(LOCK_RETRY_INTERVAL).await;
    }
    let message = format!("{name} is still being written to by an earlier process");
    Err(io::Error::new(io::ErrorKind::ResourceBusy, message))
}

/// Bytes that a process without privileges may still write to the folder's file system.
fn free_bytes(folder: &Path) -> io::Result<u64> {
    Ok(room(folder)?.free)
}

/// The room on a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// What users may still take.
    pub free: u64,
    /// All that there is.
    pub total: u64,
}

/// The room on the file system that holds a folder.
///
/// # Errors
/// The file system does not tell.
pub fn room(folder: &Path) -> io::Result<Room> {
    let found = rustix::fs::statvfs(folder)?;
    Ok(Room {
        free: found.f_bavail.saturating_mul(found.f_frsize),
        total: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

/// Writes a file's dirty pages from the page cache to the disk, and waits for that. Only a later sync
/// reports errors.
#[expect(unsafe_code, reason = "no crate wraps sync_file_range")]
pub fn push_out(file: &fs::File) {
    #[cfg(debug_assertions)]
    super::test_disk::write_table();
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: no memory is involved; the descriptor is open.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, all) };
}

/// What is done to a read of blocks of a table, which may have to wait: nothing, but in builds for tests what
/// the test asks for.
///
/// # Errors
/// The one that the test asks for.
pub fn read_fault(file: &Path, offset: u64, may_wait: bool) -> io::Result<()> {
    #[cfg(debug_assertions)]
    return super::test_disk::read(file, offset, may_wait);
    #[cfg(not(debug_assertions))]
    rangedb_engine::lsm::no_read_fault(file, offset, may_wait)
}

/// Makes a file of zeros. Uses direct I/O, since copying the zeros through the page cache would cost
/// more than everything else, and pauses between pieces, so that writes to the segment in use are not
/// delayed.
fn write_zeros(path: &Path, len: u64) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    let mut file = options.custom_flags(libc::O_DIRECT).open(path)?;
    let zeros = AlignedBuffer::new(ZEROS_LEN);
    let zeros = zeros.as_ref();
    let mut left = len;
    while left > 0 {
        let piece = left.min(ZEROS_LEN as u64);
        let begun = Instant::now();
        file.write_all(zeros.get(..piece as usize).unwrap_or(zeros))?;
        std::thread::sleep(begun.elapsed());
        left -= piece;
    }
    file.sync_all()
}

impl Disk for RingDisk {
    type File = RingFile;

    async fn list(&self) -> io::Result<Vec<String>> {
        self.blocking(|folder| {
            let names = fs::read_dir(folder)?;
            names
                .map(|name| Ok(name?.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .await
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<RingFile> {
        let new = name.to_owned();
        self.blocking(move |folder| {
            let path = folder.join(new);
            let synced = fs::File::open(folder)?;
            // Trying to write would take the last room from other files again and again.
            if free_bytes(folder)? < len {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let written = write_zeros(&path, len).and_then(|()| synced.sync_all());
            if written.is_err() {
                // The part that was written before the disk was full is of no use.
                let _ = fs::remove_file(&path);
            }
            written
        })
        .await?;
        let opened = self.open(name).await;
        if opened.is_err() {
            self.remove(name).await?;
        }
        opened
    }

    async fn open(&self, name: &str) -> io::Result<RingFile> {
        let path = name.to_owned();
        let opened = self.blocking(move |folder| {
            let mut options = fs::OpenOptions::new();
            options.read(true).write(true);
            options.custom_flags(libc::O_DIRECT | libc::O_DSYNC);
            let file = options.open(folder.join(path))?;
            let len = file.metadata()?.len();
            Ok((file, len))
        });
        let (file, len) = opened.await?;
        lock(&file, name).await?;
        let file = Rc::new(file);
        Ok(RingFile { file, len })
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.blocking(move |folder| {
            // The folder is opened first, so that no descriptor is lacking after the rename.
            let synced = fs::File::open(folder)?;
            match fs::rename(folder.join(from), folder.join(&to)) {
                // An earlier try has renamed it, but has not made that durable.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound && folder.join(&to).exists() => {}
                renamed => renamed?,
            }
            synced.sync_all()
        })
        .await
    }

    async fn remove(&self, name: &str) -> io::Result<()> {
        let name = name.to_owned();
        self.blocking(move |folder| {
            let synced = fs::File::open(folder)?;
            match fs::remove_file(folder.join(name)) {
                // An earlier try has removed it, but has not made that durable.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed?,
            }
            synced.sync_all()
        })
        .await
    }

    async fn free_bytes(&self) -> io::Result<u64> {
        self.blocking(free_bytes).await
    }
}

impl File for RingFile {
    type Buffer = AlignedBuffer;

    fn len(&self) -> u64 {
        self.len
    }

    fn buffer(&self, len: usize) -> AlignedBuffer {
        AlignedBuffer::new(len)
    }

    async fn write_at(&self, buffer: AlignedBuffer, offset: u64) -> io::Result<()> {
        let len = buffer.as_ref().len();
        #[cfg(debug_assertions)]
        super::test_disk::write().await?;
        let written = reactor::write_at(&self.file, buffer, offset).await?;
        if written != len {
            let message = format!("{written} of {len} bytes were written");
            return Err(io::Error::new(io::ErrorKind::WriteZero, message));
        }
        Ok(())
    }

    async fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        assert!(
            len.is_multiple_of(BLOCK_LEN),
            "direct reads are of whole blocks"
        );
        reactor::read_at(&self.file, offset, len).await
    }
}
