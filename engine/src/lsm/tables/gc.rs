//! The compaction filter, which drops versions that no read can need any more.

use std::sync::{Arc, Mutex};

use super::filter::{CompactionFilter, Context, Factory, ItemAccessor, Verdict};
use super::{TreeError, lock};
use crate::lsm::row;
use crate::lsm::version_gc::{GcRules, VersionFilter};
use crate::lsm::write_back::WriteBack;

/// Makes the filter for each compaction from the rules that are set when the compaction begins.
pub(super) struct GcFactory(Arc<Mutex<Option<GcRules>>>, WriteBack);

impl GcFactory {
    /// A factory that uses these rules. Its filters report all rows that they see to `write_back`.
    pub(super) fn new(rules: Arc<Mutex<Option<GcRules>>>, write_back: WriteBack) -> GcFactory {
        GcFactory(rules, write_back)
    }
}

struct GcFilter(VersionFilter, WriteBack);

impl Factory for GcFactory {
    fn name(&self) -> &str {
        "rangedb-versions"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        let rules = lock(&self.0).clone();
        Box::new(GcFilter(VersionFilter::new(rules.as_ref()), self.1.clone()))
    }
}

impl CompactionFilter for GcFilter {
    fn filter_item(
        &mut self,
        item: ItemAccessor<'_>,
        context: &Context,
    ) -> Result<Verdict, TreeError> {
        let bytes = item.value()?;
        // Rows that are dropped below are reported, too: an estimate is enough.
        self.1.wrote(item.key().len() + bytes.len());
        // A row with an unknown header is kept.
        let Some(row) = row::decode(&bytes) else {
            return Ok(Verdict::Keep);
        };
        let last = context.is_last_level;
        let keeps = self
            .0
            .keeps(item.key(), row.version, row.value.is_some(), last);
        Ok(if keeps {
            Verdict::Keep
        } else {
            Verdict::Destroy
        })
    }
}
