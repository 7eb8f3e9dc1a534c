//! The protocol page is enough: a client in another language, written from the page and the schema
//! alone, speaks to a real node.

use std::path::Path;
use std::process::Command;

use rangedb_tests::process::Home;

/// Why there is no Python with what the client needs, if that is so.
fn missing() -> Option<String> {
    let probe = Command::new("python3")
        .args(["-c", "import flatbuffers"])
        .output();
    match probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("python3: {error}")),
    }
}

#[test]
fn a_client_made_from_the_page_and_the_schema_works() {
    if let Some(reason) = missing() {
        println!("skipped: no python3 with PyPI's flatbuffers: {reason}");
        return;
    }
    let temp = tempfile::tempdir().expect("a folder");
    let home = Home::new(temp.path(), &["--shards", "2", "--split-at", "m"]);
    let _node = home.start();
    let checks = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/checks.py");
    let output = Command::new("python3")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(checks)
        .arg(&home.listen)
        .output()
        .expect("python3 runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{complaint}");
    print!("{text}");
}
