//! Reads blocks of tables for reads that must not wait for the disk.
//!
//! A [`Fetcher`] is a few helper threads of one shard, so that several blocks are read at a time. It is no
//! cache: it hands over what it has read, and the shard's thread puts that where reads find it. It does not
//! know which reads wait for a block, or that two wait for the same one. Its caller does, and bounds how
//! many blocks wait here (see [`crate::tree`]).
//!
//! A fetcher lives on its shard's thread. That thread and the helpers talk by channels alone, so that
//! the shard never waits for a helper that the system has put aside.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::lock;
use crate::lsm::Fetched;
use crate::types::ColdBlock;

/// Reads of a shard at a time.
const THREADS: usize = 8;

type Tell = Arc<dyn Fn() + Send + Sync>;

/// Reads blocks from a source of the type `S` at once.
type Read<S, B> = dyn Fn(&S, &[ColdBlock]) -> Vec<Fetched<B>> + Send + Sync;

/// A request to read blocks at once, with the callback for when they have been read.
struct Job<S> {
    blocks: Vec<ColdBlock>,
    source: S,
    tell: Option<Tell>,
}

/// Helper threads that read blocks of the type `B` from sources of the type `S`.
pub(super) struct Fetcher<S, B> {
    jobs: Option<Sender<Job<S>>>,
    fetched: Receiver<Fetched<B>>,
    tell: Option<Tell>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl<S: Send + 'static, B: Send + 'static> Fetcher<S, B> {
    /// Starts the threads. `on_start` is called first on each, with its name; `read` reads blocks.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(super) fn start(
        on_start: &Arc<dyn Fn(&str) + Send + Sync>,
        read: Arc<Read<S, B>>,
    ) -> io::Result<Fetcher<S, B>> {
        let (jobs, queue) = channel::<Job<S>>();
        let (done, fetched) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let stop = Arc::new(AtomicBool::new(false));
        let start = || {
            let (on_start, queue) = (on_start.clone(), queue.clone());
            let (read, done, stop) = (read.clone(), done.clone(), stop.clone());
            std::thread::Builder::new().spawn(move || {
                on_start("fetch");
                // The helpers alone share the lock: the one that has it waits for the next job.
                while let Ok(job) = { lock(&queue).recv() }
                    && !stop.load(Ordering::SeqCst)
                {
                    let blocks = read(&job.source, &job.blocks);
                    // The last holder of a table unlinks its file: let it be this thread.
                    drop(job.source);
                    for block in blocks {
                        // Fails only when the fetcher was dropped.
                        let _ = done.send(block);
                    }
                    if let Some(tell) = job.tell {
                        tell();
                    }
                }
            })
        };
        // If one cannot be started, the others end with the queue's sender.
        let threads = (0..THREADS).map(|_| start()).collect::<io::Result<_>>()?;
        Ok(Fetcher {
            jobs: Some(jobs),
            fetched,
            tell: None,
            stop,
            threads,
        })
    }

    /// Sets a callback for when [`Fetcher::fetched`] has something to give. A helper calls it.
    pub(super) fn on_fetched(&mut self, call: Tell) {
        self.tell = Some(call);
    }

    /// Has blocks read at once.
    pub(super) fn fetch(&self, source: S, blocks: Vec<ColdBlock>) {
        if let Some(jobs) = &self.jobs {
            let tell = self.tell.clone();
            // Sending cannot fail: the helpers run until this sender is dropped.
            let _ = jobs.send(Job {
                blocks,
                source,
                tell,
            });
        }
    }

    /// The blocks that were read since the last call.
    pub(super) fn fetched(&self) -> impl Iterator<Item = Fetched<B>> {
        self.fetched.try_iter()
    }
}

impl<S, B> Drop for Fetcher<S, B> {
    /// Stops the threads after the blocks that they are reading.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Joining cannot fail: a panic would have aborted the process.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn block(offset: u64) -> ColdBlock {
        ColdBlock {
            table: 1,
            offset,
            len: 1,
        }
    }

    #[test]
    fn blocks_are_read_at_the_same_time_and_told_one_by_one() {
        let together = Barrier::new(THREADS);
        let (told, tells) = channel();
        let told = Mutex::new(told);
        let read = move |source: &u64, blocks: &[ColdBlock]| {
            // Fails to end unless all threads read at once.
            together.wait();
            let read = |block: &ColdBlock| (*block, Ok(Some(source + block.offset)));
            blocks.iter().map(read).collect::<Vec<Fetched<u64>>>()
        };
        let on_start: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(|_| ());
        let mut fetcher = Fetcher::start(&on_start, Arc::new(read)).expect("starts");
        fetcher.on_fetched(Arc::new(move || {
            let _ = lock(&told).send(());
        }));
        let jobs = || 0..THREADS as u64;
        jobs().for_each(|number| fetcher.fetch(100, vec![block(number), block(number + 1000)]));
        let mut read = Vec::new();
        for _ in jobs() {
            tells.recv().expect("is told");
            read.extend(fetcher.fetched().map(|(block, content)| {
                let content = content.expect("was read");
                (block.offset, content)
            }));
        }
        read.sort_unstable();
        let blocks = jobs().chain(jobs().map(|number| number + 1000));
        let wanted: Vec<_> = blocks.map(|number| (number, Some(100 + number))).collect();
        assert_eq!(read, wanted);
    }

    #[test]
    fn what_is_queued_is_not_read_when_the_threads_are_to_end() {
        let (open, gate) = channel::<()>();
        let (gate, reads) = (Mutex::new(gate), Arc::new(AtomicUsize::new(0)));
        let counted = reads.clone();
        let read = move |_: &(), _: &[ColdBlock]| {
            counted.fetch_add(1, Ordering::Relaxed);
            // Waits until the sender is dropped.
            let _ = lock(&gate).recv();
            Vec::<Fetched<()>>::new()
        };
        let on_start: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(|_| ());
        let fetcher = Fetcher::start(&on_start, Arc::new(read)).expect("starts");
        (0..1000).for_each(|number| fetcher.fetch((), vec![block(number)]));
        let stop = fetcher.stop.clone();
        let opener = std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            drop(open);
        });
        drop(fetcher);
        opener.join().expect("no panic");
        assert!(reads.load(Ordering::Relaxed) <= THREADS);
    }
}
