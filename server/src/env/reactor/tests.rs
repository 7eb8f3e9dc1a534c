//! The reactor against the real kernel: sleeping tasks wake, and dropped futures leave nothing behind.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant as StdInstant;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use rangedb_engine::env::AsyncRuntime;
use rangedb_engine::limits::BLOCK_LEN;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::env::GlommioRuntime;

/// A task that takes longer than this was woken only by chance.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs a test on a reactor of its own; it fails if it stands still.
fn run<T>(test: impl Future<Output = T>) -> T {
    GlommioRuntime::new(1).block_on(async {
        let limited = GlommioRuntime::timeout(TIMEOUT, test);
        limited.await.expect("it does not stand still")
    })
}

/// The two ends of a connection: this thread's, and another's.
fn connection() -> (TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let other = std::net::TcpStream::connect(address).expect("it listens");
    let (accepted, _) = listener.accept().expect("connected");
    other.set_read_timeout(Some(TIMEOUT)).expect("a socket");
    let ours = TcpStream::attach(accepted.into()).expect("a socket");
    (ours, other)
}

/// A new file for direct I/O.
fn direct_file(folder: &Path) -> Rc<File> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    let file = options.custom_flags(libc::O_DIRECT);
    Rc::new(file.open(folder.join("file")).expect("a file"))
}

fn filled(len: usize, byte: u8) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::new(len);
    buffer.as_mut().fill(byte);
    buffer
}

#[test]
fn sleepers_wake_in_order_of_time() {
    run(async {
        let woken = Rc::new(RefCell::new(Vec::new()));
        let sleeping: Vec<_> = [30_u64, 10, 20, 0]
            .into_iter()
            .map(|millis| {
                let woken = woken.clone();
                spawn_local(async move {
                    GlommioRuntime::sleep(Duration::from_millis(millis)).await;
                    woken.borrow_mut().push(millis);
                })
            })
            .collect();
        for sleeper in sleeping {
            sleeper.await;
        }
        assert_eq!(*woken.borrow(), [0, 10, 20, 30]);
    });
}

#[test]
fn a_sleep_that_is_dropped_is_forgotten() {
    run(async {
        let asleep = GlommioRuntime::sleep(Duration::from_secs(3600));
        let limited = GlommioRuntime::timeout(Duration::from_millis(1), asleep);
        assert!(limited.await.is_err());
        // What is left is the limit of this test.
        let next = Reactor::here().timers.next().expect("its limit");
        assert!(next < clock::now() + TIMEOUT);
    });
}

#[test]
fn a_thread_with_nothing_to_do_sleeps() {
    run(async {
        let before = load().busy;
        GlommioRuntime::sleep(Duration::from_millis(200)).await;
        let busy = load().busy - before;
        assert!(busy < Duration::from_millis(100), "{busy:?}");
    });
}

#[test]
fn what_ends_with_a_dropped_task_wakes_others() {
    run(async {
        for _ in 0..100 {
            let (sender, receiver) = oneshot::channel::<()>();
            let holder = spawn_local(async move {
                let _sender = sender;
                std::future::pending::<()>().await;
            });
            yield_now().await;
            drop(holder);
            // Nothing else happens meanwhile.
            assert!(receiver.await.is_err());
        }
    });
}

#[test]
fn tasks_that_wake_each_other_do_not_keep_the_rest_from_the_kernel() {
    run(async {
        let ended = Rc::new(Cell::new(false));
        let busy: Vec<_> = (0..3)
            .map(|_| {
                let ended = ended.clone();
                spawn_local(async move {
                    while !ended.get() {
                        yield_now().await;
                    }
                })
            })
            .collect();
        let (mut ours, mut other) = connection();
        other.write_all(b"x").expect("a connection");
        let mut byte = [0];
        ours.read_exact(&mut byte).await.expect("a byte");
        GlommioRuntime::sleep(Duration::from_millis(1)).await;
        ended.set(true);
        for task in busy {
            task.await;
        }
    });
}

#[test]
fn other_threads_wake_a_sleeping_one_and_a_busy_one() {
    const EACH: usize = 2_000;
    run(async {
        let (sender, mut receiver) = mpsc::channel(16);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for number in 0..EACH {
                        sender.blocking_send(number).expect("it receives");
                        if number % 64 == 0 {
                            std::thread::sleep(Duration::from_micros(300));
                        }
                    }
                })
            })
            .collect();
        drop(sender);
        let mut received = 0;
        while cross_thread(receiver.recv()).await.is_some() {
            received += 1;
        }
        assert_eq!(received, 4 * EACH);
        threads.into_iter().for_each(|t| t.join().expect("it ends"));
    });
}

#[test]
fn what_waits_for_the_helper_goes_on() {
    run(async {
        for number in 0..100 {
            assert_eq!(blocking(move || Ok(number)).await.expect("done"), number);
        }
        let failed = blocking(|| fs::read("/nowhere")).await;
        assert_eq!(failed.expect_err("absent").kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_stream_is_read_and_written_whole() {
    const LEN: usize = 8 << 20;
    run(async {
        let (ours, mut other) = connection();
        let echo = std::thread::spawn(move || {
            let mut bytes = vec![0; LEN];
            other.read_exact(&mut bytes).expect("all of it");
            other.write_all(&bytes).expect("a connection");
        });
        let sent: Vec<u8> = (0..LEN).map(|at| (at / 7) as u8).collect();
        let (mut reader, mut writer) = ours.split();
        let mut received = Vec::new();
        let writing = async { writer.write_all(&sent).await };
        let reading = async { reader.read_to_end(&mut received).await };
        let (written, read) = futures_util::join!(writing, reading);
        written.expect("written");
        assert_eq!(read.expect("read"), LEN);
        assert!(received == sent);
        echo.join().expect("it ends");
    });
}

#[test]
fn the_end_is_seen_that_comes_with_the_last_bytes() {
    run(async {
        for wait in [false, true] {
            let (mut ours, mut other) = connection();
            other.write_all(b"last").expect("a connection");
            drop(other);
            if wait {
                GlommioRuntime::sleep(Duration::from_millis(5)).await;
            }
            let mut all = Vec::new();
            ours.read_to_end(&mut all).await.expect("read");
            assert_eq!(all, b"last");
        }
    });
}

#[test]
fn who_takes_nothing_is_given_up() {
    run(async {
        let (mut ours, _other) = connection();
        ours.set_write_timeout(Duration::from_millis(50));
        let error = ours.write_all(&vec![0; 64 << 20]).await;
        assert_eq!(error.expect_err("stuck").kind(), io::ErrorKind::TimedOut);
    });
}

#[test]
fn connecting_works_by_name_and_says_why_not() {
    run(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let named = TcpStream::connect(&format!("localhost:{port}")).await;
        assert!(named.is_ok());
        drop(listener);
        let refused = TcpStream::connect(&format!("127.0.0.1:{port}")).await;
        let error = refused.err().expect("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(TcpStream::connect("no port").await.is_err());
    });
}

#[test]
fn sockets_that_are_dropped_leave_nothing_under_way() {
    run(async {
        for _ in 0..200 {
            let (mut ours, mut other) = connection();
            other.write_all(b"x").expect("a connection");
            let mut byte = [0];
            ours.read_exact(&mut byte).await.expect("a byte");
            drop(ours);
            // The next turn submits it to the kernel.
            GlommioRuntime::sleep(Duration::from_millis(1)).await;
            assert_eq!(other.read(&mut byte).expect("the end"), 0);
        }
        // The last answers come with a later turn.
        GlommioRuntime::sleep(Duration::from_millis(5)).await;
        assert!(Reactor::here().ring.borrow().operations.is_empty());
    });
}

#[test]
fn a_transfer_that_nobody_waits_for_is_finished() {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    run(async {
        let file = direct_file(folder.path());
        let filled = |byte| filled(2 * BLOCK_LEN, byte);
        let written = write_at(&file, filled(1), 0).await.expect("written");
        assert_eq!(written, 2 * BLOCK_LEN);
        for byte in 2..50 {
            let mut given_up = Box::pin(write_at(&file, filled(byte), 0));
            let begun = std::future::poll_fn(|cx| Poll::Ready(given_up.as_mut().poll(cx)));
            assert!(begun.await.is_pending());
            drop(given_up);
        }
        let until = StdInstant::now() + TIMEOUT;
        while !Reactor::here().ring.borrow().operations.is_empty() {
            assert!(StdInstant::now() < until, "some are still under way");
            GlommioRuntime::sleep(Duration::from_millis(1)).await;
        }
        let read = read_at(&file, 0, 2 * BLOCK_LEN).await.expect("read");
        assert_eq!(read.len(), 2 * BLOCK_LEN);
        let behind = read_at(&file, 2 << 20, BLOCK_LEN).await.expect("read");
        assert!(behind.is_empty());
        let bad = write_at(&file, filled(1), 1).await;
        assert!(bad.is_err(), "direct writes are of whole blocks");
    });
}

#[test]
fn more_can_be_asked_for_at_once_than_the_ring_holds() {
    const BLOCKS: u64 = 3_000;
    let folder = tempfile::tempdir_in(".").expect("a folder");
    run(async {
        let file = direct_file(folder.path());
        let block = |at: u64| filled(BLOCK_LEN, at as u8);
        let offset = |at: u64| at * BLOCK_LEN as u64;
        let written = (0..BLOCKS).map(|at| write_at(&file, block(at), offset(at)));
        for len in futures_util::future::join_all(written).await {
            assert_eq!(len.expect("written"), BLOCK_LEN);
        }
        let read = (0..BLOCKS).map(|at| read_at(&file, offset(at), BLOCK_LEN));
        let read = futures_util::future::join_all(read).await;
        for (at, bytes) in (0..BLOCKS).zip(read) {
            assert!(bytes.expect("read") == block(at).as_ref());
        }
    });
}

async fn work_for(time: Duration) {
    let begun = StdInstant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn a_task_that_holds_the_thread_is_counted_under_its_name() {
    run(async {
        spawn_local(work_for(stalls::STALL_MIN)).await;
        GlommioRuntime::spawn(work_for(stalls::STALL_MIN))
            .await
            .expect("it does not panic");
        let stalls = load().stalls;
        let name = |task: &str| task.ends_with("reactor::tests::work_for");
        let counted = stalls.iter().find(|(task, _)| name(task));
        assert_eq!(counted.map(|(_, count)| *count), Some(2), "{stalls:?}");
    });
}
