//! The thread pool that compiled models run on: `parallel_for` for [`nnc_host`](crate::abi::Host), owned by the caller.
//!
//! Two levels of waiting: an idle worker first spins for [`SPIN`], because the layers of a network follow each other within
//! microseconds, then sleeps until there is work. Each thread has a share of the indices, the same one in every loop of that length, so
//! that it finds in its caches what it left there; it claims them in small runs, and then those of the others, so that a slow or
//! interrupted core takes less of the work. The calling thread works too. A pool that is busy (a second caller, or a body that calls
//! the pool again) never waits: that call is a plain loop on its own thread.

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker looks for work before it sleeps.
pub const SPIN: Duration = Duration::from_micros(50);

/// The iterations of a loop: the C ABI's callback.
pub type Body = unsafe extern "C" fn(arg: *mut c_void, i: i64);

/// A fixed number of threads, of which the caller's is one.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose loop the workers run.
    busy: AtomicBool,
}

struct Shared {
    /// Odd while a loop is open; each loop has its own number.
    epoch: AtomicU64,
    /// Workers that may be reading `job`.
    inside: AtomicUsize,
    /// Invariant: written only while the epoch is even and `inside` workers have seen that.
    job: UnsafeCell<Job>,
    /// For each thread, the caller's first, the next index of its share.
    shares: Vec<Share>,
    sleepers: AtomicUsize,
    gate: Mutex<()>,
    wake: Condvar,
    stop: AtomicBool,
    spin: Duration,
}

/// A counter on a cache line of its own.
#[repr(align(64))]
struct Share(AtomicI64);

#[derive(Clone, Copy)]
struct Job {
    body: Body,
    arg: *mut c_void,
    n: i64,
    /// Indices claimed at once.
    run: i64,
}

// SAFETY: `job` is written by one caller at a time (`Pool::busy`) while no worker reads it (`epoch`, `inside`); the rest is atomic.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only handed back to the body that came with it, whose contract allows any thread.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the caller's included; 0 means as many as this process may use (affinity and cgroup limits count).
    pub fn new(threads: usize) -> Pool {
        let available = available();
        let threads = if threads == 0 { available } else { threads };
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            job: UnsafeCell::new(Job { body: nothing, arg: std::ptr::null_mut(), n: 0, run: 1 }),
            shares: (0..threads).map(|_| Share(AtomicI64::new(0))).collect(),
            sleepers: AtomicUsize::new(0),
            gate: Mutex::new(()),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            // Spinning takes time from the threads that work where there are more threads than cores.
            spin: if threads > available { Duration::ZERO } else { SPIN },
        });
        let start = |i: usize| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("nnc-{i}")).spawn(move || shared.work(i))
        };
        // A system that refuses a thread gives a smaller pool.
        let workers = (1..threads).map_while(|i| start(i).ok()).collect();
        Pool { shared, workers, busy: AtomicBool::new(false) }
    }

    /// Threads that work on a loop.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(i)` once for each `i` in `0..n`, in any order, on any of the threads; returns when all have returned.
    pub fn for_each(&self, n: i64, body: impl Fn(i64) + Sync) {
        unsafe extern "C" fn call<F: Fn(i64)>(arg: *mut c_void, i: i64) {
            // SAFETY: `arg` is the closure below, which outlives the loop.
            unsafe { (*arg.cast::<F>())(i) }
        }
        fn caller<F: Fn(i64) + Sync>(_: &F) -> Body {
            call::<F>
        }
        let arg = (&raw const body).cast_mut().cast();
        // SAFETY: the closure may be called from any thread (`Sync`) and lives until the loop has ended.
        unsafe { self.parallel_for(n, caller(&body), arg) }
    }

    /// As [`Pool::for_each`] for a C callback.
    ///
    /// # Safety
    /// `body(arg, i)` must be sound from any thread for `i` in `0..n`, several at once, and must not unwind.
    pub unsafe fn parallel_for(&self, n: i64, body: Body, arg: *mut c_void) {
        if n <= 1 || self.workers.is_empty() || self.busy.swap(true, Acquire) {
            for i in 0..n {
                // SAFETY: by the caller's promise.
                unsafe { body(arg, i) }
            }
            return;
        }
        let shared = &*self.shared;
        let run = (n / (self.threads() as i64 * 16)).max(1);
        // SAFETY: `busy` makes this the only caller; the epoch is even and the last loop's end has waited for all readers.
        unsafe { *shared.job.get() = Job { body, arg, n, run } };
        for (t, share) in shared.shares.iter().enumerate() {
            share.0.store(shared.share(n, t), Relaxed);
        }
        shared.epoch.fetch_add(1, SeqCst);
        if shared.sleepers.load(SeqCst) > 0 {
            drop(shared.gate.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        shared.claim(Job { body, arg, n, run }, 0);
        shared.epoch.fetch_add(1, SeqCst);
        // What is left is the tail of the other threads' last runs.
        let mut spins = 0u32;
        while shared.inside.load(SeqCst) != 0 {
            spins += 1;
            if spins < 2000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        self.busy.store(false, Release);
    }
}

unsafe extern "C" fn nothing(_: *mut c_void, _: i64) {}

/// Threads that this process may use at once.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Shared {
    /// Where the share of thread `t` begins, of `n` indices.
    fn share(&self, n: i64, t: usize) -> i64 {
        (i128::from(n) * t as i128 / self.shares.len() as i128) as i64
    }

    /// Runs indices until none is left, those of thread `me` first.
    fn claim(&self, job: Job, me: usize) {
        let threads = self.shares.len();
        for t in (me..threads).chain(0..me) {
            let end = self.share(job.n, t + 1);
            loop {
                let first = self.shares[t].0.fetch_add(job.run, Relaxed);
                if first >= end {
                    break;
                }
                for i in first..end.min(first + job.run) {
                    // SAFETY: by the promise made to `parallel_for`, whose caller waits until this thread has left.
                    unsafe { (job.body)(job.arg, i) }
                }
            }
        }
    }

    /// The life of worker `me`.
    fn work(&self, me: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.wait(seen) {
            seen = epoch;
            self.inside.fetch_add(1, SeqCst);
            // Entered before the loop was closed, so its caller waits for this thread; else the job is not looked at.
            if self.epoch.load(SeqCst) == epoch {
                // SAFETY: nobody writes the job while this loop is open, or closed with this thread inside.
                self.claim(unsafe { *self.job.get() }, me);
            }
            self.inside.fetch_sub(1, SeqCst);
        }
    }

    /// The number of an open loop that is not `seen`; `None` when the pool ends.
    fn wait(&self, seen: u64) -> Option<u64> {
        let news = || {
            let epoch = self.epoch.load(SeqCst);
            (epoch % 2 == 1 && epoch != seen).then_some(epoch)
        };
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if let Some(epoch) = news() {
                    return Some(epoch);
                }
                std::hint::spin_loop();
            }
            if self.stop.load(SeqCst) {
                return None;
            }
            if start.elapsed() >= self.spin {
                break;
            }
        }
        // The caller looks for sleepers after it has opened a loop, this thread looks for a loop after it has become one.
        self.sleepers.fetch_add(1, SeqCst);
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let out = loop {
            if let Some(epoch) = news() {
                break Some(epoch);
            }
            if self.stop.load(SeqCst) {
                break None;
            }
            gate = self.wake.wait(gate).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, SeqCst);
        out
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(self.shared.gate.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for w in self.workers.drain(..) {
            // A worker runs only bodies that do not unwind.
            let _ = w.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_index_once() {
        for threads in [1, 2, 4] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for n in [0i64, 1, 2, 7, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.for_each(n, |i| {
                    counts[i as usize].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{threads} threads, {n} indices");
            }
        }
    }

    #[test]
    fn loops_follow_each_other_and_nest() {
        let pool = Pool::new(3);
        let sum = AtomicI64::new(0);
        for round in 0..2000 {
            pool.for_each(5, |i| {
                if round % 100 == 0 {
                    pool.for_each(3, |_| {
                        sum.fetch_add(1, Relaxed);
                    });
                }
                sum.fetch_add(i, Relaxed);
            });
        }
        assert_eq!(sum.load(Relaxed), 2000 * 10 + 20 * 5 * 3);
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(2);
        for _ in 0..5 {
            std::thread::sleep(SPIN * 20);
            let both = std::sync::Barrier::new(2);
            // Ends only if two threads take part.
            pool.for_each(2, |_| {
                both.wait();
            });
        }
    }

    #[test]
    fn callers_share_a_pool() {
        let pool = Pool::new(2);
        let sum = AtomicI64::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    (0..500).for_each(|_| {
                        pool.for_each(10, |i| {
                            sum.fetch_add(i, Relaxed);
                        })
                    })
                });
            }
        });
        assert_eq!(sum.load(Relaxed), 4 * 500 * 45);
    }
}
