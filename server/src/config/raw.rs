//! Settings as raw text, each with the place where it was typed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::BadSetting;

/// The prefix of variables that are settings of the node.
const VARIABLE_PREFIX: &str = "RANGEDB_";
/// The longest configuration file, in bytes.
const FILE_LEN_MAX: u64 = 1 << 20;
/// A name with at most as many edits counts as misspelt.
const MISSPELT_MAX: usize = 3;
/// Variables with the same prefix that are flags of commands.
const OTHER_VARIABLES: &[&str] = &[
    "RANGEDB_ADDR",
    "RANGEDB_CLUSTER",
    "RANGEDB_CONFIG",
    "RANGEDB_FORMAT",
    "RANGEDB_TIMEOUT",
    "RANGEDB_CLIENT_TLS_CA",
    "RANGEDB_CLIENT_TLS_CERT",
    "RANGEDB_CLIENT_TLS_KEY",
    "RANGEDB_CLIENT_TLS_NAME",
    #[cfg(debug_assertions)]
    crate::env::test_disk::VARIABLE,
];

/// When a new value of a setting counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// From a reload on.
    Reload,
    /// From the next start on.
    Start,
}

impl Counts {
    /// The word for it in answers.
    pub fn name(self) -> &'static str {
        match self {
            Counts::Reload => "reload",
            Counts::Start => "start",
        }
    }
}

macro_rules! keys {
    ($($key:ident $name:literal $default:literal $counts:ident $help:literal,)*) => {
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

            /// When a new value counts.
            pub fn counts(self) -> Counts {
                match self { $(Key::$key => Counts::$counts,)* }
            }
        }
    };
}

keys! {
    DataDir "data-dir" "" Start "Folder of the node's data.",
    Listen "listen" "127.0.0.1:7400" Start "Where clients connect, HOST:PORT.",
    Http "http" "127.0.0.1:7480" Start "Where health and metrics are, HOST:PORT.",
    HttpHosts "http-hosts" "" Reload "More names of this node in the header Host, NAME,NAME.",
    HttpOrigins "http-origins" "" Reload "Origins of other sites whose pages may use the API.",
    Shards "shards" "" Start "Number of shards; by default one for each processor, or as many as the folder has.",
    Cpus "cpus" "" Start "Processors that all threads stay on, such as 0,2-3.",
    Memory "memory" "" Start "Memory to use; by default half of what there is.",
    RowCache "row-cache" "" Start "Part of the memory that holds rows read lately; by default a quarter, 0 for none.",
    SplitAt "split-at" "" Start "Borders of the initial ranges, K1,K2.",
    Advertise "advertise" "" Start "Where the other nodes reach this one; by default --listen.",
    Join "join" "" Start "Where nodes of the cluster to join listen, HOST:PORT,HOST:PORT.",
    BootstrapExpect "bootstrap-expect" "" Start "Number of empty nodes that form a new cluster.",
    ClusterSecret "cluster-secret" "" Start "What proves to other nodes that this one belongs to the cluster.",
    Tls "tls" "" Reload "Which clients may connect without TLS: none with required, all with optional or off.",
    TlsCert "tls-cert" "" Reload "File with the certificate that the node shows to clients.",
    TlsKey "tls-key" "" Reload "File with the key of that certificate.",
    TlsCa "tls-ca" "" Reload "File with the certificates that sign those of clients.",
    Log "log" "text" Reload "Format of logs: text or json.",
    LogLevel "log-level" "info" Reload "Which log lines are written: error, warn, info, debug or trace.",
    SlowRequest "slow-request" "100ms" Reload "A request that takes as long is logged, with the time of each step; 0ms for none.",
    GcRetention "gc-retention" "10m" Start "How long old versions are kept.",
    DrainWait "drain-wait" "0s" Reload "How long a node that is told to stop goes on serving while /readyz says 503.",
}

/// The place where a setting was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It was not typed: the default holds.
    Default,
    /// This line of the configuration file with this path.
    File(String, usize),
    /// The environment variable with this name.
    Variable(String),
    /// The flag with this name.
    Flag(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File(file, line) => write!(f, "file {file}, line {line}"),
            Source::Variable(name) => write!(f, "variable {name}"),
            Source::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// Why settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadConfig {
    /// The file cannot be read or parsed.
    #[error("configuration file {file}{}: {message}", at_line(*.line))]
    File {
        /// The file's path.
        file: String,
        /// The line, if the fault is in one.
        line: Option<usize>,
        /// The reason.
        message: String,
    },
    /// A variable's value is not UTF-8.
    #[error("variable {0}: its value is not UTF-8 text")]
    Variable(String),
    /// A value breaks its setting's rule.
    #[error(transparent)]
    BadSetting(#[from] BadSetting),
    /// There are several faults.
    #[error("{}", lines(.0))]
    Several(Vec<BadConfig>),
}

impl BadConfig {
    /// All of these faults as one, if there are any.
    pub fn of(mut faults: Vec<BadConfig>) -> Option<BadConfig> {
        match faults.len() {
            0 | 1 => faults.pop(),
            _ => Some(BadConfig::Several(faults)),
        }
    }

    /// Each fault by itself.
    pub fn each(self) -> Vec<BadConfig> {
        match self {
            BadConfig::Several(faults) => faults,
            one => vec![one],
        }
    }
}

fn lines(faults: &[BadConfig]) -> String {
    let lines: Vec<String> = faults.iter().map(BadConfig::to_string).collect();
    lines.join("\n")
}

fn at_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
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
    /// The file cannot be read, or has unknown keys or values of the wrong kind: all of them.
    pub fn add_file(&mut self, path: &Path) -> Result<(), BadConfig> {
        let file = path.display().to_string();
        let bad = |line: Option<usize>, message: String| BadConfig::File {
            file: file.clone(),
            line,
            message,
        };
        let text = read(path).map_err(|why| bad(None, why))?;
        let line_of = |span: Range<usize>| {
            let before = text.as_bytes().iter().take(span.start);
            before.filter(|byte| **byte == b'\n').count() + 1
        };
        let table = DeTable::parse(&text)
            .map_err(|e| bad(e.span().map(line_of), e.message().replace('\n', " ")))?;
        let mut faults = Vec::new();
        for (name, value) in table.get_ref() {
            let line = line_of(name.span());
            let name: &str = name.get_ref();
            match (find(name), plain(value.get_ref())) {
                (Ok(key), Some(value)) => self.set(key, value, Source::File(file.clone(), line)),
                (Err(hint), _) => {
                    let message = format!("{name}: there is no such setting; {hint}");
                    faults.push((line, message));
                }
                (Ok(_), None) => {
                    let message = format!("{name} is not a text, a whole number or a list of them");
                    faults.push((line, message));
                }
            }
        }
        faults.sort();
        let faults = faults.into_iter();
        let faults = faults.map(|(line, message)| bad(Some(line), message));
        BadConfig::of(faults.collect()).map_or(Ok(()), Err)
    }

    /// Takes the variables whose names begin with `RANGEDB_`. Gives a warning for each that names no
    /// setting: other programs may set such variables, as Kubernetes does for a service.
    ///
    /// # Errors
    /// The value of a setting is not UTF-8.
    pub fn add_variables(
        &mut self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Vec<String>, BadConfig> {
        let mut warnings = Vec::new();
        for (variable, value) in variables {
            let variable = variable.to_string_lossy().into_owned();
            let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) else {
                continue;
            };
            if OTHER_VARIABLES.contains(&variable.as_str()) {
                continue;
            }
            let Ok(key) = find(&name.to_lowercase().replace('_', "-")) else {
                warnings.push(unknown_variable(name, nearest(name, known_variables())));
                continue;
            };
            let Ok(value) = value.into_string() else {
                return Err(BadConfig::Variable(variable));
            };
            self.set(key, value, Source::Variable(variable));
        }
        Ok(warnings)
    }

    /// Takes a flag's value if the flag was given.
    pub fn add_flag(&mut self, key: Key, value: Option<&String>) {
        if let Some(value) = value {
            self.set(key, value.clone(), Source::Flag(key.name().to_owned()));
        }
    }

    /// Forgets what was typed for a setting, so that its default holds.
    pub fn forget(&mut self, key: Key) {
        self.set(key, key.default().to_owned(), Source::Default);
    }

    /// Takes a setting from other settings.
    pub fn copy(&mut self, key: Key, from: &RawConfig) {
        if let Some((text, source)) = from.values.get(&key) {
            self.set(key, text.clone(), source.clone());
        }
    }

    /// The place where a setting was typed.
    pub fn source(&self, key: Key) -> Source {
        let value = self.values.get(&key);
        value.map_or(Source::Default, |(_, source)| source.clone())
    }

    /// The settings that were typed and differ from their defaults, each with its place, as one text
    /// for the log.
    pub fn changes(&self) -> String {
        let typed = self
            .values
            .iter()
            .filter(|(key, (text, source))| *source != Source::Default && text != key.default());
        let words = typed
            .map(|(key, (_, source))| format!("{}={} ({source})", key.name(), self.shown(*key)));
        words.collect::<Vec<_>>().join(", ")
    }

    /// A setting's text as people may see it: without the secret.
    pub fn shown(&self, key: Key) -> &str {
        match self.text(key) {
            text if key != Key::ClusterSecret || text.is_empty() => text,
            _ => "(not shown)",
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
            value: match key {
                Key::ClusterSecret => self.shown(key).to_owned(),
                _ => value,
            },
            line: match source {
                Source::File(_, line) => Some(line),
                _ => None,
            },
            source_name: source.to_string(),
            rule,
        }
    }

    /// Prints all settings as a TOML file; a comment names the source of each. The secret is not
    /// shown.
    pub fn print(&self) -> String {
        let mut text = String::new();
        for (key, (_, source)) in &self.values {
            let value = toml::Value::String(self.shown(*key).to_owned());
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

/// The text of a file.
fn read(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let mut text = String::new();
    let len = file.take(FILE_LEN_MAX + 1).read_to_string(&mut text);
    match len.map_err(|e| e.to_string())? as u64 {
        0..=FILE_LEN_MAX => Ok(text),
        _ => Err(format!("it is longer than {FILE_LEN_MAX} bytes")),
    }
}

fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            let number = i64::from_str_radix(number.as_str(), number.radix());
            number.ok().map(|number| number.to_string())
        }
        DeValue::Array(values) => values
            .iter()
            .map(|value| plain(value.get_ref()))
            .collect::<Option<Vec<_>>>()
            .map(|parts| parts.join(",")),
        _ => None,
    }
}

/// Finds the key with a name, or else returns a hint: the nearest name if one is close, or all names.
fn find(name: &str) -> Result<Key, String> {
    if let Some(key) = Key::ALL.iter().find(|key| key.name() == name) {
        return Ok(*key);
    }
    let names = || Key::ALL.iter().map(|key| key.name());
    match nearest(name, names().map(str::to_owned)) {
        Some(near) => Err(format!("did you mean {near}?")),
        None => {
            let names = names().collect::<Vec<_>>().join(", ");
            Err(format!("the settings are {names}"))
        }
    }
}

/// The name that is nearest to a misspelt one, if one is close.
fn nearest(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let nearest = known.min_by_key(|known| distance(known, name));
    // Two short words are always close.
    let edits_max = MISSPELT_MAX.min(name.len() / 2);
    nearest.filter(|near| distance(near, name) <= edits_max)
}

/// The known variables, without their prefix.
fn known_variables() -> impl Iterator<Item = String> {
    let of_settings = Key::ALL.iter().map(|key| key.name().to_uppercase());
    let of_settings = of_settings.map(|name| name.replace('-', "_"));
    let others = OTHER_VARIABLES.iter();
    of_settings
        .chain(others.filter_map(|name| Some(name.strip_prefix(VARIABLE_PREFIX)?.to_owned())))
}

/// The warning about a variable that is not known, with the nearest name if one is close. The prefix, which
/// all have, does not count.
fn unknown_variable(name: &str, near: Option<String>) -> String {
    let hint = near.map_or_else(String::new, |near| {
        format!("; did you mean {VARIABLE_PREFIX}{near}?")
    });
    format!("variable {VARIABLE_PREFIX}{name}: there is no such setting{hint}")
}

/// Warnings about variables whose names are close to one that is known, for commands that have flags but no
/// settings. The others are none of their business: in Kubernetes every process has some.
pub fn misspelt(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let mut warnings = Vec::new();
    for (variable, _) in variables {
        let variable = variable.to_string_lossy();
        let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) else {
            continue;
        };
        if known_variables().any(|known| known == name) {
            continue;
        }
        if let Some(near) = nearest(name, known_variables()) {
            warnings.push(unknown_variable(name, Some(near)));
        }
    }
    warnings
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
