//! Threads: where they may run, what they are called, how eager they are.

#![expect(unsafe_code, reason = "std places no threads")]

use std::io;

/// The name of a thread, for `top -H` and debuggers. Cut to what Linux takes, 15 bytes.
pub fn name_this_thread(name: &str) {
    let mut bytes = [0; 16];
    bytes
        .iter_mut()
        .take(15)
        .zip(name.as_bytes())
        .for_each(|(to, from)| *to = *from);
    // SAFETY: the bytes end with a zero and live through the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
}

/// Lets this thread, and those it starts, run on these processors only.
///
/// # Errors
/// The kernel refuses: a processor does not exist or is not allowed.
pub fn stay_on(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an empty set is all zeros, and the macros stay within it for the numbers checked.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
            libc::CPU_SET(*cpu, &mut set);
        }
        set
    };
    // SAFETY: the set lives through the call; 0 is the calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The processors that this thread may run on.
///
/// # Errors
/// The kernel refuses.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    allowed_to(0)
}

/// The processors that a thread may run on; 0 is the calling one.
fn allowed_to(thread: libc::pid_t) -> io::Result<Vec<usize>> {
    // SAFETY: the kernel fills a set that lives through the call; the macro reads within it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(thread, size_of_val(&set), &raw mut set) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((0..libc::CPU_SETSIZE as usize)
            .filter(|cpu| libc::CPU_ISSET(*cpu, &set))
            .collect())
    }
}

/// Lets this thread run where the first one of the process may.
///
/// # Errors
/// The kernel refuses.
pub fn stay_where_the_process_may() -> io::Result<()> {
    // The first thread has the number of the process.
    stay_on(&allowed_to(std::process::id() as libc::pid_t)?)
}

/// Has the scheduler prefer other threads to this one.
pub fn be_nice() {
    // SAFETY: no memory is involved; 0 is the calling thread on Linux.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

/// Has the kernel back the memory of this process with small pages only. Of a group's queues most is
/// never used: a huge page under each costs ten times the memory, and zeroing it stops the shard.
pub fn use_small_pages() {
    // SAFETY: no memory is involved. A kernel that refuses leaves things as they are.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Ends the process at once, as a crash would.
pub fn abort() -> ! {
    std::process::abort()
}
