//! The kernel's release, and io_uring.

use super::Check;
use crate::env::kernel::Missing;
use crate::env::root::Root;

/// The oldest kernel with everything that a shard uses.
const RELEASE_MIN: (u32, u32) = (5, 13);

pub(super) fn release(root: &Root) -> Check {
    let release = root.word("proc/sys/kernel/osrelease");
    let number = release.as_deref().and_then(number);
    let found = format!("Linux {}", release.as_deref().unwrap_or("unknown"));
    Check::new("kernel", found, "Linux 5.13 or newer").fail_if(
        number.is_none_or(|number| number < RELEASE_MIN),
        "install a newer kernel",
    )
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
fn number(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// What trying io_uring came to.
pub(super) fn io_uring(root: &Root, tried: Result<(), Missing>) -> Check {
    let wanted = "io_uring with write, read, poll and cancel";
    let missing = match tried {
        Ok(()) => return Check::new("io_uring", "available", wanted),
        Err(missing) => missing,
    };
    let disabled = root.number("proc/sys/kernel/io_uring_disabled");
    let fix = if disabled.is_some_and(|disabled| disabled > 0) {
        "set kernel.io_uring_disabled = 0 with sysctl, and in a file under /etc/sysctl.d"
    } else if super::container::has_filter(root) {
        "allow io_uring_setup, io_uring_enter and io_uring_register in the filter of system calls \
         (seccomp) of the container or of the systemd unit"
    } else {
        "install a newer kernel, Linux 5.13 or newer, with CONFIG_IO_URING"
    };
    let found = match missing {
        Missing::IoUring(error) => format!("not available: {error}"),
        other => other.to_string(),
    };
    Check::new("io_uring", found, wanted).fail_if(true, fix)
}
