//! The data folder: which node it belongs to, which version made it, and that only one process uses
//! it.
//!
//! | name | what |
//! |---|---|
//! | `LOCK` | locked by the process that uses the folder; holds its process id |
//! | `node.json` | format version, cluster, node, shards, borders, the shards' logs, addresses of others |
//! | `enrolling` | the token by which the cluster knows this folder |
//! | `shard-N/wal/` | the log of shard N |
//! | `shard-N/tables/` | the tables of shard N |
//! | `history/`, `history.damaged-TIME/` | the node's history, on which nothing depends |
//!
//! Nothing in a folder is touched before it is known to be ours or empty.
//!
//! `node.json` is written before a shard makes anything in its folders, and names the log of each
//! shard by a random id. When a shard has made its log for the first time, `node.json` records that
//! durably before the shard serves. So a folder without `node.json` whose shards have files has
//! lost it, and a shard without a log is new only if its log was never recorded; everything else is
//! refused. `rangedb_engine::shard` compares the log of a shard with its tables.
//!
//! The number of shards may change at a start. Shards are added empty. Those with the highest numbers are
//! given up: they are opened until they hold nothing, and the running node notes that in `node.json`. The
//! next start removes their folders. What must outlive them, the highest id of a replica that they had,
//! stays in `node.json`.
//!
//! Format 1 had no clusters that grow: its folders of a cluster of one node are converted, those of
//! several nodes are refused. Format 2 did not name logs: they get their names at the first start.

mod fault;
#[cfg(test)]
mod fuzz;
mod identity;
mod look;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rangedb_engine::disk_fault::Lack;
use rangedb_engine::shard::Opened;

pub use fault::{BadFolder, advice};
use fault::{denied, failed};
pub use identity::{FORMAT, Identity, LogName, Membership, give_up, write_identity};
use identity::{Found, read};

use crate::config::Config;

/// The id of the node that bootstraps a cluster.
pub const FOUNDER: u64 = 1;
/// The folder of the node's history within its data folder.
pub const HISTORY: &str = "history";
/// The name of a part of the history that was damaged begins so; a dash and the time follow.
pub const DAMAGED_HISTORY: &str = "history.damaged";
const LOCK: &str = "LOCK";
const TOKEN: &str = "enrolling";

/// What a new folder becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Birth {
    /// The node that bootstraps a new cluster.
    Founder,
    /// A node that joins a cluster.
    Member(Membership),
}

/// The settings for opening or making a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderOptions {
    /// The number of shards that the node must have, if it was given.
    pub shards: Option<u16>,
    /// The number of shards of a new folder, if none was given.
    pub shards_if_new: u16,
    /// The keys at which the first ranges are split, if they were given.
    pub split_at: Vec<Vec<u8>>,
}

impl FolderOptions {
    /// The options that the settings of a node give.
    pub fn of(config: &Config) -> FolderOptions {
        FolderOptions {
            shards: config.shards_given.then_some(config.shards),
            shards_if_new: config.shards,
            split_at: config.split_at.clone(),
        }
    }
}

/// A data folder, locked by this process until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// The content of `node.json`.
    pub identity: Identity,
    /// Distinguishes this process from others with the same number of starts; 0 if this start could
    /// not be counted.
    pub random: u64,
    _lock: File,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl DataDir {
    /// Whether a folder has a `node.json`.
    pub fn was_made(path: &Path) -> bool {
        path.join(identity::IDENTITY).exists()
    }

    /// The id of the process that last used a folder; it may have ended since.
    pub fn last_user(path: &Path) -> Option<u32> {
        fs::read_to_string(path.join(LOCK))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// Looks whether a node could be started on a folder: gives what its `node.json` says, or `None` for
    /// one that a start would make or finish. Changes nothing, and does not mind a process that uses it.
    ///
    /// # Errors
    /// [`BadFolder`]: a start refuses the folder.
    pub fn look(path: &Path, options: &FolderOptions) -> Result<Option<Identity>, BadFolder> {
        if !look::is_ours(path)? {
            return Ok(None);
        }
        let Some(Found { identity, .. }) = read(path)? else {
            return Ok(None);
        };
        check(path, &identity, options)?;
        for shard in 0..identity.shards {
            if identity.mark(shard).opened != Opened::Never {
                look::check_parts(path, shard, identity.is_of_cluster())?;
            }
        }
        Ok(Some(identity))
    }

    /// Opens a folder, or makes one with these settings. For a new folder `be_born` decides what it
    /// becomes; it gets a token made for this folder.
    ///
    /// # Errors
    /// See [`BadFolder`].
    pub fn open(
        path: &Path,
        options: &FolderOptions,
        be_born: impl FnOnce(&str) -> Result<Birth, String>,
    ) -> Result<DataDir, BadFolder> {
        if !look::is_ours(path)? {
            look::make_folder(path).map_err(failed(path, "make"))?;
        }
        make_private(path)?;
        let lock = lock(path)?;
        // Until the lock was held, another process may have used the folder.
        look::is_ours(path)?;
        let (identity, is_counted) = match read(path)? {
            Some(found) => reopen(path, found, options)?,
            None => (make(path, options, be_born)?, true),
        };
        Ok(DataDir {
            path: path.to_owned(),
            identity,
            random: if is_counted { rand::random() } else { 0 },
            _lock: lock,
        })
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a shard's log.
    pub fn wal(&self, shard: u16) -> PathBuf {
        look::part(&self.path, shard, "wal")
    }

    /// The number of tables of all shards.
    pub fn count_tables(&self) -> usize {
        let folders = (0..self.identity.shards).map(|shard| self.tables(shard).join("tables"));
        // A folder that is missing has no tables.
        folders
            .filter_map(|folder| fs::read_dir(folder).ok())
            .map(Iterator::count)
            .sum()
    }

    /// The folder of a shard's tables.
    pub fn tables(&self, shard: u16) -> PathBuf {
        look::part(&self.path, shard, "tables")
    }

    /// The keys at which the first ranges were split.
    pub fn split_at(&self) -> Vec<Vec<u8>> {
        let keys = self.identity.split_at.iter();
        keys.map(|key| unhex(key)).collect()
    }
}

/// Reverses [`hex`].
fn unhex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks_exact(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.filter_map(byte).collect()
}

/// Makes the folder readable by its owner alone, even if it was made otherwise.
fn make_private(path: &Path) -> Result<(), BadFolder> {
    let metadata = fs::metadata(path).map_err(failed(path, "look at"))?;
    if metadata.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    // Volumes often have a group or another owner, or no access rights at all.
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(0o700)) {
        let owner = fault::owner(&metadata);
        tracing::warn!(
            %error, folder = %path.display(), owner,
            "the data folder could not be made private: other users of this machine may read it"
        );
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, BadFolder> {
    let name = path.join(LOCK);
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(&name).map_err(denied(path, "write", LOCK))?;
    if file.try_lock().is_err() {
        let mut owner = String::new();
        // The process id is for the message only.
        let _ = file.read_to_string(&mut owner);
        let owner = if owner.trim().is_empty() {
            "unknown".to_owned()
        } else {
            owner.trim().to_owned()
        };
        return Err(BadFolder::InUse {
            path: path.display().to_string(),
            owner,
        });
    }
    let write = |mut file: &File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    match write(&file) {
        // On a full disk the lock holds without the process id.
        Err(error) if Lack::of(&error) == Some(Lack::Room) => {}
        written => written.map_err(failed(&name, "write"))?,
    }
    Ok(file)
}

/// Opens a folder that was made before; returns whether this start was counted.
fn reopen(
    path: &Path,
    found: Found,
    options: &FolderOptions,
) -> Result<(Identity, bool), BadFolder> {
    let Found {
        mut identity,
        is_older,
    } = found;
    check(path, &identity, options)?;
    // Before a shard with the same number can be made again.
    for shard in std::mem::take(&mut identity.gone_shards) {
        look::remove_shard(path, shard)?;
    }
    let shards = options.shards.unwrap_or_else(|| identity.staying_shards());
    let had = (identity.shards, identity.leaving_shards);
    identity.keep_shards(shards);
    let is_changed = had != (identity.shards, identity.leaving_shards);
    for shard in 0..identity.shards {
        if identity.mark(shard).opened == Opened::Never {
            look::make_parts(path, shard)?;
        } else {
            look::check_parts(path, shard, identity.is_of_cluster())?;
        }
    }
    identity.starts += 1;
    match write_identity(path, &identity) {
        Ok(()) => Ok((identity, true)),
        // A log must not carry a name that `node.json` does not durably have.
        Err(error) if is_older || is_changed => Err(failed(path, "write node.json")(error)),
        Err(error) => {
            // A full disk must not keep a node from starting.
            tracing::warn!(%error, "node.json was not written: this start is not counted");
            Ok((identity, false))
        }
    }
}

fn check(path: &Path, identity: &Identity, options: &FolderOptions) -> Result<(), BadFolder> {
    // What is not given stays as the folder was made.
    let split_at: Vec<String> = options.split_at.iter().map(|key| hex(key)).collect();
    if !split_at.is_empty() && identity.split_at != split_at {
        let made = identity.split_at.iter().map(|key| unhex(key)).collect();
        return Err(BadFolder::OtherSetting {
            path: path.display().to_string(),
            setting: "--split-at",
            made: borders(made),
            given: borders(options.split_at.clone()),
        });
    }
    Ok(())
}

/// Keys as they are typed in --split-at.
fn borders(keys: Vec<Vec<u8>>) -> String {
    let typed = |key: Vec<u8>| -> String {
        let byte = |byte: &u8| match byte {
            b'\\' | b',' => format!("\\x{byte:02x}"),
            0x21..=0x7e => char::from(*byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        };
        key.iter().map(byte).collect()
    };
    let keys: Vec<String> = keys.into_iter().map(typed).collect();
    match keys.is_empty() {
        true => "none".to_owned(),
        false => keys.join(","),
    }
}

/// Makes a folder, or finishes one whose making was cut off by a crash.
fn make(
    path: &Path,
    options: &FolderOptions,
    be_born: impl FnOnce(&str) -> Result<Birth, String>,
) -> Result<Identity, BadFolder> {
    let shards = options.shards.unwrap_or(options.shards_if_new);
    for shard in 0..shards {
        look::make_parts(path, shard)?;
    }
    let token = token(path).map_err(denied(path, "write", TOKEN))?;
    let birth = be_born(&token).map_err(|why| BadFolder::NotEnrolled {
        path: path.display().to_string(),
        why,
    })?;
    let membership = match birth {
        Birth::Founder => Membership {
            cluster: format!("{:032x}", rand::random::<u128>()),
            node: FOUNDER,
            addresses: BTreeMap::new(),
            system: vec![(FOUNDER, 0)],
        },
        Birth::Member(membership) => membership,
    };
    let mut identity = Identity {
        format: FORMAT,
        cluster: membership.cluster,
        node: membership.node,
        shards,
        split_at: options.split_at.iter().map(|key| hex(key)).collect(),
        addresses: membership.addresses,
        system: membership.system,
        starts: 1,
        lives: BTreeMap::new(),
        logs: Vec::new(),
        given_up: None,
        leaving_shards: 0,
        gone_shards: Vec::new(),
        gone_replica: 0,
        first_shards: None,
    };
    identity.name_logs(Some(0));
    // This file comes last: a crash before it leaves a folder whose making begins again.
    write_identity(path, &identity).map_err(failed(path, "write node.json"))?;
    Ok(identity)
}

/// Makes a file, or empties the one that is there. A link is refused: the folder may have been somebody
/// else's before, and what the link leads to is not ours.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    options.custom_flags(libc::O_NOFOLLOW).open(path)
}

/// The token by which the cluster knows this folder; durable before it is used.
fn token(path: &Path) -> io::Result<String> {
    let name = path.join(TOKEN);
    match fs::read_to_string(&name) {
        Ok(token) if token.len() == 32 => return Ok(token),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let token = format!("{:032x}", rand::random::<u128>());
    let mut file = create(&name)?;
    file.write_all(token.as_bytes())?;
    file.sync_all()?;
    File::open(path)?.sync_all()?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::identity::{DRAFT, IDENTITY};
    use super::*;

    fn open(path: &Path, shards: u16, split_at: &[&str]) -> Result<DataDir, BadFolder> {
        let keys: Vec<Vec<u8>> = split_at.iter().map(|key| key.as_bytes().to_vec()).collect();
        let options = FolderOptions {
            shards: Some(shards),
            shards_if_new: 1,
            split_at: keys,
        };
        DataDir::open(path, &options, |_| Ok(Birth::Founder))
    }

    fn options(shards: Option<u16>) -> FolderOptions {
        FolderOptions {
            shards,
            shards_if_new: 1,
            split_at: Vec::new(),
        }
    }

    /// Writes a file into each part of each shard, and records that the logs were opened.
    fn use_shards(path: &Path) {
        let mut identity = read(path).expect("it is read").expect("is there").identity;
        for shard in 0..identity.shards {
            for part in ["wal", "tables"] {
                fs::write(look::part(path, shard, part).join("file"), b"x").expect("written");
            }
        }
        for log in &mut identity.logs {
            log.opened = Some(1);
        }
        write_identity(path, &identity).expect("written");
    }

    fn lost(path: &Path) -> String {
        match open(path, 2, &[]) {
            Err(error @ BadFolder::Lost { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_folder_is_made_once_and_private() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new");
        let first = open(&path, 2, &["m"]).expect("made");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(first.wal(1).is_dir() && first.tables(0).is_dir());
        let mut identity = first.identity.clone();
        assert_eq!(identity.starts, 1);
        drop(first);
        identity.starts = 2;
        assert_eq!(open(&path, 2, &["m"]).expect("opens").identity, identity);
        identity.starts = 3;
        assert_eq!(open(&path, 2, &[]).expect("opens").identity, identity);
    }

    #[test]
    fn other_settings_and_owners_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new");
        let first = open(&path, 2, &["m"]).expect("made");
        let error = open(&path, 2, &["m"]).expect_err("in use");
        assert!(
            error.to_string().contains(&std::process::id().to_string()),
            "{error}"
        );
        drop(first);
        let error = open(&path, 2, &["n"]).expect_err("other borders");
        assert!(error.to_string().contains("--split-at m, not n"), "{error}");
        let opened = DataDir::open(&path, &options(None), |_| Ok(Birth::Founder));
        assert_eq!(opened.expect("as it was made").identity.shards, 2);
    }

    /// The number of shards, of those that are given up, and of the folders of shards.
    fn counts(path: &Path, opened: &DataDir) -> (u16, u16, usize) {
        let folders = fs::read_dir(path).expect("it is listed").filter(|entry| {
            let name = entry.as_ref().expect("a name").file_name();
            name.to_string_lossy().starts_with("shard-")
        });
        let identity = &opened.identity;
        (identity.shards, identity.leaving_shards, folders.count())
    }

    #[test]
    fn shards_are_added_empty_and_given_up_once_they_hold_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new");
        let reopen = |shards| DataDir::open(&path, &options(shards), |_| Ok(Birth::Founder));
        let made = open(&path, 2, &["m"]).expect("made");
        let first = made.identity.mark(1);
        drop(made);
        use_shards(&path);
        let more = reopen(Some(4)).expect("two more");
        assert_eq!(counts(&path, &more), (4, 0, 4));
        let marks = [1, 2, 3].map(|shard| more.identity.mark(shard).opened);
        assert_eq!(marks, [Opened::At(1), Opened::Never, Opened::Never]);
        assert_eq!(more.identity.mark(1).log, first.log);
        assert_eq!(more.identity.first_shards(), 2, "they get no first range");
        drop(more);
        use_shards(&path);
        // Three are given up; what is not given stays so.
        drop(reopen(Some(1)).expect("opens"));
        let mut fewer = reopen(None).expect("opens");
        assert_eq!(counts(&path, &fewer), (4, 3, 4));
        let identity = &mut fewer.identity;
        assert!(!identity.lose_last_shard(2, 9), "the last one goes first");
        assert!(identity.lose_last_shard(3, 70) && identity.lose_last_shard(2, 9));
        write_identity(&path, identity).expect("written");
        drop(fewer);
        // Until the next start the process has their folders open.
        assert!(path.join("shard-3").exists());
        let fewer = reopen(None).expect("opens");
        assert_eq!(counts(&path, &fewer), (2, 1, 2));
        assert_eq!(fewer.identity.gone_replica, 70);
        assert_eq!(fewer.identity.mark(1).log, first.log);
        drop(fewer);
        // Back up: the one that was being given up stays, and one is made with another log.
        let gone = read(&path).expect("it is read").expect("is there");
        let mut gone = gone.identity;
        assert!(gone.lose_last_shard(1, 80));
        assert!(!gone.lose_last_shard(0, 80), "the others stay");
        write_identity(&path, &gone).expect("written");
        let more = reopen(Some(3)).expect("opens");
        assert_eq!(counts(&path, &more), (3, 0, 3));
        assert_ne!(more.identity.mark(1).log, first.log);
        assert_eq!(more.identity.mark(1).opened, Opened::Never);
        let part = look::part(&path, 1, "wal");
        assert_eq!(fs::read_dir(part).expect("it is there").count(), 0);
        let identity = &more.identity;
        assert_eq!((identity.gone_replica, identity.first_shards()), (80, 2));
        assert!(identity.gone_shards.is_empty());
    }

    #[test]
    fn shards_that_are_being_given_up_may_stay_after_all() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new");
        let reopen = |shards| DataDir::open(&path, &options(shards), |_| Ok(Birth::Founder));
        let logs = open(&path, 4, &[]).expect("made").identity.logs;
        for (shards, leaving) in [(1, 3), (3, 1), (2, 2), (4, 0)] {
            let opened = reopen(Some(shards)).expect("opens");
            assert_eq!(counts(&path, &opened), (4, leaving, 4), "{shards}");
            assert_eq!(opened.identity.logs, logs);
        }
        // A number that makes no sense is damage.
        let mut wrong = reopen(None).expect("opens").identity;
        wrong.leaving_shards = 4;
        write_identity(&path, &wrong).expect("written");
        let error = reopen(None).expect_err("it has no shard left").to_string();
        assert!(error.contains("gives up 4 of 4"), "{error}");
        wrong.leaving_shards = 0;
        wrong.gone_shards = vec![3];
        write_identity(&path, &wrong).expect("written");
        let error = reopen(None).expect_err("it would be removed").to_string();
        assert!(error.contains("has given it up"), "{error}");
    }

    #[test]
    fn other_formats_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("photo.jpg"), b"x").expect("written");
        assert!(matches!(
            open(folder.path(), 1, &[]),
            Err(BadFolder::Foreign { .. })
        ));
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join(IDENTITY), b"{\"format\": 9}").expect("written");
        let error = open(folder.path(), 1, &[]).expect_err("another format");
        assert!(error.to_string().contains("format 9"), "{error}");
        fs::write(folder.path().join(IDENTITY), b"garbage").expect("written");
        let error = open(folder.path(), 1, &[]).expect_err("no JSON");
        assert!(
            error.to_string().contains("node.json is damaged"),
            "{error}"
        );
        assert!(!folder.path().join(LOCK).exists(), "it was touched");
    }

    #[test]
    fn folders_of_format_1_are_taken_over_unless_they_are_of_several_nodes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let old = r#"{"format":1,"cluster":"0a","node":1,"shards":2,"split_at":["6d"],"nodes":[],"enrolled":{}}"#;
        fs::write(folder.path().join(IDENTITY), old).expect("written");
        let error = open(folder.path(), 2, &["m"]).expect_err("no logs");
        assert!(
            error.to_string().contains("shard-0/wal is missing"),
            "{error}"
        );
        for shard in 0..2 {
            look::make_parts(folder.path(), shard).expect("made");
            for part in ["wal", "tables"] {
                fs::write(look::part(folder.path(), shard, part).join("f"), "x").expect("written");
            }
        }
        let opened = open(folder.path(), 2, &["m"]).expect("taken over");
        assert_eq!(opened.identity.mark(1).opened, Opened::Unmarked);
        assert_eq!((opened.identity.format, opened.identity.node), (FORMAT, 1));
        drop(opened);
        let again = open(folder.path(), 2, &[]).expect("opens");
        assert_eq!(again.identity.system, [(1, 0)]);
        drop(again);
        let of_three = old.replace("\"nodes\":[]", "\"nodes\":[\"a:1\",\"b:1\",\"c:1\"]");
        fs::write(folder.path().join(IDENTITY), of_three).expect("written");
        let error = open(folder.path(), 2, &[]).expect_err("refused");
        assert!(error.to_string().contains("form a new cluster"), "{error}");
    }

    #[test]
    fn a_folder_that_was_refused_stays_refused_unless_it_was_started_since() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new");
        let mut first = open(&path, 1, &[]).expect("made").identity;
        use_shards(&path);
        let second = open(&path, 1, &[]).expect("opens").identity;
        give_up(&path, &mut first, "the first").expect("nothing is done");
        let mut third = open(&path, 1, &[]).expect("opens").identity;
        assert_eq!(third.starts, second.starts + 1);
        give_up(&path, &mut third, "it is older").expect("written");
        for _ in 0..2 {
            let refused = open(&path, 1, &[]).expect_err("refused");
            assert!(refused.to_string().contains("it is older"), "{refused}");
        }
    }

    #[test]
    fn numbers_that_no_node_has_are_damage() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("new");
        let made = open(&path, 1, &[]).expect("made").identity;
        for shards in [0, u16::MAX] {
            let mut wrong = made.clone();
            wrong.shards = shards;
            wrong.logs.clear();
            write_identity(&path, &wrong).expect("written");
            let refused = open(&path, 1, &[]).expect_err("refused");
            assert!(refused.to_string().contains("shards"), "{refused}");
        }
        let mut wrong = made.clone();
        wrong.logs[0].id = "none".to_owned();
        write_identity(&path, &wrong).expect("written");
        let refused = open(&path, 1, &[]).expect_err("refused");
        assert!(refused.to_string().contains("damaged"), "{refused}");
    }

    #[test]
    fn a_making_that_was_cut_off_is_finished() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("shard-0")).expect("made");
        fs::write(folder.path().join(DRAFT), b"{").expect("written");
        open(folder.path(), 2, &[]).expect("made");
    }

    #[test]
    fn what_was_used_and_is_missing_is_named() {
        let temp = tempfile::tempdir().expect("a temporary folder");
        let path = temp.path().join("data");
        drop(open(&path, 2, &[]).expect("made"));
        // The shards have made nothing yet, so their folders are made again.
        fs::remove_dir_all(path.join("shard-1")).expect("removed");
        drop(open(&path, 2, &[]).expect("finished"));
        use_shards(&path);
        drop(open(&path, 2, &[]).expect("opens"));
        for (removed, named) in [
            ("shard-1", "shard-1/wal is missing"),
            ("shard-0/wal", "shard-0/wal is missing"),
            ("shard-0/tables", "shard-0/tables is missing"),
        ] {
            fs::rename(path.join(removed), temp.path().join("away")).expect("moved");
            assert!(lost(&path).contains(named), "{}", lost(&path));
            fs::rename(temp.path().join("away"), path.join(removed)).expect("moved back");
        }
        for part in ["wal", "tables"] {
            let file = look::part(&path, 1, part).join("file");
            fs::remove_file(&file).expect("removed");
            // This is what an empty volume looks like.
            fs::create_dir(file.with_file_name("lost+found")).expect("made");
            let named = format!("shard-1/{part} is empty");
            assert!(lost(&path).contains(&named), "{}", lost(&path));
            fs::write(&file, b"x").expect("written");
        }
        fs::remove_file(path.join(IDENTITY)).expect("removed");
        assert!(lost(&path).contains("node.json is missing"));
        fs::create_dir_all(path.join(HISTORY).join("1")).expect("made");
        fs::create_dir(path.join(format!("{DAMAGED_HISTORY}-17"))).expect("made");
        assert!(lost(&path).contains("node.json is missing"));
        fs::write(path.join(TOKEN), "0".repeat(32)).expect("written");
        assert!(lost(&path).contains("node.json is missing"));
    }

    #[test]
    fn links_in_a_folder_are_not_followed() {
        let temp = tempfile::tempdir().expect("a temporary folder");
        let (path, victim) = (temp.path().join("data"), temp.path().join("victim"));
        fs::create_dir(&path).expect("made");
        fs::write(&victim, b"precious").expect("written");
        for name in [LOCK, TOKEN, DRAFT] {
            std::os::unix::fs::symlink(&victim, path.join(name)).expect("linked");
            open(&path, 1, &[]).expect_err("a link");
            assert_eq!(fs::read(&victim).expect("read"), b"precious", "{name}");
            fs::remove_file(path.join(name)).expect("removed");
        }
        drop(open(&path, 1, &[]).expect("made"));
    }

    #[test]
    fn a_folder_of_others_is_not_touched() {
        let temp = tempfile::tempdir().expect("a temporary folder");
        let path = temp.path().join("theirs");
        fs::create_dir(&path).expect("made");
        fs::set_permissions(&path, Permissions::from_mode(0o1777)).expect("set");
        for (name, content) in [
            ("notes", "hello"),
            (IDENTITY, "{\"name\": \"another program\"}"),
            ("shard-of-glass", "sharp"),
            ("shard-0", "data"),
            ("shard-00000", "data"),
            ("history", "ls\ncd"),
        ] {
            fs::write(path.join(name), content).expect("written");
            open(&path, 1, &[]).expect_err("not ours");
            let mode = fs::metadata(&path).expect("is there").permissions().mode();
            assert_eq!(mode & 0o7777, 0o1777, "{name}");
            assert_eq!(fs::read_dir(&path).expect("listed").count(), 1, "{name}");
            fs::remove_file(path.join(name)).expect("removed");
        }
        // Other programs have folders of that name, too.
        fs::create_dir(path.join("shard-0")).expect("made");
        fs::write(path.join("shard-0/data.bin"), "x").expect("written");
        open(&path, 1, &[]).expect_err("not ours");
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
        assert!(!path.join(LOCK).exists(), "it was touched");
    }

    #[test]
    fn what_is_no_folder_is_said_and_an_empty_volume_is_one() {
        let temp = tempfile::tempdir().expect("a temporary folder");
        let file = temp.path().join("file");
        fs::write(&file, b"x").expect("written");
        let error = open(&file, 1, &[]).expect_err("a file");
        assert!(
            error.to_string().contains("is a file, not a folder"),
            "{error}"
        );
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(temp.path().join("nothing"), &link).expect("made");
        let error = open(&link, 1, &[]).expect_err("a link");
        assert!(error.to_string().contains("symbolic link"), "{error}");
        let volume = temp.path().join("volume");
        fs::create_dir_all(volume.join("lost+found")).expect("made");
        open(&volume, 1, &[]).expect("made");
    }
}
