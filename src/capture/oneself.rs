//! Whether stacks can be had now: the calling thread takes one of itself.
//!
//! *Runs on:* `stall-explainer`, and a thread that a start makes for it. They have the signal
//! blocked, and are in no call that it could interrupt.
//! *Must not:* send the signal to a thread of the program.
//!
//! A handler can be replaced, and a sandbox can forbid one call of several. Only a stack that was
//! taken proves that all of it works.

use super::handler::disposition;
use super::{Addressee, Request, is_replaced, mapped_at_all};
use crate::os::{self, memory};
use crate::report::NoStack;
use crate::slot;

/// The handler of others that stands in place of ours, and whether stacks can be had with it. One
/// that calls ours is as good. It is the program's own code, so it is tried once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ForeignHandler(Option<(libc::sighandler_t, Option<NoStack>)>);

/// Takes a stack of the calling thread, by this signal. Returns the reason if that fails.
///
/// # Cost
///
/// About 10 µs.
pub(crate) fn try_on_oneself(signal: i32, foreign: &mut ForeignHandler) -> Option<NoStack> {
    let installed = is_replaced(signal).then(|| disposition(signal).unwrap_or_default());
    match (installed, foreign.0) {
        (None, _) => foreign.0 = None,
        (Some(handler), Some((tried, why))) if tried == handler => return why,
        _ => {}
    }
    let why = take(signal).err().or_else(why_unexplained);
    if why != Some(NoStack::Busy) {
        foreign.0 = installed.map(|handler| (handler, why));
    }
    why
}

fn take(signal: i32) -> Result<(), NoStack> {
    let slot = slot::mine().ok_or(NoStack::ThreadGone)?;
    let tenancy = slot.tenancy();
    let request = Request::send(Addressee { slot, tenancy }, signal)?;
    os::let_through(signal);
    let replaced = is_replaced(signal);
    match request.collect() {
        Ok(stack) if stack.with_words(|words| !words.is_empty()) => Ok(()),
        _ if replaced => Err(NoStack::SignalTaken),
        _ => Err(NoStack::NotAnswered),
    }
}

/// The reason why a stack that has been taken cannot be unwound or named.
///
/// # Cost
///
/// Four system calls, about 5 µs.
pub(crate) fn why_unexplained() -> Option<NoStack> {
    if !memory::is_readable() {
        Some(NoStack::Forbidden)
    } else if !mapped_at_all() {
        Some(NoStack::NoMaps)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DEFAULT_SIGNAL, install};
    use super::*;

    #[test]
    fn a_thread_takes_a_stack_of_itself_and_has_its_signals_as_before() {
        install(DEFAULT_SIGNAL).unwrap();
        let tried = os::spawn("test", || {
            let why = try_on_oneself(DEFAULT_SIGNAL, &mut ForeignHandler::default());
            let tid = os::current_tid();
            (why, os::is_signal_blocked(tid, DEFAULT_SIGNAL))
        });
        assert_eq!(tried.unwrap().join().unwrap(), (None, true));
        let free = libc::SIGRTMAX() - 1;
        let without = try_on_oneself(free, &mut ForeignHandler::default());
        assert_eq!(without, Some(NoStack::SignalTaken));
    }
}
