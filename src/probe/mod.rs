//! Where marks come from: three probes that all write to the same slot.
//!
//! *Runs on:* worker threads, inside every poll.
//! *Here:* the only directory that knows futures, spans and tokio's hooks. The outermost mark is the
//! poll; inner ones refine its name.

mod allow;
mod future;
mod layer;
mod pulse;
// Under loom, tokio's builder has no hooks.
#[cfg(not(loom))]
mod runtime;

#[cfg(all(feature = "testing", not(loom)))]
pub(crate) use allow::UNMEASURED;
pub(crate) use allow::allowed;
pub use allow::{AllowedBlocking, allow_blocking};
pub use future::FutureExt;
pub use future::Watched;
pub(crate) use layer::{SpanName, is_layer_installed, resolve_span};
pub use layer::{StallLayer, layer};
pub(crate) use pulse::{Pulse, gather};
#[cfg(not(loom))]
pub use runtime::{RuntimeBuilderExt, RuntimeHooks};
