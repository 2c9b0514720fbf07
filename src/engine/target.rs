//! The recorder that the metrics of a watch go to.
//!
//! *Runs on:* the thread that starts a watch chooses it; `stall-metrics` and `stall-serve` use it.

use metrics::Recorder;
use std::fmt;
use std::sync::Arc;

/// The recorder for metrics.
#[derive(Clone, Default)]
pub(crate) enum Target {
    /// The recorder that is installed at the time of an export.
    #[default]
    Installed,
    /// The recorder given to the builder.
    Given(Arc<dyn Recorder + Send + Sync>),
}

impl Target {
    pub(crate) fn with<R>(&self, f: impl FnOnce(&dyn Recorder) -> R) -> R {
        match self {
            Target::Installed => metrics::with_recorder(f),
            Target::Given(recorder) => f(recorder.as_ref()),
        }
    }

    /// Identifies the recorder of this moment.
    pub(crate) fn identity(&self) -> usize {
        self.with(|recorder| std::ptr::from_ref(recorder).cast::<()>().addr())
    }

    pub(crate) fn is(&self, other: &Target) -> bool {
        match (self, other) {
            (Target::Installed, Target::Installed) => true,
            (Target::Given(one), Target::Given(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Target::Installed => "Installed",
            Target::Given(_) => "Given",
        })
    }
}
