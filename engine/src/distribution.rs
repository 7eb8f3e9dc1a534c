//! Recorded values: how they are spread, and their exact sum. Pure.

use hdrhistogram::Histogram;

/// A histogram with the exact sum of what was recorded. A histogram by itself knows each value only
/// to within one percent.
#[derive(Clone, Debug)]
pub struct Distribution {
    spread: Histogram<u64>,
    sum: u64,
}

impl Distribution {
    /// A distribution without values. In the histogram, larger values count as `max`.
    ///
    /// # Panics
    /// `max` is below 2.
    pub fn new(max: u64) -> Distribution {
        Distribution {
            spread: Histogram::new_with_max(max, 2).expect("these bounds are allowed"),
            sum: 0,
        }
    }

    /// Records a value. In the histogram, 0 counts as 1.
    pub fn record(&mut self, value: u64) {
        self.spread.saturating_record(value.max(1));
        self.sum = self.sum.saturating_add(value);
    }

    /// How the values are spread.
    pub fn spread(&self) -> &Histogram<u64> {
        &self.spread
    }

    /// The sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The number of values.
    pub fn count(&self) -> u64 {
        self.spread.len()
    }

    /// Adds the values of another distribution.
    pub fn add(&mut self, other: &Distribution) {
        // All distributions of one kind have the same bounds; with others the largest count as `max`.
        if self.spread.add(&other.spread).is_err() {
            for value in other.spread.iter_recorded() {
                self.spread
                    .saturating_record_n(value.value_iterated_to(), value.count_at_value());
            }
        }
        self.sum = self.sum.saturating_add(other.sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_exact_also_beyond_the_highest_value_and_after_adding() {
        let mut one = Distribution::new(1000);
        let mut other = Distribution::new(10_000);
        for value in [0, 7, 999, 123_457] {
            one.record(value);
            other.record(value);
        }
        one.add(&other);
        assert_eq!(one.sum(), 2 * 124_463);
        assert_eq!(one.count(), 8);
        assert!((1000..1100).contains(&one.spread().max()));
    }
}
