//! What the row cache gives for a key is what memtables and tables hold as its newest version. It may
//! still have a tombstone that was collected there: for a reader both mean that there is no value.
//! Checked at every read that the cache answers.

use rangedb_engine::lsm::row::Row;

/// Compares an answer of the row cache with the tree.
pub fn check(key: &[u8], cached: Row<'_>, tree: Option<Row<'_>>) -> Result<(), String> {
    let live = |row: Row<'_>| row.value.map(|value| (row.version, value.to_vec()));
    let (cached, tree) = (live(cached), tree.and_then(live));
    if cached == tree {
        return Ok(());
    }
    let key = key.escape_ascii();
    Err(format!(
        "the row cache has {cached:?} for the row {key}, the tree {tree:?}"
    ))
}
