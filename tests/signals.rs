//! The signal that takes stacks is shared with the rest of the program: the handlers of others stay
//! theirs, and where that leaves no stacks, reports say why.
//!
//! A program of its own: a handler belongs to a process, and each test starts one for itself.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use support::child::alone;
use support::signal::{is_handled, mask};
use support::stage::{Setup, Stage};
use support::wait_until;
use tokio_stall::{
    Builder, Frame, FutureExt as _, Missing, NoStack, Stacks, StallReport, StartError,
};

static FOREIGN: AtomicU32 = AtomicU32::new(0);

/// Somebody else's handler.
extern "C" fn foreign(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    FOREIGN.fetch_add(1, Ordering::Relaxed);
}

/// The handler that `chaining` calls.
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

/// Installs this handler, for the alternate stack, and returns the one before.
fn install(signal: i32, handler: libc::sighandler_t) -> libc::sighandler_t {
    install_with(signal, handler, libc::SA_ONSTACK)
}

#[allow(unsafe_code)]
fn install_with(signal: i32, handler: libc::sighandler_t, flags: i32) -> libc::sighandler_t {
    // SAFETY: all-zero is a valid `sigaction`.
    let (mut new, mut old): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    new.sa_sigaction = handler;
    new.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | flags;
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

fn setup(stacks: Stacks) -> Setup {
    Stage::multi_thread(1).settings(|builder| builder.stacks(stacks))
}

fn start(stacks: Stacks) -> Stage {
    setup(stacks).start()
}

fn error(stacks: Stacks) -> StartError {
    let started = setup(stacks).try_start();
    started.err().expect("this must not start")
}

/// A thread that computes is asked by the signal.
fn computes(until_told: &Receiver<()>) {
    while until_told.try_recv() == Err(TryRecvError::Empty) {
        std::hint::spin_loop();
    }
}

/// A thread that sleeps needs none.
fn sleeps(until_told: &Receiver<()>) {
    until_told.recv().ok();
}

/// Has the worker compute until a report fits. Returns the last one.
fn stall(stage: &Stage, fits: impl Fn(&StallReport) -> bool) -> StallReport {
    let stall = stage.block_until("computes", fits, |until_told| computes(&until_told));
    stall.ended
}

fn is_in(function: &str) -> impl Fn(&StallReport) -> bool + Copy {
    move |report| {
        let site = report.site.as_ref();
        site.is_some_and(|site| site.function == function)
    }
}

/// The stack of a wait for a lock can be read without a signal. On aarch64 its call is made by a
/// function whose return address is in the link register, which is not to be seen.
const READS_LOCKS: bool = cfg!(target_arch = "x86_64");

const COMPUTES: &str = "signals::computes";
const SLEEPS: &str = "signals::sleeps";

/// Has the worker sleep until a report has its line.
fn asleep(stage: &Stage) -> StallReport {
    let stall = stage.block_until("sleeps", is_in(SLEEPS), |until_told| sleeps(&until_told));
    stall.told
}

fn without(why: NoStack) -> impl Fn(&StallReport) -> bool {
    move |report| report.missing.contains(&Missing::Stack(why))
}

#[track_caller]
fn assert_no_stack(report: &StallReport, why: NoStack) {
    assert!(without(why)(report), "{report:#?}");
    assert!(report.stacks.is_empty(), "{report:#?}");
    assert_eq!(report.site, None);
    let reason = Missing::Stack(why).to_string();
    assert!(report.to_string().contains(&reason), "{report}");
}

fn foreign_calls() -> u32 {
    FOREIGN.load(Ordering::Relaxed)
}

#[test]
fn a_signal_that_is_taken_is_left_alone() {
    alone(|| {
        install(libc::SIGURG, address(foreign));
        let stage = start(Stacks::Auto);
        let coverage = &stage.watch.coverage()[0];
        assert!(!coverage.stacks);
        assert!(
            coverage
                .to_string()
                .contains("stacks: no (the signal has another handler")
        );
        let ended = stall(&stage, without(NoStack::SignalTaken));
        assert_no_stack(&ended, NoStack::SignalTaken);
        let stacks = stage.watch.worker_stacks();
        assert_eq!(stacks[0].frames, Err(NoStack::SignalTaken));
        // No signal has been sent, and the handler is still there.
        assert_eq!(foreign_calls(), 0);
        raise(libc::SIGURG);
        assert_eq!(foreign_calls(), 1);
    });
}

#[test]
fn another_signal_is_as_good() {
    alone(|| {
        let ours = libc::SIGRTMIN() + 3;
        install(libc::SIGURG, address(foreign));
        let stage = start(Stacks::Signal(ours));
        assert!(stage.watch.coverage()[0].stacks);
        stall(&stage, is_in(COMPUTES));
        assert!(is_handled(ours));
        assert_eq!(installed(libc::SIGURG), address(foreign));
        assert_eq!(foreign_calls(), 0);
    });
}

#[test]
fn a_taken_signal_that_is_asked_for_is_an_error() {
    alone(|| {
        install(libc::SIGUSR1, address(foreign));
        let taken = error(Stacks::Signal(libc::SIGUSR1));
        assert!(
            matches!(taken, StartError::SignalTaken { signal } if signal == libc::SIGUSR1),
            "{taken:?}"
        );
        for fix in ["Stacks::Signal", "Stacks::Off"] {
            assert!(taken.to_string().contains(fix), "{taken}");
        }
        assert_eq!(installed(libc::SIGUSR1), address(foreign));
        // Positive control: the same signal once it is free.
        install(libc::SIGUSR1, libc::SIG_DFL);
        stall(&start(Stacks::Signal(libc::SIGUSR1)), is_in(COMPUTES));
    });
}

/// None at all, not to be handled, of a fault, the C library's own, beyond the last.
const UNUSABLE: [i32; 15] = [
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
];

#[test]
fn an_unusable_signal_is_an_error() {
    alone(|| {
        for signal in UNUSABLE {
            let unusable = error(Stacks::Signal(signal));
            assert!(
                matches!(unusable, StartError::SignalUnusable { signal: s } if s == signal),
                "{signal}: {unusable:?}"
            );
            for fix in ["Builder::stacks", "SIGRTMIN"] {
                assert!(unusable.to_string().contains(fix), "{unusable}");
            }
        }
        // Positive control: the first that is free, and the last.
        for signal in [libc::SIGRTMIN(), libc::SIGRTMAX()] {
            stall(&start(Stacks::Signal(signal)), is_in(COMPUTES));
        }
    });
}

/// Computes twice, the first time with the signal blocked.
fn blocks_the_signal(until_told: &Receiver<()>, and_again: &Receiver<()>) {
    mask(libc::SIG_BLOCK, libc::SIGURG);
    computes(until_told);
    mask(libc::SIG_UNBLOCK, libc::SIGURG);
    computes(and_again);
}

fn has_stack_of_blocking(report: &StallReport) -> bool {
    let mut frames = report.stacks.iter().flat_map(|stack| &stack.frames);
    let name = Some("signals::blocks_the_signal");
    frames.any(|frame: &Frame| frame.function.as_deref() == name)
}

#[test]
fn a_thread_that_blocks_the_signal_has_its_stack_later() {
    alone(|| {
        let stage = start(Stacks::Auto);
        let (send, until_told) = mpsc::channel();
        let (send_again, and_again) = mpsc::channel();
        let blocked = async move { blocks_the_signal(&until_told, &and_again) };
        let blocked = stage.runtime.spawn(blocked.watched("blocks_it"));
        // A reason of its own: the thread is not said to give no answer.
        let told = stage.seen.wait(without(NoStack::SignalBlocked));
        assert_no_stack(&told, NoStack::SignalBlocked);
        // The signal has been waiting for the thread. Let through, it brings the stack.
        drop(send);
        let is_it = |report: &StallReport| report.id == told.id && has_stack_of_blocking(report);
        let with_stack = stage.seen.wait(is_it);
        let is_stack = |missing: &Missing| matches!(missing, Missing::Stack(_));
        assert!(!with_stack.missing.iter().any(is_stack), "{with_stack:#?}");
        drop(send_again);
        stage.block_on(blocked).unwrap();
        let sleeps_deaf = |until_told: Receiver<()>| {
            mask(libc::SIG_BLOCK, libc::SIGURG);
            sleeps(&until_told);
            mask(libc::SIG_UNBLOCK, libc::SIGURG);
        };
        if READS_LOCKS {
            let slept = stage.block_until("deaf", is_in(SLEEPS), sleeps_deaf);
            assert!(slept.told.stacks[0].complete, "{:#?}", slept.told);
        }
        stall(&stage, is_in(COMPUTES));
        assert!(stage.watch.coverage()[0].stacks);
    });
}

#[test]
fn stacks_that_are_switched_off_install_no_handler() {
    alone(|| {
        let stage = start(Stacks::Off);
        assert!(!stage.watch.coverage()[0].stacks);
        let ended = stall(&stage, without(NoStack::Off));
        assert_no_stack(&ended, NoStack::Off);
        let stacks = stage.watch.worker_stacks();
        assert_eq!(stacks[0].frames, Err(NoStack::Off));
        assert!(!is_handled(libc::SIGURG));
        assert_eq!(installed(libc::SIGURG), libc::SIG_DFL);
        drop(stage);
        // Positive control: switched on, there is one, and it stays.
        let stage = start(Stacks::Auto);
        assert!(is_handled(libc::SIGURG));
        stall(&stage, is_in(COMPUTES));
        drop(stage);
        assert!(is_handled(libc::SIGURG));
        raise(libc::SIGURG);
    });
}

#[test]
fn a_signal_from_somebody_else_does_nothing() {
    alone(|| {
        let stage = start(Stacks::Auto);
        // To the process, to a thread without a watch, and to the worker, in a poll and before one.
        let send = || (0..100).for_each(|_| kill(libc::SIGURG));
        send();
        raise(libc::SIGURG);
        stage.run(async { raise(libc::SIGURG) });
        let ended = stall(&stage, |report| {
            send();
            is_in(COMPUTES)(report)
        });
        assert!(ended.stacks[0].complete, "{ended:#?}");
        send();
        stall(&stage, is_in(COMPUTES));
        // A thread without a CPU does not answer in time.
        wait_until("a stack", || stage.watch.worker_stacks()[0].frames.is_ok());
    });
}

/// The end of [`waits`]: a handler is given no more than the signal.
static UNTIL_TOLD: Mutex<Option<Receiver<()>>> = Mutex::new(None);

/// Somebody else's handler, which waits. It is called by `raise`, and so interrupts no lock.
extern "C" fn waits(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let until_told = UNTIL_TOLD.lock().unwrap().take();
    sleeps(&until_told.expect("it is raised by the poll"));
}

fn is_signal_return(frame: &Frame) -> bool {
    frame.function.as_deref() == Some("<signal handler called>")
}

#[test]
fn the_handler_of_another_signal_gives_no_advice() {
    alone(|| {
        let stage = start(Stacks::Auto);
        install_with(libc::SIGUSR1, address(waits), 0);
        let interrupted = stage.block_until("interrupted", is_in(SLEEPS), |until_told| {
            *UNTIL_TOLD.lock().unwrap() = Some(until_told);
            raise(libc::SIGUSR1);
        });
        let told = &interrupted.told;
        let frames = &told.stacks[0].frames;
        let signal = frames.iter().position(is_signal_return);
        assert!(signal.is_some_and(|at| at > 2), "{told:#?}");
        // Positive control: the same wait, and the poll's own.
        let of_the_code = |report: &StallReport| is_in(SLEEPS)(report) && !report.cause.is_host();
        let own = stage.block_until("stalls", of_the_code, |until_told| sleeps(&until_told));
        let own = own.told;
        let advice = own.advice.as_deref().expect("a wait for a channel");
        assert!(advice.contains("channel"), "{own}");
        assert!(!own.stacks[0].frames.iter().any(is_signal_return));
        assert_ne!(told.advice, own.advice, "{told}");
    });
}

#[test]
fn a_handler_that_replaces_ours_is_noticed_and_stays() {
    alone(|| {
        let stage = start(Stacks::Auto);
        stall(&stage, is_in(COMPUTES));
        let ours = install(libc::SIGURG, address(foreign));
        let ended = stall(&stage, without(NoStack::SignalTaken));
        assert_no_stack(&ended, NoStack::SignalTaken);
        // It may be one that calls ours, so it is tried, for the stall and for the coverage; but not
        // at each look.
        assert!(foreign_calls() <= 2);
        if READS_LOCKS {
            let before = foreign_calls();
            assert!(asleep(&stage).stacks[0].complete);
            assert_eq!(foreign_calls(), before, "a sleep is not disturbed");
        }
        assert_eq!(installed(libc::SIGURG), address(foreign));
        // Given back, ours takes stacks again.
        install(libc::SIGURG, ours);
        stall(&stage, is_in(COMPUTES));
    });
}

#[test]
fn a_handler_that_calls_ours_costs_no_stack() {
    alone(|| {
        let stage = start(Stacks::Auto);
        stall(&stage, is_in(COMPUTES));
        EARLIER.store(installed(libc::SIGURG), Ordering::Relaxed);
        install(libc::SIGURG, address(chaining));
        // The detector tries the handler that is new to it, before anything stalls.
        support::wait_until("a try", || foreign_calls() > 0);
        let before = foreign_calls();
        let ended = stall(&stage, is_in(COMPUTES));
        assert!(ended.stacks[0].complete, "{ended:#?}");
        assert!(foreign_calls() > before);
        assert!(stage.watch.coverage()[0].stacks);
    });
}

/// An installation does not last for ever.
#[test]
fn a_start_after_ours_was_replaced_knows_it() {
    alone(|| {
        for stacks in [Stacks::Auto, Stacks::Signal(libc::SIGUSR1)] {
            let stage = start(stacks);
            assert!(stage.watch.coverage()[0].stacks);
            stall(&stage, is_in(COMPUTES));
        }
        install(libc::SIGURG, address(foreign));
        let stage = start(Stacks::Auto);
        let coverage = &stage.watch.coverage()[0];
        assert!(!coverage.stacks, "{coverage}");
        drop(stage);
        install(libc::SIGUSR1, address(foreign));
        let taken = error(Stacks::Signal(libc::SIGUSR1));
        assert!(matches!(taken, StartError::SignalTaken { .. }), "{taken}");

        // Taken away, it is installed again.
        install(libc::SIGURG, libc::SIG_DFL);
        let stage = start(Stacks::Auto);
        assert!(stage.watch.coverage()[0].stacks);
        stall(&stage, is_in(COMPUTES));
        assert_eq!(foreign_calls(), 0);
    });
}

/// Most signals end a process without a handler.
#[test]
fn a_handler_taken_away_costs_stacks_and_not_the_process() {
    alone(|| {
        let ours = libc::SIGRTMIN() + 3;
        let stage = start(Stacks::Signal(ours));
        stall(&stage, is_in(COMPUTES));
        install(ours, libc::SIG_DFL);
        let ended = stall(&stage, without(NoStack::SignalTaken));
        assert_no_stack(&ended, NoStack::SignalTaken);
        // The coverage is found by a signal, too.
        let sees_none = || stage.watch.coverage()[0].no_stacks == Some(NoStack::SignalTaken);
        support::wait_until("a round that finds no handler", sees_none);
    });
}

/// The second watch must not take our own handler, just installed, for somebody else's.
#[test]
fn watches_that_start_at_once_share_the_signal() {
    alone(|| {
        // The signal is settled before the runtime is looked at: this error is as good as a
        // success, and quicker. Each signal has one first time.
        let gone = tokio::runtime::Runtime::new().unwrap();
        let handle = gone.handle().clone();
        gone.shutdown_timeout(support::FOREVER);
        for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
            // One a little behind the other, by another distance each time.
            let late = [0, signal - libc::SIGRTMIN()];
            let builders = late.map(|late| {
                let builder = Builder::new().runtime("gone", handle.clone());
                (builder.stacks(Stacks::Signal(signal)), late)
            });
            for error in start_at_once(builders) {
                assert!(
                    matches!(error, StartError::RuntimeShutDown { .. }),
                    "signal {signal}: {error}"
                );
            }
            assert!(is_handled(signal), "it was settled before");
        }
    });
}

/// Starts each on a thread of its own, after a spin of its length, and returns the errors.
fn start_at_once(builders: [(Builder, i32); 2]) -> Vec<StartError> {
    let ready = AtomicUsize::new(0);
    let start = |(builder, late): (Builder, i32)| {
        ready.fetch_add(1, Ordering::Relaxed);
        while ready.load(Ordering::Relaxed) < 2 {
            std::hint::spin_loop();
        }
        (0..late).for_each(|_| std::hint::spin_loop());
        builder.start().expect_err("its runtime is gone")
    };
    let start = &start;
    std::thread::scope(|scope| {
        let started = builders.map(|builder| scope.spawn(move || start(builder)));
        started.map(|thread| thread.join().unwrap()).into()
    })
}
