//! Makes the scheduler do one thing at a time, and records the memory meanwhile.
//!
//! *Runs on:* a thread `stall-turns`, and the one worker of its multi-thread runtime.

use super::words::{Chain, OFF_STACK};
use crate::os;
use crate::os::memory;
use crate::slot;
use parking_lot::Mutex;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};

/// Bytes read behind a pointer that may lead to a core, which has some 300 bytes.
const CORE: usize = 512;
/// Words read of a context.
const CONTEXT_WORDS: usize = 8;
/// Bytes to each side of the task's number in which the pointer to the context is searched: they
/// are fields of one struct.
const NEAR: i64 = 128;
/// Pages to each side of a thread's anchor in which the number of the task is searched.
const PAGES: u64 = 8;
const PAGE: u64 = 4096;

/// Polls of each kind that are recorded.
const POLLS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavor {
    MultiThread,
    CurrentThread,
}

/// The way in which a task gets polled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// It wakes itself: one turn later it is polled again.
    Itself,
    /// It yields: after a turn that looks for events, one turn later.
    Yield,
}

/// All words in the pages around a thread's anchor.
#[derive(Clone, Debug)]
pub(super) struct AnchorPages {
    pub(super) task: u64,
    /// From the anchor to the first word.
    pub(super) from: i64,
    pub(super) words: Vec<u64>,
}

/// The contexts and cores to which the words near the number of the task may point.
#[derive(Clone, Debug)]
pub(super) struct Candidates {
    pub(super) contexts: Vec<Context>,
}

/// A candidate for the context: something on the stack.
#[derive(Clone, Debug)]
pub(super) struct Context {
    /// From the anchor to the pointer to it.
    pub(super) place: i64,
    pub(super) address: u64,
    pub(super) cores: Vec<Core>,
}

/// A candidate for the core: something on the heap.
#[derive(Clone, Debug)]
pub(super) struct Core {
    /// From the context to the pointer to it.
    pub(super) place: usize,
    pub(super) address: u64,
    pub(super) bytes: Vec<u8>,
}

/// The core and the stack during one poll, once the chain from the anchor to the core is known.
#[derive(Clone, Debug)]
pub(super) struct PollSnapshot {
    pub(super) core: Vec<u8>,
    /// The number of parks and unparks that tokio has published.
    pub(super) parks: u64,
    /// The system's monotonic clock.
    pub(super) at: (u64, u32),
    /// From the context to the first word of the stack.
    pub(super) stack_from: i64,
    pub(super) stack: Vec<u64>,
}

/// The runtimes whose memory is recorded.
pub(super) struct Bench {
    multi: Runtime,
    current: Runtime,
}

impl Bench {
    /// Builds the runtimes.
    ///
    /// # Errors
    ///
    /// If no thread can be started. Tokio panics then, and a build that aborts on panics would end,
    /// so one thread is started on trial first.
    pub(super) fn new() -> std::io::Result<Bench> {
        let name = "stall-turns";
        os::spawn(name, || ())?.join().ok();
        let mut multi = Builder::new_multi_thread();
        multi.worker_threads(1).thread_name(name);
        Ok(Bench {
            multi: multi.build()?,
            current: Builder::new_current_thread().build()?,
        })
    }

    /// Runs a future as a task.
    fn task<T: Send + 'static>(
        &self,
        flavor: Flavor,
        task: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let runtime = match flavor {
            Flavor::MultiThread => &self.multi,
            Flavor::CurrentThread => &self.current,
        };
        let joined = runtime.block_on(async { runtime.spawn(task).await });
        joined.expect("a task that only reads does not panic")
    }

    /// Records the pages around the anchor in a few tasks.
    pub(super) fn first_looks(&self, flavor: Flavor) -> Vec<AnchorPages> {
        (0..POLLS)
            .map(|_| self.task(flavor, async { AnchorPages::look() }))
            .collect()
    }

    /// Records the words near the number of the task, in poll after poll of one task.
    pub(super) fn candidates(&self, flavor: Flavor, task: i64, wake: Wake) -> Vec<Candidates> {
        self.task(flavor, again(wake, move || Candidates::look(task)))
    }

    /// Records a poll, and then the same places once the thread has let go of its worker.
    pub(super) fn candidates_let_go(&self, flavor: Flavor, task: i64) -> [Candidates; 2] {
        let held = move || Candidates::look(task);
        match flavor {
            Flavor::MultiThread => self.task(flavor, async move {
                let held = held();
                [
                    held.clone(),
                    tokio::task::block_in_place(|| held.look_again()),
                ]
            }),
            Flavor::CurrentThread => {
                let held = self.task(flavor, async move { held() });
                [held.clone(), held.look_again()]
            }
        }
    }

    /// Records polls before which the worker was parked and woken from another thread.
    pub(super) fn woken_from_outside(&self, flavor: Flavor, chain: Chain) -> Vec<PollSnapshot> {
        let look = move || PollSnapshot::look(chain);
        let looks = (0..POLLS).map(|_| match flavor {
            Flavor::MultiThread => {
                wait_until_parked(self.multi.handle());
                self.task(flavor, async move { look() })
            }
            Flavor::CurrentThread => self.task(flavor, {
                let (other, this) = (self.multi.handle().clone(), self.current.handle().clone());
                async move {
                    let woken = other.spawn(async move { wait_until_parked(&this) });
                    woken.await.ok();
                    look()
                }
            }),
        });
        looks.flatten().collect()
    }

    /// Records each poll of two tasks that wake each other, which tokio polls from the "next" slot.
    pub(super) fn ping_pong(&self, chain: Chain) -> Vec<PollSnapshot> {
        let looks = Arc::new(Mutex::new(Vec::new()));
        let wakers = Arc::new(Mutex::new([None, None]));
        let both = [0, 1].map(|me| pong(me, chain, looks.clone(), wakers.clone()));
        self.task(Flavor::MultiThread, async move {
            let tasks = both.map(tokio::spawn);
            for task in tasks {
                task.await.ok();
            }
        });
        std::mem::take(&mut *looks.lock())
    }

    /// Records each poll of a task that yields.
    pub(super) fn yields(&self, flavor: Flavor, chain: Chain) -> Vec<PollSnapshot> {
        let looks = self.task(
            flavor,
            again(Wake::Yield, move || PollSnapshot::look(chain)),
        );
        looks.into_iter().flatten().collect()
    }
}

/// Waits until the first worker is parked, but not for ever.
fn wait_until_parked(runtime: &Handle) {
    let metrics = runtime.metrics();
    let is_parked = || metrics.worker_park_unpark_count(0) % 2 == 1;
    let mut tries = 0;
    while !is_parked() && tries < 1000 {
        std::thread::sleep(Duration::from_micros(20));
        tries += 1;
    }
}

/// Records poll after poll of one future.
async fn again<T>(wake: Wake, look: impl Fn() -> T) -> Vec<T> {
    let mut looks = Vec::with_capacity(POLLS);
    loop {
        looks.push(look());
        if looks.len() == POLLS {
            return looks;
        }
        match wake {
            Wake::Yield => tokio::task::yield_now().await,
            Wake::Itself => wake_itself().await,
        }
    }
}

/// Wakes its own task, and is ready at the next poll.
async fn wake_itself() {
    let mut woken = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut woken, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Half of a ping-pong: records its poll, wakes the other half, and waits to be woken. The half
/// that ends first wakes the other one once more, so that it ends too.
async fn pong(
    me: usize,
    chain: Chain,
    looks: Arc<Mutex<Vec<PollSnapshot>>>,
    wakers: Arc<Mutex<[Option<Waker>; 2]>>,
) {
    let mut left = 2 * POLLS;
    poll_fn(|cx| {
        looks.lock().extend(PollSnapshot::look(chain));
        wake_other(me, Some(cx.waker()), &wakers);
        left -= 1;
        if left == 0 {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
    // Without this the task that comes last would wait for ever.
    wake_other(me, None, &wakers);
}

/// Stores this task's own waker, if it is to be woken again, and wakes the other task.
fn wake_other(me: usize, own: Option<&Waker>, wakers: &Mutex<[Option<Waker>; 2]>) {
    let other = {
        let mut wakers = wakers.lock();
        if let Some(own) = own {
            wakers[me] = Some(own.clone());
        }
        wakers[1 - me].take()
    };
    if let Some(other) = other {
        other.wake();
    }
}

impl AnchorPages {
    fn look() -> AnchorPages {
        let anchor = slot::anchor();
        let middle = anchor / PAGE * PAGE;
        let mut words = words_before(middle);
        let from = middle - words.len() as u64 * 8;
        for page in 0..=PAGES {
            words.append(&mut read_words(middle + page * PAGE, PAGE as usize / 8));
        }
        AnchorPages {
            task: slot::own_task(),
            from: way(anchor, from),
            words,
        }
    }
}

/// The words of the pages before this one, as far as they can be read without a gap.
fn words_before(page: u64) -> Vec<u64> {
    let mut words = Vec::new();
    for distance in 1..=PAGES {
        let mut earlier = read_words(page - distance * PAGE, PAGE as usize / 8);
        if earlier.len() < PAGE as usize / 8 {
            break;
        }
        earlier.append(&mut words);
        words = earlier;
    }
    words
}

impl Candidates {
    fn look(task: i64) -> Candidates {
        let anchor = slot::anchor();
        let from = task - NEAR;
        let words = read_words(anchor.wrapping_add_signed(from), 2 * NEAR as usize / 8);
        let contexts = words.iter().enumerate();
        let contexts = contexts.filter(|(_, word)| is_on_stack(**word));
        let contexts = contexts.map(|(index, word)| Context {
            place: from + index as i64 * 8,
            address: *word,
            cores: cores(*word),
        });
        Candidates {
            contexts: contexts.collect(),
        }
    }

    /// Records the same places again.
    fn look_again(&self) -> Candidates {
        let contexts = self.contexts.iter().map(|context| Context {
            cores: cores(context.address),
            ..context.clone()
        });
        Candidates {
            contexts: contexts.collect(),
        }
    }
}

/// The candidates for a core: the heap pointers in a context.
fn cores(context: u64) -> Vec<Core> {
    let words = read_words(context, CONTEXT_WORDS);
    let cores = words.into_iter().enumerate().filter_map(|(index, word)| {
        let is_pointer = word % 8 == 0 && OFF_STACK.contains(&word) && !is_on_stack(word);
        is_pointer.then(|| Core {
            place: index * 8,
            address: word,
            bytes: read_bytes(word, CORE),
        })
    });
    cores.collect()
}

impl PollSnapshot {
    /// `None` if the chain does not lead to a core here.
    fn look(chain: Chain) -> Option<PollSnapshot> {
        let anchor = slot::anchor();
        let word = |address| read_words(address, 1).first().copied();
        let context = word(anchor.wrapping_add_signed(chain.context))?;
        let core = word(context + chain.core as u64)?;
        let here = here();
        let above = context.checked_sub(here)? as usize / 8;
        Some(PollSnapshot {
            core: read_bytes(core, CORE),
            parks: Handle::try_current()
                .ok()?
                .metrics()
                .worker_park_unpark_count(0),
            at: super::super::track::monotonic(),
            stack_from: way(context, here),
            stack: read_words(here, above + CONTEXT_WORDS),
        })
    }
}

/// A place on the calling thread's stack.
#[inline(never)]
fn here() -> u64 {
    let marker = 0_u64;
    std::hint::black_box(&raw const marker) as u64 / 8 * 8
}

/// Whether an address is on the calling thread's stack, outside of the caller.
fn is_on_stack(address: u64) -> bool {
    const DEEP: u64 = 1 << 20;
    let here = here();
    address % 8 == 0 && (here..here + DEEP).contains(&address)
}

fn way(from: u64, to: u64) -> i64 {
    to.wrapping_sub(from) as i64
}

/// Reads as many bytes as there are, up to `length`.
fn read_bytes(address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let read = memory::read(address, &mut bytes);
    bytes.truncate(read);
    bytes
}

/// Reads as many words as there are, up to `count`.
fn read_words(address: u64, count: usize) -> Vec<u64> {
    let bytes = read_bytes(address, count * 8);
    let words = bytes.chunks_exact(8);
    words
        .map(|word| u64::from_ne_bytes(word.try_into().expect("eight bytes")))
        .collect()
}
