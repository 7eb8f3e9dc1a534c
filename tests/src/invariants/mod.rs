//! What must hold in every run: one property a file, its statement on top.

pub mod counters;
pub mod leadership;
pub mod pairs;
pub mod registers;
pub mod replay;
