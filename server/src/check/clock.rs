//! The wall clock: whether a time service keeps it, and whether reading it takes a system call.

use std::io;
use std::time::Duration;

use super::Check;
use crate::env::discipline::Discipline;
use crate::env::root::Root;

/// Clocks of two nodes may differ by 500 ms, so each may be wrong by half of that.
const ERROR_MAX: Duration = Duration::from_millis(250);
/// Sources that the kernel must ask a device for: a microsecond for each look at the clock.
const SLOW_SOURCES: [&str; 4] = ["hpet", "acpi_pm", "jiffies", "refined-jiffies"];

pub(super) fn discipline(asked: io::Result<Discipline>) -> Check {
    let wanted = "a clock that a time service keeps within 250 ms";
    let fix = "run chrony or systemd-timesyncd, here or, in a container, on the host";
    match asked {
        // A service's unit keeps the calls for the clock from it, and rightly so.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let found = "not known: a filter of system calls denies adjtimex";
            Check::new("clock", found, wanted)
        }
        Err(error) => Check::new("clock", format!("the kernel does not say: {error}"), wanted)
            .warn_if(true, "allow adjtimex in the filter of system calls"),
        Ok(found) => {
            let shown = if found.is_synchronized {
                format!("synchronized, wrong by at most {:?}", found.error_max)
            } else {
                "not synchronized".to_owned()
            };
            let is_kept = found.is_synchronized && found.error_max <= ERROR_MAX;
            Check::new("clock", shown, wanted).warn_if(!is_kept, fix)
        }
    }
}

pub(super) fn source(root: &Root) -> Check {
    let folder = "sys/devices/system/clocksource/clocksource0";
    let source = root.word(&format!("{folder}/current_clocksource"));
    let is_slow = source
        .as_deref()
        .is_some_and(|source| SLOW_SOURCES.contains(&source));
    Check::new(
        "clock_source",
        source.unwrap_or_else(|| "unknown".to_owned()),
        "one that is read without a system call, such as tsc",
    )
    .warn_if(
        is_slow,
        "look in the kernel's log why tsc was given up; `tsc=reliable` on the kernel's command line, if it is",
    )
}
