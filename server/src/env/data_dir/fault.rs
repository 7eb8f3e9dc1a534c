//! Why a data folder is not used.

use std::io;
use std::path::Path;

use super::identity::FORMAT;

/// Why a folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum BadFolder {
    /// The system refuses.
    #[error("data folder {path}: {action}: {error}")]
    Io {
        /// What was touched.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The system's words.
        error: io::Error,
    },
    /// The path names something else.
    #[error("data folder {path} {what}; give a folder with --data-dir")]
    NoFolder {
        /// What was given.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// The folder is somebody else's.
    #[error(
        "data folder {path} belongs to {owner}, and this process runs as {me}, which may not {action} \
         there; run it as {owner}, or change the owner: chown -R {uid} {path}"
    )]
    OtherOwner {
        /// The folder.
        path: String,
        /// Whose it is.
        owner: String,
        /// Who tried.
        me: String,
        /// What was tried.
        action: &'static str,
        /// The id of who tried.
        uid: u32,
    },
    /// Another process uses it.
    #[error(
        "data folder {path} is in use by process {owner}; stop that process, or start this one \
         with another --data-dir"
    )]
    InUse {
        /// The folder.
        path: String,
        /// The process.
        owner: String,
    },
    /// Another version made it.
    #[error(
        "data folder {path} has format {found}, this version of rangedb knows format {FORMAT}; \
         start the version that made it, or move the data with that version's tools"
    )]
    OtherFormat {
        /// The folder.
        path: String,
        /// Its format.
        found: String,
    },
    /// The cluster has refused it before.
    #[error("data folder {path} was refused before and stays so: {why}")]
    GivenUp {
        /// The folder.
        path: String,
        /// Why it was refused.
        why: String,
    },
    /// A part of it is missing or damaged.
    #[error("data folder {path}: {what}. {advice}")]
    Lost {
        /// The folder.
        path: String,
        /// What is missing, and what that means.
        what: String,
        /// What helps.
        advice: &'static str,
    },
    /// It was made with other settings.
    #[error(
        "data folder {path} was made with {setting} {made}, not {given}: that is fixed when a \
         folder is made; start with {setting} {made}, or with a new --data-dir"
    )]
    OtherSetting {
        /// The folder.
        path: String,
        /// Which setting.
        setting: &'static str,
        /// What the folder has.
        made: String,
        /// What was asked.
        given: String,
    },
    /// A folder of several nodes that were formed before clusters could grow.
    #[error(
        "data folder {path} belongs to a cluster of several nodes of format 1, whose replicas this \
         version cannot read; start the version that made it, copy the data with `rangedb scan`, \
         and form a new cluster of empty nodes"
    )]
    OldCluster {
        /// The folder.
        path: String,
    },
    /// It belongs to another cluster than the nodes of --join.
    #[error(
        "data folder {path} belongs to cluster {cluster}, but {address} of --join belongs to {other}; \
         give the list of its own cluster, or an empty folder"
    )]
    OtherCluster {
        /// The folder.
        path: String,
        /// Its cluster.
        cluster: String,
        /// A node of the list.
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
    /// It holds something else.
    #[error(
        "data folder {path} is not empty and was not made by rangedb (it has `{found}`); give an \
         empty folder with --data-dir"
    )]
    Foreign {
        /// The folder.
        path: String,
        /// What is in it.
        found: String,
    },
}

/// What helps when a part of a node's folder is lost; `in_cluster`: whether other nodes have replicas of
/// its ranges, if that is known.
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

/// What is done with an error of the system at this path.
pub(super) fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> BadFolder {
    let path = path.display().to_string();
    move |error| BadFolder::Io {
        path,
        action,
        error,
    }
}
