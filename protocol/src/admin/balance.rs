//! Answers about balance: the last decisions of the cluster's manager, and the order to scatter ranges.

use serde::{Deserialize, Serialize};

/// The answer to [`Command::Balance`](super::Command::Balance).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balance {
    /// The last decisions of the present manager, oldest first.
    pub decisions: Vec<Decision>,
}

/// A decision of the cluster's manager.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Decision {
    /// Rises from one decision to the next.
    pub id: u64,
    /// When it was decided, in milliseconds since 1970 of the manager's wall clock.
    pub at_ms: u64,
    /// The range whose leader, replica or bounds change.
    pub range: u64,
    /// What was decided: `move_leader`, `move_replica`, `add_replica`, `remove_replica`, `split` or `merge`.
    pub kind: String,
    /// Why, for people.
    pub reason: String,
    /// The shard from which something moves, as `NODE/SHARD`.
    pub from: Option<String>,
    /// The shard to which it moves.
    pub to: Option<String>,
    /// What is expected of it, for people; may be empty.
    pub expected: String,
    /// `under_way`, `done`, or `failed: ` and why.
    pub outcome: String,
}

/// The answer to [`Command::ScatterRanges`](super::Command::ScatterRanges).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scattered {
    /// So many orders are given one after the other.
    pub orders: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Command;

    #[test]
    fn an_interval_to_scatter_is_in_hexadecimal_digits_and_may_be_open() {
        for (text, start, end) in [
            (r#"{"command":"scatter_ranges"}"#, "", None),
            (
                r#"{"command":"scatter_ranges","start":"61","end":"62"}"#,
                "a",
                Some("b"),
            ),
        ] {
            let command = Command::ScatterRanges {
                start: start.into(),
                end: end.map(Into::into),
            };
            assert_eq!(Command::parse(text).as_ref(), Ok(&command), "{text}");
            let again = serde_json::to_string(&command).expect("it has a text");
            assert_eq!(Command::parse(&again), Ok(command));
        }
        assert!(Command::parse(r#"{"command":"scatter_ranges","start":"x"}"#).is_err());
    }

    #[test]
    fn a_decision_has_the_names_that_tools_rely_on() {
        let decision = Decision {
            id: 7,
            at_ms: 8,
            range: 9,
            kind: "move_leader".to_owned(),
            from: Some("1/0".to_owned()),
            outcome: "under_way".to_owned(),
            ..Decision::default()
        };
        let decisions = vec![decision];
        let text = serde_json::to_string(&Balance { decisions }).expect("it has a text");
        let wanted = r#"{"decisions":[{"id":7,"at_ms":8,"range":9,"kind":"move_leader","reason":"","from":"1/0","to":null,"expected":"","outcome":"under_way"}]}"#;
        assert_eq!(text, wanted);
    }
}
