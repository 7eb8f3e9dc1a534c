//! Network namespaces on one bridge, and faults of the links between them.
//!
//! A [`Net`] has a hub, which is a namespace with the bridge, and spaces, which are namespaces with
//! one interface on the bridge. Since the hub is not the machine's network, every net uses the same
//! addresses; only the names of the namespaces differ, by process id and a number. A fault affects
//! one direction: nftables drops packets at the receiver, so the sender learns nothing. Dropping a
//! net removes its namespaces. The next net removes those of a test that was killed, and the
//! processes in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::run;

/// The prefix of the names of all test namespaces.
const NAME: &str = "rangedb-test";
/// The interface of a space.
const INTERFACE: &str = "eth0";
const BRIDGE: &str = "br0";
/// The network of a net; the host number is the number of the space, from 1.
const BLOCK: &str = "10.77.0";

/// The nftables table of a receiver's faults.
const TABLE: &str = "add table inet faults
add chain inet faults arriving { type filter hook input priority 0; }
";

/// A fault of the packets from one space to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No packet arrives.
    Cut,
    /// This percentage of the packets is lost, at random.
    Lose(u32),
}

/// A set of namespaces that reach each other.
#[derive(Debug)]
pub struct Net {
    prefix: String,
    spaces: usize,
    /// The faults, by sending and receiving space.
    faults: BTreeMap<(usize, usize), Fault>,
}

impl Net {
    /// Makes a net with this number of spaces.
    ///
    /// # Errors
    /// A right or a tool is missing.
    pub fn new(spaces: usize) -> Result<Net, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        remove_left_over();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let mut net = Net {
            prefix: format!("{NAME}-{}-{number}", std::process::id()),
            spaces: 0,
            faults: BTreeMap::new(),
        };
        let hub = net.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", BRIDGE, "up"])?;
        for _ in 0..spaces {
            net.add_space()?;
        }
        Ok(net)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn add_space(&mut self) -> Result<(), String> {
        let index = self.spaces;
        let (hub, space) = (self.hub(), self.space(index));
        ip(&["netns", "add", &space])?;
        // From here on dropping the net removes the namespace.
        self.spaces += 1;
        let port = format!("port{index}");
        let pair = ["type", "veth", "peer", "name", INTERFACE, "netns", &space];
        ip(&[&["-n", &hub, "link", "add", &port], &pair[..]].concat())?;
        ip(&["-n", &hub, "link", "set", &port, "master", BRIDGE, "up"])?;
        let address = format!("{}/24", self.address(index));
        ip(&["-n", &space, "addr", "add", &address, "dev", INTERFACE])?;
        ip(&["-n", &space, "link", "set", INTERFACE, "up"])?;
        ip(&["-n", &space, "link", "set", "lo", "up"])?;
        self.nft(index, TABLE)
    }

    /// The name of a space's namespace.
    pub fn space(&self, index: usize) -> String {
        format!("{}-{index}", self.prefix)
    }

    /// The IP address of a space.
    pub fn address(&self, index: usize) -> String {
        format!("{BLOCK}.{}", index + 1)
    }

    /// Adds rules to the nftables of a space.
    ///
    /// # Errors
    /// The rules are refused.
    pub fn nft(&self, index: usize, rules: &str) -> Result<(), String> {
        let space = self.space(index);
        run("ip", &["netns", "exec", &space, "nft", "-f", "-"], rules)
    }

    /// Sets or removes the fault of packets from `from` to `to`. The other direction does not
    /// change.
    ///
    /// # Panics
    /// The kernel refuses the rules.
    pub fn set(&mut self, from: usize, to: usize, fault: Option<Fault>) {
        match fault {
            Some(fault) => self.faults.insert((from, to), fault),
            None => self.faults.remove(&(from, to)),
        };
        self.install(to);
    }

    /// Sets or removes a fault in both directions between one space and each of the others.
    pub fn set_both(&mut self, one: usize, others: &[usize], fault: Option<Fault>) {
        for &other in others {
            self.set(one, other, fault);
            self.set(other, one, fault);
        }
    }

    /// Ends all faults.
    pub fn heal(&mut self) {
        let receivers: Vec<usize> = self.faults.keys().map(|&(_, to)| to).collect();
        self.faults.clear();
        for to in receivers {
            self.install(to);
        }
    }

    /// The current faults.
    pub fn faults(&self) -> &BTreeMap<(usize, usize), Fault> {
        &self.faults
    }

    /// Replaces all rules of a receiver by those of its faults, in one step.
    fn install(&self, to: usize) {
        let mut rules = "flush chain inet faults arriving\n".to_owned();
        for (&(from, _), fault) in self.faults.iter().filter(|((_, other), _)| *other == to) {
            let what = match fault {
                Fault::Cut => "drop".to_owned(),
                Fault::Lose(percent) => format!("numgen random mod 100 < {percent} drop"),
            };
            let from = self.address(from);
            rules += &format!("add rule inet faults arriving ip saddr {from} {what}\n");
        }
        self.nft(to, &rules).expect("the kernel takes the rules");
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in (0..self.spaces).map(|index| self.space(index)) {
            // The next net removes what cannot be removed now.
            let _ = ip(&["netns", "del", &space]);
        }
        let _ = ip(&["netns", "del", &self.hub()]);
    }
}

/// The command for a program in a namespace. `ip` replaces itself by the program, so that the
/// child's process id is the program's.
pub fn inside(space: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", space]).arg(program);
    command
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run("ip", arguments, "")
}

/// Removes the namespaces of test processes that have ended, and kills the processes in them.
fn remove_left_over() {
    let Ok(names) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in names.flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(NAME)
            .and_then(|rest| rest.strip_prefix('-'))
            .and_then(|rest| rest.split('-').next());
        let Some(owner) = owner else { continue };
        if Path::new("/proc").join(owner).exists() {
            continue;
        }
        if let Ok(output) = Command::new("ip").args(["netns", "pids", &name]).output() {
            for id in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                // The process may have ended meanwhile.
                let _ = run("kill", &["-KILL", id], "");
            }
        }
        // Another test process may have removed it first.
        let _ = ip(&["netns", "del", &name]);
    }
}
