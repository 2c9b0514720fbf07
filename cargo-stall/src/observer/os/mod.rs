//! The system calls of the observer.
//!
//! *Runs on:* the main thread.
//! *Must not:* leave a thread of the other process stopped. If the observer is killed, the kernel
//! lets go of all threads and removes its breakpoints.

mod held;
mod poll_end;
mod stop;

pub(crate) use held::start_held;
pub(crate) use poll_end::PollEnd;
pub(crate) use stop::{has_ended, is_let_go, stopped};
