//! Huge pages for a node that holds data, and small ones for an idle node.
//!
//! The allocator asks the kernel for huge pages. They make gets from a full block cache 7 to 25 %
//! cheaper, and filling it by a third. But most of what an idle node touches is spread thinly: with
//! huge pages four idle shards take 136 MB, with small ones 58 MB (2026-11-28). So the node begins
//! with small pages, and lets the kernel use huge ones when it holds data. Memory that was touched before
//! keeps its small pages until the kernel merges them. Lives on the control thread.

use std::time::Duration;

use rustix::thread::disable_transparent_huge_pages;

/// How often the memory of the process is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Has the kernel back the memory of this process with small pages only, whatever the allocator asks
/// for.
pub fn begin_without() {
    // A kernel that refuses leaves things as they are.
    let _ = disable_transparent_huge_pages(true);
}

/// Allows huge pages as soon as this many bytes of the process are in memory, or if that is unknown.
pub async fn allow_from(resident_min: u64) {
    while resident().is_some_and(|resident| resident < resident_min) {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let _ = disable_transparent_huge_pages(false);
}

/// Bytes of the process that are in memory.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use rustix::thread::transparent_huge_pages_are_disabled;

    use super::*;

    fn are_allowed() -> bool {
        !transparent_huge_pages_are_disabled().expect("Linux knows")
    }

    #[test]
    fn huge_pages_are_allowed_when_enough_is_in_memory() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        begin_without();
        assert!(!are_allowed());
        let resident = resident().expect("Linux tells");
        let too_much = allow_from(resident << 10);
        let waited = runtime
            .block_on(async { tokio::time::timeout(Duration::from_millis(1), too_much).await });
        assert!(waited.is_err() && !are_allowed());
        runtime.block_on(allow_from(resident / 2));
        assert!(are_allowed());
    }
}
