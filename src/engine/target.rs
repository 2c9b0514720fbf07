//! Which recorder a watch's metrics go to.
//!
//! *Runs on:* chosen by the thread that starts a watch; used by the thread that tells recorders.

use metrics::Recorder;
use std::fmt;
use std::sync::Arc;

/// Where metrics go.
#[derive(Clone, Default)]
pub(crate) enum Target {
    /// To the recorder that is installed at the time.
    #[default]
    Installed,
    /// To this one.
    Given(Arc<dyn Recorder + Send + Sync>),
}

impl Target {
    pub(crate) fn with<R>(&self, f: impl FnOnce(&dyn Recorder) -> R) -> R {
        match self {
            Target::Installed => metrics::with_recorder(f),
            Target::Given(recorder) => f(recorder.as_ref()),
        }
    }

    /// Which recorder that is now.
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
