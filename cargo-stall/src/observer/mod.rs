//! The observer: looks at the threads of another process once a tick, and reports the polls that
//! hold their workers.
//!
//! *Runs on:* the main thread of `tokio-stall` or `cargo-stall`, all of it. The kernel lets a
//! thread go on only for the thread that has stopped it.
//! *Must not:* change the other process, or leave a thread of it stopped.
//!
//! ```text
//!  /proc/PID/task/* ──▶ watch ──▶ tracked ──▶ hold ──▶ reports ──▶ text, JSON, JUnit, SARIF
//!   states, clocks      ticks     a thread    a poll
//!                                    │          │
//!                          os::stop, a stack    os::poll_end, the end of one poll
//! ```
//!
//! A thread that sleeps is read without a stop. A thread that computes is stopped for as long as
//! its registers and its stack are copied, about 30 µs. A hardware breakpoint of the kernel's
//! `perf` shows the end of the poll, so that many short polls are not taken for a long one.

mod args;
mod attach;
mod build;
mod commands;
mod dump;
mod findings;
mod hold;
mod merge;
mod os;
mod output;
mod problem;
mod run;
mod sight;
mod table;
mod target;
mod text;
mod tracked;
mod watch;

pub(crate) use commands::{cargo_stall, tokio_stall};
