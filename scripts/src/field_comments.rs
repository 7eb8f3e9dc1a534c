//! Comments of fields that say no more than the field's name, such as `/// The node.` above `node: NodeId`.
//! A part of [`crate::tidy`].
//!
//! A field needs a comment that says what its value is of, its unit, its bounds or its meaning. The check
//! finds comments of one line whose words all stand in the name. A synonym of the name gets past it.

/// Words that say nothing by themselves.
const EMPTY_WORDS: [&str; 8] = ["a", "an", "it", "its", "of", "that", "the", "this"];

/// The comments of a file that repeat the name of their field: their lines, counted from 1, and the names.
pub fn repetitions(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(str::trim).enumerate().peekable();
    let mut is_continued = false;
    while let Some((at, line)) = lines.next() {
        let was_continued = std::mem::replace(&mut is_continued, line.starts_with("///"));
        let Some(comment) = line.strip_prefix("/// ").filter(|_| !was_continued) else {
            continue;
        };
        while lines.next_if(|(_, line)| line.starts_with("#[")).is_some() {}
        let name = lines.peek().and_then(|&(_, line)| field_name(line));
        if let Some(name) = name.filter(|name| repeats(comment, name)) {
            found.push((at + 1, name));
        }
    }
    found
}

/// The name of the field that a line declares.
fn field_name(line: &str) -> Option<&str> {
    let rest = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ")?.1,
        Some(rest) => rest.strip_prefix(' ').unwrap_or(line),
        None => line,
    };
    let (name, of_type) = rest.split_once(": ")?;
    let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    (name.chars().all(is_part) && of_type.ends_with(',')).then_some(name)
}

/// Whether all words of a comment stand in a name.
fn repeats(comment: &str, name: &str) -> bool {
    let comment = comment.to_lowercase();
    let mut words = comment
        .split(|character: char| !character.is_alphanumeric())
        .filter(|word| !word.is_empty() && !EMPTY_WORDS.contains(word));
    words.all(|word| name.split('_').any(|part| singular(part) == singular(word)))
}

fn singular(word: &str) -> &str {
    word.strip_suffix('s').unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_that_repeats_a_name_is_found() {
        for (text, name) in [
            ("/// The node.\npub node: NodeId,", "node"),
            ("    /// Its ranges.\n    range: RangeId,", "range"),
            (
                "/// Bytes of its tables.\npub(super) table_bytes: u64,",
                "table_bytes",
            ),
            (
                "/// The command.\n#[command(subcommand)]\ncommand: Command,",
                "command",
            ),
        ] {
            assert_eq!(repetitions(text), [(1, name)], "{text}");
        }
        let second = "struct A {\n    /// More.\n    a: u8,\n    /// The b.\n    pub b: u8,\n}\n";
        assert_eq!(repetitions(second), [(4, "b")]);
    }

    #[test]
    fn a_comment_that_says_more_passes() {
        for text in [
            "/// The node that leaves.\npub node: NodeId,",
            "/// The node,\n/// which leaves.\npub node: NodeId,",
            "/// Its id, never used again.\nid: u64,",
            "/// The node.\nfn node(&self) -> NodeId {",
            "/// The node.\npub struct Node {",
            "node: NodeId,",
        ] {
            assert!(repetitions(text).is_empty(), "{text}");
        }
    }
}
