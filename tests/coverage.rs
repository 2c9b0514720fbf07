//! Coverage is what works: each thing that is taken away is missing in it, with the reason, and is
//! back when it is given back.
//!
//! A program of its own: handlers and sandboxes belong to a process, and each test starts one.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

mod support;

use std::time::Duration;
use support::child::alone;
use support::process::hide_proc;
use support::signal::forbid;
use support::stage::Stage;
use support::{assert_site, wait_until};
use tokio_stall::{Coverage, FutureExt as _, Missing, NoStack, Phase, StallReport};

fn coverage(stage: &Stage) -> Coverage {
    stage.watch.coverage().remove(0)
}

/// The sentence on a part that is not seen.
fn gap(coverage: &Coverage, sees: &str) -> Option<String> {
    let gaps = coverage.gaps();
    let found = gaps.into_iter().find(|gap| gap.sees == sees);
    found.map(|gap| gap.why)
}

/// The part is not seen, and both texts say why.
#[track_caller]
fn assert_gap(coverage: &Coverage, sees: &str, why: &str) {
    let gap = gap(coverage, sees).unwrap_or_else(|| panic!("no gap {sees}: {coverage}"));
    assert!(gap.contains(why), "{gap}");
    assert!(coverage.to_string().contains(&gap), "{coverage}");
}

/// A worker blocks, again and again, until the last report of such a stall has this reason for no
/// stack. Returns all reasons in it. Where threads are hidden, not each stall is believed; on a busy
/// machine, not each thread takes its signal in time.
fn missing(stage: &Stage, why: NoStack) -> Vec<Missing> {
    missing_of(stage, why, || {
        std::thread::sleep(Duration::from_millis(100))
    })
}

fn missing_of(
    stage: &Stage,
    why: NoStack,
    blocks: impl Fn() + Copy + Send + 'static,
) -> Vec<Missing> {
    let says_why = |report: &StallReport| {
        report.phase == Phase::Ended && report.missing.contains(&Missing::Stack(why))
    };
    wait_until(&format!("a report without a stack, as {why}"), || {
        stage.run(async move { blocks() }.watched("blocks"));
        stage.seen.all().iter().any(says_why)
    });
    let told = stage.seen.all().into_iter().find(says_why);
    told.unwrap().missing
}

/// Sets the handler of the default signal, and returns the one before.
#[allow(unsafe_code)]
fn set_handler(handler: Option<&libc::sigaction>) -> libc::sigaction {
    // SAFETY: all-zero is a valid `sigaction`: the default action.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    let new = handler.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both are complete, or null to leave the handler as it is.
    let failed = unsafe { libc::sigaction(libc::SIGURG, new, &raw mut before) };
    assert_eq!(failed, 0);
    before
}

#[allow(unsafe_code)]
fn action(handler: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: all-zero is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action
}

extern "C" fn foreign(_: libc::c_int) {}

#[test]
fn all_works_in_an_ordinary_process() {
    alone(|| {
        let stage = Stage::multi_thread(1).start();
        let coverage = coverage(&stage);
        assert!(coverage.stacks && coverage.thread_evidence && coverage.calls);
        let gaps: Vec<_> = coverage.gaps().iter().map(|gap| gap.sees).collect();
        let expected: &[&str] = match coverage.turns {
            true => &["polls", "spans", "block_on", "log"],
            false => &["polls", "spans", "turns", "block_on", "log"],
        };
        assert_eq!(gaps, expected, "{coverage}");
    });
}

#[test]
fn a_handler_that_is_replaced_ignored_or_reset_takes_stacks_away_until_it_is_back() {
    alone(|| {
        let stage = Stage::multi_thread(1).start();
        assert!(coverage(&stage).stacks, "{}", coverage(&stage));
        let another = foreign as extern "C" fn(_) as usize;
        for handler in [another, libc::SIG_IGN, libc::SIG_DFL] {
            let ours = set_handler(Some(&action(handler)));
            wait_until("a round without", || !coverage(&stage).stacks);
            let without = coverage(&stage);
            assert_eq!(without.no_stacks, Some(NoStack::SignalTaken));
            assert_gap(&without, "stacks", "`Stacks::Signal`");
            set_handler(Some(&ours));
            wait_until("a round with it", || coverage(&stage).stacks);
            assert_eq!(gap(&coverage(&stage), "stacks"), None);
        }
    });
}

#[cfg(feature = "prometheus")]
#[test]
fn the_gauge_shows_the_same() {
    use tokio_stall::prometheus::PrometheusBuilder;
    alone(|| {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let recorder = std::sync::Arc::new(recorder);
        let stage = Stage::multi_thread(1).settings(|builder| builder.recorder(recorder));
        let stage = stage.start();
        let sees = |part: &str, wanted: f64| {
            support::scraped::wait_for(
                || Some(support::scraped::Scraped::parse(&handle.render())),
                |scraped| {
                    let label = format!("sees=\"{part}\"");
                    let labels = [label.as_str()];
                    let mut found = scraped.with("tokio_stall_coverage", &labels);
                    found.next().is_some_and(|(_, seen)| seen == wanted)
                },
            );
        };
        sees("stacks", 1.0);
        let ours = set_handler(Some(&action(libc::SIG_IGN)));
        sees("stacks", 0.0);
        sees("causes", 1.0);
        sees("calls", 1.0);
        set_handler(Some(&ours));
        sees("stacks", 1.0);
        drop(stage);
        sees("stacks", 0.0);
    });
}

#[test]
fn a_thread_that_must_not_be_signalled_is_a_reason_of_its_own() {
    alone(|| {
        forbid(libc::SYS_tgkill).unwrap();
        let stage = Stage::multi_thread(1).start();
        assert_gap(&coverage(&stage), "stacks", "allow `tgkill`");
        let computes = || support::load::compute(Duration::from_millis(100));
        missing_of(&stage, NoStack::SignalForbidden, computes);
        // Nor need it be, if it sleeps; on aarch64, a wait for a lock needs the signal.
        if cfg!(target_arch = "aarch64") {
            return;
        }
        let asleep = stage.block_until_reported("sleeps", |until_told| {
            until_told.recv().ok();
        });
        assert!(!asleep.ended.stacks.is_empty(), "{:#?}", asleep.ended);
    });
}

/// The file of the process's memory is as good. The site is the line that waits, and not a call
/// further out.
#[test]
fn memory_that_is_read_from_the_file_is_no_gap() {
    const WAITS: u32 = line!() + 6;
    alone(|| {
        forbid(libc::SYS_process_vm_readv).unwrap();
        let stage = Stage::multi_thread(1).start();
        assert_eq!(gap(&coverage(&stage), "stacks"), None);
        let stall = stage.block_until_reported("blocks", |until_told| {
            until_told.recv().ok();
        });
        assert!(!stall.ended.stacks.is_empty(), "{:#?}", stall.ended);
        let name = "coverage::memory_that_is_read_from_the_file_is_no_gap";
        assert_site(&stall.ended, file!(), WAITS, name);
        let missing = &stall.ended.missing;
        assert!(!missing.contains(&Missing::GuessedSite), "{missing:?}");
    });
}

#[test]
fn files_that_cannot_be_read_are_no_evidence_and_explain_no_stack() {
    alone(|| {
        forbid(libc::SYS_pread64).unwrap();
        forbid(libc::SYS_process_vm_readv).unwrap();
        let stage = Stage::multi_thread(1).start();
        let coverage = coverage(&stage);
        assert!(!coverage.thread_evidence, "{coverage}");
        assert_gap(&coverage, "causes", "allow `pread64`");
        assert_gap(&coverage, "calls", "allow `pread64`");
        assert_gap(&coverage, "stacks", "allow `process_vm_readv`");
        let missing = missing(&stage, NoStack::Forbidden);
        assert!(!missing.contains(&Missing::NoDebugInfo), "{missing:?}");
    });
}

#[test]
fn without_proc_there_is_no_evidence_and_no_stack_is_explained() {
    alone(|| {
        if !hide_proc() {
            eprintln!("NOT TRIED: hiding /proc needs CAP_SYS_ADMIN");
            return;
        }
        let stage = Stage::multi_thread(1).start();
        let coverage = coverage(&stage);
        assert!(!coverage.thread_evidence && !coverage.calls, "{coverage}");
        assert_gap(&coverage, "causes", "mount `/proc`");
        assert_gap(&coverage, "stacks", "mount `/proc`");
        let missing = missing(&stage, NoStack::NoMaps);
        assert!(!missing.contains(&Missing::NoDebugInfo), "{missing:?}");
    });
}

/// Sets whether this process may be dumped. A change of user takes that away.
#[allow(unsafe_code)]
fn set_dumpable(dumpable: libc::c_ulong) {
    // SAFETY: changes a flag of this process.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, dumpable) }, 0);
}

/// Changes the user of this process, as services do after their start. Returns false if that needs
/// more rights than there are.
#[allow(unsafe_code)]
fn become_nobody() -> bool {
    // SAFETY: changes the user of this process.
    unsafe { libc::setgid(65_534) == 0 && libc::setuid(65_534) == 0 }
}

#[test]
fn half_of_the_evidence_is_called_half() {
    alone(|| {
        let stage = Stage::multi_thread(1).start();
        assert!(coverage(&stage).calls);
        if !become_nobody() {
            eprintln!("NOT TRIED: a change of user needs CAP_SETUID");
            return;
        }
        wait_until("a round without calls", || !coverage(&stage).calls);
        let half = coverage(&stage);
        assert!(half.thread_evidence, "{half}");
        assert!(half.to_string().contains("thread evidence: without calls"));
        assert_gap(&half, "calls", "PR_SET_DUMPABLE");
        assert_eq!(gap(&half, "causes"), None);
        // The fix helps.
        set_dumpable(1);
        wait_until("a round with calls", || coverage(&stage).calls);
    });
}

/// A thread with a runtime of its own that polls marked tasks, as of actix, until it is dropped.
struct Arbiter {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Arbiter {
    fn start(name: &str) -> Arbiter {
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let main = move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let requests = async {
                while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                    async {}.watched("request").await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            runtime.block_on(requests);
        };
        let thread = std::thread::Builder::new().name(name.to_owned());
        Arbiter {
            stop: Some(stop),
            thread: Some(thread.spawn(main).unwrap()),
        }
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

#[test]
fn runtimes_that_nobody_watches_are_named_while_they_poll() {
    alone(|| {
        // A runtime that is gone when the watch starts: its claim stays on this thread.
        let gone = tokio::runtime::Builder::new_current_thread().build();
        gone.unwrap().block_on(async {}.watched("request"));
        let arbiters = ["arbiter:0", "arbiter:1"].map(Arbiter::start);
        let stage = Stage::multi_thread(1).start();
        let others = || coverage(&stage).other_runtimes;
        wait_until("both", || others().len() == 2);
        let mut names: Vec<_> = others().into_iter().flat_map(|of| of.threads).collect();
        names.sort();
        assert_eq!(names, ["arbiter:0", "arbiter:1"]);
        assert_gap(
            &coverage(&stage),
            "runtimes",
            "2 other runtimes are not watched",
        );
        assert_gap(&coverage(&stage), "runtimes", "`Builder::runtime`");
        drop(arbiters);
        wait_until("none", || others().is_empty());
        assert_eq!(gap(&coverage(&stage), "runtimes"), None);
    });
}

/// The pair of the test above.
#[test]
fn runtimes_that_are_watched_are_no_other_runtimes() {
    alone(|| {
        let first = Stage::multi_thread(1).named("first").start();
        let second = Stage::current_thread().named("second").start();
        let _other = Arbiter::start("other");
        wait_until("the other one", || {
            for stage in [&first, &second] {
                let polls = async {
                    async {}.watched("request").await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                };
                stage.block_on(stage.runtime.spawn(polls)).unwrap();
            }
            !coverage(&first).other_runtimes.is_empty()
        });
        for stage in [&first, &second] {
            wait_until("the same list", || {
                coverage(stage).other_runtimes.len() == 1
            });
            assert_eq!(coverage(stage).other_runtimes[0].threads, ["other"]);
        }
    });
}
