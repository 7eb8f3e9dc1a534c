//! The client for programs without a runtime: each call blocks its thread until it has ended.
//!
//! ```no_run
//! use rangedb_client::blocking::Client;
//!
//! # fn main() -> Result<(), rangedb_client::Error> {
//! let client = Client::connect(["127.0.0.1:7400"])?;
//! client.put("greeting", "hello")?;
//! for row in client.scan_prefix("gr") {
//!     println!("{:?}", row?.key);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A client has one thread of its own, which drives connections and timers; clones share it. It may
//! be used from many threads at once, but not within an async context, where blocking panics: use
//! [`crate::Client`] there.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::admin::{
    ClusterStatus, Decision, HotRange, Leaving, Node, NodeConfig, NodeHistory, NodeState, Range,
    Reloaded, Setting, SettingChange, Split, Step,
};
use crate::{
    Batch, BatchOutcome, CasOutcome, ClientOptions, ClusterId, Condition, Continuation, Deleted,
    Error, ErrorCode, Fate, Incremented, Page, Row, ScanOptions, Versioned,
};

/// A runtime on a thread of its own, which ends when this is dropped.
#[derive(Debug)]
struct Driver {
    handle: Handle,
    _alive: oneshot::Sender<()>,
}

impl Driver {
    fn start() -> Result<Driver, Error> {
        Driver::try_start()
            .map_err(|error| Error::new(ErrorCode::Internal, Fate::NotApplied, error))
    }

    fn try_start() -> std::io::Result<Driver> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (alive, dropped) = oneshot::channel::<()>();
        let drive = move || {
            // The sender is never used: it ends the wait when it is dropped.
            let _ = runtime.block_on(dropped);
            // A name that is still being looked up does not delay the end.
            runtime.shutdown_background();
        };
        let name = "rangedb-client".to_owned();
        std::thread::Builder::new().name(name).spawn(drive)?;
        Ok(Driver {
            handle,
            _alive: alive,
        })
    }
}

/// A client of a RangeDB cluster, whose calls block. Clones share its session, directory,
/// connections and thread. The methods are those of [`crate::Client`], which explains them.
#[derive(Clone, Debug)]
pub struct Client {
    inner: crate::Client,
    driver: Arc<Driver>,
}

impl Client {
    /// Connects; see [`crate::Client::connect`].
    ///
    /// # Errors
    /// As [`crate::Client::connect`]; [`ErrorCode::Internal`] if no thread can be started.
    pub fn connect(options: impl Into<ClientOptions>) -> Result<Client, Error> {
        let driver = Driver::start()?;
        let inner = (driver.handle).block_on(crate::Client::connect(options))?;
        let driver = Arc::new(driver);
        Ok(Client { inner, driver })
    }

    /// A client that connects when the first call needs it; see [`crate::Client::connect_lazy`].
    ///
    /// # Errors
    /// As [`crate::Client::connect_lazy`]; [`ErrorCode::Internal`] if no thread can be started.
    pub fn connect_lazy(options: impl Into<ClientOptions>) -> Result<Client, Error> {
        let inner = crate::Client::connect_lazy(options)?;
        let driver = Arc::new(Driver::start()?);
        Ok(Client { inner, driver })
    }

    fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        self.driver.handle.block_on(call)
    }

    /// The cluster to which this client belongs, once it has met a node.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.inner.cluster()
    }

    /// This client with another timeout for each call. All else is shared.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client {
            inner: self.inner.with_timeout(timeout),
            driver: self.driver.clone(),
        }
    }

    /// Reads a key; see [`crate::Client::get`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Versioned>, Error> {
        self.wait(self.inner.get(key))
    }

    /// Reads several keys; see [`crate::Client::get_many`].
    pub fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Vec<Result<Option<Versioned>, Error>> {
        self.wait(self.inner.get_many(keys))
    }

    /// Reads several keys until their values have so many bytes; see
    /// [`crate::Client::get_many_within`].
    pub fn get_many_within<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        bytes_max: usize,
    ) -> Vec<Result<Option<Versioned>, Error>> {
        self.wait(self.inner.get_many_within(keys, bytes_max))
    }

    /// Sets a key; see [`crate::Client::put`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<u64, Error> {
        self.wait(self.inner.put(key, value))
    }

    /// Removes a key; see [`crate::Client::delete`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<Deleted, Error> {
        self.wait(self.inner.delete(key))
    }

    /// Sets a key if a condition holds; see [`crate::Client::compare_and_swap`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        condition: Condition<'_>,
        value: impl AsRef<[u8]>,
    ) -> Result<CasOutcome, Error> {
        self.wait(self.inner.compare_and_swap(key, condition, value))
    }

    /// Removes a key if a condition holds; see [`crate::Client::compare_and_delete`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn compare_and_delete(
        &self,
        key: impl AsRef<[u8]>,
        condition: Condition<'_>,
    ) -> Result<CasOutcome, Error> {
        self.wait(self.inner.compare_and_delete(key, condition))
    }

    /// Adds to a number; see [`crate::Client::increment`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn increment(&self, key: impl AsRef<[u8]>, delta: i64) -> Result<Incremented, Error> {
        self.wait(self.inner.increment(key, delta))
    }

    /// Writes a batch; see [`crate::Client::batch`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn batch(&self, batch: &Batch) -> Result<BatchOutcome, Error> {
        self.wait(self.inner.batch(batch))
    }

    /// Scans an interval; see [`crate::Client::scan`].
    pub fn scan(&self, interval: impl Into<ScanOptions>) -> Scan {
        Scan {
            inner: self.inner.scan(interval),
            driver: self.driver.clone(),
        }
    }

    /// Scans the keys that begin with `prefix`.
    pub fn scan_prefix(&self, prefix: impl AsRef<[u8]>) -> Scan {
        self.scan(ScanOptions::prefix(prefix))
    }

    /// Reads the next page of a scan; see [`crate::Client::scan_next`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn scan_next(&self, continuation: Continuation) -> Result<Page, Error> {
        self.wait(self.inner.scan_next(continuation))
    }

    /// The administration of the cluster; see [`crate::Client::admin`].
    pub fn admin(&self) -> Admin {
        Admin {
            inner: self.inner.admin(),
            driver: self.driver.clone(),
        }
    }
}

/// The administration of the cluster, with calls that block. The methods are those of
/// [`crate::admin::Admin`], which explains them.
#[derive(Clone, Debug)]
pub struct Admin {
    inner: crate::admin::Admin,
    driver: Arc<Driver>,
}

impl Admin {
    fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        self.driver.handle.block_on(call)
    }

    /// The state of the cluster; see [`crate::admin::Admin::status`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn status(&self) -> Result<ClusterStatus, Error> {
        self.wait(self.inner.status())
    }

    /// The nodes of the cluster; see [`crate::admin::Admin::nodes`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn nodes(&self) -> Result<Vec<Node>, Error> {
        self.wait(self.inner.nodes())
    }

    /// The ranges of the cluster; see [`crate::admin::Admin::ranges`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn ranges(&self) -> Result<Vec<Range>, Error> {
        self.wait(self.inner.ranges())
    }

    /// All settings of the cluster; see [`crate::admin::Admin::config`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn config(&self) -> Result<Vec<Setting>, Error> {
        self.wait(self.inner.config())
    }

    /// A setting of the cluster; see [`crate::admin::Admin::config_get`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn config_get(&self, name: &str) -> Result<Setting, Error> {
        self.wait(self.inner.config_get(name))
    }

    /// All changes of settings; see [`crate::admin::Admin::config_history`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn config_history(&self) -> Result<Vec<SettingChange>, Error> {
        self.wait(self.inner.config_history())
    }

    /// Changes a setting of the cluster; see [`crate::admin::Admin::config_set`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn config_set(&self, name: &str, value: &str) -> Result<(), Error> {
        self.wait(self.inner.config_set(name, value))
    }

    /// The settings of one node; see
    /// [`crate::admin::Admin::node_config`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn node_config(&self) -> Result<NodeConfig, Error> {
        self.wait(self.inner.node_config())
    }

    /// Has one node read its settings again; see
    /// [`crate::admin::Admin::reload`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reload(&self) -> Result<Reloaded, Error> {
        self.wait(self.inner.reload())
    }

    /// Has another node lead a range; see [`crate::admin::Admin::transfer_leader`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn transfer_leader(&self, range: u64, to: Option<u64>) -> Result<(), Error> {
        self.wait(self.inner.transfer_leader(range, to))
    }

    /// Moves the replica of a range; see [`crate::admin::Admin::move_replica`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn move_replica(
        &self,
        range: u64,
        from: u64,
        to_node: u64,
        to_shard: Option<u16>,
    ) -> Result<(), Error> {
        self.wait(self.inner.move_replica(range, from, to_node, to_shard))
    }

    /// Splits a range at keys; see [`crate::admin::Admin::split_range`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn split_range(
        &self,
        range: u64,
        at: &[Vec<u8>],
        hold: Option<Duration>,
    ) -> Result<Split, Error> {
        self.wait(self.inner.split_range(range, at, hold))
    }

    /// Has leaders and replicas of ranges spread evenly; see
    /// [`crate::admin::Admin::scatter_ranges`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn scatter_ranges(&self, start: &[u8], end: Option<&[u8]>) -> Result<u64, Error> {
        self.wait(self.inner.scatter_ranges(start, end))
    }

    /// The last decisions of the cluster's manager; see
    /// [`crate::admin::Admin::decisions`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn decisions(&self) -> Result<Vec<Decision>, Error> {
        self.wait(self.inner.decisions())
    }

    /// Has a range take over its right neighbour; see [`crate::admin::Admin::merge_range`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn merge_range(&self, range: u64) -> Result<(), Error> {
        self.wait(self.inner.merge_range(range))
    }

    /// Splits a range into parts of about the same size; see
    /// [`crate::admin::Admin::split_range_into`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn split_range_into(
        &self,
        range: u64,
        parts: u32,
        hold: Option<Duration>,
    ) -> Result<Split, Error> {
        self.wait(self.inner.split_range_into(range, parts, hold))
    }

    /// The ranges with most CPU time, and their hottest keys; see
    /// [`crate::admin::Admin::hot_ranges`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn hot_ranges(&self, top: u32) -> Result<Vec<HotRange>, Error> {
        self.wait(self.inner.hot_ranges(top))
    }

    /// Has a range be no longer held against merging; see [`crate::admin::Admin::release_range`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn release_range(&self, range: u64) -> Result<(), Error> {
        self.wait(self.inner.release_range(range))
    }

    /// Has other nodes lead what a node leads; see
    /// [`crate::admin::Admin::drain_node`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn drain_node(&self, node: u64) -> Result<(), Error> {
        self.wait(self.inner.drain_node(node))
    }

    /// Takes a drain or a decommissioning back; see
    /// [`crate::admin::Admin::undrain_node`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn undrain_node(&self, node: u64) -> Result<(), Error> {
        self.wait(self.inner.undrain_node(node))
    }

    /// Moves all replicas of a node to other nodes; see
    /// [`crate::admin::Admin::decommission_node`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn decommission_node(&self, node: u64) -> Result<(), Error> {
        self.wait(self.inner.decommission_node(node))
    }

    /// What decommissioning a node would move, and what it could not move; see
    /// [`crate::admin::Admin::decommission_dry_run`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn decommission_dry_run(&self, node: u64) -> Result<Leaving, Error> {
        self.wait(self.inner.decommission_dry_run(node))
    }

    /// Forgets a node that is dead or decommissioned; see
    /// [`crate::admin::Admin::remove_node`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn remove_node(&self, node: u64) -> Result<(), Error> {
        self.wait(self.inner.remove_node(node))
    }

    /// What still keeps a node from leaving; see
    /// [`crate::admin::Admin::leaving`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn leaving(&self, node: u64) -> Result<Leaving, Error> {
        self.wait(self.inner.leaving(node))
    }

    /// What one node has kept of its past; see [`crate::admin::Admin::history`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn history(
        &self,
        node: Option<u64>,
        times: (Option<u64>, Option<u64>),
        step: Step,
    ) -> Result<NodeHistory, Error> {
        self.wait(self.inner.history(node, times, step))
    }

    /// The same with the histograms of latencies; see [`crate::admin::Admin::history_with_histograms`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn history_with_histograms(
        &self,
        node: u64,
        times: (u64, u64),
        step: Step,
    ) -> Result<NodeHistory, Error> {
        self.wait(self.inner.history_with_histograms(node, times, step))
    }

    /// The state of one node; see [`crate::admin::Admin::node_state`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn node_state(&self) -> Result<NodeState, Error> {
        self.wait(self.inner.node_state())
    }
}

/// A scan that has not been read to its end: an iterator of rows. See [`crate::Scan`].
#[derive(Debug)]
#[must_use = "a scan reads nothing by itself"]
pub struct Scan {
    inner: crate::Scan,
    driver: Arc<Driver>,
}

impl Scan {
    fn with(self, set: impl FnOnce(crate::Scan) -> crate::Scan) -> Scan {
        Scan {
            inner: set(self.inner),
            driver: self.driver,
        }
    }

    /// Scans in descending order. It counts before the first row is read, as the other settings.
    pub fn reverse(self) -> Scan {
        self.with(crate::Scan::reverse)
    }

    /// Asks for keys and versions only; values are empty.
    pub fn keys_only(self) -> Scan {
        self.with(crate::Scan::keys_only)
    }

    /// Sets the most rows in a page; 0: as many as the server sends at once.
    pub fn page_size(self, rows: usize) -> Scan {
        self.with(|scan| scan.page_size(rows))
    }

    /// Ends the iterator after this many rows.
    pub fn limit(self, rows: usize) -> Scan {
        self.with(|scan| scan.limit(rows))
    }

    /// Counts the rest of the rows, without reading values.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn count(self) -> Result<usize, Error> {
        self.driver.handle.block_on(self.inner.count())
    }

    /// Reads the first page alone; [`Client::scan_next`] goes on with its continuation.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn page(self) -> Result<Page, Error> {
        self.driver.handle.block_on(self.inner.page())
    }
}

impl Iterator for Scan {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Result<Row, Error>> {
        self.driver.handle.block_on(self.inner.next())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    /// The public methods in a source, as `TYPE::NAME`, of the types that this module has.
    fn methods(source: &str) -> BTreeSet<String> {
        let mut of = None;
        let mut found = BTreeSet::new();
        for line in source.lines() {
            if let Some(name) = line.strip_prefix("impl ") {
                let name = name.trim_end_matches(" {");
                of = ["Client", "Admin", "Scan"]
                    .into_iter()
                    .find(|of| *of == name);
            }
            if line == "}" {
                of = None;
            }
            let words = line
                .strip_prefix("    pub ")
                .map(|line| line.trim_start_matches("async "));
            let function = words.and_then(|words| words.strip_prefix("fn "));
            if let (Some(of), Some(function)) = (of, function) {
                let is_name = |c: char| c.is_alphanumeric() || c == '_';
                let name = function
                    .split(|c: char| !is_name(c))
                    .next()
                    .unwrap_or_default();
                found.insert(format!("{of}::{name}"));
            }
        }
        found
    }

    #[test]
    fn each_method_that_waits_is_there_as_one_that_blocks() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut waiting = BTreeSet::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() && !path.ends_with("blocking.rs") {
                waiting.append(&mut methods(&std::fs::read_to_string(path).unwrap()));
            }
        }
        let mut blocking = methods(include_str!("blocking.rs"));
        // These are the iterator's.
        blocking.extend(["Scan::next", "Scan::collect"].map(str::to_owned));
        assert!(waiting.len() > 45, "{waiting:?}");
        assert_eq!(waiting, blocking);
    }
}
