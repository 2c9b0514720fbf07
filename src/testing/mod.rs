//! Assertions for tests: code that blocks an event loop fails, and a busy machine does not.
//!
//! *Runs on:* the threads of tests.
//! *Must not:* decide by a wall clock. The kernel's figures of a thread decide.
//!
//! The feature `testing` has this module. It is not a default feature: it belongs into
//! `[dev-dependencies]`.
//!
//! | to test | write | judges |
//! |---|---|---|
//! | one future, in any runtime | [`assert_never_blocks`] | each poll, from 50 µs asleep on |
//! | a future and all tasks that it spawns | [`block_on`], [`runtime()`] | each turn of a worker |
//! | a whole `#[tokio::test]` | [`watch()`] | all workers, from 10 ms on, with full reports |
//!
//! None of them sees other tests of the same process. Intended blocking is wrapped in
//! [`allow_blocking`](crate::probe::allow_blocking). Existing code that cannot be fixed at once
//! goes into a [`baseline()`].
//!
//! # How is it decided?
//!
//! A sleep of one nanosecond, a wait for a lock and the join of a thread are one voluntary context
//! switch each, and the synchronisation of a file is four. Computing, free locks, cached files and
//! allocation are none. But some waits are switches too and cannot be avoided by any code: for the
//! kernel's lock on the memory of the process, or for a lock inside of the runtime whose holder has
//! lost its CPU. On a busy machine these take up to a fifth of a second.
//!
//! So while a poll goes on, a timer checks every 50 µs whether its thread sleeps, and has the
//! thread copy its stack. A poll has blocked if its thread gave up the CPU, was asleep for more
//! than a floor, and the stack shows a call of the code's own.

mod baseline;
mod finding;
mod meter;
mod never_blocks;
mod runtime;
mod verdict;
mod wait;
mod watch;

pub use baseline::{Baseline, baseline};
pub use finding::BlockingCall;
pub use never_blocks::NeverBlocks;
pub use never_blocks::assert_never_blocks;
pub use runtime::{Runtime, block_on, runtime, runtime_from};
pub use watch::{Expectation, Watch, watch, watch_with};
