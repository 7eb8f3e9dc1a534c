//! Three nodes, one of which has lost a part of its folder.

use std::fs;
use std::path::Path;

use rangedb_tests::cluster::{
    Caller, homes_of, nodes, ranges, start_all, wait_for, wait_until_replicated,
};
use rangedb_tests::process::{Home, Node, succeeded};

use crate::{copy, refused};

const ROWS: usize = 10;

fn key(at: usize) -> String {
    format!("{}-{at}", ["a", "d", "z"][at % 3])
}

fn put_rows(homes: &[Home]) {
    let caller = Caller::new(homes);
    for at in 0..ROWS {
        succeeded(&caller.cli(&["put", &key(at), &format!("value {at}")]));
    }
}

fn check_rows(homes: &[Home]) {
    let caller = Caller::new(homes);
    for at in 0..ROWS {
        wait_for("an answer", || {
            let got = caller.cli(&["get", &key(at)]);
            let value = String::from_utf8_lossy(&got.stdout);
            match got.status.code() {
                Some(0) => assert_eq!(value.trim(), format!("value {at}")),
                Some(1) => panic!("{} is lost", key(at)),
                _ => return None,
            }
            Some(())
        });
    }
}

/// Takes the node that made the cluster, or one that joined it, out of these.
fn split(mut homes: Vec<Home>, founder: bool) -> (Home, Vec<Home>) {
    homes.sort_by(|a, b| a.listen.cmp(&b.listen));
    let one = homes.remove(usize::from(!founder));
    (one, homes)
}

/// How a part of a folder is lost.
type Damage = fn(&Path);

fn empty_log(folder: &Path) {
    for file in fs::read_dir(folder.join("shard-0/wal")).expect("a log") {
        fs::remove_file(file.expect("a file").path()).expect("removed");
    }
}

/// One node of three is damaged and starts first, then the others: it refuses to start, the others have
/// everything, and an empty folder takes its place.
fn survives(founder: bool, shards: &str, damage: Damage, named: &str) {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes_of(temp.path(), shards);
    let running = start_all(&homes);
    wait_until_replicated(&homes);
    put_rows(&homes);
    running.into_iter().flatten().for_each(Node::kill);

    let (damaged, others) = split(homes, founder);
    damage(&damaged.folder);
    let complaint = refused(&damaged);
    assert!(complaint.contains(named), "no {named} in: {complaint}");
    let helps = ["empty --data-dir", "empty data folder"];
    let helps = helps.iter().any(|words| complaint.contains(words));
    assert!(helps, "{complaint}");
    let _running: Vec<Node> = others.iter().map(Home::start).collect();
    check_rows(&others);
    assert!(refused(&damaged).contains(named), "again");
    check_rows(&others);

    fs::remove_dir_all(&damaged.folder).expect("removed");
    let _new = damaged.start();
    let all = [&others[..], std::slice::from_ref(&damaged)].concat();
    wait_for("its replicas", || {
        let address = &damaged.listen;
        let known = nodes(&others[0])?;
        let mut there = known
            .iter()
            .filter(|(_, (state, at))| state == "alive" && at == address);
        let (id, _) = there.next()?;
        let ranges = ranges(&others[0])?;
        let has_it = ranges
            .values()
            .all(|range| range.voters.contains(id) && range.lag == Some(0));
        has_it.then_some(())
    });
    check_rows(&all);
}

#[test]
fn a_founder_without_its_log_does_not_found_the_cluster_twice() {
    survives(true, "1", empty_log, "shard-0/wal is empty");
}

#[test]
fn a_member_without_its_log_does_not_count() {
    survives(false, "1", empty_log, "shard-0/wal is empty");
}

#[test]
fn a_founder_without_a_shard_is_refused() {
    let damage = |folder: &Path| fs::remove_dir_all(folder.join("shard-1")).expect("removed");
    survives(true, "2", damage, "shard-1/wal is missing");
}

#[test]
fn a_founder_without_its_name_is_refused() {
    let damage = |folder: &Path| fs::remove_file(folder.join("node.json")).expect("removed");
    survives(true, "1", damage, "node.json is missing");
}

#[test]
fn a_member_without_tables_is_refused() {
    let damage =
        |folder: &Path| fs::remove_dir_all(folder.join("shard-0/tables")).expect("removed");
    survives(false, "1", damage, "shard-0/tables is missing");
}

#[test]
fn a_founder_whose_segment_is_cut_is_refused() {
    let damage = |folder: &Path| {
        let segment = folder.join("shard-0/wal/000000000001.wal");
        let file = fs::OpenOptions::new().write(true).open(segment);
        file.and_then(|file| file.set_len(0)).expect("emptied");
    };
    survives(true, "1", damage, "000000000001.wal");
}

/// Nodes that remember a later start refuse an older folder, even without a manager.
#[test]
fn a_folder_from_an_earlier_start_is_refused_by_whoever_remembers() {
    let temp = tempfile::tempdir().expect("a folder");
    let homes = homes_of(temp.path(), "1");
    let mut running = start_all(&homes);
    wait_until_replicated(&homes);
    put_rows(&homes);
    running[2].take().into_iter().for_each(Node::kill);
    let old = temp.path().join("old");
    copy(&homes[2].folder, &old);
    for _ in 0..2 {
        running[2] = Some(homes[2].start());
        wait_until_replicated(&homes);
        running[2].take().into_iter().for_each(Node::kill);
    }
    running.into_iter().flatten().for_each(Node::kill);
    let newest = temp.path().join("newest");
    fs::rename(&homes[2].folder, &newest).expect("moved");
    fs::rename(&old, &homes[2].folder).expect("moved");

    // One of three has no majority, and so no manager; it remembers over its restart.
    let _one = homes[0].start();
    if let Ok(node) = homes[2].try_start() {
        assert!(!node.wait().success());
    }
    assert!(
        homes[2].log().contains("It must not rejoin"),
        "{}",
        homes[2].log()
    );
    // Repeated starts do not make the folder count up until it looks new.
    for _ in 0..4 {
        let complaint = refused(&homes[2]);
        assert!(complaint.contains("refused before"), "{complaint}");
    }
    // The newest folder is accepted.
    fs::remove_dir_all(&homes[2].folder).expect("removed");
    fs::rename(&newest, &homes[2].folder).expect("moved");
    let _two = homes[2].start();
    check_rows(&[homes[0].clone(), homes[2].clone()]);
}
