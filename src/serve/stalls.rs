//! `/stalls`: stalls going on and recent ones, as JSON.
//!
//! *Runs on:* the thread `stall-serve`.
//!
//! A stall may have ten stacks of a hundred calls, some 200 KiB. The one that shows the site is
//! enough for most readers, so the others are there on request.

use super::routes::{Answer, CachedAnswer, JSON, TEXT, response};
use crate::engine::View;
use crate::report::StallReport;
use hyper::StatusCode;

/// The stacks that a reader wants of each stall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// The one that the site is from.
    One,
    All,
    None,
}

/// The answers, each as it was last rendered.
#[derive(Default)]
pub(super) struct StallAnswers {
    with_one: CachedAnswer,
    with_all: CachedAnswer,
    without: CachedAnswer,
}

#[derive(serde::Serialize)]
struct StallLists {
    now: Vec<StallReport>,
    recent: Vec<StallReport>,
}

impl StallAnswers {
    pub(super) fn get(&self, view: &View, query: Option<&str>) -> Answer {
        let Some(wanted) = Wanted::of(query) else {
            let usage = "stacks=one (the default), stacks=all or stacks=none\n";
            return response(StatusCode::BAD_REQUEST, TEXT, usage.into());
        };
        let cached = match wanted {
            Wanted::One => &self.with_one,
            Wanted::All => &self.with_all,
            Wanted::None => &self.without,
        };
        let text = cached.get(|| {
            let with_stacks = |mut reports: Vec<StallReport>| {
                reports.iter_mut().for_each(|report| wanted.keep(report));
                reports
            };
            let stalls = StallLists {
                now: with_stacks(view.stalled_now()),
                recent: with_stacks(view.recent()),
            };
            // Plain data always serializes.
            serde_json::to_string(&stalls).unwrap_or_default()
        });
        response(StatusCode::OK, JSON, text)
    }
}

impl Wanted {
    /// The stacks that a query asks for; `None` if it asks for something else. Other parameters are
    /// ignored, as on other paths.
    fn of(query: Option<&str>) -> Option<Wanted> {
        let mut parameters = query.unwrap_or_default().split('&');
        match parameters.find_map(|parameter| parameter.strip_prefix("stacks=")) {
            None | Some("one") => Some(Wanted::One),
            Some("all") => Some(Wanted::All),
            Some("none") => Some(Wanted::None),
            Some(_) => None,
        }
    }

    /// Removes the other stacks from a report.
    fn keep(self, report: &mut StallReport) {
        let shown = report.representative_stack;
        match self {
            Wanted::All => return,
            Wanted::One => {
                let mut stacks = std::mem::take(&mut report.stacks).into_iter();
                report.stacks = shown
                    .and_then(|shown| stacks.nth(shown))
                    .into_iter()
                    .collect();
            }
            Wanted::None => report.stacks.clear(),
        }
        report.representative_stack = (!report.stacks.is_empty()).then_some(0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::report::{Frame, Origin, StackSample, example};
    use std::time::Duration;

    fn kept(wanted: Wanted) -> (Vec<u32>, Option<usize>) {
        let mut report = example();
        let stack = |count| StackSample {
            after: Duration::ZERO,
            count,
            frames: vec![Frame::of("app::f", Origin::Own)],
            certain_frames: 1,
            complete: true,
            asleep: false,
        };
        report.stacks = vec![stack(1), stack(7), stack(2)];
        report.representative_stack = Some(1);
        wanted.keep(&mut report);
        let counts = report.stacks.iter().map(|stack| stack.count);
        (counts.collect(), report.representative_stack)
    }

    #[test]
    fn the_stack_that_the_site_is_from_is_kept() {
        assert_eq!(kept(Wanted::One), (vec![7], Some(0)));
        assert_eq!(kept(Wanted::All), (vec![1, 7, 2], Some(1)));
        assert_eq!(kept(Wanted::None), (vec![], None));
    }

    #[test]
    fn a_wrong_query_is_refused() {
        assert_eq!(Wanted::of(None), Some(Wanted::One));
        assert_eq!(Wanted::of(Some("x=1&stacks=all")), Some(Wanted::All));
        assert_eq!(Wanted::of(Some("x=1")), Some(Wanted::One));
        assert_eq!(Wanted::of(Some("stacks=some")), None);
    }
}
