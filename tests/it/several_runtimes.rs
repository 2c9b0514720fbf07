//! Several runtimes at once, by name: multi-thread and `current_thread`, one guard or two.

use crate::support::stage::{Setup, Stage, sleeps};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_stall::{FutureExt as _, Phase, StallReport};

const LONG: Duration = Duration::from_millis(80);

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
    assert!(long.duration >= LONG);
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
