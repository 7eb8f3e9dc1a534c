//! One node on the first core, driven by `loadgen` on the second: the works that `compare redis` and
//! `compare build` measure.
//!
//! A node starts with an empty folder and is loaded; reads are measured before writes. The first row begins when
//! the load ends. Before the other reads every record has been read several times, so that the row cache holds
//! what it can. The works of the group `large` have ten times as many records, in one node for all rounds.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Figures, Options, VALUE_SIZE, cpu_seconds, figures_of_loadgen};
use crate::Outcome;
use crate::node::Node;
use crate::process::{output, release_binary};

pub(super) const SERVER_CPU: &str = "0";
pub(super) const CLIENT_CPU: &str = "1";
/// Seconds of a run that comes before the measured one.
const WARMUP: &str = "1";
/// How long reads are measured that begin when the load ends.
const FIRST_SECONDS: &str = "10";
/// How often each record is read, on average, before reads are measured.
const PASSES: f64 = 5.0;
/// How many times as many records the group `large` has, and how often each is read before.
pub(super) const LARGE_TIMES: u64 = 10;
const LARGE_PASSES: f64 = 1.0;
const LARGE: &str = "large";
pub(super) const GROUPS: [&str; 5] = ["get", "multi-get", "scan", "put", LARGE];
/// The options of a [`Plan`], for usages.
pub(super) const OPTIONS: &str = "[--rows get,scan,multi-get,put,large] [--records N] [--seconds N] [--rounds N] \
                                  [--memory SIZE]";

/// The figures of works by their names.
pub(super) type Measured = BTreeMap<&'static str, Figures>;

/// How a work is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// By `loadgen run`, after a short run.
    Warm,
    /// By `loadgen run`, as soon as the records are loaded.
    AfterLoad,
    /// By `loadgen scan`.
    FullScan,
}

/// What `loadgen` does with a node.
pub(super) struct Work {
    pub(super) group: &'static str,
    pub(super) name: &'static str,
    method: Method,
    /// The workload, as words of loadgen's command line.
    words: &'static str,
}

const fn work(
    (group, name): (&'static str, &'static str),
    method: Method,
    words: &'static str,
) -> Work {
    Work {
        group,
        name,
        method,
        words,
    }
}

/// The works in the order in which they are measured.
pub(super) static WORKS: [Work; 11] = [
    work(
        ("get", "get 16 x 32, at first"),
        Method::AfterLoad,
        "--workload c --distribution uniform --connections 16 --depth 32",
    ),
    work(
        ("get", "get 16 x 32"),
        Method::Warm,
        "--workload c --distribution uniform --connections 16 --depth 32",
    ),
    work(
        ("get", "get 16 x 1"),
        Method::Warm,
        "--workload c --distribution uniform --connections 16 --depth 1",
    ),
    work(
        ("multi-get", "key of a multi-get of 100"),
        Method::Warm,
        "--workload c --distribution uniform --connections 16 --depth 1 --batch 100",
    ),
    work(
        ("scan", "scan of 50 rows (E)"),
        Method::Warm,
        "--workload e --distribution uniform --connections 16 --depth 1",
    ),
    work(("scan", "row of a scan of all"), Method::FullScan, ""),
    work(
        ("put", "put 1 x 1"),
        Method::Warm,
        "--workload write --distribution uniform --connections 1 --depth 1",
    ),
    work(
        ("put", "put 64 x 1"),
        Method::Warm,
        "--workload write --distribution uniform --connections 64 --depth 1",
    ),
    work(
        ("put", "put 16 x 32"),
        Method::Warm,
        "--workload write --distribution uniform --connections 16 --depth 32",
    ),
    work(
        ("large", "large get, zipfian"),
        Method::Warm,
        "--workload c --distribution zipfian --connections 16 --depth 32",
    ),
    work(
        ("large", "large get, uniform"),
        Method::Warm,
        "--workload c --distribution uniform --connections 16 --depth 32",
    ),
];

/// What is measured, and how.
pub(super) struct Plan {
    pub(super) common: Options,
    /// The budget of a node's memory, as `rangedb start --memory` takes it.
    pub(super) memory: String,
    /// The chosen groups of works.
    pub(super) groups: Vec<String>,
}

impl Plan {
    /// What is measured without options.
    pub(super) fn new() -> Plan {
        Plan {
            common: Options {
                records: "1000000".to_owned(),
                seconds: 5.0,
                rounds: 5,
            },
            memory: "2GiB".to_owned(),
            groups: GROUPS.map(str::to_owned).to_vec(),
        }
    }

    /// Takes an option and its value; `false` if the option is unknown or its value invalid.
    pub(super) fn take(&mut self, option: &[&str]) -> bool {
        match option {
            ["--rows", groups] => {
                self.groups = groups.split(',').map(str::to_owned).collect();
                let mut groups = self.groups.iter();
                groups.all(|group| GROUPS.contains(&group.as_str()))
            }
            ["--memory", size] => {
                self.memory = (*size).to_owned();
                true
            }
            option => self.common.take(option),
        }
    }

    /// Whether a work is of a chosen group.
    pub(super) fn has(&self, work: &Work) -> bool {
        self.groups.iter().any(|group| group == work.group)
    }

    /// The works of the chosen groups.
    pub(super) fn works(&self) -> Vec<&'static Work> {
        WORKS.iter().filter(|work| self.has(work)).collect()
    }

    pub(super) fn records(&self) -> Result<u64, String> {
        let records = self.common.records.parse();
        records.map_err(|_| "no number of records".to_owned())
    }

    /// What the figures were measured with, for the line above a table.
    pub(super) fn describe(&self, rounds: usize) -> String {
        let Plan { common, memory, .. } = self;
        format!(
            "medians of {rounds} rounds of {} s (least-most); {} records ({LARGE_TIMES} times as many if large), \
             16 byte keys, {VALUE_SIZE} byte values, --memory {memory}",
            common.seconds, common.records
        )
    }
}

/// The programs of a build, by their paths.
pub(super) struct Programs {
    pub(super) rangedb: String,
    pub(super) loadgen: String,
}

impl Programs {
    /// Those of this checkout, in release.
    pub(super) fn of_this() -> Result<Programs, String> {
        Ok(Programs {
            rangedb: release_binary("rangedb")?,
            loadgen: release_binary("loadgen")?,
        })
    }
}

/// A build of the server, and its node with many records if there are works for it.
pub(super) struct Build {
    programs: Programs,
    works: Vec<&'static Work>,
    large: Option<(Server, Vec<&'static Work>)>,
}

impl Build {
    /// The build with these programs, which is to do these works. Loads the node of the group `large`.
    pub(super) fn new(
        programs: Programs,
        folder: &Path,
        plan: &Plan,
        works: &[&'static Work],
    ) -> Result<Build, String> {
        let works = works.iter().copied();
        let (large, works): (Vec<&Work>, Vec<&Work>) = works.partition(|work| work.group == LARGE);
        let large = match large.is_empty() {
            true => None,
            false => {
                let records = plan.records()? * LARGE_TIMES;
                let server = Server::start(&programs, folder, plan, records)?;
                server.warm(LARGE_PASSES)?;
                Some((server, large))
            }
        };
        Ok(Build {
            programs,
            works,
            large,
        })
    }

    /// Measures all its works once, most of them on a new node, whose data folder is `folder`.
    pub(super) fn measure(&self, folder: &Path, plan: &Plan) -> Result<Measured, String> {
        let mut all = BTreeMap::new();
        if !self.works.is_empty() {
            let mut server = Server::start(&self.programs, folder, plan, plan.records()?)?;
            let mut is_warm = false;
            for work in &self.works {
                if work.method != Method::AfterLoad && work.group != "put" && !is_warm {
                    server.warm(PASSES)?;
                    is_warm = true;
                }
                all.insert(work.name, server.measure(work)?);
            }
            server.node.stop()?;
        }
        if let Some((server, works)) = &self.large {
            for work in works {
                all.insert(work.name, server.measure(work)?);
            }
        }
        Ok(all)
    }

    /// Stops the node that is left.
    pub(super) fn stop(self) -> Outcome {
        let large = self.large;
        large.map_or(Ok(()), |(mut server, _)| server.node.stop())
    }
}

/// A node of RangeDB, and how it is driven.
struct Server {
    node: Node,
    loadgen: String,
    records: String,
    seconds: String,
}

impl Server {
    /// Starts a node with an empty folder and loads the records.
    fn start(
        programs: &Programs,
        data_dir: &Path,
        plan: &Plan,
        records: u64,
    ) -> Result<Server, String> {
        let flags = ["--shards", "1", "--cpus", SERVER_CPU, "--memory"];
        let node = Node::start_program(
            &programs.rangedb,
            data_dir,
            &[&flags[..], &[&plan.memory]].concat(),
        )?;
        let server = Server {
            node,
            loadgen: programs.loadgen.clone(),
            records: records.to_string(),
            seconds: plan.common.seconds.to_string(),
        };
        server.drive("load", "--connections 16 --depth 32", &[])?;
        Ok(server)
    }

    /// Runs the load generator to its end; gives what it printed.
    fn drive(&self, command: &str, words: &str, more: &[&str]) -> Result<String, String> {
        let pinned = ["-c", CLIENT_CPU, &self.loadgen, command];
        let common = ["--addr", &self.node.listen, "--format", "json"];
        let records = match command {
            "scan" => Vec::new(),
            _ => vec!["--records", &self.records, "--value-size", VALUE_SIZE],
        };
        let words: Vec<&str> = words.split_whitespace().collect();
        output(
            "taskset",
            &[&pinned[..], &common, &records, &words, more].concat(),
        )
    }

    fn run_for(&self, work: &Work, seconds: &str) -> Result<String, String> {
        let times = ["--warmup", "0", "--duration", seconds];
        self.drive("run", work.words, &times)
    }

    /// Reads records until each was read so often, on average.
    fn warm(&self, passes: f64) -> Outcome {
        let records: f64 = self.records.parse().map_err(|_| "no number of records")?;
        let words = "--workload c --distribution uniform --connections 16 --depth 32";
        let mut left = records * passes;
        while left > 0.0 {
            let text = self.drive("run", words, &["--warmup", "0", "--duration", "2"])?;
            let figures = figures_of_loadgen(&text, 0.0)?;
            left -= figures.rate.max(1.0) * 2.0;
        }
        Ok(())
    }

    fn measure(&self, work: &Work) -> Result<Figures, String> {
        if work.method == Method::Warm {
            self.run_for(work, WARMUP)?;
        }
        let before = cpu_seconds(self.node.id())?;
        let text = match work.method {
            Method::Warm => self.run_for(work, &self.seconds),
            Method::AfterLoad => self.run_for(work, FIRST_SECONDS),
            Method::FullScan => self.drive("scan", work.words, &[]),
        }?;
        let used = cpu_seconds(self.node.id())? - before;
        figures_of_loadgen(&text, used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_is_of_a_group() {
        for work in &WORKS {
            assert!(GROUPS.contains(&work.group), "{}", work.name);
        }
    }

    #[test]
    fn groups_are_chosen_and_unknown_ones_refused() {
        let mut plan = Plan::new();
        assert_eq!(plan.works().len(), WORKS.len());
        assert!(plan.take(&["--rows", "multi-get,scan"]));
        assert_eq!(plan.works().len(), 3);
        for wrong in ["gets", "", "get,"] {
            assert!(!plan.take(&["--rows", wrong]), "{wrong:?}");
        }
        assert!(!plan.take(&["--rows"]));
    }
}
