//! What operators watch the cluster with: `server/METRICS.md`, `server/OPERATING.md` and the files of
//! `server/monitoring` name only what a real cluster shows, and the alerts fire when they should.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::{self, Expr, LabelModifier, VectorSelector};
use rangedb_tests::cluster::{
    addresses, hold_leaders, homes, ranges, start_all, wait_for, wait_until_replicated,
};
use rangedb_tests::process::{Home, Node, cli, command};

/// Labels that the scraper adds.
const OF_TARGETS: [&str; 2] = ["job", "instance"];
/// The ends of the names of a histogram's series.
const OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_sum", "_count"];
/// What every alert must say.
const ANNOTATIONS: [&str; 4] = ["summary", "description", "action", "runbook"];

fn server() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.expect("it is in the workspace").join("server")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(server().join(path)).expect(path)
}

/// Runs Prometheus' tool on this input in the folder of the monitoring; `None` where it is not
/// installed.
fn promtool(words: &[&str], input: &str) -> Option<Output> {
    let started = Command::new("promtool")
        .args(words)
        .current_dir(server().join("monitoring"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            println!("skipped: promtool: {error}");
            return None;
        }
    };
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    Some(child.wait_with_output().expect("it ends"))
}

/// The labels of one series.
type Labels = BTreeMap<String, String>;

/// The series that nodes have shown, by name.
#[derive(Default)]
struct Scrape {
    kinds: BTreeMap<String, String>,
    series: BTreeMap<String, Vec<Labels>>,
}

impl Scrape {
    /// Adds the page of a node.
    fn add(&mut self, page: &str) {
        for line in page.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a kind");
                self.kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let (series, _) = line.rsplit_once(' ').expect("a value");
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                let labels = labels.strip_suffix('}').expect("the end of the labels");
                let labels = labels.split_terminator("\",").map(|label| {
                    let (name, value) = label.split_once("=\"").expect("a label");
                    (name.to_owned(), value.trim_end_matches('"').to_owned())
                });
                let known = self.series.entry(name.to_owned()).or_default();
                known.push(labels.collect());
            }
        }
    }

    /// The labels that series of a name may have, those of the scraper included.
    fn labels(&self, name: &str) -> Result<BTreeSet<String>, String> {
        let of_target = OF_TARGETS.map(str::to_owned).into();
        // The scraper adds this one itself.
        if name == "up" {
            return Ok(of_target);
        }
        let series = self.series.get(name);
        let series = series.ok_or_else(|| format!("no node shows {name}"))?;
        let names = series.iter().flat_map(Labels::keys).cloned();
        Ok(names.chain(of_target).collect())
    }

    /// Checks a selection of series; gives the labels that they have.
    fn check_selector(&self, selector: &VectorSelector) -> Result<BTreeSet<String>, String> {
        let name = selector
            .name
            .as_deref()
            .ok_or("a selection without a name")?;
        let labels = self.labels(name)?;
        for matcher in &selector.matchers.matchers {
            let label = &matcher.name;
            if !labels.contains(label) {
                return Err(format!("{name} has no label {label}"));
            }
            // What a variable stands for, and how scrapers call the nodes, is not known here.
            if OF_TARGETS.contains(&label.as_str()) {
                continue;
            }
            for value in values(matcher)? {
                let mut series = self.series.get(name).into_iter().flatten();
                if !series.any(|labels| labels.get(label).is_some_and(|found| found == value)) {
                    return Err(format!("{name} never has {label}=\"{value}\""));
                }
            }
        }
        Ok(labels)
    }

    /// Checks all parts of an expression; gives the labels of the series that it selects.
    fn check(&self, expression: &Expr) -> Result<BTreeSet<String>, String> {
        Ok(match expression {
            Expr::VectorSelector(selector) => self.check_selector(selector)?,
            Expr::MatrixSelector(matrix) => self.check_selector(&matrix.vs)?,
            Expr::Paren(paren) => self.check(&paren.expr)?,
            Expr::Unary(unary) => self.check(&unary.expr)?,
            Expr::Subquery(query) => self.check(&query.expr)?,
            Expr::Aggregate(aggregate) => {
                let labels = self.check(&aggregate.expr)?;
                match &aggregate.modifier {
                    Some(LabelModifier::Include(by)) => named(&by.labels, &labels)?,
                    Some(LabelModifier::Exclude(_)) => return Err("without is not used".to_owned()),
                    None => BTreeSet::new(),
                }
            }
            Expr::Call(call) => {
                let mut labels = BTreeSet::new();
                for argument in &call.args.args {
                    labels.extend(self.check(argument)?);
                }
                labels
            }
            Expr::Binary(binary) => {
                let (mut left, right) = (self.check(&binary.lhs)?, self.check(&binary.rhs)?);
                let matching = binary.modifier.as_ref().and_then(|m| m.matching.as_ref());
                if let Some(on) = matching {
                    named(&on.labels().labels, &left)?;
                    named(&on.labels().labels, &right)?;
                }
                let are_alike = left.is_empty() || right.is_empty() || left == right;
                if matching.is_none() && !are_alike && !is_of_one_label_set(&left, &right) {
                    return Err(format!("{left:?} never matches {right:?}"));
                }
                left.extend(right);
                left
            }
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => BTreeSet::new(),
        })
    }

    /// Checks the text of an expression; gives the labels of its result.
    fn check_text(&self, text: &str) -> Result<BTreeSet<String>, String> {
        self.check(&parser::parse(&text.replace("$__rate_interval", "5m"))?)
    }
}

/// Whether two sides have the same labels but for those of targets, which all series have.
fn is_of_one_label_set(left: &BTreeSet<String>, right: &BTreeSet<String>) -> bool {
    let own = |labels: &BTreeSet<String>| {
        let labels = labels.iter().map(String::as_str);
        labels
            .filter(|label| !OF_TARGETS.contains(label))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    own(left) == own(right)
}

/// These labels, all of which must be among those of the series.
fn named(wanted: &[String], labels: &BTreeSet<String>) -> Result<BTreeSet<String>, String> {
    match wanted.iter().find(|label| !labels.contains(*label)) {
        Some(missing) => Err(format!("no label {missing} among {labels:?}")),
        None => Ok(wanted.iter().cloned().collect()),
    }
}

/// The values of a label that a matcher means.
fn values(matcher: &Matcher) -> Result<Vec<&str>, String> {
    match matcher.op {
        MatchOp::Equal => Ok(vec![&matcher.value]),
        MatchOp::Re(_) => Ok(matcher.value.split('|').collect()),
        MatchOp::NotEqual | MatchOp::NotRe(_) => Err(format!("{matcher}: only = and =~ are used")),
    }
}

/// An alert of `rules.yml`, by its keys.
type Alert = BTreeMap<String, String>;

/// The alerts. Each key stands on a line of its own.
fn alerts() -> Vec<Alert> {
    let text = read("monitoring/rules.yml");
    let mut alerts: Vec<Alert> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let line = line.trim();
        if line.starts_with("- alert: ") {
            alerts.push(Alert::new());
        }
        let (Some(alert), Some((key, value))) = (alerts.last_mut(), line.split_once(": ")) else {
            continue;
        };
        let value = value
            .strip_prefix('\'')
            .and_then(|value| value.strip_suffix('\''))
            .unwrap_or(value);
        let key = key.trim_start_matches("- ").to_owned();
        alert.insert(key, value.replace("''", "'"));
    }
    assert!(alerts.len() > 20, "{} alerts", alerts.len());
    alerts
}

/// Lets a cluster do one of everything; gives what its nodes show.
fn busy_cluster(folder: &Path) -> (Scrape, Vec<String>) {
    let homes = homes(folder);
    let mut nodes = start_all(&homes);
    wait_until_replicated(&homes);
    hold_leaders(&homes);
    let all = addresses(&homes);
    for words in [
        &["put", "a", "1"][..],
        &["get", "a"],
        &["put", "z", "1"],
        &["get", "a", "z"],
        &["incr", "n"],
        &["cas", "a", "--if-value", "1", "2"],
        &["write", "put", "a", "3", "put", "b", "4"],
        &["scan", "--limit", "10"],
        &["delete", "a"],
        &["put", "word", "no number"],
        &["status"],
        &["range", "ls"],
    ] {
        let output = cli(&all, words);
        assert!(output.status.success(), "{words:?}: {output:?}");
    }
    let refused = cli(&all, &["incr", "word"]);
    assert!(!refused.status.success(), "{refused:?}");
    let known = ranges(&homes[0]).expect("an answer");
    let (id, _) = known.last_key_value().expect("a range");
    wait_for("another leader", || {
        let moved = cli(&all, &["range", "transfer-leader", &id.to_string()]);
        moved.status.success().then_some(())
    });
    // A node is lost and comes back.
    nodes[2].take().expect("it runs").kill();
    nodes[2] = Some(homes[2].start());
    wait_until_replicated(&homes);
    stall(&homes[0], nodes[0].as_ref().expect("it runs"), &all);
    let mut scrape = Scrape::default();
    let mut pages = Vec::new();
    for home in &homes {
        let (status, page) = home.page("/metrics");
        assert_eq!(status, 200);
        scrape.add(&page);
        pages.push(page);
    }
    (scrape, pages)
}

/// Has a task of the node's shard held up: the process is stopped again and again under load.
fn stall(home: &Home, node: &Node, all: &str) {
    let mut load = command("loadgen")
        .args([
            "run",
            "--workload",
            "a",
            "--records",
            "100",
            "--duration",
            "60",
        ])
        .args(["--addr", all, "--depth", "16"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("loadgen starts");
    wait_for("a stall", || {
        node.signal("STOP");
        node.signal("CONT");
        (home.metric("rangedb_shard_stalls_total") > 0.0).then_some(())
    });
    load.kill().expect("it runs");
    load.wait().expect("it ends");
}

/// Every metric of the scrape is in `METRICS.md` with its kind and labels, and no other.
fn check_table(scrape: &Scrape) {
    let text = read("METRICS.md");
    let mut kinds = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`');
        kinds.insert(name.to_owned(), cells[2].to_owned());
        let wanted: BTreeSet<&str> = cells[4].split('`').skip(1).step_by(2).collect();
        let ends = if cells[2] == "histogram" {
            &OF_HISTOGRAMS[..]
        } else {
            &[""]
        };
        for end in ends {
            let series = scrape.series.get(&format!("{name}{end}")).expect(name);
            for labels in series {
                let found: BTreeSet<&str> = labels.keys().map(String::as_str).collect();
                let mut wanted = wanted.clone();
                if *end != "_bucket" {
                    wanted.remove("le");
                }
                assert_eq!(found, wanted, "{name}{end}");
            }
        }
    }
    assert_eq!(kinds, scrape.kinds);
}

/// Every panel's expressions and legends; the number of expressions.
fn check_dashboards(scrape: &Scrape) -> usize {
    let folder = server().join("monitoring/grafana/dashboards");
    let mut count = 0;
    let mut ids = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("dashboards") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a dashboard");
        let board: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let name = board["title"].as_str().expect("a title").to_owned();
        assert!(
            ids.insert(board["uid"].as_str().expect("an id").to_owned()),
            "{name}"
        );
        for variable in board["templating"]["list"].as_array().expect("variables") {
            let Some(query) = variable["definition"].as_str() else {
                continue;
            };
            let inner = query.strip_prefix("label_values(").expect("label_values");
            let (selector, label) = inner.rsplit_once(", ").expect("a label");
            let labels = scrape.check_text(selector).expect(query);
            assert!(labels.contains(label.trim_end_matches(')')), "{query}");
        }
        let mut panels = BTreeSet::new();
        for panel in board["panels"].as_array().expect("panels") {
            let title = format!("{name}: {}", panel["title"].as_str().expect("a title"));
            assert!(
                panels.insert(panel["id"].as_u64().expect("an id")),
                "{title}"
            );
            for target in panel["targets"].as_array().into_iter().flatten() {
                let text = target["expr"].as_str().expect("an expression");
                let labels = scrape
                    .check_text(text)
                    .unwrap_or_else(|why| panic!("{title}: {why}\n{text}"));
                let legend = target["legendFormat"].as_str().unwrap_or_default();
                for label in legend
                    .split("{{")
                    .skip(1)
                    .filter_map(|part| part.split("}}").next())
                {
                    assert!(labels.contains(label), "{title}: {label} of {legend}");
                }
                count += 1;
            }
        }
    }
    assert_eq!(ids.len(), 5, "{ids:?}");
    count
}

#[test]
fn tables_dashboards_and_alerts_name_what_a_cluster_shows() {
    let folder = tempfile::tempdir().expect("a folder");
    let (scrape, pages) = busy_cluster(folder.path());
    check_table(&scrape);
    let panels = check_dashboards(&scrape);
    assert!(panels > 80, "{panels} expressions");
    for alert in alerts() {
        let (name, text) = (&alert["alert"], &alert["expr"]);
        let labels = scrape
            .check_text(text)
            .unwrap_or_else(|why| panic!("{name}: {why}\n{text}"));
        for part in alert["summary"].split("{{ $labels.").skip(1) {
            let label = part.split(" }}").next().unwrap_or_default();
            assert!(labels.contains(label), "{name}: {label}");
        }
    }
    for page in &pages {
        let Some(checked) = promtool(&["check", "metrics"], page) else {
            return;
        };
        let complaint = String::from_utf8_lossy(&checked.stderr);
        assert!(
            checked.status.success() && complaint.is_empty(),
            "{complaint}"
        );
    }
}

#[test]
fn every_alert_says_what_to_do_and_has_a_section_and_two_cases() {
    let (operating, cases) = (read("OPERATING.md"), read("monitoring/rules_test.yml"));
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = alert["alert"].clone();
        assert!(
            ["critical", "warning"].contains(&alert["severity"].as_str()),
            "{name}"
        );
        assert!(alert["for"].ends_with(['s', 'm', 'h']), "{name}");
        for annotation in ANNOTATIONS {
            assert!(!alert[annotation].is_empty(), "{name}: {annotation}");
        }
        assert_eq!(
            alert["runbook"],
            format!("OPERATING.md#{}", name.to_lowercase())
        );
        assert!(
            operating.contains(&format!("\n### {name}\n")),
            "{name} has no section"
        );
        for case in ["fires", "does not fire"] {
            assert!(
                cases.contains(&format!("- name: {name} {case}\n")),
                "{name}: {case}"
            );
        }
        assert!(names.insert(name));
    }
    let sections = operating
        .lines()
        .filter_map(|line| line.strip_prefix("### Rangedb"));
    assert_eq!(
        sections.count(),
        names.len(),
        "each section of an alert is of one that exists"
    );
}

#[test]
fn the_alerts_fire_when_they_should_and_the_settings_of_prometheus_are_valid() {
    for words in [
        &["test", "rules", "rules_test.yml"][..],
        &["check", "config", "prometheus.yml"],
    ] {
        let Some(checked) = promtool(words, "") else {
            return;
        };
        let text = [checked.stdout, checked.stderr].concat();
        assert!(
            checked.status.success(),
            "{words:?}\n{}",
            String::from_utf8_lossy(&text)
        );
    }
}
