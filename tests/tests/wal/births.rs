//! Replicas that are born in a split, beside those that a message makes.

use futures_util::future::join;
use rangedb_engine::wal::{Birth, Created, WalError};

use crate::bench::{Machine, append, created, group, id};

const PARENT: u64 = 1;

/// A replica that is born beside [`PARENT`].
fn born(number: u64) -> Created {
    Created {
        birth: Some(Birth {
            parent: group(PARENT),
            split: id(1, 0),
        }),
        ..created(number)
    }
}

#[test]
fn wal_tells_a_replica_that_a_message_made_while_its_birth_waited() {
    let machine = Machine::new(11);
    let open = machine.open();
    machine.life(async move {
        let (wal, _) = open.await.expect("opens");
        let parent = wal.create_replica(created(PARENT)).await.expect("created");
        append(&parent, group(PARENT), 0..1).await;
        assert!(wal.was_made(group(PARENT)));
        wal.create_replica(born(2)).await.expect("born");
        assert!(!wal.was_made(group(2)) && wal.holds(group(2).range));
        // A birth waits until what came before it is durable. A message does not.
        let (birth, made) = join(wal.create_replica(born(3)), wal.create_replica(created(3))).await;
        assert!(matches!(birth, Err(WalError::ReplicaNameUsed(_))));
        made.expect("made");
        assert!(wal.was_made(group(3)));
        wal.remove_replica(group(3)).await.expect("removed");
        assert!(!wal.was_made(group(3)));
    });
}
