//! One stall as the reporter knows it, from the first word of it to the last report.
//!
//! *Runs on:* the reporter thread.
//!
//! A report is composed anew from all that is known, each time there is one to give: the latest figures, the
//! names, and the stacks so far.

use super::names::{self, Names};
use crate::clock::Nanos;
use crate::engine::{StackNews, StallNews, WatchState};
use crate::explain::{SleptIn, advice};
use crate::report::{Certainty, Frame, Missing, NoStack, Phase, StackSample, StallReport, site};
use crate::slot::Slot;

/// Different stacks kept of one stall.
const STACKS: usize = 8;

/// What is known of one stall.
#[derive(Default)]
pub(super) struct Case {
    /// When it was last heard of.
    pub(super) at: Nanos,
    /// As looked up while the poll was only suspected, or first announced.
    names: Option<Names>,
    /// The figures of the last announcement.
    latest: Option<StallNews>,
    slept_in: Option<SleptIn>,
    stacks: Vec<StackSample>,
    /// Stacks that the explainer has answered for.
    answered: u32,
    truncated: bool,
    lost: bool,
    no_stack: Option<NoStack>,
    /// The certainty that it was last counted with.
    counted: Option<Certainty>,
}

impl Case {
    /// Takes in the watchdog's word of it.
    pub(super) fn take(&mut self, news: StallNews) {
        self.name(&news);
        if news.phase.is_some() {
            self.slept_in = news.slept_in.or(self.slept_in);
            self.latest = Some(news);
        }
    }

    /// Names it as it is called now, or was while it was only suspected.
    fn name(&mut self, news: &StallNews) {
        if self
            .names
            .as_ref()
            .is_some_and(|names| names.span.is_some())
        {
            return;
        }
        let now = names::look_up(news);
        if self.names.is_none() || now.span.is_some() {
            self.names = Some(now);
        }
    }

    /// Takes in a stack; one that was found before is counted.
    pub(super) fn add(&mut self, news: StackNews) {
        self.answered += 1;
        let explained = match news.stack {
            Ok(explained) => explained,
            Err(why) => return self.has_none(why),
        };
        self.no_stack = None;
        self.truncated |= explained.truncated;
        self.lost |= explained.lost;
        let frames = &explained.frames;
        let same = self.stacks.iter().position(|known| known.frames == *frames);
        match same {
            Some(known) => self.stacks[known].count += 1,
            None if self.stacks.len() < STACKS => self.stacks.push(StackSample {
                after: news.after,
                count: 1,
                frames: explained.frames,
                complete: explained.complete,
            }),
            None => {}
        }
    }

    /// There will be no stack of what was asked for.
    pub(super) fn has_none(&mut self, why: NoStack) {
        self.no_stack = Some(why);
    }

    /// Whether the explainer still owes a stack.
    fn is_owed(&self) -> bool {
        let sent = self.latest.as_ref().map_or(0, |news| news.stacks);
        self.answered < sent
    }

    /// No stack is waited for any more.
    pub(super) fn waits_no_longer(&mut self) {
        self.answered = u32::MAX;
    }

    pub(super) fn is_over(&self) -> bool {
        let phase = self.latest.as_ref().and_then(|news| news.phase);
        phase == Some(Phase::Ended)
    }

    /// Whether there is something to tell. The last report has everything, so it waits for stacks that are on
    /// their way.
    pub(super) fn is_ready(&self) -> bool {
        self.latest.is_some() && !(self.is_over() && self.is_owed())
    }

    /// The figures of the last announcement.
    pub(super) fn latest(&self) -> Option<&StallNews> {
        self.latest.as_ref()
    }

    /// Whether it is to be counted: when it is first announced, and once more if it turns out to be certain.
    pub(super) fn count_as(&mut self, certainty: Certainty) -> bool {
        let newly = self.counted.is_none_or(|counted| counted < certainty);
        if newly {
            self.counted = Some(certainty);
        }
        newly
    }

    /// The report of all that is known; `None` before the first announcement.
    pub(super) fn report(&self) -> Option<StallReport> {
        let news = self.latest.as_ref()?;
        let phase = news.phase?;
        let telling = site::telling(&self.stacks);
        let frames = telling.map_or(&[][..], |index| &self.stacks[index].frames);
        let names = self.names.clone().unwrap_or_default();
        let slot = news.thread.as_ref().map(|thread| thread.slot);
        let live = &news.live;
        let mut report = live.report(phase, self.slept_in, frames);
        report.span = names.span;
        report.task = names.task.or(report.task);
        report.spawned_at = names.spawned_at;
        report.missing = names.missing;
        report.thread = slot.map(Slot::thread_name);
        report.tid = slot.map(Slot::tid).filter(|tid| *tid != 0);
        report.driver_frozen = news.driver_frozen;
        report.representative_stack = telling;
        report.site = site::site(frames);
        let watch = &live.runtime.watch;
        report.advice = advise(&report, frames, watch);
        report.stacks.clone_from(&self.stacks);
        (report.seen_here, report.lost_here) = watch.profile.lock().seen(&report);
        self.say_what_is_missing(&mut report);
        Some(report)
    }

    fn say_what_is_missing(&self, report: &mut StallReport) {
        let has_stacks = !self.stacks.is_empty();
        let no_stack = self.no_stack.or(self.is_owed().then_some(NoStack::NotYet));
        report
            .missing
            .extend(no_stack.filter(|_| !has_stacks).map(Missing::Stack));
        let also = [
            (self.truncated, Missing::Truncated),
            (self.lost, Missing::Lost),
            (has_stacks && report.site.is_none(), Missing::NoOwnCode),
        ];
        let also = also.into_iter().filter(|(holds, _)| *holds);
        report.missing.extend(also.map(|(_, missing)| missing));
    }
}

/// The user's own advice, if some fits, else ours.
fn advise(report: &StallReport, frames: &[Frame], watch: &WatchState) -> Option<String> {
    let poll = site::of_the_poll(frames);
    let call = report.asleep_in.as_deref();
    let own = watch.settings.advice.find(poll);
    own.or_else(|| advice::advise(poll, report.cause, call))
        .map(str::to_owned)
}
