//! Checks at the start what the machine must offer, so that an error names what is missing and what
//! to do about it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_uring::{IoUring, Probe, opcode};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Locked memory in bytes below which glommio starts no executor.
pub const MEMLOCK_MIN: u64 = 512 << 10;

/// What is missing.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// io_uring as a whole.
    #[error(
        "io_uring is not available ({0}): RangeDB needs Linux 5.13 or newer, \
         `sysctl kernel.io_uring_disabled` at 0, and in a container a seccomp profile that allows \
         io_uring_setup, io_uring_enter and io_uring_register"
    )]
    IoUring(io::Error),
    /// An io_uring operation that a shard uses.
    #[error("this kernel's io_uring lacks {0}: RangeDB needs Linux 5.13 or newer")]
    Operation(&'static str),
    /// Memory that may be locked.
    #[error(
        "the limit of locked memory is {0} KiB: glommio needs 512 KiB for each shard; raise it with \
         `ulimit -l unlimited`, or LimitMEMLOCK=infinity in a systemd unit"
    )]
    LockedMemory(u64),
    /// Direct I/O in the data folder.
    #[error(
        "the filesystem of {folder} refuses direct I/O ({error}): put --data-dir on ext4, XFS or \
         another filesystem with O_DIRECT, not on tmpfs or an overlay"
    )]
    DirectIo {
        /// The data folder that was tried.
        folder: String,
        /// The kernel's error.
        error: io::Error,
    },
}

/// Checks io_uring, the operations that a shard uses, and the limit of locked memory.
///
/// # Errors
/// See [`Missing`].
pub fn check() -> Result<(), Missing> {
    // Without a limit all memory may be locked.
    let memlock = getrlimit(Resource::Memlock).current;
    if let Some(memlock) = memlock.filter(|memlock| *memlock < MEMLOCK_MIN) {
        return Err(Missing::LockedMemory(memlock >> 10));
    }
    check_io_uring()
}

/// Checks io_uring and the operations that a shard uses.
///
/// # Errors
/// [`Missing::IoUring`] or [`Missing::Operation`].
pub fn check_io_uring() -> Result<(), Missing> {
    let ring = IoUring::new(8).map_err(Missing::IoUring)?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(Missing::IoUring)?;
    let needed = [
        (opcode::Write::CODE, "write"),
        (opcode::Read::CODE, "read"),
        (opcode::PollAdd::CODE, "poll"),
        (opcode::AsyncCancel::CODE, "cancel"),
    ];
    if let Some((_, name)) = needed
        .into_iter()
        .find(|(code, _)| !probe.is_supported(*code))
    {
        return Err(Missing::Operation(name));
    }
    Ok(())
}

/// Checks that files in a folder can be written directly.
///
/// # Errors
/// [`Missing::DirectIo`].
pub fn check_direct_io(folder: &Path) -> Result<(), Missing> {
    let tried = probe_file(folder, libc::O_DIRECT);
    tried.map(drop).map_err(|error| Missing::DirectIo {
        folder: folder.display().to_string(),
        error,
    })
}

/// Makes a file in a folder that may be others', opens it with these flags of open(2), and takes its name
/// away again. The name is random and the file is new: nothing that lies in the folder is touched, and no
/// link is followed.
///
/// # Errors
/// The system refuses.
pub fn probe_file(folder: &Path, flags: libc::c_int) -> io::Result<File> {
    let path = folder.join(format!(".rangedb-probe-{:032x}", rand::random::<u128>()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let opened = options.custom_flags(flags | libc::O_NOFOLLOW).open(&path);
    // A file system that refuses the flags may have made the file nevertheless.
    let removed = match &opened {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        _ => std::fs::remove_file(&path),
    };
    let file = opened?;
    removed.map(|()| file)
}

/// Raises this process's limit on open files as far as allowed, and returns it.
pub fn open_files() -> usize {
    let most = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: most,
        maximum: most,
    };
    // A refusal leaves the limit as it was.
    let _ = setrlimit(Resource::Nofile, raised);
    let files = getrlimit(Resource::Nofile).current;
    files.map_or(usize::MAX, |files| {
        usize::try_from(files).unwrap_or(usize::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_touch_no_file_and_follow_no_link() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let victim = folder.path().join("victim");
        std::fs::write(&victim, b"precious").expect("written");
        for name in ["direct-io.probe", "durable-write.probe"] {
            let link = folder.path().join(name);
            std::os::unix::fs::symlink(&victim, link).expect("linked");
        }
        // Whether the file system has O_DIRECT does not matter here.
        let _ = check_direct_io(folder.path());
        drop(probe_file(folder.path(), 0).expect("a file is made"));
        assert!(probe_file(folder.path(), libc::O_DIRECTORY).is_err());
        let names = std::fs::read_dir(folder.path()).expect("it is listed");
        assert_eq!(
            names.count(),
            3,
            "nothing is left behind, nothing is removed"
        );
        assert_eq!(std::fs::read(&victim).expect("read"), b"precious");
    }

    #[test]
    fn as_many_files_may_be_open_as_the_system_allows() {
        let files = open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        let most = limit.maximum.map_or(usize::MAX, |most| most as usize);
        assert_eq!(files, most);
    }
}
