//! The signal that takes stacks is shared with the rest of the program: what others have is left to them,
//! and where that means that there are no stacks, reports say why.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

mod seen;

use seen::{Seen, child};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use tokio::runtime::Runtime;
use tokio_stall::{
    Builder, Frame, FutureExt as _, Guard, Missing, NoStack, Stacks, StallReport, StartError,
};

const CHILD: &str = "TOKIO_STALL_TEST_SIGNALS_CHILD";

/// A signal's handler belongs to the process, so each test has one of its own.
#[track_caller]
fn alone(test: &str, body: impl FnOnce()) {
    if child::is_here(CHILD) {
        return body();
    }
    child::assert_said(child::start(test, CHILD), "1 passed");
}

static FOREIGN: AtomicU32 = AtomicU32::new(0);

/// Somebody else's handler.
extern "C" fn foreign(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    FOREIGN.fetch_add(1, Ordering::Relaxed);
}

/// The handler that [`chaining`] calls.
static EARLIER: AtomicUsize = AtomicUsize::new(0);

/// Somebody else's handler, which calls the one that it has replaced.
#[allow(unsafe_code)]
extern "C" fn chaining(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    FOREIGN.fetch_add(1, Ordering::Relaxed);
    let earlier = EARLIER.load(Ordering::Relaxed);
    // SAFETY: the address of the handler that was installed before this one, with these arguments.
    let earlier = unsafe { std::mem::transmute::<usize, Handler>(earlier) };
    earlier(signal, info, context);
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Installs this handler and returns the one before.
#[allow(unsafe_code)]
fn install(signal: i32, handler: libc::sighandler_t) -> libc::sighandler_t {
    // SAFETY: all-zero is a valid `sigaction`.
    let (mut new, mut old): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    new.sa_sigaction = handler;
    new.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: both are complete; the handlers of this file keep to what is safe in one.
    let failed = unsafe { libc::sigaction(signal, &raw const new, &raw mut old) };
    assert_eq!(failed, 0);
    old.sa_sigaction
}

/// The handler that is installed now.
#[allow(unsafe_code)]
fn installed(signal: i32) -> libc::sighandler_t {
    // SAFETY: as above.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks only.
    let failed = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut now) };
    assert_eq!(failed, 0);
    now.sa_sigaction
}

fn address(handler: Handler) -> libc::sighandler_t {
    handler as usize
}

/// Sends this signal to the whole process.
#[allow(unsafe_code)]
fn kill(signal: i32) {
    // SAFETY: the signal is handled, or ignored by default.
    assert_eq!(unsafe { libc::kill(libc::getpid(), signal) }, 0);
}

/// Sends this signal to the calling thread, which has taken it by the end.
#[allow(unsafe_code)]
fn raise(signal: i32) {
    // SAFETY: as above.
    assert_eq!(unsafe { libc::raise(signal) }, 0);
}

/// Blocks a signal for the calling thread, or unblocks it.
#[allow(unsafe_code)]
fn mask(how: libc::c_int, signal: i32) {
    // SAFETY: all-zero is a valid set, which is emptied, and has a valid signal added.
    let changed = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut())
    };
    assert_eq!(changed, 0);
}

/// Whether this process handles a signal, as the kernel says.
fn is_handled(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    caught & (1 << (signal - 1)) != 0
}

fn one_worker() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap()
}

fn start(runtime: &Runtime, stacks: Stacks) -> Result<(Guard, Seen), StartError> {
    let (builder, seen) = Seen::builder();
    let builder = builder.runtime("api", runtime.handle().clone());
    Ok((builder.stacks(stacks).start()?, seen))
}

fn error(runtime: &Runtime, stacks: Stacks) -> StartError {
    let started = start(runtime, stacks);
    started.err().expect("this must not start")
}

fn blocks(until_told: &Receiver<()>) {
    until_told.recv().ok();
}

/// Has the worker block until we have been told of it what `fits`.
fn stall(runtime: &Runtime, seen: &Seen, fits: impl Fn(&StallReport) -> bool) -> StallReport {
    let (send, until_told) = mpsc::channel();
    let earlier = seen.all().last().map_or(0, |report| report.id);
    let blocked = runtime.spawn(async move { blocks(&until_told) }.watched("blocks"));
    let told = seen.wait(|report| report.id > earlier && fits(report));
    drop(send);
    runtime.block_on(blocked).unwrap();
    seen.wait_for_end(told.id)
}

fn is_in_blocks(report: &StallReport) -> bool {
    let site = report.site.as_ref();
    site.is_some_and(|site| site.function == "signals::blocks")
}

fn without(why: NoStack) -> impl Fn(&StallReport) -> bool {
    move |report| report.missing.contains(&Missing::Stack(why))
}

#[track_caller]
fn assert_no_stack(report: &StallReport, why: NoStack) {
    assert!(without(why)(report), "{report:#?}");
    assert!(report.stacks.is_empty(), "{report:#?}");
    assert_eq!(report.site, None);
    assert!(
        report
            .to_string()
            .contains(&Missing::Stack(why).to_string()),
        "{report}"
    );
}

#[test]
fn a_signal_that_is_taken_is_left_alone() {
    alone("a_signal_that_is_taken_is_left_alone", || {
        install(libc::SIGURG, address(foreign));
        let runtime = one_worker();
        let (watch, seen) = start(&runtime, Stacks::Auto).expect("it works without stacks");
        assert!(!watch.coverage()[0].stacks);
        assert!(watch.coverage()[0].to_string().contains("stacks: no;"));
        let ended = stall(&runtime, &seen, without(NoStack::SignalTaken));
        assert_no_stack(&ended, NoStack::SignalTaken);
        let stacks = watch.worker_stacks();
        assert_eq!(stacks[0].frames, Err(NoStack::SignalTaken));
        // Nobody has been sent anything, and it is still there.
        assert_eq!(FOREIGN.load(Ordering::Relaxed), 0);
        raise(libc::SIGURG);
        assert_eq!(FOREIGN.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn another_signal_is_as_good() {
    alone("another_signal_is_as_good", || {
        let ours = libc::SIGRTMIN() + 3;
        install(libc::SIGURG, address(foreign));
        let runtime = one_worker();
        let (watch, seen) = start(&runtime, Stacks::Signal(ours)).unwrap();
        assert!(watch.coverage()[0].stacks);
        stall(&runtime, &seen, is_in_blocks);
        assert!(is_handled(ours));
        assert_eq!(installed(libc::SIGURG), address(foreign));
        assert_eq!(FOREIGN.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn to_ask_for_a_signal_that_is_taken_is_an_error() {
    alone("to_ask_for_a_signal_that_is_taken_is_an_error", || {
        install(libc::SIGUSR1, address(foreign));
        let runtime = one_worker();
        let taken = error(&runtime, Stacks::Signal(libc::SIGUSR1));
        assert!(
            matches!(taken, StartError::SignalTaken { signal } if signal == libc::SIGUSR1),
            "{taken:?}"
        );
        for mend in ["Stacks::Signal", "Stacks::Off"] {
            assert!(taken.to_string().contains(mend), "{taken}");
        }
        assert_eq!(installed(libc::SIGUSR1), address(foreign));
        // Positive control: the same signal once it is free.
        install(libc::SIGUSR1, libc::SIG_DFL);
        let (_watch, seen) = start(&runtime, Stacks::Signal(libc::SIGUSR1)).unwrap();
        stall(&runtime, &seen, is_in_blocks);
    });
}

#[test]
fn to_ask_for_a_signal_that_cannot_be_had_is_an_error() {
    alone("to_ask_for_a_signal_that_cannot_be_had_is_an_error", || {
        let runtime = one_worker();
        // None at all, not to be handled, of a fault, the C library's own, beyond the last.
        for signal in [
            i32::MIN,
            -1,
            0,
            9,
            19,
            4,
            5,
            6,
            7,
            8,
            11,
            32,
            33,
            65,
            i32::MAX,
        ] {
            let unusable = error(&runtime, Stacks::Signal(signal));
            assert!(
                matches!(unusable, StartError::SignalUnusable { signal: s } if s == signal),
                "{signal}: {unusable:?}"
            );
            for mend in ["Builder::stacks", "SIGRTMIN"] {
                assert!(unusable.to_string().contains(mend), "{unusable}");
            }
        }
        // Positive control: the first that is free, and the last.
        for signal in [libc::SIGRTMIN(), libc::SIGRTMAX()] {
            let (_watch, seen) = start(&runtime, Stacks::Signal(signal)).unwrap();
            stall(&runtime, &seen, is_in_blocks);
        }
    });
}

/// The same call twice, the first time with the signal blocked.
fn blocks_the_signal(until_told: &Receiver<()>, and_again: &Receiver<()>) {
    mask(libc::SIG_BLOCK, libc::SIGURG);
    until_told.recv().ok();
    mask(libc::SIG_UNBLOCK, libc::SIGURG);
    and_again.recv().ok();
}

#[test]
fn a_thread_that_has_blocked_the_signal_is_told_from_one_that_does_not_answer() {
    let name = "a_thread_that_has_blocked_the_signal_is_told_from_one_that_does_not_answer";
    alone(name, || {
        let runtime = one_worker();
        let (watch, seen) = start(&runtime, Stacks::Auto).unwrap();
        let (send, until_told) = mpsc::channel();
        let (send_again, and_again) = mpsc::channel();
        let blocked = runtime
            .spawn(async move { blocks_the_signal(&until_told, &and_again) }.watched("blocks_it"));
        let told = seen.wait(without(NoStack::SignalBlocked));
        assert_no_stack(&told, NoStack::SignalBlocked);
        // The signal has been waiting for the thread. Once it is let through, the stack is there.
        drop(send);
        let with_stack = seen.wait(|report| {
            let mut frames = report.stacks.iter().flat_map(|stack| &stack.frames);
            let is_there =
                |frame: &Frame| frame.function.as_deref() == Some("signals::blocks_the_signal");
            report.id == told.id && frames.any(is_there)
        });
        let still_missing = |missing: &Missing| matches!(missing, Missing::Stack(_));
        assert!(
            !with_stack.missing.iter().any(still_missing),
            "{with_stack:#?}"
        );
        drop(send_again);
        runtime.block_on(blocked).unwrap();
        stall(&runtime, &seen, is_in_blocks);
        assert!(watch.coverage()[0].stacks);
    });
}

#[test]
fn switched_off_there_is_no_handler() {
    alone("switched_off_there_is_no_handler", || {
        let runtime = one_worker();
        let (watch, seen) = start(&runtime, Stacks::Off).unwrap();
        assert!(!watch.coverage()[0].stacks);
        let ended = stall(&runtime, &seen, without(NoStack::Off));
        assert_no_stack(&ended, NoStack::Off);
        assert_eq!(watch.worker_stacks()[0].frames, Err(NoStack::Off));
        assert!(!is_handled(libc::SIGURG));
        assert_eq!(installed(libc::SIGURG), libc::SIG_DFL);
        drop(watch);
        // Positive control: switched on, there is one, and it stays.
        let (watch, seen) = start(&runtime, Stacks::Auto).unwrap();
        assert!(is_handled(libc::SIGURG));
        stall(&runtime, &seen, is_in_blocks);
        drop(watch);
        assert!(is_handled(libc::SIGURG));
        raise(libc::SIGURG);
    });
}

#[test]
fn a_signal_from_somebody_else_does_nothing() {
    alone("a_signal_from_somebody_else_does_nothing", || {
        let runtime = one_worker();
        let (watch, seen) = start(&runtime, Stacks::Auto).unwrap();
        // To the process, to a thread that we do not watch, and to the worker, in a poll and before one.
        let send = || (0..100).for_each(|_| kill(libc::SIGURG));
        send();
        raise(libc::SIGURG);
        runtime
            .block_on(runtime.spawn(async { raise(libc::SIGURG) }))
            .unwrap();
        let ended = stall(&runtime, &seen, |report| {
            send();
            is_in_blocks(report)
        });
        assert!(ended.stacks[0].complete, "{ended:#?}");
        send();
        stall(&runtime, &seen, is_in_blocks);
        assert!(watch.worker_stacks()[0].frames.is_ok());
    });
}

#[test]
fn a_handler_that_replaces_ours_is_noticed() {
    alone("a_handler_that_replaces_ours_is_noticed", || {
        let runtime = one_worker();
        let (_watch, seen) = start(&runtime, Stacks::Auto).unwrap();
        stall(&runtime, &seen, is_in_blocks);
        let ours = install(libc::SIGURG, address(foreign));
        let ended = stall(&runtime, &seen, without(NoStack::SignalTaken));
        assert_no_stack(&ended, NoStack::SignalTaken);
        // It may be one that calls ours, so it is tried; but not each time the stall is looked at.
        assert!(FOREIGN.load(Ordering::Relaxed) <= 1);
        // We do not take it back; but who gives it back has stacks again.
        assert_eq!(installed(libc::SIGURG), address(foreign));
        install(libc::SIGURG, ours);
        stall(&runtime, &seen, is_in_blocks);
        // And who calls ours has never lost them.
        EARLIER.store(ours, Ordering::Relaxed);
        install(libc::SIGURG, address(chaining));
        let before = FOREIGN.load(Ordering::Relaxed);
        let ended = stall(&runtime, &seen, is_in_blocks);
        assert!(ended.stacks[0].complete, "{ended:#?}");
        assert!(FOREIGN.load(Ordering::Relaxed) > before);
    });
}

/// Once installed is not installed for ever.
#[test]
fn a_watch_that_starts_after_ours_was_replaced_knows_it() {
    alone(
        "a_watch_that_starts_after_ours_was_replaced_knows_it",
        || {
            let runtime = one_worker();
            for stacks in [Stacks::Auto, Stacks::Signal(libc::SIGUSR1)] {
                let (watch, seen) = start(&runtime, stacks).unwrap();
                assert!(watch.coverage()[0].stacks);
                stall(&runtime, &seen, is_in_blocks);
            }
            install(libc::SIGURG, address(foreign));
            let (watch, _) = start(&runtime, Stacks::Auto).unwrap();
            assert!(!watch.coverage()[0].stacks, "{}", watch.coverage()[0]);
            drop(watch);
            install(libc::SIGUSR1, address(foreign));
            let taken = error(&runtime, Stacks::Signal(libc::SIGUSR1));
            assert!(matches!(taken, StartError::SignalTaken { .. }), "{taken}");

            // Taken away, it is installed again.
            install(libc::SIGURG, libc::SIG_DFL);
            let (watch, seen) = start(&runtime, Stacks::Auto).unwrap();
            assert!(watch.coverage()[0].stacks);
            stall(&runtime, &seen, is_in_blocks);
            assert_eq!(FOREIGN.load(Ordering::Relaxed), 0);
        },
    );
}

/// Most signals end the process where nobody handles them.
#[test]
fn a_handler_that_is_taken_away_costs_stacks_and_not_the_process() {
    let name = "a_handler_that_is_taken_away_costs_stacks_and_not_the_process";
    alone(name, || {
        let runtime = one_worker();
        let ours = libc::SIGRTMIN() + 3;
        let (_watch, seen) = start(&runtime, Stacks::Signal(ours)).unwrap();
        stall(&runtime, &seen, is_in_blocks);
        install(ours, libc::SIG_DFL);
        let ended = stall(&runtime, &seen, without(NoStack::SignalTaken));
        assert_no_stack(&ended, NoStack::SignalTaken);
    });
}

/// Whoever comes second must not take our own handler, just installed, for somebody else's.
#[test]
fn watches_that_start_at_once_share_the_signal() {
    alone("watches_that_start_at_once_share_the_signal", || {
        const THREADS: usize = 2;
        // The signal is settled before the runtime is looked at: this error is as good as a success, and
        // quicker. Each signal has one first time.
        let gone = one_worker();
        let handle = gone.handle().clone();
        gone.shutdown_timeout(seen::FOREVER);
        for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
            let ready = AtomicUsize::new(0);
            let start = &|late: i32| {
                let builder = Builder::new().runtime("gone", handle.clone());
                ready.fetch_add(1, Ordering::Relaxed);
                while ready.load(Ordering::Relaxed) < THREADS {
                    std::hint::spin_loop();
                }
                // One a little behind the other, by another distance each time.
                (0..late).for_each(|_| std::hint::spin_loop());
                let error = builder.stacks(Stacks::Signal(signal)).start();
                error.expect_err("its runtime is gone")
            };
            std::thread::scope(|scope| {
                let late = [0, signal - libc::SIGRTMIN()];
                let started = late.map(|late| scope.spawn(move || start(late)));
                for started in started {
                    let error = started.join().unwrap();
                    assert!(
                        matches!(error, StartError::RuntimeShutDown { .. }),
                        "signal {signal}: {error}"
                    );
                }
            });
            assert!(is_handled(signal), "it was settled before");
        }
    });
}
