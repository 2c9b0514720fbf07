//! Several runtimes at once, by name: multi-thread and `current_thread`, one guard or two.

use crate::support::assert_at_least;
use crate::support::stage::{Setup, Stage, sleeps};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_stall::{FutureExt as _, Phase, StallReport};

/// On a busy machine the signal of a stack, or a late watchdog, takes some of a sleep's blame away.
const LONG: Duration = Duration::from_secs(1);

/// A `current_thread` runtime, driven by a thread of its own until it is dropped.
struct Ui {
    handle: Handle,
    done: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Ui {
    fn start() -> Ui {
        let (to_us, for_us) = mpsc::channel();
        let (done, until_done) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            to_us.send(runtime.handle().clone()).unwrap();
            runtime.block_on(until_done).ok();
        });
        Ui {
            handle: for_us.recv().unwrap(),
            done: Some((done, thread)),
        }
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        let (done, thread) = self.done.take().unwrap();
        drop(done);
        thread.join().unwrap();
    }
}

fn api() -> Setup {
    Stage::multi_thread(2).named("api")
}

fn jobs() -> Setup {
    let jobs = Stage::multi_thread(1).named("jobs");
    jobs.settings(|builder| builder.threshold(Duration::from_millis(30)))
}

#[test]
fn a_stall_has_the_name_of_its_runtime_and_reaches_its_guard() {
    let ui = Ui::start();
    let both = api().settings(|builder| builder.runtime("ui", ui.handle.clone()));
    let both = both.start();
    let jobs = jobs().start();

    both.runtime.spawn(sleeps(LONG).watched("in_api"));
    ui.handle.spawn(sleeps(LONG).watched("in_ui"));
    jobs.runtime.spawn(sleeps(LONG).watched("in_jobs"));

    for (seen, runtime) in [
        (&both.seen, "api"),
        (&both.seen, "ui"),
        (&jobs.seen, "jobs"),
    ] {
        let is_end = |report: &StallReport| report.phase == Phase::Ended;
        let report = seen.wait(|report| is_end(report) && report.runtime == runtime);
        assert_eq!(
            report.span,
            Some(format!("in_{runtime}")),
            "{:#?}",
            seen.all()
        );
    }
    let is_in_jobs = |report: &StallReport| report.runtime == "jobs";
    let of_both = both.seen.all();
    assert!(!of_both.iter().any(is_in_jobs), "each hears of its own");
    assert!(jobs.seen.all().iter().all(is_in_jobs));
}

#[test]
fn each_runtime_has_its_own_threshold() {
    let _api = api().start();
    let jobs = jobs().start();
    jobs.run(sleeps(Duration::from_millis(2)).watched("short"));
    let long = jobs.run_stalling("long", sleeps(LONG));
    assert_at_least(long.duration, LONG);
    let is_short = |report: &StallReport| report.span.as_deref() == Some("short");
    assert!(!jobs.seen.all().iter().any(is_short));
}

#[test]
fn a_guard_that_goes_leaves_the_other_one() {
    let api = api().start();
    let jobs = jobs().start();
    jobs.run_stalling("first", sleeps(LONG));
    drop(jobs);
    api.run_stalling("again", sleeps(LONG));
}

/// What a framework with one runtime for each thread does: each calls this in its own runtime.
fn blocks_in_a_runtime_of_its_own(watch: &tokio_stall::Guard, until_told: &mpsc::Receiver<()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    runtime.block_on(async {
        watch.watch_here().unwrap();
        watch.watch_here().expect("once more changes nothing");
        let until_told = async { until_told.recv().ok() };
        until_told.watched("in_its_own").await;
    });
}

#[test]
fn runtimes_of_a_framework_are_added_by_their_own_threads() {
    let stage = Stage::multi_thread(1).start();
    let told: Vec<_> = std::thread::scope(|scope| {
        let start = |_| {
            let (tell, until_told) = mpsc::channel();
            let watch = &stage.watch;
            let thread = std::thread::Builder::new().name("framework".to_owned());
            let body = move || blocks_in_a_runtime_of_its_own(watch, &until_told);
            thread.spawn_scoped(scope, body).unwrap();
            tell
        };
        let tells: Vec<_> = (0..2).map(start).collect();
        let found = (0..2).map(|index| {
            let runtimes = ["framework", "framework, runtime"];
            let is_its = |report: &StallReport| {
                let others = report.runtime.starts_with(runtimes[1]);
                report.span.as_deref() == Some("in_its_own") && others == (index == 1)
            };
            stage.seen.wait(is_its).runtime
        });
        let found = found.collect();
        drop(tells);
        found
    });
    assert_eq!(told[0], "framework");
    assert!(told[1].starts_with("framework, runtime "), "{told:?}");
    // Those that have ended make room for the next one.
    let jobs = Ui::start();
    stage.watch.add("jobs", jobs.handle.clone()).unwrap();
    let names = stage.watch.coverage().into_iter().map(|seen| seen.runtime);
    assert_eq!(names.collect::<Vec<_>>(), ["stage", "jobs"]);
    let again = stage.watch.add("jobs", stage.runtime.handle().clone());
    let again = again.unwrap_err().to_string();
    assert!(again.contains("being watched already"), "{again}");
}
