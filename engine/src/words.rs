//! Numbers with their nouns, as messages and tables say them. Pure.

/// A number of things, such as `1 range` and `2 ranges`; the noun is given in the singular.
pub fn counted(number: u64, noun: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{end}")
}

/// Things in a row, with commas between them.
pub fn listed<T: std::fmt::Display>(things: impl IntoIterator<Item = T>) -> String {
    let things = things.into_iter().map(|thing| thing.to_string());
    things.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_singular() {
        let all = [0, 1, 2].map(|number| counted(number, "range"));
        assert_eq!(all, ["0 ranges", "1 range", "2 ranges"]);
    }

    #[test]
    fn commas_are_between() {
        assert_eq!(listed([1, 2, 3]), "1, 2, 3");
        assert_eq!(listed(["a"]), "a");
    }
}
