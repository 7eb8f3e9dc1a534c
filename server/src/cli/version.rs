//! `rangedb version`: the release of this binary. It asks no node.

use std::io::{self, Write};

use clap::Args;
use rangedb_engine::range::command;
use rangedb_engine::{lsm, mutant, wal};
use rangedb_protocol::handshake;
use rangedb_server::{data_dir, peers};
use serde_json::json;

use super::connection_args::Format;
use super::{CliError, Exit};

/// The release.
const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The commit; `build.rs` finds it out.
const COMMIT: &str = env!("RANGEDB_BUILD_COMMIT");

/// The versions of all that this binary writes to disks and connections, by name.
const FORMATS: [(&str, u64); 6] = [
    ("folder", data_dir::FORMAT as u64),
    ("log", wal::FORMAT as u64),
    ("entries", command::FORMAT as u64),
    ("tables", lsm::TABLE_FORMAT as u64),
    ("wire", handshake::VERSION as u64),
    ("peers", peers::VERSION as u64),
];

/// Arguments of `version`.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// The format of the result.
    #[arg(long, env = "RANGEDB_FORMAT", default_value = "table", value_enum)]
    format: Format,
}

/// The optional parts that this binary was built with.
fn features() -> Vec<&'static str> {
    let optional = [
        ("mutants", mutant::ENABLED),
        ("debug-assertions", cfg!(debug_assertions)),
    ];
    let enabled = optional.iter().filter(|(_, is_enabled)| *is_enabled);
    enabled.map(|(name, _)| *name).collect()
}

/// Prints the release, the commit, the formats and the features.
pub(super) fn print(args: &VersionArgs, out: &mut impl Write) -> Result<Exit, CliError> {
    write(args.format, out)?;
    Ok(Exit::Done)
}

fn write(format: Format, out: &mut impl Write) -> io::Result<()> {
    let features = features();
    if format == Format::Json {
        let formats: serde_json::Map<_, _> = FORMATS
            .iter()
            .map(|(name, version)| ((*name).to_owned(), json!(version)))
            .collect();
        let facts = json!({
            "release": RELEASE,
            "commit": COMMIT,
            "formats": formats,
            "features": features,
        });
        return writeln!(out, "{facts}");
    }
    let formats = FORMATS.map(|(name, version)| format!("{name} {version}"));
    let features = match features.as_slice() {
        [] => "none".to_owned(),
        features => features.join(", "),
    };
    writeln!(out, "release   {RELEASE}")?;
    writeln!(out, "commit    {COMMIT}")?;
    writeln!(out, "formats   {}", formats.join(", "))?;
    writeln!(out, "features  {features}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: Format) -> String {
        let mut out = Vec::new();
        print(&VersionArgs { format }, &mut out).expect("a vector takes all");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn the_text_and_the_json_say_the_same() {
        let facts: serde_json::Value =
            serde_json::from_str(&printed(Format::Json)).expect("it is JSON");
        assert_eq!(facts["release"], RELEASE);
        assert_eq!(facts["commit"], COMMIT);
        assert_eq!(facts["features"][0], "debug-assertions");
        let text = printed(Format::Table);
        for (name, version) in FORMATS {
            assert_eq!(facts["formats"][name], version);
            assert!(text.contains(&format!("{name} {version}")), "{text}");
        }
        assert!(text.contains(COMMIT) && text.contains("debug-assertions"));
    }
}
