//! Chooses the record of an operation. Pure, seeded.
//!
//! Zipfian numbers are drawn as in J. Gray et al., "Quickly generating billion-record synthetic
//! databases", SIGMOD 1994, with YCSB's exponent of 0.99. The popular records are scattered over
//! the key space by the key layout, so no second scrambling is needed.

use rand::RngExt;
use rand::rngs::SmallRng;

/// The exponent that YCSB uses.
const THETA: f64 = 0.99;

/// How operations choose records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DistributionKind {
    /// Every record equally often.
    Uniform,
    /// A few records often, most of them seldom.
    Zipfian,
    /// Zipfian, with the newest records as the popular ones.
    Latest,
}

/// Draws record numbers.
#[derive(Clone, Debug)]
pub struct Distribution {
    kind: DistributionKind,
    zipfian: Zipfian,
}

impl Distribution {
    /// A distribution over `records` loaded records. Takes time linear in them unless it is
    /// uniform.
    pub fn new(kind: DistributionKind, records: u64) -> Distribution {
        let ranks = if kind == DistributionKind::Uniform {
            1
        } else {
            records
        };
        Distribution {
            kind,
            zipfian: Zipfian::new(ranks),
        }
    }

    /// A record number below `records`, which may have grown since the start.
    pub fn draw(&self, random: &mut SmallRng, records: u64) -> u64 {
        match self.kind {
            DistributionKind::Uniform => random.random_range(0..records),
            DistributionKind::Zipfian => self.zipfian.draw(random),
            DistributionKind::Latest => (records - 1).saturating_sub(self.zipfian.draw(random)),
        }
    }
}

/// Ranks from 0, rank r with a probability proportional to 1 / (r + 1)^theta.
#[derive(Clone, Debug)]
struct Zipfian {
    ranks: u64,
    zeta: f64,
    zeta_of_two: f64,
    alpha: f64,
    eta: f64,
}

impl Zipfian {
    fn new(ranks: u64) -> Zipfian {
        assert!(ranks > 0, "there are records to draw from");
        let zeta_of_two = zeta(2);
        let zeta = zeta(ranks);
        let alpha = 1.0 / (1.0 - THETA);
        let eta = (1.0 - (2.0 / ranks as f64).powf(1.0 - THETA)) / (1.0 - zeta_of_two / zeta);
        Zipfian {
            ranks,
            zeta,
            zeta_of_two,
            alpha,
            eta,
        }
    }

    fn draw(&self, random: &mut SmallRng) -> u64 {
        let uniform: f64 = random.random();
        let scaled = uniform * self.zeta;
        if scaled < 1.0 || self.ranks == 1 {
            return 0;
        }
        if scaled < self.zeta_of_two || self.ranks == 2 {
            return 1;
        }
        let part = (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        ((self.ranks as f64 * part) as u64).min(self.ranks - 1)
    }
}

fn zeta(ranks: u64) -> f64 {
    (1..=ranks).map(|rank| (rank as f64).powf(-THETA)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn counts(kind: DistributionKind, records: u64, draws: u64) -> Vec<u64> {
        let distribution = Distribution::new(kind, records);
        let mut random = SmallRng::seed_from_u64(7);
        let mut counts = vec![0; records as usize];
        for _ in 0..draws {
            counts[distribution.draw(&mut random, records) as usize] += 1;
        }
        counts
    }

    #[test]
    fn uniform_draws_every_record_alike() {
        let counts = counts(DistributionKind::Uniform, 100, 100_000);
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn zipfian_follows_the_law() {
        let draws = 1_000_000;
        let counts = counts(DistributionKind::Zipfian, 1000, draws);
        let zeta = zeta(1000);
        for rank in [0, 1] {
            let expected = draws as f64 / zeta * ((rank + 1) as f64).powf(-THETA);
            let found = counts[rank] as f64;
            assert!(
                (found / expected - 1.0).abs() < 0.05,
                "rank {rank}: {found}, {expected}"
            );
        }
        // The approximation is coarser for single later ranks, but holds for their sums.
        let tail: u64 = counts[100..].iter().sum();
        let expected: f64 = (101..=1000)
            .map(|rank| (rank as f64).powf(-THETA))
            .sum::<f64>()
            / zeta;
        assert!((tail as f64 / draws as f64 / expected - 1.0).abs() < 0.05);
    }

    #[test]
    fn latest_prefers_new_records() {
        let counts = counts(DistributionKind::Latest, 1000, 100_000);
        assert!(counts[999] > counts[998] && counts[998] > counts[500]);
    }

    #[test]
    fn few_records_are_enough() {
        for kind in [
            DistributionKind::Uniform,
            DistributionKind::Zipfian,
            DistributionKind::Latest,
        ] {
            for records in 1..4 {
                assert_eq!(counts(kind, records, 1000).iter().sum::<u64>(), 1000);
            }
        }
    }
}
