//! The interface of `stack` without stacks.
//!
//! *Runs on:* every thread that explains stacks elsewhere.
//!
//! It does nothing.

use super::Explained;
use super::own_code::OwnCode;
use crate::capture::RawStack;
use crate::report::NoStack;

/// Never gets a stack.
#[derive(Debug, Default)]
pub(crate) struct Explainer {}

impl Explainer {
    pub(crate) fn explain(
        &mut self,
        _stack: &RawStack,
        _own: &OwnCode,
    ) -> Result<Explained, NoStack> {
        Err(NoStack::Unsupported)
    }

    pub(crate) fn prime(&mut self) {}

    pub(crate) fn rest(&mut self) {}
}

/// There are no lines without stacks.
pub(crate) fn why_no_lines() -> Option<&'static str> {
    Some("stacks are not taken on this system, or in this build")
}
