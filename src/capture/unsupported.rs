//! The interface of this room without stacks: without the feature `stacks`, or on another system.
//!
//! *Runs on:* every thread that requests stacks elsewhere.
//!
//! It does nothing.

#![allow(dead_code)] // An interface without users in some builds.

use crate::clock::Nanos;
use crate::report::NoStack;
use crate::slot::Slot;
use std::time::Duration;

/// The thread that a request would be for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addressee {
    pub(crate) slot: &'static Slot,
    pub(crate) tenancy: u64,
}

/// Stacks cannot be taken.
pub(crate) const IS_SUPPORTED: bool = false;

/// There are none. The number is even, since a caller halves it.
pub(crate) const MAILBOXES: usize = 2;

/// No signal is used.
pub(crate) const DEFAULT_SIGNAL: i32 = 0;

pub(crate) fn is_usable(_signal: i32) -> bool {
    false
}

pub(crate) fn install(_signal: i32) -> Result<(), NoStack> {
    Err(NoStack::Unsupported)
}

/// There is no signal, so there is no handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ForeignHandler;

pub(crate) fn try_on_oneself(_signal: i32, _foreign: &mut ForeignHandler) -> Option<NoStack> {
    Some(NoStack::Unsupported)
}

pub(crate) fn is_replaced(_signal: i32) -> bool {
    false
}

pub(crate) fn needs_signal(_pc: u64) -> bool {
    false
}

#[derive(Debug)]
pub(crate) struct Request {}

impl Request {
    pub(crate) fn send(addressee: Addressee, _signal: i32) -> Result<Request, NoStack> {
        let Addressee {
            slot: _,
            tenancy: _,
        } = addressee;
        Err(NoStack::Unsupported)
    }

    pub(crate) fn is_full(&self) -> bool {
        false
    }

    pub(crate) fn is_answered(&self) -> bool {
        false
    }

    pub(crate) fn by(self, _deadline: Nanos) -> Result<RawStack, Request> {
        Err(self)
    }

    pub(crate) fn collect(self) -> Result<RawStack, Request> {
        Err(self)
    }
}

/// Never made.
#[derive(Debug)]
pub(crate) struct RawStack {}

impl RawStack {
    pub(crate) fn epoch(&self) -> u64 {
        0
    }

    pub(crate) fn is_by_signal(&self) -> bool {
        true
    }

    pub(crate) fn by_signal(self, _signal: Result<i32, NoStack>) -> Result<RawStack, NoStack> {
        Err(NoStack::Unsupported)
    }

    pub(crate) fn is_answered(&self) -> bool {
        false
    }

    pub(crate) fn position(&self) -> (u64, u64) {
        (0, 0)
    }
}

/// Never made.
#[derive(Debug)]
pub(crate) struct StackTimer {}

/// No stacks.
#[derive(Debug, Default)]
pub(crate) struct TimerStacks {
    pub(crate) asleep: Option<RawStack>,
    pub(crate) computing: Option<RawStack>,
}

impl StackTimer {
    pub(crate) fn new(_addressee: Addressee, _signal: i32) -> Option<StackTimer> {
        None
    }

    pub(crate) fn counts_cpu(&self) -> bool {
        false
    }

    pub(crate) fn begin(&mut self, _cpu_budget: Option<Duration>) {}

    pub(crate) fn pause(&mut self) {}

    pub(crate) fn go_on(&mut self) {}

    pub(crate) fn end(&mut self) -> TimerStacks {
        TimerStacks::default()
    }
}

// The model checker needs the protocol, but no signals.
#[cfg(all(test, loom))]
mod loom;
#[cfg(all(test, loom))]
mod mailbox;
