//! What the kernel counts of this process and its threads, and the room of its disk.

use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Ticks a second in `/proc`: `USER_HZ`, which is part of Linux' interface.
const TICKS_PER_SECOND: f64 = 100.0;
/// Where `starttime` stands in `/proc/self/stat` after the name of the program: proc_pid_stat(5).
const START_TIME_FIELD: usize = 19;

/// What the kernel counts of this process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Process {
    /// Processor time of all threads.
    pub cpu: Duration,
    /// Memory that it has in use.
    pub resident_bytes: u64,
    /// Addresses that it has reserved.
    pub virtual_bytes: u64,
    /// Open files and sockets.
    pub open_files: usize,
    /// When it started, in seconds since 1970.
    pub started: f64,
}

impl Process {
    /// Asks the kernel; `None` if `/proc` is not readable.
    pub fn now() -> Option<Process> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let cpu = cpu_time(ClockId::ProcessCPUTime);
        // The directory that counts is open itself.
        let open_files = std::fs::read_dir("/proc/self/fd").ok()?.count() - 1;
        Some(Process {
            cpu,
            resident_bytes: kib_of(&status, "VmRSS:")? << 10,
            virtual_bytes: kib_of(&status, "VmSize:")? << 10,
            open_files,
            started: started()?,
        })
    }
}

fn cpu_time(clock: ClockId) -> Duration {
    let cpu = clock_gettime(clock);
    Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec as u32)
}

/// The CPU time that the calling thread has used since it began. A system call.
pub fn thread_cpu_time() -> Duration {
    cpu_time(ClockId::ThreadCPUTime)
}

fn kib_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn started() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program may have spaces and brackets.
    let fields = stat.rsplit_once(')')?.1;
    let ticks = fields.split_whitespace().nth(START_TIME_FIELD)?;
    let since_boot = ticks.parse::<f64>().ok()? / TICKS_PER_SECOND;
    let system = std::fs::read_to_string("/proc/stat").ok()?;
    let boot = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<f64>().ok()? + since_boot)
}

/// The room of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRoom {
    /// Its size in bytes.
    pub size: u64,
    /// Bytes that a process without privileges may still write.
    pub free: u64,
    /// Files that may still be made.
    pub free_inodes: u64,
}

impl DiskRoom {
    /// The room of the file system that holds a folder; `None` if there is no such folder.
    pub fn of(folder: &Path) -> Option<DiskRoom> {
        let found = rustix::fs::statvfs(folder).ok()?;
        Some(DiskRoom {
            size: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
            free_inodes: found.f_favail,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_kernel_knows_this_process() {
        let process = Process::now().expect("/proc");
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let age = wall.expect("it is after 1970").as_secs_f64() - process.started;
        assert!((-2.0..86_400.0).contains(&age), "{age}");
        assert!(process.resident_bytes > 1 << 20);
        assert!(process.virtual_bytes >= process.resident_bytes);
        assert!(process.open_files >= 3);
        let room = DiskRoom::of(Path::new("/")).expect("a root");
        assert!(room.free <= room.size);
    }
}
