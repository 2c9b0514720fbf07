//! What has been found out about one stall so far, by tick and by stack, and what follows from it.
//!
//! *Runs on:* the reporter thread.
//! *Here:* puts together; what a stack says is found in `explain`.

use super::names::{self, Names};
use super::news::StallNews;
use super::{Certainty, Missing, NoStack, StackSample, StallReport};
use crate::clock::Nanos;
use crate::engine::Watch;
use crate::explain::cause::{self, SleptIn};
use crate::explain::{self, Explained, advice, site};
use std::time::Duration;

/// Different stacks kept of one stall.
const STACKS: usize = 8;

/// What was found out about a stall so far.
#[derive(Default)]
pub(super) struct Known {
    pub(super) at: Nanos,
    /// As looked up while the poll was only suspected, or first announced.
    pub(super) names: Option<Names>,
    stacks: Vec<StackSample>,
    /// What the thread was last seen asleep in.
    pub(super) slept_in: Option<SleptIn>,
    /// What else there is to say about the stacks.
    truncated: bool,
    lost: bool,
    pub(super) no_stack: Option<NoStack>,
    /// Under which number it was announced.
    pub(super) announced: Option<u64>,
    /// How certain it was when it was last counted.
    counted: Option<Certainty>,
}

impl Known {
    pub(super) fn new(now: Nanos) -> Known {
        Known {
            at: now,
            ..Known::default()
        }
    }

    /// Whether it is to be counted: when it is first announced, and once more if it turns out to be certain.
    pub(super) fn count_as(&mut self, certainty: Certainty) -> bool {
        let newly = self.counted.is_none_or(|counted| counted < certainty);
        if newly {
            self.counted = Some(certainty);
        }
        newly
    }

    /// What the stall is called: as it is now, or was while it was only suspected.
    pub(super) fn name(&mut self, news: &StallNews) -> Names {
        match &self.names {
            Some(names) if names.span.is_some() => names.clone(),
            earlier => {
                let now = names::look_up(news);
                let names = match earlier {
                    Some(earlier) if now.span.is_none() => earlier.clone(),
                    _ => now,
                };
                self.names = Some(names.clone());
                names
            }
        }
    }

    /// Adds a stack; one that was found before is counted.
    pub(super) fn add(&mut self, explained: Explained, after: Duration) {
        self.no_stack = None;
        self.truncated |= explained.truncated;
        self.lost |= explained.lost;
        let same = self
            .stacks
            .iter()
            .position(|known| known.frames == explained.frames);
        match same {
            Some(known) => self.stacks[known].count += 1,
            None if self.stacks.len() < STACKS => self.stacks.push(StackSample {
                after,
                count: 1,
                frames: explained.frames,
                complete: explained.complete,
            }),
            None => {}
        }
    }

    /// Says where it was, why, and what to do.
    pub(super) fn explain(&self, report: &mut StallReport, watch: &Watch) {
        report.stacks.clone_from(&self.stacks);
        let frames = report
            .telling_stack()
            .map_or(Vec::new(), |stack| stack.frames.clone());
        report.site = site::site(&frames);
        report.cause = cause::cause(
            &report.time,
            watch.settings.threshold,
            self.slept_in,
            &frames,
        );
        let of_the_poll = explain::of_the_poll(&frames);
        report.advice = watch
            .settings
            .advice
            .find(of_the_poll)
            .map(str::to_owned)
            .or_else(|| {
                let call = report.asleep_in.as_deref();
                advice::advise(of_the_poll, report.cause, call).map(str::to_owned)
            });
        (report.seen_here, report.lost_here) = watch.profile.lock().seen(report);
        if let Some(why) = self.no_stack.filter(|_| self.stacks.is_empty()) {
            report.missing.push(Missing::Stack(why));
        }
        let also = [
            (self.truncated, Missing::Truncated),
            (self.lost, Missing::Lost),
            (
                !self.stacks.is_empty() && report.site.is_none(),
                Missing::NoOwnCode,
            ),
        ];
        let also = also.into_iter().filter(|(holds, _)| *holds);
        for (_, missing) in also {
            if !report.missing.contains(&missing) {
                report.missing.push(missing);
            }
        }
    }
}
