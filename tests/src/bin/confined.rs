//! `confined RULES PROGRAM ARGUMENT...`: becomes the program, which then has only the system calls
//! that the rules allow, as seccompiler reads them from the file. Any other call fails with EPERM.

use std::error::Error;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn run() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args_os().skip(1);
    let (Some(rules), Some(program)) = (words.next(), words.next()) else {
        return Err("usage: confined RULES PROGRAM ARGUMENT...".into());
    };
    let filters =
        seccompiler::compile_from_json(File::open(rules)?, std::env::consts::ARCH.try_into()?)?;
    let filter = filters.values().next().ok_or("there are no rules")?;
    seccompiler::apply_filter(filter)?;
    Err(Command::new(program).args(words).exec().into())
}

fn main() -> ExitCode {
    let Err(error) = run() else {
        return ExitCode::SUCCESS;
    };
    eprintln!("confined: {error}");
    ExitCode::FAILURE
}
