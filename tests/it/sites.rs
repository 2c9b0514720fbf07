//! A stall names the line that holds the worker, the reason, and the code to write instead.

use crate::support::process::tid;
use crate::support::stage::Stage;
use crate::support::{Stop, assert_site, wait_until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_stall::{
    Blocking, Cause, FoldedBy, FutureExt as _, Missing, Origin, StackSample, StallReport,
    WorkerStack,
};

/// std's sleep is not cut short, so no evidence can end it. In this time the stack is taken even
/// if other stacks are read first.
const ONE_SLEEP: Duration = Duration::from_secs(2);

/// Reports about the task of this name that have a site.
fn with_site(name: &'static str) -> impl Fn(&StallReport) -> bool {
    move |report| report.span.as_deref() == Some(name) && report.site.is_some()
}

fn names(stack: &StackSample) -> Vec<&str> {
    let frames = stack.frames.iter();
    frames
        .map(|frame| frame.function.as_deref().unwrap_or(""))
        .collect()
}

fn samples(report: &StallReport) -> u32 {
    report.stacks.iter().map(|stack| stack.count).sum()
}

const WAITS: u32 = line!() + 2;
fn waits(until_told: Receiver<()>) {
    until_told.recv().ok();
}

async fn handles_a_request() {
    loads_a_user().await;
}

const SLEEPS: u32 = line!() + 2;
async fn loads_a_user() {
    std::thread::sleep(ONE_SLEEP);
}

/// The last report of a sleep without any mark, as a program with `watch()` alone gets it.
fn report_of_a_sleep() -> StallReport {
    let stage = Stage::multi_thread(1).start();
    stage.run(handles_a_request());
    let asleep = |report: &StallReport| report.cause == Cause::Blocked(Blocking::Sleep);
    let told = stage.seen.wait(asleep);
    stage.seen.wait_for_end(told.id)
}

#[test]
fn a_sleep_has_its_line_its_cause_and_an_advice() {
    let ended = report_of_a_sleep();
    assert_site(&ended, file!(), SLEEPS, "it::sites::loads_a_user");
    assert_eq!(ended.cause, Cause::Blocked(Blocking::Sleep), "{ended}");
    let advice = ended.advice.as_deref().unwrap_or_default();
    assert!(advice.contains("tokio::time::sleep"), "{advice:?}");
}

/// The stall was looked at until its end, and announced many times. The control is a computation,
/// of which there are several stacks: `a_computation_is_looked_at_again_and_again`.
#[test]
fn a_sleep_is_looked_at_once() {
    let ended = report_of_a_sleep();
    assert_eq!(ended.stacks.len(), 1, "{ended:#?}");
    assert_eq!(ended.stacks[0].count, 1, "{ended:#?}");
}

#[test]
fn a_stack_has_its_calls_in_their_order_and_of_their_origin() {
    let ended = report_of_a_sleep();
    let stack = &ended.stacks[0];
    assert!(stack.complete, "{stack:#?}");
    let names = names(stack);
    let place = |wanted: &dyn Fn(&str) -> bool| names.iter().position(|name| wanted(name));
    let sleep = place(&|name| name.starts_with("std::thread::") && name.ends_with("::sleep"));
    let inner = place(&|name| name.starts_with("it::sites::loads_a_user"));
    let outer = place(&|name| name.starts_with("it::sites::handles_a_request"));
    assert!(sleep.is_some_and(|at| at < 5), "{names:#?}");
    assert!(sleep < inner && inner < outer, "{names:#?}");
    assert_eq!(stack.frames[0].origin, Origin::System, "{stack:#?}");
    let mut own = stack.frames.clone();
    own.retain(|frame| frame.origin == Origin::Own);
    assert_eq!(own.len(), 2, "nobody else's is ours: {own:#?}");
}

/// Computes until it is told to stop.
fn adds_up(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::hint::black_box((0..1_000_u64).sum::<u64>());
    }
}

#[test]
fn a_computation_is_looked_at_again_and_again() {
    let stage = Stage::multi_thread(2).start();
    let (stop, stopped) = Stop::new();
    let adding = async move { adds_up(&stopped) }.watched("adds");
    let adding = stage.runtime.spawn(adding);
    let seen = &stage.seen;
    let several = seen.wait(|report| with_site("adds")(report) && samples(report) >= 2);
    // The machine may take the CPU away for a while, which is then the cause; but not for ever.
    let computing = seen.wait(|report| with_site("adds")(report) && report.cause == Cause::Cpu);
    drop(stop);
    stage.block_on(adding).unwrap();

    let ended = seen.wait_for_end(several.id);
    for report in [&several, &computing, &ended] {
        let site = report.site.as_ref().unwrap();
        assert_eq!(site.function, "it::sites::adds_up", "{report:#?}");
        assert_eq!(report.id, several.id, "{report:#?}");
    }
    assert!(samples(&ended) >= samples(&several), "{ended:#?}");
    let mut ages = ended.stacks.iter().map(|stack| stack.after);
    assert!(ages.all(|age| age < ended.duration), "{ended:#?}");
}

#[test]
fn a_current_thread_runtime_names_the_line_and_its_thread() {
    let stage = Stage::current_thread().start();
    let (send, until_told) = mpsc::channel();
    // This thread blocks, so another one waits for the news.
    let seen = stage.seen.clone();
    let teller = std::thread::spawn(move || {
        let told = seen.wait(with_site("task"));
        drop(send);
        told
    });
    stage.run(async move { waits(until_told) }.watched("task"));
    let told = teller.join().unwrap();
    // The end is seen while the runtime is being driven, or after.
    let ended = stage.seen.wait_for_end(told.id);
    for report in [told, ended] {
        assert_site(&report, file!(), WAITS, "it::sites::waits");
        assert_eq!(report.tid, Some(tid()), "{report:#?}");
        assert_eq!(report.thread.as_deref(), std::thread::current().name());
        assert!(report.stacks[0].complete, "{report:#?}");
    }
}

#[test]
fn a_worker_moved_by_block_in_place_has_its_new_thread() {
    let stage = Stage::multi_thread(1).start();
    let (tell_tid, tids) = mpsc::channel();
    let (leave, until_left) = mpsc::channel::<()>();

    // The task hands its worker over and stays on the worker's first thread.
    let tell = tell_tid.clone();
    let in_place = async move {
        tokio::task::block_in_place(|| {
            tell.send(tid()).unwrap();
            until_left.recv().ok();
        });
    };
    let in_place = stage.runtime.spawn(in_place.watched("in_place"));
    let first = tids.recv().unwrap();

    let blocked_on_its_thread = |name| {
        let tell = tell_tid.clone();
        let stall = stage.block_until_reported(name, move |until_told| {
            tell.send(tid()).unwrap();
            waits(until_told);
        });
        let thread = tids.recv().unwrap();
        assert_eq!(stall.told.tid, Some(thread), "{:#?}", stall.told);
        assert_site(&stall.told, file!(), WAITS, "it::sites::waits");
        thread
    };
    let second = blocked_on_its_thread("during");
    assert_ne!(first, second, "the worker has another thread now");
    drop(leave);
    stage.block_on(in_place).unwrap();
    blocked_on_its_thread("after");

    let in_place = |report: &StallReport| report.span.as_deref() == Some("in_place");
    let all = stage.seen.all();
    assert!(!all.iter().any(in_place), "{all:#?}");
}

const LOCKS: u32 = line!() + 2;
fn waits_for_its_turn(turn: &Mutex<u32>) {
    *turn.lock().unwrap() += 1;
}

#[test]
fn a_lock_is_named_while_it_is_waited_for() {
    let stage = Stage::multi_thread(2).start();
    let turn = Arc::new(Mutex::new(0));
    let held = turn.lock().unwrap();
    let theirs = turn.clone();
    let waiting = async move { waits_for_its_turn(&theirs) }.watched("waits");
    let waiting = stage.runtime.spawn(waiting);
    let told = stage.seen.wait(|report| {
        with_site("waits")(report) && report.cause == Cause::Blocked(Blocking::Lock)
    });
    drop(held);
    stage.block_on(waiting).unwrap();
    let ended = stage.seen.wait_for_end(told.id);
    for report in [told, ended] {
        assert_site(&report, file!(), LOCKS, "it::sites::waits_for_its_turn");
    }
}

/// Blocks in another crate's function, which parks this thread until it is told.
fn nests_an_executor(until_told: Receiver<()>) {
    let (wake, woken) = futures::channel::oneshot::channel::<()>();
    let teller = std::thread::spawn(move || {
        until_told.recv().ok();
        drop(wake);
    });
    futures::executor::block_on(woken).ok();
    teller.join().unwrap();
}

#[test]
fn each_watch_has_its_own_idea_of_own_crates() {
    let innermost = |stage: &Stage| {
        let stall = stage.block_until_reported("nests", nests_an_executor);
        stall.told.site.unwrap().function
    };
    let stage = Stage::multi_thread(1).start();
    assert_eq!(innermost(&stage), "it::sites::nests_an_executor");
    // By the name of the package or of the crate.
    for name in ["futures-executor", "futures_executor"] {
        let other = Stage::multi_thread(1).named(name);
        let other = other.settings(|builder| builder.own_crates([name])).start();
        let function = innermost(&other);
        assert!(function.starts_with("futures_executor::"), "{function}");
    }
}

fn asks_the_archive(until_told: Receiver<()>) {
    until_told.recv().ok();
}

#[test]
fn own_advice_for_a_function_comes_first() {
    let stage = Stage::multi_thread(2).settings(|builder| {
        builder
            .advice("it::sites::asks_nobody", "ask somebody")
            .advice("it::sites::asks_the_archive", "ask the archive in a thread")
            .advice("it::sites::", "ask somebody else")
    });
    let stage = stage.start();
    let told = stage.block_until_reported("asks", asks_the_archive).told;
    let advice = told.advice.as_deref();
    assert_eq!(advice, Some("ask the archive in a thread"), "{told:#?}");

    // Also before other advice, of the crate's own.
    let loads = stage.run_stalling("loads", loads_a_user());
    assert_eq!(loads.advice.as_deref(), Some("ask somebody else"));
}

/// Blocks when it is dropped; the name of that function has spaces in it.
struct ClosesSlowly(Receiver<()>);

impl Drop for ClosesSlowly {
    fn drop(&mut self) {
        self.0.recv().ok();
    }
}

/// The last reports of three stalls in one place.
///
/// Each is so long that its cause is clear, whatever the machine does afterwards.
fn three_stalls(stage: &Stage) -> Vec<StallReport> {
    let is_clear = |report: &StallReport| {
        let long = report.duration >= Duration::from_millis(160);
        report.site.is_some() && long && report.cause == Cause::Blocked(Blocking::Lock)
    };
    let stall = |nth: u64| {
        let stall = stage.block_until("closes", is_clear, |until_told| {
            drop(ClosesSlowly(until_told));
        });
        let counts = (stall.told.seen_here, stall.ended.seen_here);
        assert_eq!(counts, (nth, nth), "{:#?}", stall.ended);
        stall.ended
    };
    (1..=3).map(stall).collect()
}

#[test]
fn a_profile_adds_up_the_stalls_of_a_site() {
    let stage = Stage::multi_thread(2).named("my api;1").start();
    assert!(stage.watch.profile().sites().is_empty());
    let ends = three_stalls(&stage);
    let profile = stage.watch.profile();
    let sites = profile.sites();
    assert_eq!(sites[0].count, 3, "{sites:#?}");
    assert_eq!(sites[0].site, ends[0].site);
    assert_eq!(sites[0].runtime, "my api;1");
    assert_eq!(sites[0].cause, Cause::Blocked(Blocking::Lock));
    let total: Duration = ends.iter().map(|ended| ended.duration).sum();
    assert_eq!(sites[0].total, total);
    assert_eq!(ends[2].lost_here, total);
    let longest = ends.iter().map(|ended| ended.duration).max();
    assert_eq!(Some(sites[0].longest), longest);
}

#[test]
fn folded_stacks_weigh_as_much_as_the_stalls_took() {
    let stage = Stage::multi_thread(2).named("my api;3").start();
    let ends = three_stalls(&stage);
    let total: Duration = ends.iter().map(|ended| ended.duration).sum();
    let times = stage.watch.profile().folded(FoldedBy::Microseconds);
    let weights = times.lines().map(|line| line.rsplit_once(' ').unwrap().1);
    let lost: u128 = weights.map(|weight| weight.parse::<u128>().unwrap()).sum();
    assert!(lost.abs_diff(total.as_micros()) < 10, "{lost} of {total:?}");
}

#[test]
fn a_folded_line_is_frames_and_a_number() {
    let stage = Stage::multi_thread(2).named("my api;2").start();
    stage.block_until_reported("closes", |until_told| drop(ClosesSlowly(until_told)));
    let folded = stage.watch.profile().folded(FoldedBy::Samples);
    assert!(folded.ends_with('\n'), "{folded:?}");
    let is_drop = |line: &&str| line.contains("ClosesSlowly");
    let line = folded.lines().find(is_drop);
    let line = line.unwrap_or_else(|| panic!("{folded}"));
    let (stack, number) = line.rsplit_once(' ').unwrap();
    assert_eq!(number.parse(), Ok(1), "{line}");
    assert!(stack.starts_with("my_api_2;"), "{line}");
    // From the root on: the caller stands before the called.
    let frames: Vec<_> = stack.split(';').skip(1).collect();
    let place = |wanted: &str| frames.iter().position(|frame| frame.contains(wanted));
    let caller = place("it::sites::a_folded_line_is_frames_and_a_number");
    let called = place("recv");
    assert!(caller.is_some(), "{line}");
    assert!(caller < place("ClosesSlowly"), "{line}");
    assert!(place("ClosesSlowly") < called, "{line}");
    // Tools split at the last space; names such as `<A as B>::c` have spaces, too.
    assert!(!stack.contains('\n') && !stack.ends_with(' '), "{line}");
}

fn holds_up_the_worker(until_told: &Receiver<()>) {
    until_told.recv().ok();
}

fn is_held_up(stack: &WorkerStack) -> bool {
    let mut frames = stack.frames.iter().flatten();
    frames.any(|frame| frame.function.as_deref() == Some("it::sites::holds_up_the_worker"))
}

#[test]
fn worker_stacks_show_a_blocked_worker() {
    let stage = Stage::multi_thread(2).named("held").start();
    let (send, until_told) = mpsc::channel();
    let (tell_thread, thread) = mpsc::channel();
    let blocked = stage.runtime.spawn(async move {
        let thread = std::thread::current().name().map(str::to_owned);
        tell_thread.send(thread).unwrap();
        holds_up_the_worker(&until_told);
    });
    let thread = thread.recv().unwrap();
    // The thread may not get to answer at once, on a busy machine.
    let mut held = None;
    wait_until("the stack of the held worker", || {
        let stacks = stage.watch.worker_stacks();
        assert_eq!(stacks.len(), 2);
        held = stacks.into_iter().find(is_held_up);
        held.is_some()
    });
    let held = held.unwrap();
    assert_eq!(held.runtime, "held");
    assert_eq!(held.thread, thread);
    assert!(held.complete, "{held}");
    assert!(held.to_string().contains("holds_up_the_worker"), "{held}");
    drop(send);
    stage.block_on(blocked).unwrap();
    // After its end they show something else.
    let stacks = stage.watch.worker_stacks();
    let text: String = stacks.iter().map(ToString::to_string).collect();
    assert!(!text.contains("holds_up_the_worker"), "{text}");
}

/// The report of a stall that goes on says the same as the view of it.
#[test]
fn the_live_view_knows_the_site() {
    let stage = Stage::multi_thread(2).named("live").start();
    let watch = &stage.watch;
    let is_in_view = |report: &StallReport| {
        let live = watch.stalled_now();
        report.site.is_some() && live.iter().any(|now| now.site == report.site)
    };
    let ended = stage
        .block_until("asks", is_in_view, asks_the_archive)
        .ended;
    let no_stack = |missing: &Missing| matches!(missing, Missing::Stack(_));
    assert!(!ended.missing.iter().any(no_stack));
    assert_eq!(watch.stalled_now(), []);
    let is_it = |report: &StallReport| report.id == ended.id && report.site == ended.site;
    assert!(watch.recent().iter().any(is_it));
}
