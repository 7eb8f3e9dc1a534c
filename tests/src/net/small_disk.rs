//! A disk that can be filled: a file with a file system, mounted for one node.
//!
//! The file limits the size, so a full disk is really full: the kernel answers every write with
//! ENOSPC, and O_DIRECT works as on any disk. Dropping it unmounts it; the file is removed with its
//! folder.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::run;

/// The file that fills the disk.
const FILLER: &str = "filler";

/// A mounted file system of a fixed size.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// Makes a disk of this size and mounts it on `folder`, which is created.
    ///
    /// # Errors
    /// A right or a tool is missing.
    pub fn new(folder: &Path, size_mib: u64) -> Result<SmallDisk, String> {
        let image = folder.with_extension("image");
        let sized = File::create(&image).and_then(|file| file.set_len(size_mib << 20));
        sized.map_err(|error| format!("{}: {error}", image.display()))?;
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        let (image, place) = (image.display().to_string(), folder.display().to_string());
        run("mkfs.ext4", &["-q", "-m", "0", &image], "")?;
        run("mount", &["-o", "loop", &image, &place], "")?;
        Ok(SmallDisk {
            folder: folder.to_owned(),
        })
    }

    /// The folder that it is mounted on.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fills all free space.
    pub fn fill(&self) {
        let file = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(FILLER));
        let mut file = file.expect("a file");
        for piece in [1 << 20, 4 << 10] {
            let piece = vec![b'f'; piece];
            while file.write_all(&piece).is_ok() {}
        }
        // Space is taken for certain only after the data is on the disk.
        file.sync_all().expect("it is written");
    }

    /// Frees the space again.
    pub fn make_room(&self) {
        std::fs::remove_file(self.folder.join(FILLER)).expect("it was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A node that was just killed may still use the disk: then the kernel unmounts it later.
        let _ = run("umount", &["-l", &self.folder.display().to_string()], "");
    }
}
