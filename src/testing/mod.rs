//! Assertions for tests: code that blocks an event loop fails, and a busy machine does not.
//!
//! *Runs on:* the threads of tests.
//! *Here:* what is decided, is decided by what the kernel says a thread did. A clock on the wall decides nothing.
//!
//! | to test | write | judges |
//! |---|---|---|
//! | one future, in any runtime | [`assert_never_blocks`] | each of its polls, from 50 µs asleep on |
//! | a future and all tasks that it spawns | [`block_on`], [`runtime()`] | each turn of each worker, as exactly |
//! | a whole `#[tokio::test]` | [`watch()`] | all workers, from 10 ms on, and says more |
//!
//! None sees what other tests of the same process do. Blocking that is meant is wrapped in
//! [`allow_blocking`](crate::probe::allow_blocking); what an existing code base cannot mend at once goes into a
//! [`baseline()`].
//!
//! # How it is decided
//!
//! Sleeping for one nanosecond, waiting for a lock and joining a thread are one voluntary context switch each,
//! synchronising a file is four; computing, free locks, cached files and allocation are none. But so are waits
//! that no code can avoid, for the kernel's lock on the memory of the process, or for one inside of the runtime whose
//! holder has lost its CPU, and on a busy machine these take up to a fifth of a second. So while a poll goes on,
//! a timer looks every 50 µs whether its thread sleeps, and has it copy its stack. A poll has blocked if
//! its thread gave up the CPU, was asleep for more than a floor, and the stack shows a call of the code's own.

mod baseline;
mod finding;
mod meter;
mod never_blocks;
mod runtime;
mod verdict;
mod watch;

pub use baseline::{Baseline, baseline};
pub use finding::BlockingCall;
pub use never_blocks::NeverBlocks;
pub use never_blocks::assert_never_blocks;
pub use runtime::{Runtime, block_on, runtime, runtime_from};
pub use watch::{Expectation, Watch, watch, watch_with};
