//! An in-memory database for the tests of this crate, which can be made to misbehave.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::database::{Condition, Database, Failure, Found};

/// The faults, each at every so many operations; 0 means never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Writes with an unknown fate; every second of them is not applied.
    pub unknown_every: u64,
    /// Writes that are acknowledged but not applied.
    pub lost_every: u64,
    /// Operations that are refused.
    pub refused_every: u64,
}

/// Values and their versions.
type Rows = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

#[derive(Debug, Default)]
struct MemoryRows {
    rows: RefCell<Rows>,
    count: Cell<u64>,
}

/// The database; clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryDatabase {
    shared: Rc<MemoryRows>,
    faults: Faults,
}

enum Fault {
    None,
    Lost,
    Unknown { is_applied: bool },
}

impl MemoryDatabase {
    /// An empty database with these faults.
    pub fn new(faults: Faults) -> MemoryDatabase {
        MemoryDatabase {
            shared: Rc::default(),
            faults,
        }
    }

    async fn begin(&self) -> Result<Fault, Failure> {
        let count = self.shared.count.get() + 1;
        self.shared.count.set(count);
        // Others run in between, so that operations overlap.
        for _ in 0..count % 4 {
            tokio::task::yield_now().await;
        }
        let is_due = |every: u64| every > 0 && count.is_multiple_of(every);
        if is_due(self.faults.refused_every) {
            return Err(Failure {
                code: "refused".into(),
                is_not_applied: true,
            });
        }
        Ok(match () {
            () if is_due(self.faults.lost_every) => Fault::Lost,
            () if is_due(self.faults.unknown_every) => Fault::Unknown {
                is_applied: (count / self.faults.unknown_every).is_multiple_of(2),
            },
            () => Fault::None,
        })
    }

    async fn write(&self, key: &[u8], value: Option<&[u8]>, fault: Fault) -> Result<(), Failure> {
        let version = self.shared.count.get();
        if matches!(fault, Fault::None | Fault::Unknown { is_applied: true }) {
            let mut rows = self.shared.rows.borrow_mut();
            match value {
                Some(value) => rows.insert(key.to_vec(), (value.to_vec(), version)),
                None => rows.remove(key),
            };
        }
        tokio::task::yield_now().await;
        match fault {
            Fault::Unknown { .. } => Err(Failure {
                code: "lost".into(),
                is_not_applied: false,
            }),
            _ => Ok(()),
        }
    }
}

impl Database for MemoryDatabase {
    type Value = Vec<u8>;

    async fn get(&self, key: &[u8]) -> Result<Option<Found<Vec<u8>>>, Failure> {
        self.begin().await?;
        let rows = self.shared.rows.borrow();
        Ok(rows.get(key).map(|(value, version)| Found {
            value: value.clone(),
            version: *version,
        }))
    }

    async fn put(&self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let fault = self.begin().await?;
        self.write(key, Some(value), fault).await
    }

    async fn delete(&self, key: &[u8]) -> Result<bool, Failure> {
        let fault = self.begin().await?;
        let existed = self.shared.rows.borrow().contains_key(key);
        self.write(key, None, fault).await?;
        Ok(existed)
    }

    async fn compare_and_swap(
        &self,
        key: &[u8],
        condition: Condition<'_>,
        new: Option<&[u8]>,
    ) -> Result<bool, Failure> {
        let fault = self.begin().await?;
        let holds = {
            let rows = self.shared.rows.borrow();
            match (condition, rows.get(key)) {
                (Condition::Absent, present) => present.is_none(),
                (Condition::Value(wanted), Some((value, _))) => value == wanted,
                (Condition::Version(wanted), Some((_, version))) => *version == wanted,
                (_, None) => false,
            }
        };
        if holds {
            self.write(key, new, fault).await?;
        }
        Ok(holds)
    }

    async fn scan(&self, start: &[u8], rows: usize) -> Result<usize, Failure> {
        self.begin().await?;
        Ok(self
            .shared
            .rows
            .borrow()
            .range(start.to_vec()..)
            .take(rows)
            .count())
    }
}
