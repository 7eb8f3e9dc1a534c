//! How many changes of members may be ordered now, by what they copy. Pure.
//!
//! A range with hardly any bytes is copied in a moment, so many of its kind may be under way at the same time:
//! as many as there is [`SMALL_ROOM`] for. All others are large: at most [`CHANGES_MAX`] of them are ordered
//! in [`CHANGES_PER`], because of disks and networks.

use std::time::Duration;

/// A replica with fewer bytes is copied in a moment.
const SMALL_BYTES: u64 = 1 << 20;
/// The most bytes of small ranges whose members are being changed.
const SMALL_ROOM: u64 = 64 << 20;
/// What such a change takes of the room at least: it also costs messages, and entries of logs. So at most
/// 256 are under way.
const SMALL_WEIGHT_MIN: u64 = SMALL_ROOM / 256;
/// Most changes of large ranges that are ordered in [`CHANGES_PER`].
pub(in crate::cluster) const CHANGES_MAX: usize = 8;
/// A bit less than the time between two rounds of the manager, so that each has all of them.
pub(in crate::cluster) const CHANGES_PER: Duration = Duration::from_millis(400);

/// Whether a replica with so many bytes is copied in a moment.
pub fn is_small(bytes: u64) -> bool {
    bytes < SMALL_BYTES
}

/// What a change of the members of a range with so many bytes takes of the room for small ones; nothing if it
/// is large.
pub(in crate::cluster) fn weight(bytes: u64) -> u64 {
    match is_small(bytes) {
        true => bytes.max(SMALL_WEIGHT_MIN),
        false => 0,
    }
}

/// What may still be ordered.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// So many changes of large ranges.
    pub large: usize,
    /// Changes of small ranges with so many bytes.
    pub small: u64,
}

impl Room {
    /// For any number of changes.
    pub const ENDLESS: Room = Room {
        large: usize::MAX,
        small: u64::MAX,
    };

    /// Beside changes of small ranges that take so much, and after this many of large ones that were ordered
    /// just now.
    pub(in crate::cluster) fn beside(small: u64, large: usize) -> Room {
        Room {
            large: CHANGES_MAX.saturating_sub(large),
            small: SMALL_ROOM.saturating_sub(small),
        }
    }

    /// Whether there is room for a change of a range with so many bytes.
    pub fn has(&self, bytes: u64) -> bool {
        match is_small(bytes) {
            true => self.small >= weight(bytes),
            false => self.large > 0,
        }
    }

    /// Takes what such a change needs.
    pub fn take(&mut self, bytes: u64) {
        self.small = self.small.saturating_sub(weight(bytes));
        self.large = self.large.saturating_sub(usize::from(!is_small(bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_ranges_have_room_by_their_bytes_and_large_ones_by_their_number() {
        let fill = |room: &mut Room, bytes: u64| {
            let mut count = 0;
            while room.has(bytes) {
                room.take(bytes);
                count += 1;
            }
            count
        };
        let mut room = Room::beside(0, 0);
        assert_eq!(fill(&mut room, SMALL_BYTES), CHANGES_MAX);
        assert_eq!(fill(&mut room, 0), 256, "large ones take none of it");
        assert_eq!(fill(&mut room, SMALL_BYTES - 1), 0);
        assert_eq!(fill(&mut Room::beside(0, 0), SMALL_BYTES - 1), 64);
        let half = Room::beside(128 * weight(0), 3);
        assert_eq!(fill(&mut half.clone(), 1), 128);
        assert_eq!(fill(&mut half.clone(), u64::MAX), CHANGES_MAX - 3);
    }
}
