//! A disk that can be filled: a file with a file system, mounted for one node.
//!
//! Its size is that of the file, so a full one is full for real: the kernel answers ENOSPC to
//! whoever writes, and O_DIRECT works as on any disk. Unmounted when dropped; the file goes with the
//! folder that it lies in.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::run;

/// What fills the disk.
const FILLER: &str = "filler";

/// A mounted file system of a fixed size.
#[derive(Debug)]
pub struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    /// A disk of so many MiB, mounted as `folder`, which it makes.
    ///
    /// # Errors
    /// Why there cannot be one: a right or a tool is missing.
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

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes all room that is left.
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
        // Until it is on the disk, room is only promised.
        file.sync_all().expect("it is written");
    }

    /// Gives the room back.
    pub fn make_room(&self) {
        std::fs::remove_file(self.folder.join(FILLER)).expect("it was filled");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A node that was killed a moment ago may still hold it: then it goes when that has ended.
        let _ = run("umount", &["-l", &self.folder.display().to_string()], "");
    }
}
