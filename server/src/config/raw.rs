//! Settings as raw text, each with the place where it was typed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::BadSetting;

/// The prefix of variables that are settings of the node.
const VARIABLE_PREFIX: &str = "RANGEDB_";
/// A name with at most as many edits counts as misspelt.
const MISSPELT_MAX: usize = 3;
/// Variables with the same prefix that are flags of commands.
const OTHER_VARIABLES: &[&str] = &[
    "RANGEDB_ADDR",
    "RANGEDB_CLUSTER",
    "RANGEDB_CONFIG",
    "RANGEDB_TIMEOUT",
];

macro_rules! keys {
    ($($key:ident $name:literal $default:literal $help:literal,)*) => {
        /// The settings.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Key {
            $(#[doc = $help] $key,)*
        }

        impl Key {
            /// All settings, in the order in which they are printed.
            pub const ALL: &[Key] = &[$(Key::$key),*];

            /// The setting's name in the file and as a flag.
            pub fn name(self) -> &'static str {
                match self { $(Key::$key => $name,)* }
            }

            /// The value of a setting that is typed nowhere.
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
    HttpHosts "http-hosts" "" "More names of this node in the header Host, NAME,NAME.",
    HttpOrigins "http-origins" "" "Origins of other sites whose pages may use the API.",
    Shards "shards" "" "Number of shards; by default one for each processor.",
    Cpus "cpus" "" "Processors that all threads stay on, such as 0,2-3.",
    Memory "memory" "" "Memory to use; by default half of what there is.",
    RowCache "row-cache" "" "Part of the memory that holds rows read lately; by default a quarter, 0 for none.",
    SplitAt "split-at" "" "Borders of the initial ranges, K1,K2.",
    Advertise "advertise" "" "Where the other nodes reach this one; by default --listen.",
    Join "join" "" "Where nodes of the cluster to join listen, HOST:PORT,HOST:PORT.",
    BootstrapExpect "bootstrap-expect" "" "Number of empty nodes that form a new cluster.",
    ClusterSecret "cluster-secret" "" "What proves to other nodes that this one belongs to the cluster.",
    Log "log" "text" "Format of logs: text or json.",
    LogLevel "log-level" "info" "Which log lines are written: error, warn, info, debug or trace.",
    GcRetention "gc-retention" "10m" "How long old versions are kept.",
    DrainWait "drain-wait" "0s" "How long a node that is told to stop goes on serving while /readyz says 503.",
}

/// The place where a setting was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It was not typed: the default holds.
    Default,
    /// The configuration file with this path.
    File(String),
    /// The environment variable with this name.
    Variable(String),
    /// The flag with this name.
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

/// Why settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// The file cannot be read or parsed.
    #[error("configuration file {file}: {message}")]
    File {
        /// The file's path.
        file: String,
        /// The reason.
        message: String,
    },
    /// There is no setting of this name; the second name is the nearest one.
    #[error("{0}: there is no such setting; did you mean {1}?")]
    UnknownKey(String, String),
    /// A value breaks its setting's rule.
    #[error(transparent)]
    BadSetting(#[from] BadSetting),
}

/// All settings as raw text.
#[derive(Clone, Debug)]
pub struct RawConfig {
    values: BTreeMap<Key, (String, Source)>,
}

impl RawConfig {
    /// All settings with their defaults.
    pub fn new() -> RawConfig {
        let default = |key: &Key| (*key, (key.default().to_owned(), Source::Default));
        RawConfig {
            values: Key::ALL.iter().map(default).collect(),
        }
    }

    fn set(&mut self, key: Key, value: String, source: Source) {
        self.values.insert(key, (value, source));
    }

    /// Takes the settings of a TOML file.
    ///
    /// # Errors
    /// The file cannot be read, or has an unknown key or a value of the wrong kind.
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
            let value = plain(&value)
                .ok_or_else(|| bad(format!("{name} is not a text, a whole number or a list")))?;
            self.set(key, value, Source::File(file.clone()));
        }
        Ok(())
    }

    /// Takes the variables whose names begin with `RANGEDB_`. Gives a warning for each that names no
    /// setting: other programs may set such variables, as Kubernetes does for a service.
    pub fn add_variables(
        &mut self,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        for (variable, value) in variables {
            let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) else {
                continue;
            };
            if OTHER_VARIABLES.contains(&variable.as_str()) {
                continue;
            }
            match find(&name.to_lowercase().replace('_', "-")) {
                Ok(key) => self.set(key, value, Source::Variable(variable)),
                Err(_) => warnings.push(unknown_variable(&variable)),
            }
        }
        warnings
    }

    /// Takes a flag's value if the flag was given.
    pub fn add_flag(&mut self, key: Key, value: Option<&String>) {
        if let Some(value) = value {
            self.set(key, value.clone(), Source::Flag(key.name().to_owned()));
        }
    }

    /// A setting's text.
    pub fn text(&self, key: Key) -> &str {
        self.values.get(&key).map_or("", |(text, _)| text.as_str())
    }

    /// Parses a setting's text.
    ///
    /// # Errors
    /// The rule that the parser returns, with the setting and its source.
    pub fn parse<T>(
        &self,
        key: Key,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, BadSetting> {
        parse(self.text(key)).map_err(|rule| self.bad(key, rule))
    }

    /// Makes the error for a setting that breaks a rule.
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

    /// Prints all settings as a TOML file; a comment names the source of each. The secret is not
    /// shown.
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

/// Finds the key with a name, or else returns the nearest name.
fn find(name: &str) -> Result<Key, String> {
    if let Some(key) = Key::ALL.iter().find(|key| key.name() == name) {
        return Ok(*key);
    }
    let nearest = Key::ALL.iter().min_by_key(|key| distance(key.name(), name));
    Err(nearest.map_or("", |key| key.name()).to_owned())
}

/// The warning about a variable that names no setting, with the nearest name if one is close.
fn unknown_variable(variable: &str) -> String {
    let of_settings = Key::ALL.iter().map(|key| {
        let name = key.name().to_uppercase().replace('-', "_");
        format!("{VARIABLE_PREFIX}{name}")
    });
    let known = of_settings.chain(OTHER_VARIABLES.iter().map(|name| (*name).to_owned()));
    let nearest = known.min_by_key(|known| distance(known, variable));
    let near = nearest.filter(|near| distance(near, variable) <= MISSPELT_MAX);
    let hint = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
    format!("variable {variable}: there is no such setting{hint}")
}

/// The number of edits between two words (Levenshtein 1966).
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
