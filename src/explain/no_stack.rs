//! The same face where no stacks are taken.
//!
//! *Runs on:* whoever asks.
//! *Here:* nothing at all.

use super::site::OwnCode;
use super::{Effort, Explained};
use crate::capture::RawStack;

/// Never has anything to explain.
#[derive(Debug, Default)]
pub(crate) struct Explainer {}

impl Explainer {
    pub(crate) fn explain(
        &mut self,
        _stack: &RawStack,
        _own: &OwnCode,
        _effort: Effort,
    ) -> Option<Explained> {
        None
    }

    pub(crate) fn prime(&mut self) {}

    pub(crate) fn rest(&mut self) {}
}
