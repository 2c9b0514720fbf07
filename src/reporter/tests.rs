//! Tests of the reporter, with news made by hand.
//!
//! *Runs on:* the tests.

use super::*;
use crate::clock::Nanos;
use crate::detect::{HeldBy, Stall};
use crate::engine::{Live, StackNews, StallThread, WatchedRuntime};
use crate::explain::Explained;
use crate::report::{Certainty, Frame, Missing, NoStack, Origin, TimeSplit};
use crate::slot;
use crate::slot::PollKey;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use tokio::runtime::Runtime;

/// A runtime to report about, and the way to the sinks.
pub(super) struct Stage {
    pub(super) tokio: Runtime,
    runtime: Arc<WatchedRuntime>,
    shared: Shared,
    sinks: SyncSender<Delivery>,
    delivered: Receiver<Delivery>,
}

impl Stage {
    pub(super) fn new() -> Stage {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let (sinks, delivered) = sync_channel(16);
        Stage {
            runtime: WatchedRuntime::for_tests(tokio.handle()),
            tokio,
            shared: Shared::default(),
            sinks,
            delivered,
        }
    }

    fn reporter(&self) -> Reporter<'_> {
        Reporter::new(&self.shared, self.sinks.clone())
    }

    /// News of an unmarked poll; of a suspicion if there is no phase.
    pub(super) fn news(&self, id: u64, phase: Option<Phase>) -> StallNews {
        let stall = Stall {
            serial: id,
            held_by: HeldBy::Visit(None),
            since: Nanos(1),
            duration: Duration::from_millis(20),
            error: Duration::ZERO,
            certainty: Certainty::Certain,
            split: TimeSplit::default(),
            call: None,
            name: 0,
            task: 0,
        };
        StallNews {
            phase,
            live: Live {
                id: StallId(id),
                runtime: self.runtime.clone(),
                worker: 0,
                stall,
                slept_in: None,
                last_words: Arc::default(),
            },
            driver_frozen: None,
            thread: None,
            stacks: 0,
        }
    }

    /// News of the marked poll that the calling thread is in, as if its worker were stalled.
    pub(super) fn news_of_own_poll(&self, id: u64, phase: Option<Phase>) -> StallNews {
        let slot = slot::mine().expect("a slot");
        let tenancy = slot.tenancy();
        let epoch = slot.line.observe().epoch;
        let mut news = self.news(id, phase);
        news.live.stall.held_by = HeldBy::Mark(PollKey {
            thread: slot.thread(tenancy),
            epoch,
        });
        news.thread = Some(StallThread {
            slot,
            tenancy,
            marks: None,
        });
        news
    }

    /// An announcement of a stall that so many stacks have been taken of.
    fn announcement(&self, id: u64, phase: Phase, stacks: u32) -> Message {
        let mut news = self.news(id, Some(phase));
        news.stacks = stacks;
        Message::Stall(Box::new(news))
    }

    /// The reports that have reached the sinks since the last call.
    fn delivered(&self) -> Vec<StallReport> {
        let reports = self.delivered.try_iter().map(|delivery| match delivery {
            Delivery::Stall { report, .. } => *report,
            other => panic!("{other:?}"),
        });
        reports.collect()
    }

    fn phases(&self) -> Vec<Phase> {
        let reports = self.delivered();
        reports.iter().map(|report| report.phase).collect()
    }

    fn recent(&self, id: u64) -> StallReport {
        let recent = self.runtime.watch.recent.lock();
        recent.stall(id).expect("a report is kept")
    }
}

/// An explained stack of one call.
pub(super) fn stack(id: u64, function: &str) -> StackNews {
    let frame = Frame::of(function, Origin::Own);
    StackNews {
        id: StallId(id),
        after: Duration::from_millis(20),
        position: (0, 0),
        stack: Ok(Explained {
            frames: vec![frame],
            certain: 1,
            complete: true,
            missing: Vec::new(),
            truncated: false,
            lost: false,
        }),
    }
}

fn stack_news(id: u64) -> Message {
    Message::Stack(Box::new(stack(id, "app::handler")))
}

#[test]
fn a_last_report_waits_for_a_stack_that_is_on_its_way() {
    let stage = Stage::new();
    let mut reporter = stage.reporter();
    reporter.take(stage.announcement(1, Phase::Began, 1));
    assert_eq!(stage.phases(), [Phase::Began], "only the last report waits");
    reporter.take(stage.announcement(1, Phase::Ended, 2));
    reporter.take(stack_news(1));
    assert_eq!(stage.phases(), [], "one of two stacks has come");
    reporter.take(stack_news(1));
    let [report] = &stage.delivered()[..] else {
        panic!("one report");
    };
    assert_eq!(report.phase, Phase::Ended);
    assert_eq!(report.stacks[0].count, 2);
    assert!(reporter.cases.is_empty());
}

#[test]
fn a_last_report_without_a_stack_on_its_way_is_passed_on_at_once() {
    let stage = Stage::new();
    let mut reporter = stage.reporter();
    reporter.take(stage.announcement(1, Phase::Ended, 0));
    assert_eq!(stage.phases(), [Phase::Ended]);
    assert!(reporter.cases.is_empty());
}

#[test]
fn an_explainer_without_an_answer_ends_the_wait() {
    let stage = Stage::new();
    let mut reporter = stage.reporter();
    reporter.take(stage.announcement(1, Phase::Ended, 1));
    assert_eq!(stage.phases(), []);
    reporter.take(Message::Stack(Box::new(StackNews {
        stack: Err(NoStack::Unsupported),
        ..stack(1, "")
    })));
    let report = &stage.delivered()[0];
    let reason = Missing::Stack(NoStack::Unsupported);
    assert!(report.missing.contains(&reason), "{report:?}");
}

#[test]
fn the_reason_for_no_stack_is_in_the_reports() {
    let stage = Stage::new();
    let mut reporter = stage.reporter();
    reporter.take(stage.announcement(1, Phase::Began, 0));
    reporter.take(Message::NoStack(StallId(1), NoStack::Busy));
    let reason = Missing::Stack(NoStack::Busy);
    assert!(stage.recent(1).missing.contains(&reason));
    reporter.take(stage.announcement(1, Phase::Ended, 0));
    let last = stage.delivered().pop().expect("a last report");
    assert!(last.missing.contains(&reason));
}

#[test]
fn a_stack_that_comes_late_changes_the_kept_report() {
    let stage = Stage::new();
    let mut reporter = stage.reporter();
    reporter.take(stage.announcement(1, Phase::Began, 1));
    assert!(stage.recent(1).stacks.is_empty());
    stage.delivered();
    reporter.take(stack_news(1));
    assert_eq!(stage.recent(1).stacks.len(), 1);
    assert!(stage.recent(1).site.is_some());
    assert_eq!(stage.phases(), [], "no report is sent for it");
}

#[test]
fn a_suspicion_is_not_reported() {
    let stage = Stage::new();
    let mut reporter = stage.reporter();
    reporter.take(Message::Stall(Box::new(stage.news(1, None))));
    reporter.take(stack_news(1));
    assert_eq!(stage.phases(), []);
    assert!(stage.runtime.watch.recent.lock().stalls().is_empty());
}

#[test]
fn a_stall_whose_runtime_nobody_watches_is_forgotten() {
    let stage = Stage::new();
    let mut reporter = stage.reporter();
    let kept_by_others = Arc::strong_count(&stage.runtime);
    reporter.take(stage.announcement(1, Phase::Began, 0));
    reporter.forget_unwatched();
    assert!(reporter.cases.contains_key(&StallId(1)), "it is watched");
    reporter.take(stage.announcement(2, Phase::Ended, 1));
    stage.delivered();
    stage.runtime.pulse.stop();
    reporter.forget_unwatched();
    assert!(reporter.cases.is_empty());
    let last = stage.delivered().pop().expect("a last report is not lost");
    assert_eq!(last.id, 2);
    assert_eq!(Arc::strong_count(&stage.runtime), kept_by_others);
}

#[test]
fn the_oldest_case_makes_room_and_its_last_report_is_not_lost() {
    let stage = Stage::new();
    let mut reporter = stage.reporter();
    reporter.take(stage.announcement(1, Phase::Ended, 1));
    for id in 2..=CASES as u64 {
        reporter.take(Message::Stall(Box::new(stage.news(id, None))));
    }
    assert_eq!(stage.phases(), [], "it waits for its stack");
    let another = stage.news(CASES as u64 + 1, None);
    reporter.take(Message::Stall(Box::new(another)));
    assert_eq!(stage.phases(), [Phase::Ended]);
    assert_eq!(reporter.cases.len(), CASES);
    assert!(!reporter.cases.contains_key(&StallId(1)));
}

#[test]
fn a_stall_that_goes_on_does_not_make_room_for_suspicions() {
    let stage = Stage::new();
    let mut reporter = stage.reporter();
    reporter.take(stage.announcement(1, Phase::Began, 0));
    for id in 2..=CASES as u64 + 2 {
        reporter.take(Message::Stall(Box::new(stage.news(id, None))));
    }
    assert!(reporter.cases.contains_key(&StallId(1)));
    assert!(!reporter.cases.contains_key(&StallId(2)));
}
