//! Ports that the node listens on, and names of nodes.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::Check;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::env::root::Root;

/// A name server that takes longer keeps a start and every new link waiting.
const LOOKUP_MAX: Duration = Duration::from_secs(1);

/// Tries whether the node could listen. That a node of this folder already does is fine.
pub(super) fn ports(root: &Root, config: &Config) -> Check {
    let http = config.http.address.to_string();
    let tried = [("--listen", &config.listen.address), ("--http", &http)].map(|(flag, address)| {
        let bound = TcpListener::bind(address.as_str()).map(drop);
        (flag, address.clone(), bound)
    });
    let runs = running(root, config);
    let mut check = verdict(&tried, runs);
    for (flag, address, _) in &tried {
        let port = address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok());
        let is_lent = port.is_some_and(|port| is_ephemeral(root, port));
        check = check.warn_if(
            is_lent,
            format!(
                "another port for {flag}, or net.ipv4.ip_local_reserved_ports with sysctl: the kernel \
                 may give {address} to any connection"
            ),
        );
    }
    check
}

/// The process that uses the data folder, if it still runs.
fn running(root: &Root, config: &Config) -> Option<u32> {
    let id = DataDir::last_user(&config.data_dir)?;
    let name = root.word(&format!("proc/{id}/comm"))?;
    (name == "rangedb").then_some(id)
}

pub(super) fn verdict(tried: &[(&str, String, io::Result<()>)], runs: Option<u32>) -> Check {
    let mut found = Vec::new();
    let mut taken = Vec::new();
    for (flag, address, bound) in tried {
        match (bound, runs) {
            (Ok(()), _) => found.push(format!("{address} is free")),
            (Err(error), Some(id)) if error.kind() == ErrorKind::AddrInUse => {
                found.push(format!(
                    "{address} is in use; process {id} runs on this folder"
                ));
            }
            (Err(error), _) => {
                found.push(format!("{address}: {error}"));
                taken.push(*flag);
            }
        }
    }
    let wanted = "addresses of this machine with free ports";
    let fix = match taken.as_slice() {
        [one] => {
            format!("choose another address with {one}, or stop what uses it (`ss -ltnp` shows it)")
        }
        several => format!(
            "choose other addresses with {}, or stop what uses them (`ss -ltnp` shows it)",
            several.join(" and ")
        ),
    };
    Check::new("ports", found.join("; "), wanted).fail_if(!taken.is_empty(), fix)
}

/// Whether the kernel may choose this port for a connection that names none.
fn is_ephemeral(root: &Root, port: u16) -> bool {
    let range = root.text("proc/sys/net/ipv4/ip_local_port_range");
    let range = range.unwrap_or_default();
    let mut ends = range.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(first)), Some(Ok(last))) = (ends.next(), ends.next()) else {
        return false;
    };
    let reserved = root.word("proc/sys/net/ipv4/ip_local_reserved_ports");
    let reserved = reserved.unwrap_or_default();
    let is_reserved = reserved.split(',').any(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let ends = (from.parse::<u16>(), to.parse::<u16>());
        matches!(ends, (Ok(from), Ok(to)) if (from..=to).contains(&port))
    });
    (first..=last).contains(&port) && !is_reserved
}

/// Looks up the own addresses and those of --join.
pub(super) fn names(config: &Config) -> Check {
    let own = [&config.listen.address, &config.advertise].into_iter();
    let own = own.map(|address| (address, true));
    let others = config.joining.others.iter().map(|address| (address, false));
    let mut looked = Vec::new();
    for (address, is_own) in own.chain(others) {
        if looked.iter().any(|look: &Lookup| look.address == *address) {
            continue;
        }
        let begun = Instant::now();
        let found = address.to_socket_addrs().map(Vec::from_iter);
        looked.push(Lookup {
            address: address.clone(),
            is_own,
            found,
            took: begun.elapsed(),
        });
    }
    resolved(&looked)
}

/// A name that was looked up.
pub(super) struct Lookup {
    pub address: String,
    pub is_own: bool,
    pub found: io::Result<Vec<SocketAddr>>,
    pub took: Duration,
}

pub(super) fn resolved(looked: &[Lookup]) -> Check {
    let wanted = "names that are known, within a second";
    let mut bad = Vec::new();
    let (mut own_fails, mut others_fail, mut is_slow) = (false, false, false);
    for look in looked {
        match &look.found {
            Ok(found) if !found.is_empty() => {}
            Ok(_) => bad.push(format!("{} has no address", look.address)),
            Err(error) => bad.push(format!("{}: {error}", look.address)),
        }
        let is_known = look.found.as_ref().is_ok_and(|found| !found.is_empty());
        own_fails |= look.is_own && !is_known;
        others_fail |= !look.is_own && !is_known;
        is_slow |= look.took > LOOKUP_MAX;
        if look.took > LOOKUP_MAX {
            bad.push(format!("{} took {:.1?}", look.address, look.took));
        }
    }
    let found = match bad.is_empty() {
        true => format!("{} addresses are known", looked.len()),
        false => bad.join("; "),
    };
    let record = "a record in the name server or in /etc/hosts, or an address instead of the name";
    Check::new("names", found, wanted)
        .fail_if(own_fails, record)
        .warn_if(others_fail, record)
        .warn_if(is_slow, "look at the name servers in /etc/resolv.conf")
}
