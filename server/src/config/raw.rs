//! Settings as typed, each with where it was typed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::BadSetting;

/// The beginning of the variables that are settings of the node.
const VARIABLE_PREFIX: &str = "RANGEDB_";
/// Variables of the command line's clients and of scripts.
const OTHER_VARIABLES: &[&str] = &[
    "RANGEDB_ADDR",
    "RANGEDB_CLUSTER",
    "RANGEDB_CONFIG",
    "RANGEDB_TIMEOUT",
];

macro_rules! keys {
    ($($key:ident $name:literal $default:literal $help:literal,)*) => {
        /// Every setting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Key {
            $(#[doc = $help] $key,)*
        }

        impl Key {
            /// All of them.
            pub const ALL: &[Key] = &[$(Key::$key),*];

            /// Its name in the file.
            pub fn name(self) -> &'static str {
                match self { $(Key::$key => $name,)* }
            }

            /// What holds where nothing is typed.
            pub fn default(self) -> &'static str {
                match self { $(Key::$key => $default,)* }
            }
        }
    };
}

keys! {
    DataDir "data-dir" "" "Folder of the node's data.",
    Listen "listen" "127.0.0.1:7400" "Where clients connect, HOST:PORT.",
    Http "http" "127.0.0.1:7480" "Where health and metrics are, HOST:PORT.",
    Shards "shards" "" "Number of shards; by default one for each processor.",
    Cpus "cpus" "" "Processors that all threads stay on, such as 0,2-3.",
    Memory "memory" "" "Memory to use; by default half of what there is.",
    SplitAt "split-at" "" "Borders of the initial ranges, K1,K2.",
    Advertise "advertise" "" "Where the other nodes reach this one; by default --listen.",
    Join "join" "" "Where nodes of the cluster to join listen, HOST:PORT,HOST:PORT.",
    BootstrapExpect "bootstrap-expect" "" "Number of empty nodes that form a new cluster.",
    ClusterSecret "cluster-secret" "" "What proves to other nodes that this one belongs to the cluster.",
    Log "log" "text" "Format of logs: text or json.",
    LogLevel "log-level" "info" "Which log lines are written: error, warn, info, debug or trace.",
    GcRetention "gc-retention" "10m" "How long old versions are kept.",
}

/// Where a setting was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere.
    Default,
    /// In this file.
    File(String),
    /// In this variable.
    Variable(String),
    /// As this flag.
    Flag(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(file) => write!(f, "file {file}"),
            Source::Variable(name) => write!(f, "variable {name}"),
            Source::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// What cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// The file.
    #[error("configuration file {file}: {message}")]
    File {
        /// Which.
        file: String,
        /// Why.
        message: String,
    },
    /// A key.
    #[error("{0}: there is no such setting; did you mean {1}?")]
    UnknownKey(String, String),
    /// A value.
    #[error(transparent)]
    BadSetting(#[from] BadSetting),
}

/// Settings as typed.
#[derive(Clone, Debug)]
pub struct RawConfig {
    values: BTreeMap<Key, (String, Source)>,
}

impl RawConfig {
    /// The defaults.
    pub fn new() -> RawConfig {
        let default = |key: &Key| (*key, (key.default().to_owned(), Source::Default));
        RawConfig {
            values: Key::ALL.iter().map(default).collect(),
        }
    }

    fn set(&mut self, key: Key, value: String, source: Source) {
        self.values.insert(key, (value, source));
    }

    /// Takes over what the file has.
    ///
    /// # Errors
    /// It cannot be read, or has a key that is none.
    pub fn add_file(&mut self, path: &Path) -> Result<(), BadConfig> {
        let file = path.display().to_string();
        let bad = |message: String| BadConfig::File {
            file: file.clone(),
            message,
        };
        let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        let table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| bad(e.to_string()))?;
        for (name, value) in table {
            let key = find(&name).map_err(|near| {
                BadConfig::UnknownKey(format!("configuration file {file}: {name}"), near)
            })?;
            let value = plain(&value).ok_or_else(|| bad(format!("{name} is no plain value")))?;
            self.set(key, value, Source::File(file.clone()));
        }
        Ok(())
    }

    /// Takes over variables whose name begins with `RANGEDB_`.
    ///
    /// # Errors
    /// One is no setting.
    pub fn add_variables(
        &mut self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<(), BadConfig> {
        for (variable, value) in variables {
            let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) else {
                continue;
            };
            if OTHER_VARIABLES.contains(&variable.as_str()) {
                continue;
            }
            let name = name.to_lowercase().replace('_', "-");
            let key = find(&name).map_err(|near| {
                let near = format!("{VARIABLE_PREFIX}{}", near.to_uppercase().replace('-', "_"));
                BadConfig::UnknownKey(format!("variable {variable}"), near)
            })?;
            self.set(key, value, Source::Variable(variable));
        }
        Ok(())
    }

    /// Takes over a flag, if it was given.
    pub fn add_flag(&mut self, key: Key, value: Option<&String>) {
        if let Some(value) = value {
            self.set(key, value.clone(), Source::Flag(key.name().to_owned()));
        }
    }

    /// A setting's value by a parser of its text.
    ///
    /// # Errors
    /// The parser's rule.
    pub fn parse<T>(
        &self,
        key: Key,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, BadSetting> {
        let text = self.values.get(&key).map_or("", |(text, _)| text.as_str());
        parse(text).map_err(|rule| self.bad(key, rule))
    }

    /// A setting breaks a rule.
    pub fn bad(&self, key: Key, rule: String) -> BadSetting {
        let (value, source) = self
            .values
            .get(&key)
            .cloned()
            .unwrap_or_else(|| (String::new(), Source::Default));
        BadSetting {
            key: key.name(),
            value,
            source_name: source.to_string(),
            rule,
        }
    }

    /// Each setting and where it comes from, as a TOML file.
    pub fn print(&self) -> String {
        let mut text = String::new();
        for (key, (value, source)) in &self.values {
            let secret = *key == Key::ClusterSecret && !value.is_empty();
            let value = if secret { "(not shown)" } else { value };
            let value = toml::Value::String(value.to_owned());
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} = {value} # {source}", key.name());
        }
        text
    }
}

impl Default for RawConfig {
    fn default() -> RawConfig {
        RawConfig::new()
    }
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Array(values) => values
            .iter()
            .map(plain)
            .collect::<Option<Vec<_>>>()
            .map(|parts| parts.join(",")),
        _ => None,
    }
}

/// The key of a name, or the name nearest to it.
fn find(name: &str) -> Result<Key, String> {
    if let Some(key) = Key::ALL.iter().find(|key| key.name() == name) {
        return Ok(*key);
    }
    let nearest = Key::ALL.iter().min_by_key(|key| distance(key.name(), name));
    Err(nearest.map_or("", |key| key.name()).to_owned())
}

/// Edits between two words (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (to, above) in b.bytes().zip(row.iter_mut().skip(1)) {
            let best = (corner + usize::from(from != to))
                .min(left + 1)
                .min(*above + 1);
            corner = *above;
            *above = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}
