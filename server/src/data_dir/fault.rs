//! The errors for which a data folder is not used.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;

/// Why a data folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum BadFolder {
    /// The system refuses an operation.
    #[error("data folder {path}: {action}: {error}")]
    Io {
        /// The file or folder.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's error.
        error: io::Error,
    },
    /// The path is not a folder.
    #[error("data folder {path} {what}; give a folder with --data-dir")]
    NoFolder {
        /// The path given as --data-dir.
        path: String,
        /// What is there instead.
        what: &'static str,
    },
    /// Another user owns the folder.
    #[error(
        "data folder {path} belongs to {owner}, and this process runs as {me}, which may not {action} \
         there; run it as {owner}, or change the owner: chown -R {uid} {path}"
    )]
    OtherOwner {
        /// The folder.
        path: String,
        /// The name of the user who owns the folder.
        owner: String,
        /// The user of this process.
        me: String,
        /// What was tried.
        action: &'static str,
        /// That user's id.
        uid: u32,
    },
    /// Another process uses the folder.
    #[error(
        "data folder {path} is in use by process {owner}; stop that process, or start this one \
         with another --data-dir"
    )]
    InUse {
        /// The folder.
        path: String,
        /// The other process's id, if known.
        owner: String,
    },
    /// Another version made the folder.
    #[error(
        "data folder {path} has format {found}, this version of rangedb knows format {known}; \
         start the version that made it, or move the data with that version's tools"
    )]
    OtherFormat {
        /// The folder.
        path: String,
        /// The format that it has.
        found: String,
        /// The format of this version.
        known: u32,
    },
    /// The cluster has refused the folder before.
    #[error("data folder {path} was refused before and stays so: {why}")]
    GivenUp {
        /// The folder.
        path: String,
        /// Why it was refused.
        why: String,
    },
    /// A part of the folder is missing or damaged.
    #[error("data folder {path}: {what}. {advice}")]
    Lost {
        /// The folder.
        path: String,
        /// What is missing, and what follows from that.
        what: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The folder was made with another setting.
    #[error(
        "data folder {path} was made with {setting} {made}, not {given}: that is fixed when a \
         folder is made; start without {setting}, or with a new --data-dir"
    )]
    OtherSetting {
        /// The folder.
        path: String,
        /// The flag of the setting, such as --split-at.
        setting: &'static str,
        /// Its value when the folder was made.
        made: String,
        /// The value given now.
        given: String,
    },
    /// A node of a cluster of several nodes in format 1, before clusters could grow.
    #[error(
        "data folder {path} belongs to a cluster of several nodes of format 1, whose replicas this \
         version cannot read; start the version that made it, copy the data with `rangedb scan`, \
         and form a new cluster of empty nodes"
    )]
    OldCluster {
        /// The folder.
        path: String,
    },
    /// The folder belongs to another cluster than the nodes of --join.
    #[error(
        "data folder {path} belongs to cluster {cluster}, but {address} of --join belongs to {other}; \
         give the list of its own cluster, or an empty folder"
    )]
    OtherCluster {
        /// The folder.
        path: String,
        /// The folder's cluster.
        cluster: String,
        /// The address of a node in the list.
        address: String,
        /// That node's cluster.
        other: String,
    },
    /// The cluster refuses this node.
    #[error("data folder {path} cannot be part of the cluster: {why}")]
    NotEnrolled {
        /// The folder.
        path: String,
        /// The reason.
        why: String,
    },
    /// The folder holds files of something else.
    #[error(
        "data folder {path} is not empty and was not made by rangedb (it has `{found}`); give an \
         empty folder with --data-dir"
    )]
    Foreign {
        /// The folder.
        path: String,
        /// A file in it.
        found: String,
    },
}

/// What to do when a part of a node's folder is lost. `in_cluster` is whether other nodes have
/// replicas of its ranges, if that is known.
pub fn advice(in_cluster: Option<bool>) -> &'static str {
    match in_cluster {
        None => {
            "If a volume is not mounted, mount it and start again. Otherwise keep this folder as it is. If \
             other nodes of a cluster have replicas of its ranges, start the node with an empty --data-dir \
             and --join NODES: it gets its replicas anew; never put back an older copy of one node's \
             folder there, since what the node has acknowledged since would be lost. A node that is alone \
             can go on only from a backup of the whole folder that was made while it was stopped"
        }
        Some(true) => {
            "If a volume is not mounted, mount it and start again. Otherwise start the node with an empty \
         --data-dir and --join NODES: it gets its replicas anew from the other nodes. Do not put back \
         an older copy of one node's folder: what it has acknowledged since would be lost"
        }
        Some(false) => {
            "If a volume is not mounted, mount it and start again. Otherwise restore a backup of the whole \
         folder, with all parts from one moment at which the node was stopped"
        }
    }
}

/// Makes an error of the system at this path into ours.
pub(super) fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> BadFolder {
    let path = path.display().to_string();
    move |error| BadFolder::Io {
        path,
        action,
        error,
    }
}

/// The owner of a folder, for messages.
pub fn owner(metadata: &Metadata) -> String {
    user(metadata.uid())
}

fn user(id: u32) -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let fields = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let mut named =
        fields.filter(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(id));
    match named.next().and_then(|fields| fields.first().copied()) {
        Some(name) => format!("{name} (uid {id})"),
        None => format!("uid {id}"),
    }
}

/// Makes an error of the system in this folder into ours; names the owner if it is about rights.
pub fn denied(
    path: &Path,
    action: &'static str,
    name: &'static str,
) -> impl FnOnce(io::Error) -> BadFolder {
    let path = path.to_owned();
    move |error| {
        let uid = geteuid().as_raw();
        let metadata = fs::metadata(&path);
        match metadata {
            Ok(found) if error.kind() == io::ErrorKind::PermissionDenied => BadFolder::OtherOwner {
                path: path.display().to_string(),
                owner: owner(&found),
                me: user(uid),
                action,
                uid,
            },
            _ if name.is_empty() => failed(&path, action)(error),
            _ => failed(&path.join(name), action)(error),
        }
    }
}
