//! What the kernel says about itself in files, under a root folder that tests can make up.

use std::path::{Path, PathBuf};

/// The folder that holds `proc` and `sys`.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The machine's own root.
    pub fn of_machine() -> Root {
        Root(PathBuf::from("/"))
    }

    /// A folder that holds made-up `proc` and `sys`.
    pub fn at(folder: &Path) -> Root {
        Root(folder.to_owned())
    }

    /// Where a path that has no slash in front lies under this root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// A file's text; `None` if it cannot be read.
    pub fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.path(path)).ok()
    }

    /// A file's text without the space around it; `None` if it cannot be read or is empty.
    pub fn word(&self, path: &str) -> Option<String> {
        let text = self.text(path)?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// The number in a file; `None` if there is none.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.word(path)?.parse().ok()
    }

    /// The number in kibibytes behind a name in `/proc/meminfo`, in bytes.
    pub fn memory(&self, name: &str) -> Option<u64> {
        let text = self.text("proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib = line.strip_prefix(':')?.trim().strip_suffix("kB")?;
        Some(kib.trim().parse::<u64>().ok()? << 10)
    }
}
