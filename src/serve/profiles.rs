//! `/stalls/sites`, `/stalls/folded` and `/debug/pprof/stall`: one profile in three formats.
//!
//! *Runs on:* the thread `stall-serve`.
//!
//! Each is rendered at most ten times a second.

use super::routes::{Answer, CachedAnswer, TEXT, response, with_header};
use crate::engine::View;
use crate::report::FoldedBy;
use hyper::StatusCode;
use hyper::header::CONTENT_DISPOSITION;

/// The file is compressed by its format, not by the transfer.
const PPROF: &str = "application/octet-stream";

/// The profiles, each as it was last rendered.
#[derive(Default)]
pub(super) struct Profiles {
    sites: CachedAnswer,
    by_time: CachedAnswer,
    by_samples: CachedAnswer,
    pprof: CachedAnswer,
}

impl Profiles {
    /// A line for each site.
    pub(super) fn sites(&self, view: &View) -> Answer {
        let text = self.sites.get(|| format!("{}\n", view.profile()));
        response(StatusCode::OK, TEXT, text)
    }

    /// Stacks as lines.
    pub(super) fn folded(&self, view: &View, query: Option<&str>) -> Answer {
        let Some(by) = unit(query) else {
            return unknown_unit();
        };
        let cached = match by {
            FoldedBy::Microseconds => &self.by_time,
            FoldedBy::Samples => &self.by_samples,
        };
        let text = cached.get(|| view.profile().folded(by));
        response(StatusCode::OK, TEXT, text)
    }

    /// Stacks for tools that read pprof.
    pub(super) fn pprof(&self, view: &View) -> Answer {
        let file = self.pprof.get(|| view.profile().pprof());
        let response = response(StatusCode::OK, PPROF, file);
        with_header(
            response,
            CONTENT_DISPOSITION,
            "attachment; filename=\"stall.pb.gz\"",
        )
    }
}

/// The unit that a query asks for. Other parameters are ignored: the script of a flame graph keeps
/// its zoom in some.
pub(super) fn unit(query: Option<&str>) -> Option<FoldedBy> {
    let mut parameters = query.unwrap_or_default().split('&');
    match parameters.find_map(|parameter| parameter.strip_prefix("by=")) {
        None | Some("time") => Some(FoldedBy::Microseconds),
        Some("samples") => Some(FoldedBy::Samples),
        Some(_) => None,
    }
}

pub(super) fn unknown_unit() -> Answer {
    let usage = "by=time (the default) or by=samples\n";
    response(StatusCode::BAD_REQUEST, TEXT, usage.into())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_query_may_have_other_parameters() {
        assert_eq!(unit(None), Some(FoldedBy::Microseconds));
        assert_eq!(unit(Some("x=12&by=samples&y=5")), Some(FoldedBy::Samples));
        assert_eq!(unit(Some("s=fetch")), Some(FoldedBy::Microseconds));
        assert_eq!(unit(Some("by=colour")), None);
    }
}
