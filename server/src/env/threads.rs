//! Threads: their processors, names and priorities.

use std::ffi::CString;
use std::io;

use rustix::process::{Pid, getpid, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity, set_name};

/// The name of a thread, for `top -H` and debuggers. Linux keeps its first 15 bytes.
pub fn name_this_thread(name: &str) {
    let text = name.split('\0').next().unwrap_or_default();
    if let Ok(name) = CString::new(text) {
        // A thread without a name works as well.
        let _ = set_name(&name);
    }
}

/// Lets this thread, and those it starts, run on these processors only.
///
/// # Errors
/// The kernel refuses: a processor does not exist or is not allowed.
pub fn stay_on(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU) {
        set.set(*cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// The processors that this thread may run on.
///
/// # Errors
/// The kernel refuses.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    allowed_to(None)
}

/// The processors that a thread may run on; without one, the calling thread.
fn allowed_to(thread: Option<Pid>) -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(thread)?;
    let cpus = 0..CpuSet::MAX_CPU;
    Ok(cpus.filter(|cpu| set.is_set(*cpu)).collect())
}

/// Lets this thread run where the first one of the process may.
///
/// # Errors
/// The kernel refuses.
pub fn stay_where_the_process_may() -> io::Result<()> {
    // The first thread has the number of the process.
    stay_on(&allowed_to(Some(getpid()))?)
}

/// Has the scheduler prefer other threads to this one.
pub fn be_nice() {
    // Linux gives every thread a priority of its own: this sets the calling one's. A refusal leaves
    // it as eager as the others.
    let _ = setpriority_process(None, 10);
}

/// Ends the process at once, as a crash would.
pub fn abort() -> ! {
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a test on a thread of its own, which it may change.
    fn on_a_thread(test: fn()) {
        std::thread::spawn(test).join().expect("the test");
    }

    #[test]
    fn a_long_name_is_cut() {
        on_a_thread(|| {
            name_this_thread("compaction-of-shard-7");
            let name = std::fs::read_to_string("/proc/thread-self/comm").expect("Linux has it");
            assert_eq!(name.trim_end(), "compaction-of-s");
        });
    }

    #[test]
    fn a_thread_stays_where_it_is_put_until_it_is_let_go() {
        on_a_thread(|| {
            let all = allowed_cpus().expect("the kernel knows");
            let one = all.last().copied().expect("it runs somewhere");
            stay_on(&[one, CpuSet::MAX_CPU]).expect("it is allowed");
            assert_eq!(allowed_cpus().expect("the kernel knows"), [one]);
            stay_where_the_process_may().expect("it is allowed");
            assert_eq!(allowed_cpus().expect("the kernel knows"), all);
            stay_on(&[]).expect_err("a thread runs somewhere");
        });
    }

    #[test]
    fn only_the_thread_that_asks_gets_nice() {
        let priority = || rustix::process::getpriority_process(None).expect("the kernel knows");
        let before = priority();
        on_a_thread(|| {
            be_nice();
            let priority = rustix::process::getpriority_process(None);
            assert!(priority.is_ok_and(|priority| priority >= 10));
        });
        assert_eq!(priority(), before);
    }
}
