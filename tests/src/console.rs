//! Commands and what they print, as pages and golden scripts show them: a line `$ COMMAND`, then its output.
//!
//! A command runs in `sh`, in a folder of its own, with the binaries of this build in front of its PATH
//! and without the settings of the person who runs the test.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::process::{binary, without_settings};

/// What stands before a command.
const PROMPT: &str = "$ ";
/// Stands for any text within a line, and alone on its line for any lines.
const ANYTHING: &str = "...";

/// A command and what it prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The command, without its prompt.
    pub command: String,
    /// The lines of its output.
    pub output: Vec<String>,
}

/// Where commands run.
#[derive(Clone, Debug)]
pub struct Shell {
    /// Their working directory.
    pub folder: PathBuf,
    /// Variables of their environment, besides those of the test.
    pub variables: Vec<(String, String)>,
}

impl Shell {
    /// A shell in this folder.
    pub fn new(folder: &Path) -> Shell {
        Shell {
            folder: folder.to_owned(),
            variables: Vec::new(),
        }
    }

    /// Sets a variable of the commands from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// A process for a line of shell.
    ///
    /// # Panics
    /// The binaries were not built.
    pub fn command(&self, line: &str) -> Command {
        let built = binary("rangedb");
        let folder = built.parent().unwrap_or(Path::new("/")).display();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("sh");
        without_settings(&mut command);
        command.args(["-e", "-c", line]).current_dir(&self.folder);
        command.env("PATH", format!("{folder}:{path}"));
        command.envs(self.variables.iter().cloned());
        command
    }

    /// Runs a line of shell to its end.
    ///
    /// # Panics
    /// There is no `sh`.
    pub fn run(&self, line: &str) -> Output {
        self.command(line).output().expect("sh runs")
    }
}

/// What a command printed, as a transcript shows it: standard output, standard error, and the exit code if
/// it is not 0.
pub fn transcript(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !output.status.success() {
        let code = output.status.code();
        let code = code.map_or("by a signal".to_owned(), |code| code.to_string());
        text.push_str(&format!("[exit {code}]\n"));
    }
    text
}

/// The steps of a transcript; a command goes on in the next line after a backslash.
///
/// # Errors
/// There is output before the first command.
pub fn steps(text: &str) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        match (steps.last_mut(), line.strip_prefix(PROMPT)) {
            (Some(step), _) if goes_on => {
                step.command.push('\n');
                step.command.push_str(line);
            }
            (_, Some(command)) => steps.push(Step {
                command: command.to_owned(),
                output: Vec::new(),
            }),
            (Some(step), None) => step.output.push(line.to_owned()),
            (None, None) => return Err(format!("output without a command: {line:?}")),
        }
        goes_on = line.ends_with('\\') && (goes_on || line.starts_with(PROMPT));
    }
    Ok(steps)
}

/// Whether output is as it is shown, where `...` stands for anything.
pub fn matches(shown: &[String], found: &[&str]) -> bool {
    match (shown.split_first(), found.split_first()) {
        (None, None) => true,
        (Some((line, rest)), _) if line.trim() == ANYTHING => {
            (0..=found.len()).any(|skipped| matches(rest, &found[skipped..]))
        }
        (Some((line, rest)), Some((first, others))) => {
            line_matches(line, first) && matches(rest, others)
        }
        _ => false,
    }
}

fn line_matches(shown: &str, found: &str) -> bool {
    let Some((before, after)) = shown.split_once(ANYTHING) else {
        return shown.trim_end() == found.trim_end();
    };
    found.strip_prefix(before).is_some_and(|rest| {
        let starts = rest.char_indices().map(|(start, _)| start);
        let mut ends = starts.chain([rest.len()]);
        ends.any(|start| line_matches(after, &rest[start..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn steps_are_commands_and_their_output() {
        let text = "$ a \\\n  b\n1\n\n$ c\n";
        let found = steps(text).expect("steps");
        let [first, second] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(first.command, "a \\\n  b");
        assert_eq!(first.output, ["1", ""]);
        assert_eq!(second.command, "c");
        assert!(second.output.is_empty());
        assert!(steps("1\n$ a\n").is_err());
    }

    #[test]
    fn dots_stand_for_anything_and_nothing_else_does() {
        let shown = lines("version ...\n...\nend");
        assert!(matches(&shown, &["version 17", "end"]));
        assert!(matches(&shown, &["version 17", "a", "b", "end"]));
        assert!(!matches(&shown, &["version 17", "a"]));
        assert!(!matches(&shown, &["17", "end"]));
        assert!(matches(&lines("a...c...e"), &["abcde"]));
        assert!(!matches(&lines("a...c...e"), &["abde"]));
        assert!(!matches(&lines("a"), &[]));
        assert!(!matches(&[], &["a"]));
    }

    #[test]
    fn an_exit_code_is_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut shell = Shell::new(folder.path());
        shell.set("WORD", "one");
        let output = shell.run("echo $WORD; echo two >&2; exit 3");
        assert_eq!(transcript(&output), "one\ntwo\n[exit 3]\n");
    }
}
