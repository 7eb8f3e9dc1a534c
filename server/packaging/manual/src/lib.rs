//! Writes the man pages and shell completions of a command line, which the packages hold. Both are
//! made from the definition that parses the arguments, so they cannot differ from it.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// The shells that completions are written for, each with the name of its folder.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash"),
    (Shell::Zsh, "zsh"),
    (Shell::Fish, "fish"),
];

/// Writes a page for the command and each of its subcommands into `man1` within the folder, and a
/// file of completions into `bash`, `zsh` and `fish`. Existing files are replaced.
///
/// # Errors
/// A folder or file cannot be written.
pub fn write(command: &Command, folder: &Path) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let pages = folder.join("man1");
    fs::create_dir_all(&pages)?;
    clap_mangen::generate_to(command.clone(), &pages)?;
    for (shell, folder_of_shell) in SHELLS {
        let folder = folder.join(folder_of_shell);
        fs::create_dir_all(&folder)?;
        clap_complete::generate_to(shell, &mut command.clone(), &name, &folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    #[test]
    fn every_subcommand_has_a_page_and_every_shell_its_file() {
        let temp = tempfile::tempdir().expect("a folder");
        let hidden = Command::new("secret").hide(true);
        let shown = Command::new("show").arg(Arg::new("limit").long("limit"));
        let command = Command::new("tool").subcommands([hidden, shown]);
        // The second time replaces the files of the first.
        for _ in 0..2 {
            write(&command, temp.path()).expect("it is written");
        }
        let read = |path: &str| fs::read_to_string(temp.path().join(path)).expect(path);
        assert!(read("man1/tool.1").contains("show"));
        assert!(read("man1/tool-show.1").contains("limit"));
        assert!(!temp.path().join("man1/tool-secret.1").exists());
        for path in ["bash/tool.bash", "zsh/_tool", "fish/tool.fish"] {
            assert!(read(path).contains("limit"), "{path}");
        }
    }
}
