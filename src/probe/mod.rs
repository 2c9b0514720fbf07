//! The probes: spans, named futures and tokio's hooks all write marks to the thread's slot.
//!
//! *Runs on:* worker threads, inside every poll.
//! *Must not:* allocate, lock, call the system or panic in a mark.
//!
//! The outermost mark is the poll; inner ones refine its name. Only this room uses futures, spans
//! and tokio's hooks.

mod allow;
mod fields;
mod future;
mod layer;
mod pulse;
// Under loom, tokio's builder has no hooks.
#[cfg(not(loom))]
mod runtime;
mod sources;

#[cfg(all(feature = "testing", not(loom)))]
pub(crate) use allow::UNMEASURED;
pub(crate) use allow::allowed;
pub use allow::{AllowedBlocking, allow_blocking};
pub use future::FutureExt;
pub use future::Watched;
#[cfg(feature = "tower")]
pub(crate) use future::mark;
pub(crate) use layer::has_seen_spans;
pub use layer::{StallLayer, layer};
pub(crate) use pulse::{Gathering, Pulse, gather};
#[cfg(not(loom))]
pub use runtime::{RuntimeBuilderExt, RuntimeHooks};
pub(crate) use sources::{
    SpanName, SpanRef, is_layer_installed, parent_for_events, resolve_span, with_open_span,
};
