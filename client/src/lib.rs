//! The client of RangeDB, for services on tokio; [`blocking`] is for programs without a runtime.
//!
//! It keeps a directory of where keys are, opens pipelined connections straight to the shards that
//! lead their ranges, and corrects its directory from replies. Every call has a deadline. A call
//! that fails for a reason that may pass is retried, with jittered backoff and within a budget.
//! Every write carries a request id, so a retry is applied at most once. An error tells the fate of
//! the write: not applied, applied, or unknown.
//!
//! A client stays with one cluster for its life: the one that its caller names
//! ([`ClientOptions::cluster`]), or that of the first node it meets. A node of another cluster at
//! one of its addresses is not used, and errors name it.
//!
//! Dropping a call's future ends the wait, not the write.
//!
//! ```no_run
//! use rangedb_client::Client;
//!
//! # async fn example() -> Result<(), rangedb_client::Error> {
//! let client = Client::connect(["127.0.0.1:7400"]).await?;
//! client.put("greeting", "hello").await?;
//! let found = client.get("greeting").await?;
//! assert_eq!(found.map(|found| found.value), Some("hello".into()));
//! client.increment("visits", 1).await?;
//! # Ok(())
//! # }
//! ```

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub mod admin;
mod batch;
pub mod blocking;
mod client;
mod cluster;
mod connection;
#[doc(hidden)]
pub mod core;
mod error;
#[cfg(feature = "clap")]
pub mod flags;
mod get_many;
mod limits;
mod opening;
mod operations;
mod options;
mod pool;
mod retry_loop;
mod scan;
mod seeds;
mod stagger;
mod tls;

pub use batch::{Batch, BatchOutcome};
pub use bytes::Bytes;
pub use client::Client;
pub use cluster::{BadClusterId, ClusterId};
pub use error::{Error, ErrorCode, Fate};
pub use operations::{CasOutcome, Condition, Deleted, Incremented, Versioned};
pub use options::ClientOptions;
pub use scan::{Continuation, Page, Row, Scan, ScanOptions};
pub use tls::TlsOptions;
