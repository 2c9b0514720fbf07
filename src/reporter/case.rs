//! One stall as the reporter has it, from its first suspicion to its last report.
//!
//! *Runs on:* `stall-reporter`.
//!
//! Each report is composed anew from the latest figures, the names, and the stacks so far.

use super::names::{self, Names};
use crate::clock::Nanos;
use crate::detect::Stall;
use crate::engine::{StackNews, StallNews, WatchState};
use crate::explain::{Explained, SleptIn, advice};
use crate::probe::SpanRef;
use crate::report::{
    Cause, Certainty, Frame, Missing, NoStack, Phase, StackSample, StallReport, add_stack, site,
};
use std::time::Duration;

/// One stall, or one poll that may become one.
#[derive(Default)]
pub(super) struct Case {
    /// When news of it last came.
    pub(super) at: Nanos,
    /// Looked up while the poll is suspected, and again at each announcement until there is a span.
    names: Option<Names>,
    /// The name of the thread, and the kernel's number for it.
    thread: Option<(String, u32)>,
    /// The figures of the last announcement.
    latest: Option<StallNews>,
    slept_in: Option<SleptIn>,
    stacks: Vec<StackSample>,
    /// Where the thread was in each of them: the next instruction and the stack pointer.
    positions: Vec<(u64, u64)>,
    /// Stacks that the explainer has answered.
    answered: u32,
    truncated: bool,
    lost: bool,
    /// The reasons why frames have no names or lines.
    unnamed: Vec<Missing>,
    no_stack: Option<NoStack>,
    /// The certainty with which it was last counted.
    counted: Option<Certainty>,
}

impl Case {
    /// Takes in news from the watchdog.
    pub(super) fn take(&mut self, news: StallNews) {
        self.name(&news);
        self.thread = self.thread.take().or_else(|| thread_of(&news));
        if news.phase.is_some() {
            self.slept_in = news.live.slept_in.or(self.slept_in);
            self.latest = Some(news);
        }
    }

    /// Looks the names up. Those that were found earlier stay: the poll may have ended since.
    fn name(&mut self, news: &StallNews) {
        let known = self.names.as_ref();
        if known.is_some_and(|names| names.span.is_some()) {
            return;
        }
        let now = names::look_up(news);
        if self.names.is_none() || now.span.is_some() {
            self.names = Some(now);
        }
    }

    /// Takes in an answer of the explainer.
    pub(super) fn add(&mut self, news: StackNews) {
        self.answered += 1;
        match news.stack {
            Ok(explained) => self.keep(news.after, news.position, explained),
            Err(why) => self.has_no_stack(why),
        }
    }

    /// Keeps a stack. One that is there already is counted.
    fn keep(&mut self, after: Duration, position: (u64, u64), explained: Explained) {
        self.no_stack = None;
        self.truncated |= explained.truncated;
        self.lost |= explained.lost;
        for missing in explained.missing {
            if !self.unnamed.contains(&missing) {
                self.unnamed.push(missing);
            }
        }
        add_stack(
            &mut self.stacks,
            StackSample {
                after,
                count: 1,
                frames: explained.frames,
                certain_frames: explained.certain,
                complete: explained.complete,
                asleep: false,
            },
        );
        if self.positions.len() < self.stacks.len() {
            self.positions.push(position);
        }
    }

    /// Notes why the stack that was asked for will not come.
    pub(super) fn has_no_stack(&mut self, why: NoStack) {
        self.no_stack = Some(why);
    }

    /// Whether a stack is still with the explainer.
    fn awaits_stack(&self) -> bool {
        let sent = self.latest.as_ref().map_or(0, |news| news.stacks);
        self.answered < sent
    }

    /// Ends the wait for stacks.
    pub(super) fn stop_waiting(&mut self) {
        self.answered = u32::MAX;
    }

    pub(super) fn is_over(&self) -> bool {
        let phase = self.latest.as_ref().and_then(|news| news.phase);
        phase == Some(Phase::Ended)
    }

    /// Whether a report is due. The last report is complete, so it waits for stacks that are still
    /// with the explainer.
    pub(super) fn is_ready(&self) -> bool {
        self.latest.is_some() && !(self.is_over() && self.awaits_stack())
    }

    /// The figures of the last announcement.
    pub(super) fn latest(&self) -> Option<&StallNews> {
        self.latest.as_ref()
    }

    /// Whether it is to be counted: when it is first announced, and once more if it becomes
    /// certain.
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
        let time = &news.live.stall.split;
        let stacks = self.stacks_of(&news.live.stall);
        let telling = site::telling(&stacks, time.asleep > time.cpu);
        let frames = telling.map_or(&[][..], |index| &stacks[index].frames);
        let mut report = news.live.report(phase, self.slept_in, frames);
        self.add_names(&mut report);
        report.driver_frozen = news.driver_frozen;
        report.representative_stack = telling;
        report.site = site::site(frames);
        report.dependency = match report.site {
            Some(_) => None,
            None => site::dependency(frames),
        };
        let watch = &news.live.runtime.watch;
        report.advice = advise(&report, frames, watch);
        report.stacks = stacks;
        (report.seen_here, report.lost_here) = watch.profile.lock().seen(&report);
        self.add_missing(&mut report);
        Some(report)
    }

    /// The stacks, and whether each was taken in the call that the stall has slept in longest by
    /// now: a stack may be older than that call.
    fn stacks_of(&self, stall: &Stall) -> Vec<StackSample> {
        let call = stall.call.map(|call| (call.pc, call.sp));
        let mut stacks = self.stacks.clone();
        for (stack, position) in stacks.iter_mut().zip(&self.positions) {
            stack.asleep = call == Some(*position);
        }
        stacks
    }

    /// The innermost span of the poll.
    pub(super) fn innermost_span(&self) -> Option<SpanRef> {
        self.names.as_ref()?.innermost
    }

    /// Adds the names of the poll and of its thread.
    fn add_names(&self, report: &mut StallReport) {
        let names = self.names.clone().unwrap_or_default();
        report.span = names.span;
        report.task = names.task.or(report.task);
        report.spawned_at = names.spawned_at;
        report.missing = names.missing;
        if let Some((name, tid)) = &self.thread {
            report.thread = Some(name.clone());
            report.tid = Some(*tid).filter(|tid| *tid != 0);
        }
    }

    /// The reason why no stack was ever asked for, of a stall that is over.
    fn why_never_asked(&self) -> Option<NoStack> {
        let news = self.latest.as_ref().filter(|_| self.is_over())?;
        let signal = news.live.runtime.watch.signal;
        Some(signal.err().unwrap_or(NoStack::MovedOn))
    }

    /// Adds the reasons for parts that the report lacks.
    fn add_missing(&self, report: &mut StallReport) {
        let has_stacks = !self.stacks.is_empty();
        let is_on_its_way = self.awaits_stack().then_some(NoStack::NotYet);
        let no_stack = self.no_stack.or(is_on_its_way).or(self.why_never_asked());
        report
            .missing
            .extend(no_stack.filter(|_| !has_stacks).map(Missing::Stack));
        let lacks_site = has_stacks && report.site.is_none();
        let has_lines = self.stacks.iter().any(StackSample::has_lines);
        // The program may have debug information that was not read.
        let lacks_file = !self.unnamed.is_empty();
        let also = [
            (self.truncated, Missing::Truncated),
            (self.lost, Missing::Lost),
            (lacks_site && has_lines, Missing::NoOwnCode),
            (
                lacks_site && !has_lines && !lacks_file,
                Missing::NoDebugInfo,
            ),
        ];
        let also = also.into_iter().filter(|(holds, _)| *holds);
        report.missing.extend(also.map(|(_, missing)| missing));
        report.missing.extend(&self.unnamed);
        report.missing.extend(self.guessed(report));
    }

    /// The part of the report that is a guess, since it lies beyond code without unwind tables.
    fn guessed(&self, report: &StallReport) -> Option<Missing> {
        let telling = &self.stacks[report.representative_stack?];
        let certain = telling.frames.get(..telling.certain_frames)?;
        let is_guessed = certain.len() < telling.frames.len();
        let poll = site::of_the_poll(&telling.frames);
        let certain = &poll[..poll.len().min(certain.len())];
        let has_site = site::innermost_own(certain).is_some() || report.site.is_none();
        is_guessed.then_some(if has_site {
            Missing::GuessedCalls
        } else {
            Missing::GuessedSite
        })
    }
}

/// The name and the number of the thread, unless its slot has another owner by now.
fn thread_of(news: &StallNews) -> Option<(String, u32)> {
    let thread = news.thread.as_ref()?;
    let slot = thread.slot;
    let named = (slot.thread_name(), slot.tid());
    (slot.tenancy() == thread.tenancy).then_some(named)
}

/// The user's own advice if one fits, else that of the table. A stall that is mostly the host's has
/// a part of the code as well, and a known function is worth a word about it.
fn advise(report: &StallReport, frames: &[Frame], watch: &WatchState) -> Option<String> {
    let poll = site::done_by_the_poll(frames);
    let call = report.asleep_in.as_deref();
    if let Some(own) = watch.settings.advice.find(poll) {
        return Some(own.to_owned());
    }
    let advice = advice::advise(poll, report.cause, call)?;
    let time = &report.time;
    let is_of_the_host = report.cause.is_host() && time.host() > time.cpu + time.asleep;
    // A poll that has slept may have done so for any reason.
    let own_cause = match time.cpu >= time.asleep {
        true => Cause::Cpu,
        false => Cause::Unknown,
    };
    let code = is_of_the_host.then(|| advice::advise_on_functions(poll, own_cause, call));
    Some(match code.flatten() {
        Some(code) => format!("{advice} For the code's own part: {code}"),
        None => advice.to_owned(),
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::tests::{Stage, stack};
    use super::*;
    use crate::FutureExt;
    use crate::engine::{Settings, WatchedRuntime};
    use crate::os::Call;
    use crate::report::{Origin, TimeSplit};
    use std::sync::Arc;

    fn missing(case: &Case) -> Vec<Missing> {
        case.report().expect("a report").missing
    }

    #[test]
    fn a_suspicion_alone_makes_no_report() {
        let stage = Stage::new();
        let mut case = Case::default();
        case.take(stage.news(1, None));
        assert!(case.report().is_none());
        assert!(!case.is_ready());
    }

    #[test]
    fn names_looked_up_at_suspicion_are_kept() {
        let stage = Stage::new();
        let (mut early, mut late) = (Case::default(), Case::default());
        let poll = async {
            let suspicion = stage.news_of_own_poll(1, None);
            early.take(suspicion);
            stage.news_of_own_poll(1, Some(Phase::Began))
        };
        // The poll is over when the announcement is taken in.
        let mut announced = stage.tokio.block_on(poll.watched("handler"));
        announced.thread.as_mut().expect("a thread").marks = None;
        early.take(announced);
        let report = early.report().expect("a report");
        assert_eq!(report.span.as_deref(), Some("handler"));
        assert!(!report.missing.contains(&Missing::MovedOn));
        // Without the suspicion there is no name any more.
        late.take(stage.news_of_own_poll(1, Some(Phase::Began)));
        assert_eq!(late.report().expect("a report").span, None);
        assert!(missing(&late).contains(&Missing::MovedOn));
    }

    #[test]
    fn a_stack_on_its_way_is_reported_as_such() {
        let stage = Stage::new();
        let mut case = Case::default();
        let mut news = stage.news(1, Some(Phase::Began));
        news.stacks = 1;
        case.take(news);
        assert!(missing(&case).contains(&Missing::Stack(NoStack::NotYet)));
        case.add(stack(1, "app::handler"));
        assert!(!missing(&case).contains(&Missing::Stack(NoStack::NotYet)));
    }

    #[test]
    fn the_reason_for_no_stack_is_reported_until_one_comes() {
        let stage = Stage::new();
        let mut case = Case::default();
        case.take(stage.news(1, Some(Phase::Began)));
        case.has_no_stack(NoStack::SignalBlocked);
        assert!(missing(&case).contains(&Missing::Stack(NoStack::SignalBlocked)));
        case.add(stack(1, "app::handler"));
        assert!(!missing(&case).contains(&Missing::Stack(NoStack::SignalBlocked)));
    }

    #[test]
    fn a_stall_that_ends_before_a_stack_is_asked_for_says_why() {
        let stage = Stage::new();
        let why = |signal, phase| {
            let mut runtime = WatchedRuntime::for_tests(stage.tokio.handle());
            let watched = Arc::get_mut(&mut runtime).expect("one owner");
            watched.watch = Arc::new(WatchState::new(Settings::default(), signal));
            let mut news = stage.news(1, Some(phase));
            news.live.runtime = runtime;
            let mut case = Case::default();
            case.take(news);
            let mut missing = missing(&case);
            missing.retain(|missing| matches!(missing, Missing::Stack(_)));
            missing
        };
        let (usable, off) = (Ok(23), Err(NoStack::Off));
        assert_eq!(
            why(usable, Phase::Ended),
            [Missing::Stack(NoStack::MovedOn)]
        );
        assert_eq!(why(off, Phase::Ended), [Missing::Stack(NoStack::Off)]);
        // One may still be asked for.
        assert_eq!(why(usable, Phase::Ongoing), []);
    }

    #[test]
    fn a_stack_of_dependencies_with_lines_has_debug_information() {
        let stage = Stage::new();
        let missing_with = |file: Option<&str>| {
            let mut case = Case::default();
            case.take(stage.news(1, Some(Phase::Ended)));
            let mut news = stack(1, "tower_http::compression::body::poll");
            let explained = news.stack.as_mut().expect("a stack");
            explained.frames[0].origin = Origin::Dependency;
            explained.frames[0].file = file.map(str::to_owned);
            case.add(news);
            let report = case.report().expect("a report");
            assert_eq!(report.site, None);
            let mut missing = report.missing;
            missing.retain(|missing| *missing != Missing::Unmarked);
            missing
        };
        let file = "tower-http-0.6.1/src/compression/body.rs";
        assert_eq!(missing_with(Some(file)), [Missing::NoOwnCode]);
        assert_eq!(missing_with(None), [Missing::NoDebugInfo]);
    }

    #[test]
    fn debug_information_that_was_not_read_is_not_said_to_be_absent() {
        let stage = Stage::new();
        let missing_with = |why: &[Missing]| {
            let mut case = Case::default();
            case.take(stage.news(1, Some(Phase::Began)));
            let mut news = stack(1, "nanosleep");
            let explained = news.stack.as_mut().expect("a stack");
            explained.missing = why.to_vec();
            explained.frames[0].origin = Origin::System;
            case.add(news);
            let mut missing = missing(&case);
            missing.retain(|missing| *missing != Missing::Unmarked);
            missing
        };
        assert_eq!(missing_with(&[]), [Missing::NoDebugInfo]);
        let twice = [Missing::ModuleReplaced, Missing::ModuleReplaced];
        assert_eq!(missing_with(&twice), [Missing::ModuleReplaced]);
    }

    #[test]
    fn a_stall_of_the_host_has_an_advice_for_the_code_as_well() {
        let stage = Stage::new();
        let advice = |cpu, run_queue| {
            let mut case = Case::default();
            let mut news = stage.news(1, Some(Phase::Began));
            news.live.stall.split = TimeSplit {
                cpu: Duration::from_millis(cpu),
                run_queue: Duration::from_millis(run_queue),
                ..TimeSplit::default()
            };
            case.take(news);
            let mut read = stack(1, "app::handler");
            let explained = read.stack.as_mut().expect("a stack");
            explained
                .frames
                .insert(0, Frame::of("std::fs::read", Origin::Std));
            case.add(read);
            case.report().expect("a report").advice.expect("an advice")
        };
        let (code, host) = (advice(20, 0), advice(20, 100));
        assert!(code.starts_with("Use `tokio::fs`"), "{code}");
        assert!(host.starts_with("Give the process more CPU"), "{host}");
        assert!(
            host.ends_with(&format!("For the code's own part: {code}")),
            "{host}"
        );
    }

    #[test]
    fn the_stack_of_the_sleep_that_was_longest_in_the_end_shows_the_stall() {
        let stage = Stage::new();
        let mut case = Case::default();
        let call = |pc| Call {
            number: 1,
            first: 0,
            sp: 0x7000,
            pc,
        };
        for (pc, function) in [(1, "app::first"), (2, "app::second")] {
            let mut stack = stack(1, function);
            stack.position = (pc, 0x7000);
            case.add(stack);
        }
        let mut site_of = |longest| {
            let mut news = stage.news(1, Some(Phase::Ongoing));
            news.live.stall.call = Some(call(longest));
            news.live.stall.split.asleep = Duration::from_millis(20);
            case.take(news);
            case.report()
                .expect("a report")
                .site
                .expect("a site")
                .function
        };
        assert_eq!(site_of(1), "app::first");
        assert_eq!(site_of(2), "app::second");
    }

    #[test]
    fn a_stack_that_comes_again_is_counted() {
        let stage = Stage::new();
        let mut case = Case::default();
        case.take(stage.news(1, Some(Phase::Began)));
        for function in ["app::one", "app::two", "app::one"] {
            case.add(stack(1, function));
        }
        let counts: Vec<_> = case.stacks.iter().map(|stack| stack.count).collect();
        assert_eq!(counts, [2, 1]);
    }

    #[test]
    fn a_stall_is_counted_again_if_it_becomes_certain() {
        let mut case = Case::default();
        assert!(case.count_as(Certainty::Likely));
        assert!(!case.count_as(Certainty::Likely));
        assert!(case.count_as(Certainty::Certain));
        assert!(!case.count_as(Certainty::Likely));
    }
}
