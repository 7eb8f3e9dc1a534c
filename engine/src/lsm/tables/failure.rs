//! How an error of `lsm-tree` becomes one of the tree. Pure.

use std::io::ErrorKind;
use std::path::Path;

use super::{Table, TreeError};
use crate::lsm::LsmError;

/// Whether an error means that a file is damaged, not that the system refused an operation. A file
/// that is missing, and one that is too short for an offset in it (`EINVAL`), is damaged, too: it
/// was written once.
fn is_damage(error: &TreeError) -> bool {
    let TreeError::Io(error) = error else {
        return true;
    };
    matches!(
        error.kind(),
        ErrorKind::InvalidData
            | ErrorKind::UnexpectedEof
            | ErrorKind::InvalidInput
            | ErrorKind::NotFound
    )
}

/// The error of an operation on the tables in a folder.
pub(super) fn failed(folder: &Path, action: &'static str, error: &TreeError) -> LsmError {
    LsmError::Failed {
        folder: folder.display().to_string(),
        action,
        message: format!("{error:?}"),
        damaged: is_damage(error),
    }
}

/// The error of a read of a block of a table.
pub(super) fn unreadable(table: &Table, error: &TreeError) -> LsmError {
    LsmError::Unreadable {
        file: table.path.display().to_string(),
        message: format!("{error:?}"),
    }
}
