//! Faults of the disk, as log and tables report them: what the disk lacks, and what to do when files
//! are damaged.

use std::io;

/// What a file operation lacked that may be there again later: it failed, and may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The disk is full, or the part of it that may be used.
    Room,
    /// File descriptors, memory or threads, of this process or of the machine.
    Resources,
}

impl Lack {
    /// What was lacking; `None`: the error is of another kind, and stays.
    pub fn of(error: &io::Error) -> Option<Lack> {
        // Linux's ENOMEM, EAGAIN, ENFILE and EMFILE; std names only some of them.
        const LACKS: [i32; 4] = [12, 11, 23, 24];
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Some(Lack::Room),
            io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => Some(Lack::Resources),
            _ if LACKS.map(Some).contains(&error.raw_os_error()) => Some(Lack::Resources),
            _ => None,
        }
    }
}

/// What helps a node whose files are damaged.
pub const DAMAGED_ADVICE: &str = "never put an older copy of this node's folder back into a \
     cluster: that undoes writes which this node has acknowledged. If other nodes hold replicas of \
     its ranges, start this node with an empty data folder: it joins anew and gets everything from \
     them. A node without others can go on only from a copy of its whole folder that was made while \
     it was stopped, and loses what was written since: keep the damaged folder";
