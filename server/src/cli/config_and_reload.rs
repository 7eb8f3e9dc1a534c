//! `rangedb config get` and `rangedb reload`: the settings of the cluster and of the node that is asked,
//! the values in force and where they come from.

use std::io::Write;

use rangedb_client::admin::{Admin, NodeSetting, Reloaded, Setting, SettingDifference};
use rangedb_client::{Client, Error, ErrorCode};
use rangedb_protocol::admin::Settings;
use rangedb_server::admin::json::of_state;
use serde_json::Value;

use super::output::{Printer, columns};
use super::{CliError, Exit};

/// All settings, in JSON and in words. Without the cluster's manager only those of the node are known.
pub(super) async fn all(admin: &Admin) -> Result<(Value, String), CliError> {
    let of_node = admin.node_config().await?;
    let of_cluster = admin.config().await;
    let mut words = match &of_cluster {
        Ok(settings) => columns(&settings.iter().map(row).collect::<Vec<_>>()),
        Err(error) => format!("those of the cluster are not known: {error}\n"),
    };
    let of_node_rows = of_node.node_settings.iter();
    let of_node_rows = of_node_rows.map(|setting| [setting.name.clone(), in_force(setting)]);
    words += &columns(&of_node_rows.collect::<Vec<_>>());
    let mut facts = of_state(of_node)?;
    let of_cluster = match of_cluster {
        Ok(settings) => of_state(Settings { settings })?["settings"].take(),
        Err(_) => Value::Null,
    };
    facts["settings"] = of_cluster;
    Ok((facts, words))
}

/// One setting, of the node or of the cluster.
pub(super) async fn one(admin: &Admin, name: &str) -> Result<(Value, String), CliError> {
    let of_node = admin.node_config().await?.node_settings;
    if let Some(setting) = of_node.iter().find(|setting| setting.name == name) {
        return Ok((of_state(setting)?, in_force(setting)));
    }
    let setting = admin.config_get(name).await.map_err(|error| {
        let names = of_node.iter().map(|setting| setting.name.as_str());
        let names = names.collect::<Vec<_>>().join(", ");
        match error.code {
            ErrorCode::NotFound => CliError {
                message: format!("{}; those of a node are {names}", error.message),
                ..CliError::from(error)
            },
            _ => CliError::from(error),
        }
    })?;
    let words = format!("{} ({})", setting.in_force, setting.source);
    Ok((of_state(setting)?, words))
}

/// A setting of the cluster as a row of the table.
fn row(setting: &Setting) -> [String; 3] {
    let Setting {
        name,
        in_force,
        source,
        may_be,
        ..
    } = setting;
    [
        name.clone(),
        format!("{in_force} ({source})"),
        may_be.clone(),
    ]
}

fn in_force(setting: &NodeSetting) -> String {
    let value = match setting.in_force.as_str() {
        "" => "-",
        value => value,
    };
    format!("{value} ({})", setting.source)
}

/// Has the node read its settings again.
pub(super) async fn reload(
    client: &Client,
    printer: Printer,
    out: &mut impl Write,
) -> Result<Exit, CliError> {
    let answer = client.admin().reload().await.map_err(not_known)?;
    let words = words(&answer);
    let is_refused = !answer.refused.is_empty();
    let facts = of_state(answer)?;
    match is_refused {
        false => printer.applied(out, facts, words.trim_end()),
        true => {
            printer.print(out, facts, words.trim_end())?;
            Ok(Exit::Refused)
        }
    }
}

/// A node that does not know the order is of an older release.
fn not_known(error: Error) -> CliError {
    match error.code {
        ErrorCode::Invalid => CliError {
            message: format!("the node cannot reload: {}", error.message),
            ..CliError::from(error)
        },
        _ => CliError::from(error),
    }
}

/// What became of the settings, one line for each that is another one or is wrong.
fn words(answer: &Reloaded) -> String {
    let mut words = String::new();
    for refused in &answer.refused {
        words += &format!("refused, and nothing was changed: {}\n", refused.reason);
    }
    let line = |what: &str, setting: &SettingDifference| {
        let value = |text: &str| match text {
            "" => "-".to_owned(),
            text => text.to_owned(),
        };
        let (before, after) = (value(&setting.before), value(&setting.after));
        format!("{what}: {} {before} -> {after}\n", setting.name)
    };
    for setting in &answer.applied {
        words += &line("applied", setting);
    }
    for setting in &answer.needs_restart {
        words += &line("needs a restart", setting);
    }
    match words.as_str() {
        "" => format!("node {}: all settings are unchanged", answer.node),
        _ => words,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_names_what_has_changed_and_what_is_wrong() {
        let difference = |name: &str, before: &str, after: &str| {
            let mut difference = SettingDifference::default();
            difference.name = name.to_owned();
            difference.before = before.to_owned();
            difference.after = after.to_owned();
            difference
        };
        let mut answer = Reloaded::default();
        answer.node = 3;
        assert_eq!(words(&answer), "node 3: all settings are unchanged");
        answer.applied = vec![difference("http-hosts", "", "a.example")];
        answer.needs_restart = vec![difference("memory", "1GiB", "2GiB")];
        let wanted = "applied: http-hosts - -> a.example\nneeds a restart: memory 1GiB -> 2GiB\n";
        assert_eq!(words(&answer), wanted);
    }
}
