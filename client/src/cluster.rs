//! The cluster to which a client belongs.
//!
//! Every node names its cluster in its answer to a handshake. The first node that a client meets
//! binds the client to its cluster, unless the caller has named one. A node of another cluster is
//! never used: not at an address from the caller, not at an address from a route, and not at one
//! that served the right cluster before. Otherwise a stale address could split a client's writes
//! over two clusters.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// The id of a cluster, written as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The text is not the id of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cluster's id has 32 hexadecimal digits, as `rangedb status` prints it")]
pub struct BadClusterId;

impl FromStr for ClusterId {
    type Err = BadClusterId;

    fn from_str(text: &str) -> Result<ClusterId, BadClusterId> {
        if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(BadClusterId);
        }
        let number = u128::from_str_radix(text, 16);
        number.map(ClusterId).map_err(|_| BadClusterId)
    }
}

/// The cluster to which a client is bound.
#[derive(Debug, Default)]
pub struct Binding(OnceLock<ClusterId>);

impl Binding {
    /// Bound to `named`, or to the cluster of the first node that is met.
    pub fn new(named: Option<ClusterId>) -> Binding {
        Binding(named.map(OnceLock::from).unwrap_or_default())
    }

    /// The cluster, once there is one.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.0.get().copied()
    }

    /// Checks that a node of this cluster may be used. Without a binding, this makes one.
    ///
    /// # Errors
    /// The client belongs to another cluster.
    pub fn admit(&self, cluster: ClusterId) -> Result<(), String> {
        let ours = *self.0.get_or_init(|| cluster);
        if ours == cluster {
            return Ok(());
        }
        Err(format!(
            "this is a node of another cluster, {cluster}; the client belongs to {ours}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for number in [0, 1, 0xab << 120, u128::MAX] {
            let id = ClusterId(number);
            assert_eq!(id.to_string().parse(), Ok(id));
            assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        }
        let long = "0".repeat(33);
        for bad in ["", "1", "+0000000000000000000000000000001", &long] {
            assert_eq!(bad.parse::<ClusterId>(), Err(BadClusterId), "{bad}");
        }
    }

    #[test]
    fn the_first_binds_unless_one_is_named() {
        let (ours, other) = (ClusterId(1), ClusterId(2));
        let free = Binding::new(None);
        assert_eq!(free.cluster(), None);
        assert_eq!(free.admit(ours), Ok(()));
        let named = Binding::new(Some(ours));
        for binding in [free, named] {
            assert_eq!(binding.cluster(), Some(ours));
            let refused = binding.admit(other).expect_err("another cluster");
            assert!(refused.contains(&other.to_string()), "{refused}");
            assert!(refused.contains(&ours.to_string()), "{refused}");
            assert_eq!(binding.admit(ours), Ok(()));
        }
    }
}
