//! Data folders that have lost a part of themselves, against the real binary: a node refuses them with
//! the name of what is missing, touches nothing, and starts when the part is back. A cluster keeps what
//! it has acknowledged, whichever node lost what.

mod cluster;
mod one_node;
mod rounds;

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use rangedb_tests::process::{Home, wait};

/// Starts a node that must refuse to start; returns its complaint.
///
/// # Panics
/// The node serves, or ends in another way.
fn refused(home: &Home) -> String {
    let log = home.folder.with_extension("refused");
    let mut child = home
        .start_command()
        .stdout(Stdio::null())
        .stderr(File::create(&log).expect("a file"))
        .spawn()
        .expect("it starts");
    let code = wait(&mut child).code();
    let complaint = std::fs::read_to_string(&log).expect("a text");
    assert_eq!(code, Some(1), "{complaint}");
    complaint
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .args(["-a", "--sparse=always"])
        .args([from, to])
        .status();
    assert!(copied.is_ok_and(|status| status.success()), "cp {from:?}");
}

/// All files under a folder, by their path in it.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        // The folder itself may have been removed.
        for entry in std::fs::read_dir(at).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder).expect("it is inside").to_owned());
            }
        }
    }
    found.sort();
    found
}
