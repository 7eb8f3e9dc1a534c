//! Blocks that change a machine run on a [host](rangedb_tests::host) of their own, as root. What they start with
//! `systemctl` must then work: see [`look_at_unit`].
//!
//! Two things differ from what a reader does. `scripts/package` takes the binaries of the test, as a release takes
//! minutes to build. And Grafana is not in Debian: a unit that does nothing stands for it, so only its files
//! are looked at.

use std::fs;

use rangedb_tests::cluster::wait_for;
use rangedb_tests::console::{Shell, transcript};
use rangedb_tests::host::{Host, WORKSPACE};
use rangedb_tests::process::binary;
use serde_json::Value;

use super::{Block, commands, root};

/// What the blocks, and the looks at what they start, need on the host.
const TOOLS: [&str; 5] = ["apt", "dpkg", "prometheus", "promtool", "curl"];

/// Stands for an operator: writes settings of a cluster of one node into the files that it is given.
const EDITOR: &str = r#"#!/bin/sh
set -e
for file; do
    case "$file" in
    *.toml) settings='shards = 1
memory = "256MiB"
join = "127.0.0.1:7400"
bootstrap-expect = 1' ;;
    *.env) settings='RANGEDB_CLUSTER_SECRET="some words"' ;;
    esac
    # The package has brought the file.
    test -f "$file"
    echo "$settings" >> "$file"
done
"#;

/// Stands for Grafana.
const GRAFANA: &str = "[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
";

/// A host with all tools and stand-ins.
///
/// # Errors
/// There can be none here.
pub fn new() -> Result<Host, String> {
    let host = Host::new()?;
    for tool in TOOLS {
        if !host.run(&format!("command -v {tool}")).status.success() {
            return Err(format!("{tool} is not installed"));
        }
    }
    host.write("/usr/local/bin/editor", EDITOR);
    host.write("/etc/systemd/system/grafana-server.service", GRAFANA);
    host.ask("mkdir -p /etc/grafana");
    Ok(host)
}

/// Runs a block, and looks at the units that it starts.
pub fn run(block: &Block, host: &Host) {
    for (line, _) in commands(block) {
        if line.starts_with("scripts/package") {
            make_packages(&line, host);
            continue;
        }
        host.ask(&line);
        let mut words = line.split_whitespace();
        if words.next() == Some("systemctl") {
            let units = words.skip(1).filter(|word| !word.starts_with('-'));
            units.for_each(|unit| look_at_unit(unit, host));
        }
    }
}

/// Runs the script in the workspace, with the binaries of the test. The packages come to the host.
fn make_packages(line: &str, host: &Host) {
    let program = binary("rangedb");
    let binaries = program.parent().expect("a file has a folder").display();
    let out = host.path(WORKSPACE).join("target/package");
    let script = line.split(" #").next().unwrap_or(line).trim();
    // These binaries are large.
    let flags = format!(
        "--bin-dir {binaries} --compression none --out {}",
        out.display()
    );
    let output = Shell::new(root()).run(&format!("{script} {flags}"));
    assert!(output.status.success(), "{line}\n{}", transcript(&output));
}

/// Looks at what was started.
fn look_at_unit(unit: &str, host: &Host) {
    assert_eq!(property(host, unit, "ActiveState"), "active", "{unit}");
    match unit {
        "rangedb" => {
            assert_eq!(property(host, unit, "UnitFileState"), "enabled");
            node_is_confined(host);
            node_outlives_what_systemd_does(host);
        }
        "prometheus" => prometheus_watches(host),
        "grafana-server" => grafana_finds_the_dashboards(host),
        unit => panic!("what does {unit} do?"),
    }
}

/// What systemd knows about a unit.
fn property(host: &Host, unit: &str, name: &str) -> String {
    host.ask(&format!("systemctl show --property {name} --value {unit}"))
}

/// The node has none of the rights that its unit takes from it.
fn node_is_confined(host: &Host) {
    let id = property(host, "rangedb", "MainPID");
    let status = fs::read_to_string(host.path(&format!("/proc/{id}/status"))).expect("it runs");
    let user = host.ask("id -u rangedb");
    for wanted in [
        format!("Uid:\t{user}\t{user}\t{user}\t{user}\n"),
        "CapBnd:\t0000000000000000\n".to_owned(),
        "NoNewPrivs:\t1\n".to_owned(),
        "Seccomp:\t2\n".to_owned(),
    ] {
        assert!(status.contains(&wanted), "no {wanted:?} in\n{status}");
    }
    assert_eq!(
        host.ask("stat --format '%U %a' /var/lib/rangedb"),
        "rangedb 700"
    );
}

/// The node keeps its rows, and serves whenever `systemctl` says so.
fn node_outlives_what_systemd_does(host: &Host) {
    let serves = |after: &str| {
        assert_eq!(property(host, "rangedb", "StatusText"), "ready", "{after}");
        assert_eq!(host.ask("rangedb get greeting"), "hello", "{after}");
    };
    host.ask("rangedb put greeting hello");
    serves("a start");

    let reload = |level: &str, logged: &str| {
        let change = format!("s/^#*log-level = .*/log-level = \"{level}\"/");
        host.ask(&format!("sed -i '{change}' /etc/rangedb/rangedb.toml"));
        host.ask("systemctl reload rangedb");
        wait_for(logged, || {
            let journal = host.ask("journalctl --unit rangedb");
            journal.contains(logged).then_some(())
        });
        serves(logged);
    };
    reload("nonsense", r#"event="reload_refused""#);
    reload("debug", r#"applied="log-level""#);

    host.ask("systemctl restart rangedb");
    serves("a restart");

    host.ask("systemctl kill --signal KILL rangedb");
    wait_for("a node that systemd starts again", || {
        let again = property(host, "rangedb", "NRestarts") == "1";
        (again && property(host, "rangedb", "ActiveState") == "active").then_some(())
    });
    serves("a kill");

    host.ask("systemctl stop rangedb");
    assert_eq!(property(host, "rangedb", "Result"), "success");
    assert_eq!(property(host, "rangedb", "ExecMainStatus"), "0");
    assert!(!host.run("rangedb get greeting").status.success());
    host.ask("systemctl start rangedb");
    serves("a stop");
}

/// Prometheus has read the node's metrics and evaluated all alerts.
fn prometheus_watches(host: &Host) {
    let server = "http://127.0.0.1:9090";
    wait_for("a node that Prometheus scrapes", || {
        let asked = host.run(&format!(
            "promtool query instant {server} 'up{{job=\"rangedb\"}}'"
        ));
        let found = String::from_utf8_lossy(&asked.stdout).into_owned();
        let up = r#"up{instance="127.0.0.1:7480", job="rangedb"} => 1 @"#;
        found.starts_with(up).then_some(())
    });
    let alerts = super::read("server/monitoring/rules.yml");
    let alerts = alerts.matches("- alert:").count();
    wait_for("alerts that Prometheus has evaluated", || {
        let rules = host.ask(&format!("curl --silent --fail {server}/api/v1/rules"));
        let rules: Value = serde_json::from_str(&rules).expect("it is JSON");
        let groups = rules["data"]["groups"].as_array()?.iter();
        let rules = groups
            .filter_map(|group| group["rules"].as_array())
            .flatten();
        (rules.filter(|rule| rule["health"] == "ok").count() == alerts).then_some(())
    });
}

/// The file that tells Grafana of the dashboards names the folder in which the package has them.
fn grafana_finds_the_dashboards(host: &Host) {
    let provisioning = "/etc/grafana/provisioning";
    let folder = host.ask(&format!(
        "sed -n 's/^ *path: //p' {provisioning}/dashboards/rangedb.yml"
    ));
    host.ask(&format!("ls {folder}/rangedb-overview.json"));
    host.ask(&format!("test -f {provisioning}/datasources/rangedb.yml"));
}
