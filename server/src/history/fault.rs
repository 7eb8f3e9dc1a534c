//! Errors of the history's files: those that may pass by themselves, and those that do not.

use std::io;

use rangedb_engine::disk_fault::Lack;

/// Why the history cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The disk is full, or the process has no more files or memory: that may pass.
    #[error("{0}")]
    Lacking(String),
    /// The files are damaged, or the disk is.
    #[error("{0}")]
    Damaged(String),
}

impl Fault {
    fn of(error: &(dyn std::error::Error + 'static)) -> Fault {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>()
                && Lack::of(error).is_some()
            {
                return Fault::Lacking(error.to_string());
            }
            cause = error.source();
        }
        Fault::Damaged(error.to_string())
    }
}

impl From<fjall::Error> for Fault {
    fn from(error: fjall::Error) -> Fault {
        Fault::of(&error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        Fault::of(&error)
    }
}
