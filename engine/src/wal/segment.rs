//! Segments: their names, and which of them are still needed.

use std::collections::BTreeMap;
use std::rc::Rc;

/// Segments are written ahead of use: so many wait, zeroed.
pub const SPARES: usize = 1;
/// The mark of a clean stop.
pub const CLEAN: &str = "clean";

/// The name of a segment in use.
pub fn name(generation: u64) -> String {
    format!("{generation:012}.wal")
}

/// The name of a segment that waits for use.
pub fn spare_name(number: u64) -> String {
    format!("{number:012}.spare")
}

/// What a file in the log's folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A segment in use, with its generation.
    Segment(u64),
    /// A spare one.
    Spare(u64),
    /// The mark of a clean stop.
    Clean,
    /// Not ours.
    Foreign,
}

/// Reads a file's name.
pub fn kind(name: &str) -> Kind {
    let number = |suffix: &str| name.strip_suffix(suffix).and_then(|n| n.parse().ok());
    match (number(".wal"), number(".spare")) {
        _ if name == CLEAN => Kind::Clean,
        (Some(generation), _) => Kind::Segment(generation),
        (_, Some(number)) => Kind::Spare(number),
        _ => Kind::Foreign,
    }
}

/// A segment in use.
pub struct Segment<F> {
    /// Its file.
    pub file: Rc<F>,
    /// Entries in it that are not purged, as far as is durable.
    pub live: usize,
}

/// The segments in use, by generation. The last is the one written to.
pub struct Segments<F> {
    in_use: BTreeMap<u64, Segment<F>>,
}

impl<F> Default for Segments<F> {
    fn default() -> Segments<F> {
        Segments {
            in_use: BTreeMap::new(),
        }
    }
}

impl<F> Segments<F> {
    /// Adds the segment that is written to from now on.
    pub fn add(&mut self, generation: u64, file: Rc<F>) {
        self.in_use.insert(generation, Segment { file, live: 0 });
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.in_use.len()
    }

    /// A segment's file.
    pub fn file(&self, generation: u64) -> Option<Rc<F>> {
        self.in_use
            .get(&generation)
            .map(|segment| segment.file.clone())
    }

    /// The oldest segment's generation, unless it is the one written to.
    pub fn oldest_full(&self) -> Option<u64> {
        let (oldest, _) = self.in_use.first_key_value()?;
        (self.in_use.len() > 1).then_some(*oldest)
    }

    /// An entry now lies in this segment.
    pub fn hold(&mut self, generation: u64) {
        if let Some(segment) = self.in_use.get_mut(&generation) {
            segment.live += 1;
        }
    }

    /// An entry in this segment is not needed any more.
    pub fn release(&mut self, generation: u64) {
        if let Some(segment) = self.in_use.get_mut(&generation) {
            segment.live = segment.live.saturating_sub(1);
        }
    }

    /// Takes out the segments at the old end that nothing needs.
    pub fn take_unneeded(&mut self) -> Vec<u64> {
        let mut unneeded = Vec::new();
        while let Some(oldest) = self.oldest_full() {
            if self
                .in_use
                .get(&oldest)
                .is_some_and(|segment| segment.live > 0)
            {
                break;
            }
            self.in_use.remove(&oldest);
            unneeded.push(oldest);
        }
        unneeded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        assert_eq!(kind(&name(7)), Kind::Segment(7));
        assert_eq!(kind(&spare_name(8)), Kind::Spare(8));
        assert_eq!(kind(CLEAN), Kind::Clean);
        assert_eq!(kind("x.wal"), Kind::Foreign);
    }

    #[test]
    fn only_the_old_end_goes_and_never_the_last() {
        let mut segments = Segments::default();
        (1..=4).for_each(|generation| segments.add(generation, Rc::new(())));
        segments.hold(2);
        assert_eq!(segments.take_unneeded(), [1]);
        segments.release(2);
        assert_eq!(segments.take_unneeded(), [2, 3]);
        assert_eq!(segments.len(), 1);
    }
}
