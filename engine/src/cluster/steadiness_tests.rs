//! How many orders balance gives over a long time: under steady skewed load, under load that changes sides,
//! beside a hot range, and after a restart after which one node leads everything. The figures that are asked
//! for, and how the made-up loads come about, stand at each test.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Made-up clusters: nodes, shards of each, ranges.
const CLUSTERS: [(u64, u16, usize); 5] =
    [(2, 2, 12), (3, 1, 12), (3, 2, 24), (3, 2, 96), (5, 2, 60)];
const SEEDS: u64 = 4;
/// What all ranges take together, as a part of what all shards have.
const USED: f64 = 0.5;
/// A range's load keeps this part of what was random about it a round before: it is another one after about
/// 10 s.
const KEPT: f64 = 0.95;
/// The random part of a load is mostly less than this part of its mean.
const JITTER: f64 = 0.2;

/// Loads that are skewed, the first one the largest, and jitter.
struct Skewed {
    ids: Vec<u64>,
    means: Vec<f64>,
    jitter: Vec<f64>,
    random: StdRng,
}

impl Skewed {
    /// Ranges whose loads are as one over their rank. `leader` gives the node that leads a range.
    fn new(
        model: &mut Model,
        (shards, count): (u16, usize),
        seed: u64,
        leader: impl Fn(usize) -> u64,
    ) -> Skewed {
        let mut random = StdRng::seed_from_u64(seed);
        let harmonic: f64 = (1..=count).map(|rank| 1.0 / rank as f64).sum();
        let all = USED * 1000.0 * (model.nodes * u64::from(shards)) as f64;
        let nodes = model.nodes;
        let (mut ids, mut means) = (Vec::new(), Vec::new());
        for rank in 1..=count {
            // One range alone never fills more than a half of a shard.
            let load = (all / harmonic / rank as f64).min(500.0);
            let first = leader(rank);
            let places = (0..nodes.min(3)).map(|next| {
                let node = (first - 1 + next) % nodes + 1;
                (node, random.random_range(0..shards))
            });
            let places: Vec<(u64, u16)> = places.collect();
            ids.push(model.range(&places, load));
            means.push(load);
        }
        Skewed {
            jitter: vec![0.0; count],
            ids,
            means,
            random,
        }
    }

    /// Lets time pass; gives how many orders were given.
    fn pass(&mut self, model: &mut Model, seconds: u32) -> usize {
        let before = model.given.len();
        for _ in 0..seconds * 2 {
            let all = self.ids.iter().zip(&self.means).zip(&mut self.jitter);
            for ((id, mean), jitter) in all {
                let news = JITTER * (1.0 - KEPT * KEPT).sqrt();
                // About normal, with a deviation of 1.
                let normal: f64 = (0..12).map(|_| self.random.random_range(0.0..1.0)).sum();
                *jitter = *jitter * KEPT + (normal - 6.0) * news;
                let range = model.ranges.get_mut(id).expect("it is there");
                range.load = (mean * (1.0 + *jitter)).max(0.0);
            }
            model.round();
        }
        model.given.len() - before
    }
}

/// The last orders, with their reasons.
fn last_orders(model: &Model, count: usize) -> String {
    let decisions = model.manager.planning.decisions.last();
    let shown = decisions.into_iter().rev().take(count).map(|decision| {
        let (range, kind, reason) = (decision.range, decision.kind, &decision.reason);
        format!("range {range}: {kind:?}, {reason}; {}", decision.expected)
    });
    shown.collect::<Vec<String>>().join("\n")
}

/// The mean loads of the idlest shard and of the busiest one.
fn extremes(model: &Model, skewed: &Skewed) -> (f64, f64) {
    let cpu = |shard: Location| {
        let led = skewed.ids.iter().zip(&skewed.means);
        let led = led.filter(|(id, _)| model.ranges[*id].led_at() == shard);
        IDLE_CPU + led.map(|(_, mean)| mean).sum::<f64>()
    };
    let all = model.all_shards().into_iter().map(cpu);
    all.fold((f64::MAX, 0.0_f64), |(least, most), cpu| {
        (least.min(cpu), most.max(cpu))
    })
}

/// Asked for: at most 2 orders in 30 minutes; aim: none.
#[test]
fn steady_skewed_load_that_is_balanced_gives_no_orders() {
    let mut too_many = Vec::new();
    for (nodes, shards, count) in CLUSTERS {
        for seed in 1..=SEEDS {
            let mut model = Model::new(nodes, shards);
            let leader = |rank: usize| 1 + rank as u64 % nodes;
            let mut skewed = Skewed::new(&mut model, (shards, count), seed, leader);
            let first = skewed.pass(&mut model, 900);
            let (least, most) = extremes(&model, &skewed);
            let orders = skewed.pass(&mut model, 1800);
            println!(
                "{nodes} nodes of {shards}, {count} ranges, seed {seed}: {first} orders until the shards use {least:.0} \
                 to {most:.0}, then {orders} in 30 minutes"
            );
            if orders > 2 {
                too_many.push(last_orders(&model, orders));
            }
        }
    }
    assert!(too_many.is_empty(), "{}", too_many.join("\n\n"));
}

/// Asked for: at most 6 orders in 10 minutes; aim: 3.
#[test]
fn skewed_load_that_changes_sides_gives_few_orders() {
    let mut too_many = Vec::new();
    for (nodes, shards, count) in CLUSTERS {
        for seed in 1..=SEEDS {
            let mut model = Model::new(nodes, shards);
            let leader = |rank: usize| 1 + rank as u64 % nodes;
            let mut skewed = Skewed::new(&mut model, (shards, count), seed, leader);
            skewed.pass(&mut model, 900);
            let means = skewed.means.clone();
            let before = model.given.len();
            for turn in 0..30 {
                // One half of the ranges, the odd ones, has all of its load, the other nothing.
                for (rank, mean) in skewed.means.iter_mut().enumerate() {
                    *mean = if rank % 2 == turn % 2 {
                        2.0 * means[rank]
                    } else {
                        0.0
                    };
                    *mean = mean.min(800.0);
                }
                skewed.pass(&mut model, 20);
            }
            let orders = model.given.len() - before;
            let costly = model.given[before..].iter().filter(|given| !given.is_cheap);
            println!(
                "{nodes} nodes of {shards}, {count} ranges, seed {seed}: {orders} orders in 10 minutes, {} of them \
                 of ranges with load or rows",
                costly.count()
            );
            if orders > 6 {
                too_many.push(last_orders(&model, orders));
            }
        }
    }
    assert!(too_many.is_empty(), "{}", too_many.join("\n\n"));
}

/// Beside others, and jittering: wherever it is led, that shard is the busiest one. It may move once, so that
/// its shard has nothing else to do.
#[test]
fn a_hot_range_beside_others_does_not_wander() {
    for (nodes, shards, count) in CLUSTERS {
        for seed in 1..=SEEDS {
            let mut model = Model::new(nodes, shards);
            let leader = |rank: usize| 1 + rank as u64 % nodes;
            let mut skewed = Skewed::new(&mut model, (shards, count), seed, leader);
            skewed.means[0] = 900.0;
            for mean in &mut skewed.means[1..] {
                *mean /= 2.0;
            }
            skewed.pass(&mut model, 600);
            let hot = skewed.ids[0];
            let orders = |model: &Model| {
                model
                    .given
                    .iter()
                    .filter(|given| given.range == hot)
                    .count()
            };
            let first = orders(&model);
            skewed.pass(&mut model, 1800);
            let all = orders(&model);
            println!(
                "{nodes} nodes of {shards}, {count} ranges, seed {seed}: {first} orders of the hot range, then {}",
                all - first
            );
            assert!(first <= 1 && all == first, "{first}, {all}");
        }
    }
}

/// All others were away for a moment, and one node leads all ranges. Without a storm of orders
/// ([`Model::check_limits`]) the leaders are spread again, and then they stay.
#[test]
fn after_a_restart_after_which_one_node_leads_everything_leaders_are_spread_and_stay() {
    for (nodes, shards, count) in CLUSTERS {
        for seed in 1..=SEEDS {
            let mut model = Model::new(nodes, shards);
            let mut skewed = Skewed::new(&mut model, (shards, count), seed, |_| 1);
            let mut passed = 0;
            let is_spread = |model: &Model, skewed: &Skewed| {
                let (_, most) = extremes(model, skewed);
                let sum: f64 = skewed.means.iter().sum();
                let mean = IDLE_CPU + sum / (nodes * u64::from(shards)) as f64;
                most <= (mean + 150.0).max(skewed.means[0] + 150.0)
            };
            while !is_spread(&model, &skewed) {
                skewed.pass(&mut model, 1);
                passed += 1;
                assert!(passed < 600, "{:?}", extremes(&model, &skewed));
            }
            let spread_after = model.given.len();
            skewed.pass(&mut model, 900);
            let settled = model.given.len();
            let orders = skewed.pass(&mut model, 1800);
            let (least, most) = extremes(&model, &skewed);
            println!(
                "{nodes} nodes of {shards}, {count} ranges, seed {seed}: spread after {passed} s and {spread_after} orders, {settled} \
                 until the shards use {least:.0} to {most:.0}, then {orders} in 30 minutes"
            );
            assert!(orders <= 2, "{}", last_orders(&model, orders));
            for node in 1..=nodes {
                assert!(
                    model.leaders(node) * nodes as usize * 2 >= count,
                    "node {node}"
                );
            }
        }
    }
}
