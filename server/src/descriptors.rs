//! Shares of the limit on the files and sockets that this process may open.
//!
//! Connections must not take the descriptors that a flush, the log or another node needs. So the
//! limit of the process (`RLIMIT_NOFILE`) is divided once, at the start: each kind of user gets a
//! share. Connections beyond their share are refused ([`ConnectionLimit`]). Tables may use more than their
//! share if descriptors are free; new connections are refused before they take the last free ones
//! ([`Shares::highest_of_connection`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Descriptors of a node besides connections and tables: standard streams, folder, control thread.
const NODE_FILES: usize = 24;
/// Descriptors of each shard: rings and wakers, its listening socket, segments of its log.
const SHARD_FILES: usize = 24;
/// Tables that a shard must be able to open.
const TABLES_MIN: usize = 16;
/// Links between two shards of different nodes: three classes of messages, in both directions.
const LINKS_OF_PAIR: usize = 6;
/// The node must have room for links to at least this many other nodes.
const OTHER_NODES_MIN: usize = 2;
const CLIENTS_MIN: usize = 8;
const HANDSHAKES_MIN: usize = 4;
const HTTP_MIN: usize = 4;
/// More descriptors than these are not needed, or cost too much memory.
const PEERS_MAX: usize = 8192;
const CLIENTS_OF_SHARD_MAX: usize = 10_000;
const HANDSHAKES_MAX: usize = 1024;
/// Descriptors that new connections leave free: a flush and a compaction each need some at a time.
const FREE_FOR_TABLES: usize = 40;
/// The largest number of connections to the admin pages.
const HTTP_MAX: usize = 64;

/// The parts of a node that need descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The node's shards.
    pub shards: usize,
    /// The tables that its folder has already.
    pub tables: usize,
    /// Whether other nodes may connect to it: only if there is a secret.
    pub has_peers: bool,
}

/// The limit is too low for the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{limit} open files are allowed, but a node with {} shards and {} tables needs {needed}: raise \
     the limit with `ulimit -n {needed}`, or with LimitNOFILE={needed} in a systemd unit",
    .needs.shards, .needs.tables
)]
pub struct TooFew {
    limit: usize,
    /// The lowest limit that is enough.
    pub needed: usize,
    needs: Needs,
}

/// The number of descriptors for each kind of user, of the whole node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// The limit, which is the sum of all shares.
    pub limit: usize,
    /// The process itself, and the logs of its shards.
    pub own: usize,
    /// Open files of tables.
    pub tables: usize,
    /// Links with other nodes.
    pub peers: usize,
    /// Connections of clients.
    pub clients: usize,
    /// New connections: those whose handshake has not arrived, or that are being refused.
    pub handshakes: usize,
    /// Connections of the admin pages.
    pub http: usize,
}

impl std::fmt::Display for Shares {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, share) in self.named() {
            write!(f, "{name} {share}, ")?;
        }
        write!(f, "of {}", self.limit)
    }
}

impl Shares {
    /// The shares with the names of their users.
    pub fn named(&self) -> [(&'static str, usize); 6] {
        [
            ("own", self.own),
            ("tables", self.tables),
            ("peers", self.peers),
            ("clients", self.clients),
            ("greetings", self.handshakes),
            ("http", self.http),
        ]
    }

    /// Divides a limit among the users.
    ///
    /// # Errors
    /// The limit is too low for what the node needs.
    pub fn new(limit: usize, needs: Needs) -> Result<Shares, TooFew> {
        let Needs {
            shards,
            tables,
            has_peers,
        } = needs;
        let links = LINKS_OF_PAIR * shards * shards * OTHER_NODES_MIN;
        let mut shares = Shares {
            limit,
            own: NODE_FILES + SHARD_FILES * shards,
            tables: tables + TABLES_MIN * shards,
            peers: if has_peers { links } else { 0 },
            clients: CLIENTS_MIN,
            handshakes: HANDSHAKES_MIN,
            http: HTTP_MIN,
        };
        let needed = shares.sum();
        let Some(free) = limit.checked_sub(needed) else {
            return Err(TooFew {
                limit,
                needed,
                needs,
            });
        };
        let connections = free / 2;
        shares.http = (HTTP_MIN + connections / 16).min(HTTP_MAX);
        shares.handshakes = (HANDSHAKES_MIN + connections / 8).min(HANDSHAKES_MAX);
        if has_peers {
            shares.peers += (connections / 4).min(PEERS_MAX);
        }
        let given = shares.sum() - needed;
        let clients_max = CLIENTS_OF_SHARD_MAX.saturating_mul(shards);
        shares.clients = (CLIENTS_MIN + (connections - given)).min(clients_max);
        // The tables get the rest.
        shares.tables += limit - shares.sum();
        Ok(shares)
    }

    fn sum(&self) -> usize {
        let connections = self.peers + self.clients + self.handshakes + self.http;
        self.own + self.tables + connections
    }

    /// The highest descriptor that a new connection may have. The kernel always gives the lowest
    /// free one, so a higher one shows that too few are left for the next tables.
    pub fn highest_of_connection(&self) -> usize {
        self.limit.saturating_sub(self.limit / 16 + FREE_FOR_TABLES)
    }
}

/// Slots for one kind of connection, shared by all shards of a node.
#[derive(Debug)]
pub struct ConnectionLimit {
    max: usize,
    taken: AtomicUsize,
    refused: AtomicU64,
}

impl ConnectionLimit {
    /// Makes `max` free slots.
    pub fn new(max: usize) -> Arc<ConnectionLimit> {
        Arc::new(ConnectionLimit {
            max,
            taken: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        })
    }

    /// Takes a slot until the returned value is dropped; `None` if all are taken.
    pub fn take(self: &Arc<ConnectionLimit>) -> Option<ConnectionPermit> {
        let free = |taken: usize| (taken < self.max).then_some(taken + 1);
        let updated = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, free);
        if updated.is_err() {
            self.refuse();
            return None;
        }
        Some(ConnectionPermit(self.clone()))
    }

    /// Counts a connection that was refused.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of slots.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The number of taken slots.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// The number of connections that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// A taken slot; dropping it frees the slot.
#[derive(Debug)]
pub struct ConnectionPermit(Arc<ConnectionLimit>);

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fill_the_limit_and_none_is_empty() {
        for shards in [1, 2, 8] {
            for has_peers in [false, true] {
                let needs = Needs {
                    shards,
                    tables: 30,
                    has_peers,
                };
                let Err(TooFew { needed, .. }) = Shares::new(0, needs) else {
                    panic!("nothing suffices")
                };
                assert_eq!(
                    Shares::new(needed - 1, needs)
                        .expect_err("one too few")
                        .needed,
                    needed
                );
                for limit in [needed, needed + 1, 1024, 4096, 20_000, 1 << 20] {
                    let Ok(shares) = Shares::new(limit, needs) else {
                        assert!(limit < needed);
                        continue;
                    };
                    assert_eq!(shares.sum(), limit, "{shares:?}");
                    assert!(shares.tables >= 30 + TABLES_MIN * shards);
                    assert!(shares.clients >= CLIENTS_MIN && shares.http >= HTTP_MIN);
                    assert!(shares.clients <= CLIENTS_OF_SHARD_MAX * shards);
                    assert_eq!(shares.peers > 0, has_peers);
                }
            }
        }
    }

    #[test]
    fn a_node_of_two_shards_runs_with_few() {
        let needs = Needs {
            shards: 2,
            tables: 0,
            has_peers: false,
        };
        let shares = Shares::new(120, needs).expect("it suffices");
        assert!(shares.clients >= 8, "{shares:?}");
        let plenty = Shares::new(20_000, needs).expect("it suffices");
        assert!((5_000..12_000).contains(&plenty.clients), "{plenty:?}");
    }

    #[test]
    fn permits_come_back() {
        let limit = ConnectionLimit::new(1);
        let permit = limit.take().expect("it is free");
        assert!(limit.take().is_none());
        assert_eq!((limit.taken(), limit.refused()), (1, 1));
        drop(permit);
        assert!(limit.take().is_some());
    }
}
