//! A stall names the line that holds the worker, why it is held, and what to write instead.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

mod seen;

use seen::{Seen, workers};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_stall::{
    Blocking, Cause, FoldedBy, FutureExt as _, Guard, Missing, Origin, StackSample, StallReport,
};

/// Where std's sleep is not cut short, no evidence can end it. Long enough that the stack is taken even
/// if the other tests' stacks are read first.
const ONE_SLEEP: Duration = Duration::from_secs(2);

fn watched(name: &str, runtime: &Runtime) -> (Guard, Seen) {
    let (builder, seen) = Seen::builder();
    let builder = builder.runtime(name, runtime.handle().clone());
    (builder.start().unwrap(), seen)
}

/// Has a task block until we have been told of it what `fits`; returns that, and the last report of it.
fn stall<F: Future<Output = ()> + Send + 'static>(
    runtime: &Runtime,
    seen: &Seen,
    fits: impl Fn(&StallReport) -> bool,
    task: impl FnOnce(Receiver<()>) -> F,
) -> (StallReport, StallReport) {
    let (send, until_told) = mpsc::channel();
    let blocked = runtime.spawn(task(until_told));
    let told = seen.wait(fits);
    drop(send);
    runtime.block_on(blocked).unwrap();
    let ended = seen.wait_for_end(told.id);
    (told, ended)
}

/// Reports about the task of this name that say where it is.
fn with_site(name: &'static str) -> impl Fn(&StallReport) -> bool {
    move |report| report.span.as_deref() == Some(name) && report.site.is_some()
}

#[track_caller]
fn assert_site(report: &StallReport, function: &str, line: u32) {
    let site = report.site.as_ref();
    let site = site.unwrap_or_else(|| panic!("no site: {report:#?}"));
    assert_eq!(site.function, function, "{report:#?}");
    let file = site.file.as_deref();
    assert!(
        file.is_some_and(|file| file.ends_with("tests/sites.rs")),
        "{site:?}"
    );
    assert_eq!(site.line, Some(line), "{report:#?}");
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

fn own_tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

async fn handles_a_request() {
    loads_a_user().await;
}

const SLEEPS: u32 = line!() + 2;
async fn loads_a_user() {
    std::thread::sleep(ONE_SLEEP);
}

/// Nothing is marked: this is what `watch()` alone can say.
#[test]
fn a_sleep_is_named_by_its_line_and_signalled_once() {
    let runtime = workers(1);
    let (watch, seen) = watched("sleeps", &runtime);
    // A worker that blocks before it has said which thread it is cannot be signalled.
    let deadline = Instant::now() + seen::FOREVER;
    while watch.coverage()[0].known_threads < 1 {
        assert!(Instant::now() < deadline, "{:?}", watch.coverage());
        std::thread::yield_now();
    }
    runtime
        .block_on(runtime.spawn(handles_a_request()))
        .unwrap();
    let asleep = |report: &StallReport| report.cause == Cause::Blocked(Blocking::Sleep);
    let told = seen.wait(asleep);
    let ended = seen.wait_for_end(told.id);

    assert_site(&ended, "sites::loads_a_user", SLEEPS);
    assert_eq!(ended.cause, Cause::Blocked(Blocking::Sleep), "{ended}");
    let advice = ended.advice.as_deref().unwrap_or_default();
    assert!(advice.contains("tokio::time::sleep"), "{advice:?}");
    // It has been looked at until its end, and was announced many times since. That a stack is taken each
    // time of a thread that does run is below.
    assert_eq!(ended.stacks.len(), 1, "{ended:#?}");
    assert_eq!(ended.stacks[0].count, 1, "{ended:#?}");

    let stack = &ended.stacks[0];
    assert!(stack.complete, "{stack:#?}");
    let names = names(stack);
    let place = |wanted: &dyn Fn(&str) -> bool| names.iter().position(|name| wanted(name));
    let sleep = place(&|name| name.starts_with("std::thread::") && name.ends_with("::sleep"));
    let inner = place(&|name| name.starts_with("sites::loads_a_user"));
    let outer = place(&|name| name.starts_with("sites::handles_a_request"));
    assert!(sleep.is_some_and(|at| at < 5), "{names:#?}");
    assert!(sleep < inner && inner < outer, "{names:#?}");
    assert_eq!(stack.frames[0].origin, Origin::System, "{stack:#?}");
    let own: Vec<_> = stack
        .frames
        .iter()
        .filter(|frame| frame.origin == Origin::Own)
        .collect();
    assert_eq!(own.len(), 2, "nobody else's is ours: {own:#?}");
}

/// Computes until it is told to stop.
fn adds_up(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        std::hint::black_box((0..1_000_u64).sum::<u64>());
    }
}

/// Stops what spins, also when the test has failed: its runtime waits for it.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_computation_is_looked_at_again_and_again() {
    let runtime = workers(2);
    let (_watch, seen) = watched("adds", &runtime);
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = Stop(stopped.clone());
    let adding = runtime.spawn(async move { adds_up(&stopped) }.watched("adds"));
    let several = seen.wait(|report| with_site("adds")(report) && samples(report) >= 2);
    // The machine may take the CPU away for most of a while, which is then the cause; but not for ever.
    let computing = seen.wait(|report| with_site("adds")(report) && report.cause == Cause::Cpu);
    drop(stop);
    runtime.block_on(adding).unwrap();

    let ended = seen.wait_for_end(several.id);
    for report in [&several, &computing, &ended] {
        let site = report.site.as_ref().unwrap();
        assert_eq!(site.function, "sites::adds_up", "{report:#?}");
        assert_eq!(report.id, several.id, "{report:#?}");
    }
    assert!(samples(&ended) >= samples(&several), "{ended:#?}");
    let mut ages = ended.stacks.iter().map(|stack| stack.after);
    assert!(ages.all(|age| age < ended.duration), "{ended:#?}");
}

const TASK_BLOCKS: u32 = line!() + 2;
fn blocks_the_only_thread(until_told: &Receiver<()>) {
    until_told.recv().ok();
}

#[test]
fn a_current_thread_runtime_names_the_line_and_the_callers_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (_watch, seen) = watched("ui", &runtime);
    let (send, until_told) = mpsc::channel();
    // It is this thread that blocks, so another one has to wait for the news.
    let told = seen.clone();
    let teller = std::thread::spawn(move || {
        let told = told.wait(with_site("task"));
        drop(send);
        told
    });
    let task = runtime.spawn(async move { blocks_the_only_thread(&until_told) }.watched("task"));
    runtime.block_on(task).unwrap();
    let told = teller.join().unwrap();
    // The end is seen while the runtime is being driven, or after.
    let ended = seen.wait_for_end(told.id);
    for report in [told, ended] {
        assert_site(&report, "sites::blocks_the_only_thread", TASK_BLOCKS);
        assert_eq!(report.tid, Some(own_tid()), "{report:#?}");
        assert_eq!(report.thread.as_deref(), std::thread::current().name());
        assert!(report.stacks[0].complete, "{report:#?}");
    }
}

const BLOCKS_AFTER: u32 = line!() + 3;
fn blocks_after_the_move(until_told: &Receiver<()>, tid: &mpsc::Sender<u32>) {
    tid.send(own_tid()).unwrap();
    until_told.recv().ok();
}

#[test]
fn a_worker_moved_by_block_in_place_is_found_on_its_new_thread() {
    let runtime = workers(1);
    let (_watch, seen) = watched("moves", &runtime);
    let (tell_tid, tids) = mpsc::channel();
    let (leave, until_left) = mpsc::channel::<()>();

    // It hands over the worker and stays where it was, on the worker's first thread.
    let tid = tell_tid.clone();
    let in_place = runtime.spawn(
        async move {
            tokio::task::block_in_place(|| {
                tid.send(own_tid()).unwrap();
                until_left.recv().ok();
            });
        }
        .watched("in_place"),
    );
    let first = tids.recv().unwrap();

    let tid = tell_tid.clone();
    let (during, _) = stall(&runtime, &seen, with_site("during"), |until_told| {
        async move { blocks_after_the_move(&until_told, &tid) }.watched("during")
    });
    let second = tids.recv().unwrap();
    assert_ne!(first, second, "the worker has another thread now");
    assert_eq!(during.tid, Some(second), "{during:#?}");
    assert_site(&during, "sites::blocks_after_the_move", BLOCKS_AFTER);

    drop(leave);
    runtime.block_on(in_place).unwrap();
    let (after, _) = stall(&runtime, &seen, with_site("after"), |until_told| {
        async move { blocks_after_the_move(&until_told, &tell_tid) }.watched("after")
    });
    assert_eq!(after.tid, Some(tids.recv().unwrap()), "{after:#?}");
    assert_site(&after, "sites::blocks_after_the_move", BLOCKS_AFTER);

    let in_place = |report: &StallReport| report.span.as_deref() == Some("in_place");
    assert!(!seen.all().iter().any(in_place), "{:#?}", seen.all());
}

const LOCKS: u32 = line!() + 2;
fn waits_for_its_turn(turn: &Mutex<u32>) {
    *turn.lock().unwrap() += 1;
}

#[test]
fn a_lock_is_named_while_it_is_waited_for() {
    let runtime = workers(2);
    let (_watch, seen) = watched("locks", &runtime);
    let turn = Arc::new(Mutex::new(0));
    let held = turn.lock().unwrap();
    let theirs = turn.clone();
    let waiting = runtime.spawn(async move { waits_for_its_turn(&theirs) }.watched("waits"));
    let told = seen.wait(|report| {
        with_site("waits")(report) && report.cause == Cause::Blocked(Blocking::Lock)
    });
    drop(held);
    runtime.block_on(waiting).unwrap();
    let ended = seen.wait_for_end(told.id);
    for report in [told, ended] {
        assert_site(&report, "sites::waits_for_its_turn", LOCKS);
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
    let site = |runtime: &Runtime, seen: &Seen| {
        let (told, _) = stall(runtime, seen, with_site("nests"), |until_told| {
            async move { nests_an_executor(until_told) }.watched("nests")
        });
        told.site.unwrap().function
    };
    let runtime = workers(1);
    let (_watch, seen) = watched("nests", &runtime);
    assert_eq!(site(&runtime, &seen), "sites::nests_an_executor");
    // By the name of the package or of the crate.
    for name in ["futures-executor", "futures_executor"] {
        let (builder, other_seen) = Seen::builder();
        let other = workers(1);
        let _watch = builder
            .runtime(name, other.handle().clone())
            .own_crates([name])
            .start()
            .unwrap();
        let innermost = site(&other, &other_seen);
        assert!(innermost.starts_with("futures_executor::"), "{innermost}");
    }
}

fn asks_the_archive(until_told: &Receiver<()>) {
    until_told.recv().ok();
}

#[test]
fn own_advice_for_a_function_comes_first() {
    let runtime = workers(2);
    let (builder, seen) = Seen::builder();
    let _watch = builder
        .runtime("asks", runtime.handle().clone())
        .advice("sites::asks_nobody", "ask somebody")
        .advice("sites::asks_the_archive", "ask the archive in a thread")
        .advice("sites::", "ask somebody else")
        .start()
        .unwrap();
    let (told, _) = stall(&runtime, &seen, with_site("asks"), |until_told| {
        async move { asks_the_archive(&until_told) }.watched("asks")
    });
    let advice = told.advice.as_deref();
    assert_eq!(advice, Some("ask the archive in a thread"), "{told:#?}");

    // Also where there is other advice, of the crate's own.
    runtime
        .block_on(runtime.spawn(loads_a_user().watched("loads")))
        .unwrap();
    let ended = |report: &StallReport| {
        report.span.as_deref() == Some("loads") && report.phase == tokio_stall::Phase::Ended
    };
    let loads = seen.wait(ended);
    assert_eq!(loads.advice.as_deref(), Some("ask somebody else"));
}

/// Blocks when it is dropped; the name of that function has spaces in it.
struct ClosesSlowly(Receiver<()>);

impl Drop for ClosesSlowly {
    fn drop(&mut self) {
        self.0.recv().ok();
    }
}

#[test]
fn a_profile_adds_up_the_stalls_of_a_site() {
    let runtime = workers(2);
    let (watch, seen) = watched("my api;1", &runtime);
    assert!(watch.profile().sites().is_empty());
    // By then it is clear what the time was spent on, whatever the machine does afterwards.
    let long = |report: &StallReport| {
        with_site("closes")(report)
            && report.duration >= Duration::from_millis(160)
            && report.cause == Cause::Blocked(Blocking::Lock)
    };
    let mut ends: Vec<StallReport> = Vec::new();
    for _ in 0..3 {
        let earlier: Vec<_> = ends.iter().map(|ended| ended.id).collect();
        let new = |report: &StallReport| long(report) && !earlier.contains(&report.id);
        let (told, ended) = stall(&runtime, &seen, new, |until_told| {
            let closing = ClosesSlowly(until_told);
            async move { drop(closing) }.watched("closes")
        });
        let nth = ends.len() as u64 + 1;
        assert_eq!((told.seen_here, ended.seen_here), (nth, nth), "{ended:#?}");
        ends.push(ended);
    }
    let profile = watch.profile();
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

    // In time, it is about what the stalls took.
    let times = profile.folded(FoldedBy::Microseconds);
    let lost: u128 = times
        .lines()
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u128>().unwrap())
        .sum();
    assert!(lost.abs_diff(total.as_micros()) < 10, "{lost} of {total:?}");
}

#[test]
fn a_folded_line_is_frames_and_a_number() {
    let runtime = workers(2);
    let (watch, seen) = watched("my api;2", &runtime);
    stall(&runtime, &seen, with_site("closes"), |until_told| {
        let closing = ClosesSlowly(until_told);
        async move { drop(closing) }.watched("closes")
    });
    let folded = watch.profile().folded(FoldedBy::Samples);
    assert!(folded.ends_with('\n'), "{folded:?}");
    let is_drop = |line: &&str| line.contains("ClosesSlowly");
    let line = folded.lines().find(is_drop);
    let line = line.unwrap_or_else(|| panic!("{folded}"));
    let (stack, number) = line.rsplit_once(' ').unwrap();
    assert_eq!(number.parse(), Ok(1), "{line}");
    assert!(stack.starts_with("my_api_2;"), "{line}");
    // From the root on: who calls comes before who is called.
    let frames: Vec<_> = stack.split(';').skip(1).collect();
    let place = |wanted: &str| frames.iter().position(|frame| frame.contains(wanted));
    let caller = place("sites::a_folded_line_is_frames_and_a_number");
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

#[test]
fn worker_stacks_tell_what_a_blocked_worker_does() {
    let runtime = workers(2);
    let (watch, _) = watched("held", &runtime);
    let deadline = Instant::now() + seen::FOREVER;
    // On a busy machine a thread may come too late to the first gathering, and there are more of them.
    while watch.coverage()[0].known_threads < 2 {
        assert!(Instant::now() < deadline, "{:?}", watch.coverage());
        std::thread::sleep(Duration::from_millis(5));
    }
    let (send, until_told) = mpsc::channel();
    let (tell_tid, tid) = mpsc::channel();
    let blocked = runtime.spawn(async move {
        tell_tid
            .send(std::thread::current().name().map(str::to_owned))
            .unwrap();
        holds_up_the_worker(&until_told);
    });
    let thread = tid.recv().unwrap();
    // The thread may not get to answer at once, on a busy machine.
    let mut stacks = Vec::new();
    let held = loop {
        assert!(Instant::now() < deadline, "{stacks:#?}");
        stacks = watch.worker_stacks();
        assert_eq!(stacks.len(), 2);
        let is_held = |stack: &&tokio_stall::WorkerStack| {
            let mut names = stack.frames.iter().flatten();
            names.any(|frame| frame.function.as_deref() == Some("sites::holds_up_the_worker"))
        };
        if let Some(held) = stacks.iter().find(is_held) {
            break held;
        }
    };
    assert_eq!(held.runtime, "held");
    assert_eq!(held.thread, thread);
    assert!(held.complete, "{held}");
    assert!(held.to_string().contains("holds_up_the_worker"), "{held}");
    drop(send);
    runtime.block_on(blocked).unwrap();
    // Once it is over, they tell of something else.
    let text = watch
        .worker_stacks()
        .iter()
        .map(ToString::to_string)
        .collect::<String>();
    assert!(!text.contains("holds_up_the_worker"), "{text}");
}

/// What is told of a stall that goes on says the same as what can be looked up.
#[test]
fn the_live_view_knows_the_site() {
    let runtime = workers(2);
    let (watch, seen) = watched("live", &runtime);
    let (_, ended) = stall(
        &runtime,
        &seen,
        |report| {
            with_site("asks")(report)
                && watch
                    .stalled_now()
                    .iter()
                    .any(|now| now.site == report.site)
        },
        |until_told| async move { asks_the_archive(&until_told) }.watched("asks"),
    );
    assert!(
        !ended
            .missing
            .iter()
            .any(|missing| matches!(missing, Missing::Stack(_)))
    );
    assert_eq!(watch.stalled_now(), []);
    let recent = watch.recent();
    assert!(
        recent
            .iter()
            .any(|report| report.id == ended.id && report.site == ended.site)
    );
}
