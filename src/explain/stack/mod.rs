//! From a copied stack to frames: unwound, named, and told whose they are.
//!
//! *Runs on:* the reporter thread where that is quick, else `stall-explainer`, a thread made for one stack;
//! and whoever asks for [`worker_stacks`](crate::Guard::worker_stacks).
//! *Here:* may allocate, read files, and take a tenth of a second the first time.

mod symbols;
mod unwind;

use super::Explained;
use super::own_code::OwnCode;
use crate::capture::RawStack;
use crate::clock::{self, Nanos};
use crate::report::{Frame, NoStack};
use std::time::Duration;
use symbols::Symbols;
use unwind::{End, Unwinder};

/// Unwind tables and debug information unused for so long are let go of.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// Explains stacks.
#[derive(Default)]
pub(crate) struct Explainer {
    unwinder: Unwinder,
    symbols: Symbols,
    used_at: Nanos,
}

impl Explainer {
    /// Unwinds and names a stack. Never an error here; where stacks cannot be taken, always.
    pub(crate) fn explain(
        &mut self,
        stack: &RawStack,
        own: &OwnCode,
    ) -> Result<Explained, NoStack> {
        self.used_at = clock::now();
        self.unwinder.refresh();
        let walk = self.unwinder.walk(stack);
        let mut frames = Vec::with_capacity(walk.addresses.len());
        for address in walk.addresses {
            let named = self.symbols.frames(address, &self.unwinder);
            frames.extend(named.iter().map(|named| named.frame(own)));
        }
        // While a panic switches from one frame to another, the tables of the unwinder do not hold.
        let unwinds = |frame: &Frame| {
            let function = frame.function.as_deref();
            function.is_some_and(|function| function.starts_with("_Unwind_"))
        };
        let in_unwinder = frames.iter().any(unwinds);
        Ok(Explained {
            frames,
            complete: walk.end == End::Root && !in_unwinder,
            truncated: walk.end == End::Truncated,
            lost: walk.end == End::Lost,
        })
    }

    /// Opens the program's debug information, which takes the better part of a first look.
    pub(crate) fn prime(&mut self) {
        self.used_at = clock::now();
        self.unwinder.refresh();
        let here = Explainer::prime as *const () as u64;
        self.unwinder.read_module_of(here);
        self.symbols.frames(here, &self.unwinder);
    }

    /// Lets go of what has not been used for a while; the names found stay.
    pub(crate) fn rest(&mut self) {
        if clock::now().since(self.used_at) >= KEPT_FOR {
            self.unwinder = Unwinder::default();
            self.symbols.forget_files();
        }
    }
}

impl std::fmt::Debug for Explainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Explainer").finish_non_exhaustive()
    }
}
