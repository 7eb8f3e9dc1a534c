//! The settings of one node, and the result of a reload.

use serde::{Deserialize, Serialize};

/// The answer to [`super::Command::NodeConfig`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// The node that answers.
    pub node: u64,
    /// All its settings.
    pub node_settings: Vec<NodeSetting>,
}

/// A setting of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NodeSetting {
    /// The setting's name.
    pub name: String,
    /// The value in force.
    pub in_force: String,
    /// Where it comes from: `default`, or the line of a file, a variable or a flag.
    pub source: String,
    /// When a new value counts: from a `reload` or from the next `start` on.
    pub counts_from: String,
}

/// The answer to [`super::Command::Reload`]: what became of each setting. If one is refused, nothing has
/// changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Reloaded {
    /// The node that answers.
    pub node: u64,
    /// The settings that have a new value now.
    pub applied: Vec<SettingDifference>,
    /// The settings that stay as they are.
    pub unchanged: Vec<String>,
    /// The settings whose new value counts from the next start on.
    pub needs_restart: Vec<SettingDifference>,
    /// What is wrong with the new settings.
    pub refused: Vec<SettingRefused>,
}

/// A setting with another value than before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SettingDifference {
    /// The setting's name.
    pub name: String,
    /// The value before.
    pub before: String,
    /// The new value.
    pub after: String,
}

/// Why new settings are not taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SettingRefused {
    /// The setting, if the fault is one setting's.
    pub name: Option<String>,
    /// The line of the file, if the fault is in one.
    pub line: Option<u64>,
    /// What is wrong.
    pub reason: String,
}
