//! The conditions of `rangedb write`. They keep the order in which they were typed, whatever their
//! flags: a result names the first one that does not hold. clap's derive would group them by flag.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// A flag with a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flag {
    Absent,
    Exists,
    Value,
    Version,
}

const FLAGS: [Flag; 4] = [Flag::Absent, Flag::Exists, Flag::Value, Flag::Version];

impl Flag {
    fn name(self) -> &'static str {
        match self {
            Flag::Absent => "if-absent",
            Flag::Exists => "if-exists",
            Flag::Value => "if-value",
            Flag::Version => "if-version",
        }
    }

    /// The names of the words that follow it: a key, and perhaps what the key must have.
    fn words(self) -> &'static [&'static str] {
        match self {
            Flag::Absent | Flag::Exists => &["K"],
            Flag::Value => &["K", "V"],
            Flag::Version => &["K", "N"],
        }
    }

    fn help(self) -> &'static str {
        match self {
            Flag::Absent => {
                "Only if the key has no value. Every condition may be given several times; if one \
                 fails nothing is written, and the first that failed, in the order in which they \
                 were typed, is named"
            }
            Flag::Exists => "Only if the key has a value",
            Flag::Value => "Only if the key has this value",
            Flag::Version => "Only if the key's value has this version",
        }
    }

    fn arg(self) -> Arg {
        Arg::new(self.name())
            .long(self.name())
            .action(ArgAction::Append)
            .num_args(self.words().len())
            .value_names(self.words())
            .allow_hyphen_values(true)
            .conflicts_with("stdin")
            .help(self.help())
    }
}

/// A condition as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedCondition {
    pub(super) flag: Flag,
    pub(super) key: String,
    /// The value or version that the key must have; empty for the flags that take a key alone.
    pub(super) wanted: String,
}

impl TypedCondition {
    /// The flag and the key, as they were typed, and the version if it is one. A value may be long.
    pub(super) fn name(&self) -> String {
        let name = format!("--{} {}", self.flag.name(), self.key);
        match self.flag {
            Flag::Version => format!("{name} {}", self.wanted),
            Flag::Absent | Flag::Exists | Flag::Value => name,
        }
    }
}

/// The conditions of a write, in the order in which they were typed.
#[derive(Clone, Debug, Default)]
pub struct ConditionArgs(pub(super) Vec<TypedCondition>);

impl FromArgMatches for ConditionArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ConditionArgs, clap::Error> {
        let mut typed = Vec::new();
        for flag in FLAGS {
            let places = matches.indices_of(flag.name()).into_iter().flatten();
            let places = places.step_by(flag.words().len());
            let all = matches.get_occurrences::<String>(flag.name());
            for (place, mut words) in places.zip(all.into_iter().flatten()) {
                let mut word = || words.next().cloned().unwrap_or_default();
                let (key, wanted) = (word(), word());
                typed.push((place, TypedCondition { flag, key, wanted }));
            }
        }
        typed.sort_by_key(|(place, _)| *place);
        let in_order = typed.into_iter().map(|(_, condition)| condition);
        Ok(ConditionArgs(in_order.collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = ConditionArgs::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ConditionArgs {
    fn augment_args(command: Command) -> Command {
        command.args(FLAGS.map(Flag::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        ConditionArgs::augment_args(command)
    }
}
