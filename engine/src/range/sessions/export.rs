//! Reads a session table as it was at one moment, part by part, although the table changes meanwhile.
//!
//! An export goes through the slots of clients in order. Before a client changes in a slot that
//! the export has not reached, the export keeps a copy of that client's rows. So beginning an
//! export costs nothing, and a write copies at most one client.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use super::SessionRow;

/// A client of a table that can be exported.
pub trait ExportedClient {
    /// The row of its marks, then those of its requests.
    fn rows(&self) -> impl Iterator<Item = SessionRow>;
}

#[derive(Debug)]
struct ExportState {
    /// Slots below this were taken.
    next: usize,
    /// Slots from this one on had no client when the export began.
    end: usize,
    /// Rows of clients that have changed since, by slot; no rows if the slot was empty.
    kept: HashMap<usize, Vec<SessionRow>>,
}

/// A running export. Dropping it ends the export.
#[derive(Debug)]
pub struct SessionExport(Rc<RefCell<ExportState>>);

/// The running exports of one table.
#[derive(Debug, Default)]
pub struct Exports(RefCell<Vec<Weak<RefCell<ExportState>>>>);

impl Exports {
    /// Begins an export of a table whose clients have slots below `slots`.
    pub fn begin(&self, slots: usize) -> SessionExport {
        let state = Rc::new(RefCell::new(ExportState {
            next: 0,
            end: slots,
            kept: HashMap::new(),
        }));
        let mut all = self.0.borrow_mut();
        all.retain(|export| export.strong_count() > 0);
        all.push(Rc::downgrade(&state));
        SessionExport(state)
    }

    /// Whether an export is of this table.
    pub fn know(&self, export: &SessionExport) -> bool {
        let all = self.0.borrow();
        all.iter()
            .any(|known| known.as_ptr() == Rc::as_ptr(&export.0))
    }

    /// Keeps for the exports what is in a slot; call it before that changes.
    #[inline]
    pub fn keep(&mut self, slot: usize, client: Option<&impl ExportedClient>) {
        let all = self.0.get_mut();
        if all.is_empty() {
            return;
        }
        all.retain(|export| export.strong_count() > 0);
        for export in all.iter().filter_map(Weak::upgrade) {
            let mut state = export.borrow_mut();
            if (state.next..state.end).contains(&slot) {
                let rows = || client.map(|client| client.rows().collect());
                let kept = state.kept.entry(slot);
                kept.or_insert_with(|| rows().unwrap_or_default());
            }
        }
    }
}

impl SessionExport {
    /// The next rows, about `rows_max`, of whole clients. `client` gives what is in a slot now.
    pub fn next_rows<'a, C: ExportedClient + 'a>(
        &self,
        rows_max: usize,
        client: impl Fn(usize) -> Option<&'a C>,
    ) -> Vec<SessionRow> {
        let mut state = self.0.borrow_mut();
        let mut rows = Vec::new();
        while rows.len() < rows_max && state.next < state.end {
            let slot = state.next;
            state.next += 1;
            match state.kept.remove(&slot) {
                Some(kept) => rows.extend(kept),
                None => rows.extend(client(slot).into_iter().flat_map(C::rows)),
            }
        }
        rows
    }
}
