//! Brings memory into the processor's caches before it is needed.
//!
//! A processor waits for ten to twenty lines of memory at a time, if the reads do not depend on each other. Code that
//! follows one row after the other waits for each line alone. So what several rows or tables need is read here
//! beforehand, together. Pure; lives on the thread that reads.

use std::hint::black_box;

/// Bytes of a line of the processor's caches.
const LINE_LEN: usize = 64;

/// Reads these bytes, and with each the line in which it lies.
#[inline]
pub(super) fn prefetch<'b>(bytes: impl Iterator<Item = &'b u8>) {
    black_box(bytes.fold(0, |seen, byte| seen ^ byte));
}

/// A byte in each line of these bytes. If they begin within a line, the last one may be left out.
#[inline]
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = &u8> {
    bytes.iter().step_by(LINE_LEN)
}

/// A byte in each of the first three lines of a row that begins at a place.
#[inline]
pub(super) fn first_lines(bytes: &[u8], at: usize) -> impl Iterator<Item = &u8> {
    let lines = [at, at + LINE_LEN, at + 2 * LINE_LEN];
    lines.into_iter().filter_map(|at| bytes.get(at))
}
