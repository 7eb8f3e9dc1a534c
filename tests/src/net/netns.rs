//! Network namespaces on one bridge, and faults of the links between them.
//!
//! A [`Net`] has a hub with the bridge, in a namespace of its own, and spaces, each with one
//! interface on the bridge. Since the hub is not the machine's network, every net may use the same
//! addresses; only the names of namespaces are apart, by the process and a number. A fault is of
//! one direction: what it drops is dropped where it arrives, by nftables, so that the sender learns
//! nothing. Dropping a net removes its namespaces; those of a test that was killed are removed by
//! the next net, with the processes in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::run;

/// How namespaces of tests are called.
const NAME: &str = "rangedb-test";
/// The interface of a space.
const INTERFACE: &str = "eth0";
const BRIDGE: &str = "br0";
/// Addresses of a net are this and the number of the space, from 1.
const BLOCK: &str = "10.77.0";

/// The table that holds the faults of a receiver.
const TABLE: &str = "add table inet faults
add chain inet faults arriving { type filter hook input priority 0; }
";

/// What befalls packets on their way from one space to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None arrives.
    Cut,
    /// So many of a hundred are lost, at random.
    Lose(u32),
}

/// Namespaces that reach each other.
#[derive(Debug)]
pub struct Net {
    prefix: String,
    spaces: usize,
    /// By the space that sends and the one that receives.
    faults: BTreeMap<(usize, usize), Fault>,
}

impl Net {
    /// A net of so many spaces.
    ///
    /// # Errors
    /// Why there cannot be one: a right or a tool is missing.
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
        // From here on it is removed with the net.
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

    /// The address of a space.
    pub fn address(&self, index: usize) -> String {
        format!("{BLOCK}.{}", index + 1)
    }

    /// Gives rules to the nftables of a space.
    ///
    /// # Errors
    /// They are refused.
    pub fn nft(&self, index: usize, rules: &str) -> Result<(), String> {
        let space = self.space(index);
        run("ip", &["netns", "exec", &space, "nft", "-f", "-"], rules)
    }

    /// Puts a fault, or none, on what `from` sends to `to`. The other direction stays as it is.
    ///
    /// # Panics
    /// The kernel refuses.
    pub fn set(&mut self, from: usize, to: usize, fault: Option<Fault>) {
        match fault {
            Some(fault) => self.faults.insert((from, to), fault),
            None => self.faults.remove(&(from, to)),
        };
        self.install(to);
    }

    /// The same in both directions between one space and each of others.
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

    /// The faults there are.
    pub fn faults(&self) -> &BTreeMap<(usize, usize), Fault> {
        &self.faults
    }

    /// Makes the rules of a receiver those of its faults, all at once.
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
            // What cannot be removed now is removed by the next net.
            let _ = ip(&["netns", "del", &space]);
        }
        let _ = ip(&["netns", "del", &self.hub()]);
    }
}

/// Runs a program in a namespace: `ip` becomes that program, so the child's id is the program's.
pub fn inside(space: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", space]).arg(program);
    command
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run("ip", arguments, "")
}

/// Removes the namespaces of test processes that are gone, and kills what still runs in them.
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
                // It may have ended meanwhile.
                let _ = run("kill", &["-KILL", id], "");
            }
        }
        // Another test process may have been quicker.
        let _ = ip(&["netns", "del", &name]);
    }
}
