//! Rust source text as tokens, without comments, strings and tests.
//!
//! Enough for checks that look at names and braces. `syn` would give a tree, but its line numbers
//! need a feature of `proc-macro2` that every derive macro of the workspace would be built with anew.

/// A word, a number, a mark, `::`, or a quote for a whole literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub text: &'a str,
    /// Counted from 1.
    pub line: usize,
}

/// Stands for a string or character literal.
const LITERAL: &str = "\"";

/// The tokens of a file, without items under `#[cfg(test)]`.
pub fn production(text: &str) -> Vec<Token<'_>> {
    without_tests(&tokens(text))
}

/// Whether the file holds nothing but tests and what they need.
pub fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.starts_with("tests/")
        || path.contains("/tests/")
        || name == "tests.rs"
        || name == "fuzz.rs"
        || name == "test_node.rs"
        || name.ends_with("_tests.rs")
}

/// The index after the bracket that closes the one at `open`; the end of the tokens if none does.
pub fn after_group(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return index + 1;
                }
            }
            _ => {}
        }
    }
    tokens.len()
}

fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::with_capacity(tokens.len());
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        let ahead = tokens.get(index..index + MARK.len()).unwrap_or_default();
        if ahead.iter().map(|token| token.text).eq(MARK) {
            index = after_item(tokens, index + MARK.len());
        } else {
            kept.push(*token);
            index += 1;
        }
    }
    kept
}

/// The index after an item: after its `;` or its body.
fn after_item(tokens: &[Token], start: usize) -> usize {
    let mut index = start;
    while let Some(token) = tokens.get(index) {
        match token.text {
            ";" => return index + 1,
            "{" => return after_group(tokens, index),
            "(" | "[" => index = after_group(tokens, index),
            _ => index += 1,
        }
    }
    index
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let (len, kept) = next(rest, first);
        let (taken, after) = rest.split_at(len);
        match kept {
            Kept::Itself => found.push(Token { text: taken, line }),
            Kept::Literal => found.push(Token {
                text: LITERAL,
                line,
            }),
            Kept::Nothing => {}
        }
        line += taken.matches('\n').count();
        rest = after;
    }
    found
}

/// What a piece of text leaves among the tokens.
enum Kept {
    Itself,
    Literal,
    Nothing,
}

/// The length of the piece with which `rest` begins, and what it leaves.
fn next(rest: &str, first: char) -> (usize, Kept) {
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), Kept::Nothing);
    }
    if rest.starts_with("/*") {
        return (block_comment_len(rest), Kept::Nothing);
    }
    if let Some(len) = literal_len(rest) {
        return (len, Kept::Literal);
    }
    if is_word(first) {
        let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        return (len, Kept::Itself);
    }
    if rest.starts_with("::") {
        return (2, Kept::Itself);
    }
    let kept = if first.is_whitespace() {
        Kept::Nothing
    } else {
        Kept::Itself
    };
    (first.len_utf8(), kept)
}

/// Block comments hold others.
fn block_comment_len(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(ahead) = rest.get(at..).filter(|ahead| !ahead.is_empty()) {
        if ahead.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if ahead.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += ahead.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of the string or character with which `rest` begins. A lifetime is neither.
fn literal_len(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        rest.strip_prefix(prefix)
            .is_some_and(|after| after.starts_with(['"', '\'', '#']))
    })?;
    let body = &rest[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        let inner = body[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        let len = inner.find(&end).map_or(inner.len(), |at| at + end.len());
        return Some(prefix.len() + hashes + 1 + len);
    }
    let quote = body.chars().next().filter(|c| *c != '#')?;
    if quote == '\'' {
        let mut inner = body.chars().skip(1);
        if inner.next()? != '\\' && inner.next()? != '\'' {
            return None;
        }
    }
    let mut is_escaped = false;
    for (at, character) in body.char_indices().skip(1) {
        match character {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            _ if character == quote => return Some(prefix.len() + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        production(text).iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_and_literals_hide_what_they_hold() {
        let text = concat!(
            "a /* b /* c */ d */ // e\n",
            "\"f \\\" g\" r#\"h \" i\"# br\"j\" 'k' '\\'' b'l' x: &'m str"
        );
        let literals = ["\""; 6];
        let mut expected = vec!["a"];
        expected.extend(literals);
        expected.extend(["x", ":", "&", "'", "m", "str"]);
        assert_eq!(words(text), expected);
    }

    #[test]
    fn lines_are_counted_through_literals_and_comments() {
        let found = production("/* 1\n2 */ a \"3\n\" b");
        let lines: Vec<_> = found.iter().map(|token| (token.text, token.line)).collect();
        assert_eq!(lines, [("a", 2), ("\"", 2), ("b", 3)]);
    }

    #[test]
    fn tests_are_left_out() {
        let text = "a #[cfg(test)] mod tests { b {} } c #[cfg(test)] #[path = \"d\"] mod d; e";
        assert_eq!(words(text), ["a", "c", "e"]);
        assert_eq!(words("#[cfg(test)] fn f(a: [u8; 2]) { b } c"), ["c"]);
        assert_eq!(words("#[cfg(not(test))] a").last(), Some(&"a"));
    }
}
