//! tokio-blocked: a layer that times the spans which tokio has around its tasks.

use std::time::Duration;
use tokio_blocked::TokioBlockedLayer;

/// With its default threshold. It needs tokio's spans, which are of level TRACE: no filter on the subscriber.
pub fn layer() -> TokioBlockedLayer {
    TokioBlockedLayer::new()
}

/// How many tasks the layer of the global subscriber has seen to their end, and how long they were polled.
pub fn seen() -> (u64, Duration) {
    tracing::dispatcher::get_default(|subscriber| {
        let layer = subscriber.downcast_ref::<TokioBlockedLayer>();
        let callsites = layer.expect("the layer is in use").snapshot();
        let count = callsites.iter().map(|callsite| callsite.count).sum();
        let busy = callsites.iter().map(|callsite| callsite.total_busy).sum();
        (count, busy)
    })
}
