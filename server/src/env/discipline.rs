//! How well the kernel believes that the wall clock follows the true time.

#![expect(unsafe_code, reason = "no crate wraps adjtimex")]

use std::io;
use std::time::Duration;

/// The kernel's opinion of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discipline {
    /// Whether a time service keeps the clock.
    pub is_synchronized: bool,
    /// The largest error that the clock may have.
    pub error_max: Duration,
}

/// Asks the kernel.
///
/// # Errors
/// The kernel, or a filter of system calls, refuses.
pub fn of_clock() -> io::Result<Discipline> {
    // SAFETY: the structure holds numbers only, of which all may be zero.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call; no mode is set, so the call changes nothing.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Discipline {
        is_synchronized: state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0,
        error_max: Duration::from_micros(u64::try_from(timex.maxerror).unwrap_or_default()),
    })
}
