//! A relay that delays and damages connections. In each direction of each connection it passes on
//! the bytes after a fixed delay, in order and at full speed, and now and then flips a bit.
//!
//! It stands for a long link where the kernel cannot delay packets, and for a network card or
//! memory that flips bits unnoticed by TCP's checksum. It runs as a process of its own
//! (`src/bin/relay.rs`), since it must run in a namespace; it has one thread. Connecting is not
//! delayed.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Bytes of one piece at most.
const PIECE_LEN: usize = 64 << 10;
/// Pieces on their way. Further ones wait in the kernel, as on a link that is full.
const PIECES_MAX: usize = 1024;

/// The faults of a relay.
#[derive(Clone, Copy, Debug)]
pub struct Passage {
    /// How long each piece is delayed.
    pub delay: Duration,
    /// In one piece in this many, a bit is flipped; 0: in none.
    pub damage_one_in: u32,
}

impl Passage {
    fn damage(self, piece: &mut [u8]) {
        if self.damage_one_in == 0 || rand::random_range(0..self.damage_one_in) != 0 {
            return;
        }
        let bit = rand::random_range(0..piece.len() * 8);
        piece[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Relays connections from `listener` to `target` until the process ends.
///
/// # Errors
/// The listener accepts no more connections.
pub async fn serve(listener: TcpListener, target: String, passage: Passage) -> io::Result<()> {
    loop {
        let (near, _) = listener.accept().await?;
        let target = target.clone();
        tokio::spawn(async move {
            // The near connection is closed, too.
            let Ok(far) = TcpStream::connect(target).await else {
                return;
            };
            if near.set_nodelay(true).is_err() || far.set_nodelay(true).is_err() {
                return;
            }
            let (near_reader, near_writer) = near.into_split();
            let (far_reader, far_writer) = far.into_split();
            carry(near_reader, far_writer, passage);
            carry(far_reader, near_writer, passage);
        });
    }
}

/// Relays one direction until one side ends it.
fn carry(mut reader: OwnedReadHalf, mut writer: OwnedWriteHalf, passage: Passage) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    tokio::spawn(async move {
        let mut piece = vec![0; PIECE_LEN];
        while let Ok(len @ 1..) = reader.read(&mut piece).await {
            let due = Instant::now() + passage.delay;
            passage.damage(&mut piece[..len]);
            if sender.send((due, piece[..len].to_vec())).await.is_err() {
                break;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((due, piece)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if writer.write_all(&piece).await.is_err() {
                break;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a megabyte through a relay and back. Returns both versions and the time.
    async fn echo(passage: Passage) -> (Vec<u8>, Vec<u8>, Duration) {
        let far = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let near = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (target, place) = (far.local_addr().unwrap(), near.local_addr().unwrap());
        tokio::spawn(serve(near, target.to_string(), passage));
        tokio::spawn(async move {
            let (mut stream, _) = far.accept().await.expect("a connection");
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await
        });
        let mut stream = TcpStream::connect(place).await.expect("the relay");
        let sent: Vec<u8> = (0..1 << 20_u32).map(|byte| (byte % 251) as u8).collect();
        let begun = Instant::now();
        let (mut reader, mut writer) = stream.split();
        let mut back = vec![0; sent.len()];
        let (read, written) = tokio::join!(reader.read_exact(&mut back), writer.write_all(&sent));
        read.expect("all comes back");
        written.expect("all is sent");
        (sent, back, begun.elapsed())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_passes_comes_whole_and_in_order_and_late_by_the_delay_alone() {
        let (sent, back, took) = echo(Passage {
            delay: Duration::from_millis(50),
            damage_one_in: 0,
        })
        .await;
        assert!(sent == back, "bytes changed");
        assert!(took >= Duration::from_millis(100), "{took:?}");
        // The delays of the pieces overlap: they do not add up.
        assert!(took < Duration::from_secs(1), "{took:?}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn single_bits_are_changed_and_nothing_else() {
        let (sent, back, _) = echo(Passage {
            delay: Duration::ZERO,
            damage_one_in: 1,
        })
        .await;
        let changed = sent.iter().zip(&back).filter(|(a, b)| a != b);
        let bits: Vec<u32> = changed.map(|(a, b)| (a ^ b).count_ones()).collect();
        assert!((1..=1000).contains(&bits.len()), "{} bytes", bits.len());
        assert!(bits.iter().all(|bits| *bits <= 2), "{bits:?}");
    }
}
