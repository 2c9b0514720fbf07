//! Stacks are taken as fast as possible from threads that do everything that has crashed or
//! deadlocked samplers. Nothing crashes, nothing hangs, and each stack that is called complete ends
//! at its thread's root.
//!
//! `TOKIO_STALL_TORTURE=100000` takes so many stacks. Without it the test takes some eight seconds.
//!
//! A program of its own: it has signal handlers, forks, and a panic hook.
#![cfg(all(
    feature = "stacks",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
// Forks, signal handlers, `errno` and calls into libraries are unsafe, and this file is for them.
#![allow(unsafe_code)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hint::black_box;
use std::panic::catch_unwind;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use support::FOREVER;
use support::load::compute;
use support::signal::forbid_process_vm_readv;
use support::stage::{Setup, Stage};
use tokio_stall::{Frame, FutureExt as _, WorkerStack};

/// The variable with the number of stacks to take.
const HOW_MANY: &str = "TOKIO_STALL_TORTURE";
/// Without a number: so many, or for so long.
const MOST: u64 = 20_000;
const LONGEST: Duration = Duration::from_secs(8);
/// Fewer prove nothing.
const FEWEST: u64 = 500;
/// Without one more stack for so long, something is stuck for ever.
const STUCK: Duration = Duration::from_secs(60);

/// Calls of a stack that are copied, at most.
const DEEPEST: usize = 512;

type Torture = fn(&mut Luck);

/// The tortures of the workers, in turn. Each function is looked for on the stacks by its name.
const TORTURES: [(&str, Torture); 11] = [
    ("allocates", allocates),
    ("panics", panics),
    ("loads_libraries", loads_libraries),
    ("recurses", recurses),
    ("switches_stacks", switches_stacks),
    ("forks", forks),
    ("starts_threads", starts_threads),
    ("sleeps", sleeps),
    ("takes_backtraces", takes_backtraces),
    ("swaps_signal_stacks", swaps_signal_stacks),
    ("keeps_errno", keeps_errno),
];
/// Not in turn, but at any time.
const ALSO: [&str; 3] = ["inside_a_handler", "raised_by_itself", "lives_briefly"];

static STOP: AtomicBool = AtomicBool::new(false);
static TAKEN: AtomicU64 = AtomicU64::new(0);
static TALLY: Mutex<Tally> = Mutex::new(Tally::NONE);

static ERRNO_CHANGED: AtomicU64 = AtomicU64::new(0);
static ERRNO_KEPT: AtomicU64 = AtomicU64::new(0);
static PANICS: AtomicU64 = AtomicU64::new(0);
static UNLOADED: AtomicU64 = AtomicU64::new(0);
static CHILDREN: AtomicU64 = AtomicU64::new(0);
static RUNTIMES: AtomicU64 = AtomicU64::new(0);
static HANDLED: AtomicU64 = AtomicU64::new(0);
static FOREIGN: AtomicU64 = AtomicU64::new(0);

/// The number of stacks that the caller of the test wants.
fn wanted() -> Option<u64> {
    std::env::var(HOW_MANY).ok().map(|number| {
        let number = number.parse::<u64>();
        number.unwrap_or_else(|_| panic!("{HOW_MANY} is a number of stacks"))
    })
}

/// The panics of the tortures are many, and nobody needs to read of them.
fn hide_panics_on_purpose() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<&str>() != Some(&ON_PURPOSE) {
            hook(panic);
        }
    }));
}

fn rarely_stalled(setup: Setup) -> Setup {
    setup.settings(|builder| builder.threshold(Duration::from_secs(1)).log(false))
}

fn tortured() -> Stage {
    let stage = Stage::multi_thread(4).named("tortured").runtime(|builder| {
        builder
            .thread_stack_size(4 * 1024 * 1024)
            // Threads that have handed their worker over end soon, so that their numbers are used
            // again.
            .thread_keep_alive(Duration::from_millis(5))
            .on_thread_start(|| threads().push(tid()))
            .on_thread_stop(|| threads().retain(|thread| *thread != tid()))
    });
    rarely_stalled(stage).start()
}

/// Takes stacks until there are enough. Returns the time that this took.
fn take_stacks(stage: &Stage, wanted: Option<u64>) -> Duration {
    let start = Instant::now();
    let enough = || {
        let (taken, time) = (TAKEN.load(Ordering::Relaxed), start.elapsed());
        let most = wanted.unwrap_or(MOST);
        // The clock counts only once there is enough to prove something; for ever is for ever.
        let proven = || taken >= FEWEST && tally().never_seen().is_empty();
        taken >= most || wanted.is_none() && time >= LONGEST && (proven() || time >= FOREVER * 2)
    };
    while !enough() {
        count(&stage.watch.worker_stacks());
    }
    start.elapsed()
}

#[test]
fn no_torture_breaks_the_capture_or_gives_a_wrong_root() {
    let wanted = wanted();
    hide_panics_on_purpose();
    find_libraries();
    handle(libc::SIGUSR1, inside_a_handler);
    handle(libc::SIGUSR2, raised_by_itself);

    let stage = tortured();
    let watchdog = thread::spawn(abort_when_stuck);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| stage.runtime.spawn(suffers(task).watched("tortured")))
        .collect();
    let others = [thread::spawn(signals), thread::spawn(lives_come_and_go)];
    let took = take_stacks(&stage, wanted);

    STOP.store(true, Ordering::Relaxed);
    let ended = tasks.into_iter().map(|task| stage.block_on(task));
    let failed: Vec<_> = ended.filter_map(Result::err).collect();
    let others = others.map(thread::JoinHandle::join);
    drop(stage);
    watchdog.thread().unpark();
    watchdog.join().unwrap();

    println!("{took:?} of torture\n{}", tally().text());
    assert!(failed.is_empty(), "a torture itself failed: {failed:?}");
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    assert_well(wanted);
}

/// Nothing went wrong, and enough was done to show it.
fn assert_well(wanted: Option<u64>) {
    let tally = tally();
    for kind in [WRONG_ROOT, MIXED, GAP] {
        assert_eq!(tally.odd(kind), 0, "stacks {kind}");
    }
    assert_eq!(ERRNO_CHANGED.load(Ordering::Relaxed), 0, "errno changed");
    let fewest = wanted.unwrap_or(FEWEST).min(FEWEST);
    let taken = TAKEN.load(Ordering::Relaxed);
    assert!(taken >= fewest, "{taken} stacks prove nothing");
    // Positive control: each torture was on the stacks, and stacks can be complete at all.
    assert!(tally.complete * 4 > taken, "few stacks are complete");
    let never = tally.never_seen();
    assert!(taken < FEWEST || never.is_empty(), "never seen: {never:?}");
}

// ── The tortured ────────────────────────────────────────────────────────────────────────────────

/// More than there are workers: some sleep.
const TASKS: usize = 6;
/// How long one turn takes, except where it is one long call.
const TURN: Duration = Duration::from_millis(1);

/// One torture after the other, for ever, on whichever worker is free.
async fn suffers(task: usize) {
    let mut luck = Luck(task as u64 + 1);
    // Each begins elsewhere, so that different ones meet.
    let mut turn = task * 2;
    while !STOP.load(Ordering::Relaxed) {
        let (_, torture) = TORTURES[turn % TORTURES.len()];
        torture(&mut luck);
        turn += 1;
        // Now and then the worker parks. That is a torture, too, and leaves some CPU to the others.
        if turn % 3 == 0 {
            tokio::time::sleep(TURN).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// Numbers that differ, and are the same each time.
struct Luck(u64);

impl Luck {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }
}

fn for_a_turn(mut round: impl FnMut()) {
    let start = Instant::now();
    while start.elapsed() < TURN {
        round();
    }
}

const ON_PURPOSE: &str = "on purpose";

/// In the allocator, its locks and its system calls.
#[inline(never)]
fn allocates(luck: &mut Luck) {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for_a_turn(|| {
        let size = 1 << luck.below(19);
        kept.push(vec![1; luck.below(size) + 1]);
        let one = luck.below(kept.len());
        kept[one].reserve_exact(size);
        kept[one].shrink_to_fit();
        black_box(Box::new(one));
        if kept.len() > 32 {
            kept.swap_remove(one);
        }
    });
}

/// While the unwinder itself walks the stack, and while a value that it drops panics, too.
#[inline(never)]
fn panics(luck: &mut Luck) {
    struct Drops {
        panics: bool,
    }
    impl Drop for Drops {
        fn drop(&mut self) {
            // One that got out of a drop during a panic would end the program.
            if self.panics {
                assert!(catch_unwind(|| falls(3, 0)).is_err());
            }
        }
    }
    #[inline(never)]
    fn falls(depth: usize, panicking: usize) {
        let _drops = Drops {
            panics: depth < panicking,
        };
        if depth == 0 {
            PANICS.fetch_add(1, Ordering::Relaxed);
            std::panic::panic_any(ON_PURPOSE);
        }
        falls(depth - 1, panicking);
        black_box(depth);
    }
    for_a_turn(|| {
        let (depth, panicking) = (luck.below(20), luck.below(3));
        assert!(catch_unwind(|| falls(depth, panicking)).is_err());
    });
}

/// While the loader's lock is held, and in code that is there one moment and gone the next.
#[inline(never)]
fn loads_libraries(luck: &mut Luck) {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    /// In glibc and musl alike.
    const RTLD_NOLOAD: libc::c_int = 4;
    type Checksum = unsafe extern "C" fn(libc::c_ulong, *const u8, libc::c_uint) -> libc::c_ulong;
    type ChecksumXz = unsafe extern "C" fn(*const u8, usize, u32) -> u32;
    type Cosine = unsafe extern "C" fn(f64) -> f64;

    let bytes = [7_u8; 16 * 1024];
    for_a_turn(|| {
        let found = libraries();
        let name = found[luck.below(found.len())];
        drop(found);
        // SAFETY: the libraries of the list do nothing when they are loaded or unloaded.
        let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.unwrap();
        for _ in 0..8 {
            // SAFETY: the functions have these types, according to their manuals, and read no
            // further than `bytes` is long. Each is over before its library is unloaded.
            unsafe {
                match name {
                    "libz.so.1" => {
                        let adler32 = library.get::<Checksum>(b"adler32").unwrap();
                        black_box(adler32(1, bytes.as_ptr(), bytes.len() as u32));
                    }
                    "liblzma.so.5" => {
                        let crc32 = library.get::<ChecksumXz>(b"lzma_crc32").unwrap();
                        black_box(crc32(bytes.as_ptr(), bytes.len(), 0));
                    }
                    "libm.so.6" => {
                        let cos = library.get::<Cosine>(b"cos").unwrap();
                        black_box(cos(luck.below(1_000) as f64));
                    }
                    _ => {}
                }
            }
        }
        library.close().unwrap();
        // SAFETY: as above; asks only whether it is still there.
        let still = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_NOLOAD) };
        UNLOADED.fetch_add(u64::from(still.is_err()), Ordering::Relaxed);
    });
}

/// Small ones without side effects. The first few are in any glibc; the others are often there.
const LIBRARIES: [&str; 11] = [
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libanl.so.1",
    "libBrokenLocale.so.1",
    "libz.so.1",
    "liblzma.so.5",
    "libbz2.so.1.0",
    "libexpat.so.1",
    "libcrypt.so.1",
    "libzstd.so.1",
];

fn libraries() -> MutexGuard<'static, Vec<&'static str>> {
    static FOUND: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    FOUND.lock().unwrap()
}

fn find_libraries() {
    for name in LIBRARIES {
        // SAFETY: they do nothing when they are loaded or unloaded.
        match unsafe { libloading::Library::new(name) } {
            Ok(_) => libraries().push(name),
            Err(_) => println!("{name} is not on this machine: passed over"),
        }
    }
    assert!(!libraries().is_empty(), "no library can be loaded");
}

/// Deeper than the copy, and with more calls than are kept.
#[inline(never)]
fn recurses(luck: &mut Luck) {
    #[inline(never)]
    fn wide(left: usize) {
        let room = [left as u8; 4 * 1024];
        black_box(&room);
        match left {
            0 => compute(Duration::from_micros(100)),
            _ => wide(left - 1),
        }
        black_box(&room);
    }
    #[inline(never)]
    fn narrow(left: usize) -> usize {
        match left {
            0 => compute(Duration::from_micros(100)),
            _ => return black_box(narrow(left - 1)) + 1,
        }
        0
    }
    for_a_turn(|| {
        wide(luck.below(95));
        narrow(luck.below(2 * DEEPEST));
    });
}

/// On a stack of unknown bounds, so that the handler asks the kernel to copy.
#[inline(never)]
fn switches_stacks(luck: &mut Luck) {
    #[inline(never)]
    fn elsewhere(depth: usize) {
        if depth > 0 {
            elsewhere(depth - 1);
            black_box(depth);
            return;
        }
        fail();
        compute(Duration::from_micros(50));
        check_errno();
        black_box(vec![1_u8; 4 * 1024]);
    }
    for_a_turn(|| {
        let depth = luck.below(8);
        stacker::grow(256 * 1024, || elsewhere(depth));
    });
}

/// With a copy of the process at its side, and while the C library has blocked all signals.
#[inline(never)]
fn forks(luck: &mut Luck) {
    CHILDREN.fetch_add(1, Ordering::Relaxed);
    if luck.below(3) > 0 {
        assert!(Command::new("true").status().unwrap().success());
        return;
    }
    // SAFETY: the child does nothing but end, without any of this process's clean-up.
    let child = unsafe {
        match libc::fork() {
            0 => libc::_exit(0),
            child => child,
        }
    };
    assert!(child > 0, "{}", std::io::Error::last_os_error());
    let mut status = -1;
    // SAFETY: `status` is a place for the answer; the child is ours, and waited for by nobody else.
    let waited = again(|| unsafe { libc::waitpid(child, &raw mut status, 0) });
    assert_eq!((waited, status), (child, 0));
}

/// With the numbers of threads used again, also by those that take over a worker.
#[inline(never)]
fn starts_threads(luck: &mut Luck) {
    let some = 1 + luck.below(3);
    let some: Vec<_> = (0..some)
        .map(|n| thread::spawn(move || black_box(n)))
        .collect();
    tokio::task::block_in_place(|| compute(TURN / 4));
    for one in some {
        one.join().unwrap();
    }
}

/// Asleep in system calls, some of which the signal ends early.
#[inline(never)]
fn sleeps(luck: &mut Luck) {
    static CONTENDED: Mutex<()> = Mutex::new(());
    match luck.below(4) {
        0 => {
            let mut left = libc::timespec {
                tv_sec: 0,
                tv_nsec: 1_000_000,
            };
            // SAFETY: one place for the time asked for and the time left is allowed.
            again(|| unsafe { libc::nanosleep(&raw const left, &raw mut left) });
        }
        1 => {
            let (read, write) = rustix::pipe::pipe().unwrap();
            let fills = thread::spawn(move || {
                thread::sleep(TURN);
                rustix::io::write(&write, b"x").unwrap()
            });
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut [0; 8]));
            assert_eq!((read, fills.join().unwrap()), (Ok(1), 1));
        }
        2 => {
            for _ in 0..3 {
                let held = CONTENDED.lock().unwrap_or_else(PoisonError::into_inner);
                thread::sleep(TURN / 2);
                drop(held);
            }
        }
        // SAFETY: no descriptors are given, so none are read.
        _ => drop(again(|| unsafe { libc::poll(std::ptr::null_mut(), 0, 1) })),
    }
}

/// While the unwinder holds its locks, to the same end as we do.
#[inline(never)]
fn takes_backtraces(luck: &mut Luck) {
    for_a_turn(|| {
        let trace = std::backtrace::Backtrace::force_capture();
        // Naming reads all debug information the first time.
        if luck.below(200) == 0 {
            assert!(trace.to_string().contains("takes_backtraces"));
        }
    });
}

/// With another alternate stack for handlers, or with none, so that they run on the thread's own.
#[inline(never)]
fn swaps_signal_stacks(luck: &mut Luck) {
    let mut room = vec![0_u8; 64 * 1024];
    for_a_turn(|| {
        let none = luck.below(2) == 0;
        let new = libc::stack_t {
            ss_sp: room.as_mut_ptr().cast(),
            ss_flags: if none { libc::SS_DISABLE } else { 0 },
            ss_size: room.len(),
        };
        let mut old = new;
        // SAFETY: the new one is ours, and not in use any more when it ends: the old one is back by
        // then. The signal that is raised is handled.
        unsafe {
            assert_eq!(libc::sigaltstack(&raw const new, &raw mut old), 0);
            if none {
                assert_eq!(libc::raise(libc::SIGUSR2), 0);
            } else {
                compute(Duration::from_micros(50));
            }
            assert_eq!(libc::sigaltstack(&raw const old, std::ptr::null_mut()), 0);
        }
    });
}

/// Between a call that failed and a look at why.
#[inline(never)]
fn keeps_errno(_: &mut Luck) {
    for_a_turn(|| {
        fail();
        compute(Duration::from_micros(50));
        check_errno();
    });
}

fn errno() -> *mut libc::c_int {
    // SAFETY: always allowed.
    unsafe { libc::__errno_location() }
}

/// A call that only sets `errno`, to a value that nothing here sets it to.
fn fail() {
    // SAFETY: there is no such descriptor, so nothing is closed.
    assert_eq!(unsafe { libc::close(-1) }, -1);
}

fn check_errno() {
    // SAFETY: the place is valid while the thread is; volatile, since it may change at any time.
    let now = unsafe { errno().read_volatile() };
    let counter = if now == libc::EBADF {
        &ERRNO_KEPT
    } else {
        &ERRNO_CHANGED
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Makes a call again that a signal has ended early.
fn again(mut call: impl FnMut() -> libc::c_int) -> libc::c_int {
    loop {
        let answer = call();
        // SAFETY: the place is valid while the thread is.
        if answer != -1 || unsafe { errno().read_volatile() } != libc::EINTR {
            return answer;
        }
    }
}

// ── Besides ─────────────────────────────────────────────────────────────────────────────────────

fn tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// The threads of the tortured runtime. A thread is in here only while it lives.
fn threads() -> MutexGuard<'static, Vec<i32>> {
    static THREADS: Mutex<Vec<i32>> = Mutex::new(Vec::new());
    THREADS.lock().unwrap()
}

/// Somebody else's handler, at any moment: our signal comes on top of it, or it on top of ours.
extern "C" fn inside_a_handler(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
    // A clock and arithmetic, both allowed here.
    compute(Duration::from_micros(20));
}

/// A handler on the thread's own stack. `swaps_signal_stacks` is under it, or the stack is wrong.
extern "C" fn raised_by_itself(_: libc::c_int) {
    compute(Duration::from_micros(50));
}

fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: all-zero is a valid `sigaction`, which is then completed; the handlers only compute.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        let set = libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        assert_eq!(set, 0);
    }
}

/// Sends somebody else's signals to all threads, and at times a burst of ours without a request.
fn signals() {
    let process = rustix::process::getpid();
    for round in 0_usize.. {
        if STOP.load(Ordering::Relaxed) {
            return;
        }
        // One at a time, and not often: if both wait for a thread without a CPU, the kernel puts
        // ours on top of the other's handler, and nothing else can be seen.
        let living = threads();
        let next = living.get(round % living.len().max(1));
        if let Some(thread) = next {
            // SAFETY: sends a signal that is handled; a thread of the list lives.
            unsafe {
                let process = process.as_raw_nonzero().get();
                libc::syscall(libc::SYS_tgkill, process, *thread, libc::SIGUSR1);
            }
        }
        drop(living);
        if round % 64 == 0 {
            for _ in 0..200 {
                rustix::process::kill_process(process, rustix::process::Signal::URG).unwrap();
            }
            FOREIGN.fetch_add(200, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Starts runtimes whose slots and threads are used again and again.
fn lives_come_and_go() {
    for life in 0.. {
        if STOP.load(Ordering::Relaxed) {
            return;
        }
        let thread = thread::Builder::new().name(format!("life-{life}"));
        let lives = thread.spawn(move || lives_briefly(life)).unwrap();
        lives.join().unwrap();
        thread::sleep(Duration::from_millis(20));
    }
}

/// A runtime whose workers are asked while it starts, runs and ends.
#[inline(never)]
fn lives_briefly(life: u64) {
    let setup = if life % 2 == 0 {
        Stage::current_thread()
    } else {
        Stage::multi_thread(2)
    };
    let Stage { runtime, watch, .. } = rarely_stalled(setup.named("brief")).start();
    RUNTIMES.fetch_add(1, Ordering::Relaxed);
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Some are asked when it is too late.
            while !gone.load(Ordering::Relaxed) {
                count(&watch.worker_stacks());
                thread::sleep(TURN / 4);
            }
        });
        // On a `current_thread` runtime, this thread is the worker, and nobody else's.
        let sandboxed = life % 4 == 0;
        runtime.block_on(is_asked(sandboxed, life + 1));
        drop(runtime);
        thread::sleep(TURN);
        gone.store(true, Ordering::Relaxed);
    });
}

/// In a sandbox the call fails by which the handler copies a stack of unknown bounds, and if
/// anything changes `errno`, it is that.
async fn is_asked(sandboxed: bool, luck: u64) {
    let sandboxed = sandboxed && forbid_process_vm_readv().is_ok();
    for _ in 0..4 {
        if sandboxed {
            switches_stacks(&mut Luck(luck));
        }
        tokio::spawn(async { compute(TURN / 2) }.watched("brief"))
            .await
            .unwrap();
        tokio::time::sleep(TURN / 2).await;
    }
}

// ── The results ─────────────────────────────────────────────────────────────────────────────────

/// All stacks so far.
struct Tally {
    complete: u64,
    /// The reason for no stack, or the place at which it ended too early.
    missing: BTreeMap<String, u64>,
    seen: BTreeMap<&'static str, u64>,
    leaves: BTreeSet<String>,
    /// Stacks that are wrong or not understood: how often, by kind and outermost calls, and the
    /// first of them.
    odd: BTreeMap<(&'static str, String), (u64, WorkerStack)>,
}

/// Kinds of odd stacks.
const WRONG_ROOT: &str = "with a wrong root";
const MIXED: &str = "with two tortures at once";
const GAP: &str = "without calls that must be there";
const LOST: &str = "incomplete: nothing tells why";

fn tally() -> MutexGuard<'static, Tally> {
    TALLY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn names() -> impl Iterator<Item = &'static str> {
    TORTURES.iter().map(|(name, _)| *name).chain(ALSO)
}

fn count(stacks: &[WorkerStack]) {
    let mut tally = tally();
    for stack in stacks {
        tally.add(stack);
    }
}

impl Tally {
    const NONE: Tally = Tally {
        complete: 0,
        missing: BTreeMap::new(),
        seen: BTreeMap::new(),
        leaves: BTreeSet::new(),
        odd: BTreeMap::new(),
    };

    fn add(&mut self, stack: &WorkerStack) {
        let frames = match &stack.frames {
            Ok(frames) => frames,
            Err(why) => {
                *self.missing.entry(format!("none: {why:?}")).or_default() += 1;
                return;
            }
        };
        TAKEN.fetch_add(1, Ordering::Relaxed);
        self.leaves.extend(frames.first().map(place));
        let on_it: Vec<_> = names().filter(|name| is_on(frames, name)).collect();
        for name in &on_it {
            *self.seen.entry(name).or_default() += 1;
        }
        let in_turn = on_it.iter().filter(|name| !ALSO.contains(name)).count();
        if in_turn > 1 {
            self.add_odd(MIXED, stack);
        }
        if !stack.complete {
            let why = why_incomplete(frames, &on_it);
            *self.missing.entry(why.to_owned()).or_default() += 1;
            if why == LOST {
                self.add_odd(why, stack);
            }
            return;
        }
        self.complete += 1;
        let raised = on_it.contains(&"raised_by_itself");
        let sufferer = is_on(frames, "suffers") || on_it.contains(&"lives_briefly");
        if !is_root(frames) {
            self.add_odd(WRONG_ROOT, stack);
        } else if (in_turn > 0 && !sufferer) || (raised && !on_it.contains(&"swaps_signal_stacks"))
        {
            self.add_odd(GAP, stack);
        }
    }

    fn add_odd(&mut self, kind: &'static str, stack: &WorkerStack) {
        let frames = stack.frames.iter().flatten();
        let outermost: Vec<_> = frames.rev().take(3).map(place).collect();
        let odd = self.odd.entry((kind, outermost.join(" ← ")));
        odd.or_insert_with(|| (0, stack.clone())).0 += 1;
    }

    fn never_seen(&self) -> Vec<&'static str> {
        names()
            .filter(|name| !self.seen.contains_key(name))
            .collect()
    }

    fn odd(&self, kind: &str) -> u64 {
        let of_kind = self.odd.iter().filter(|((odd, _), _)| *odd == kind);
        of_kind.map(|(_, (count, _))| count).sum()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut line = |name: &str, count: u64| writeln!(text, "{count:>9} {name}").unwrap();
        line("stacks taken", number(&TAKEN));
        line("complete", self.complete);
        for (why, count) in &self.missing {
            line(why, *count);
        }
        for kind in [WRONG_ROOT, MIXED, GAP] {
            line(kind, self.odd(kind));
        }
        line("distinct innermost functions", self.leaves.len() as u64);
        for name in names() {
            let seen = self.seen.get(name).copied().unwrap_or(0);
            line(&format!("with `{name}`"), seen);
        }
        line("times errno was kept", number(&ERRNO_KEPT));
        line("times errno was changed", number(&ERRNO_CHANGED));
        line("panics", number(&PANICS));
        line("libraries unloaded", number(&UNLOADED));
        line("children", number(&CHILDREN));
        line("brief runtimes", number(&RUNTIMES));
        line("signals of somebody else's", number(&HANDLED));
        line("signals that nobody asked for", number(&FOREIGN));
        let mut odd: Vec<_> = self.odd.iter().collect();
        odd.sort_by_key(|((kind, _), (count, _))| (*kind == LOST, std::cmp::Reverse(*count)));
        for ((kind, _), (count, first)) in odd.iter().take(10) {
            writeln!(text, "{count} {kind}, the first of them: {first}").unwrap();
        }
        text
    }
}

/// The reason of an incomplete stack, by the calls on it.
fn why_incomplete(frames: &[Frame], on_it: &[&str]) -> &'static str {
    let calls = frames.iter().filter(|frame| !frame.inlined).count();
    if calls == 1 && frames[0].module.is_some() {
        "incomplete: on a stack that must not be read"
    } else if on_it.contains(&"inside_a_handler") {
        "incomplete: on the stack for handlers"
    } else if on_it.contains(&"switches_stacks") || frames.last().is_some_and(is_switch) {
        "incomplete: on a stack of unknown bounds"
    } else if calls >= DEEPEST {
        "incomplete: more calls than are kept"
    } else if on_it.contains(&"recurses") {
        "incomplete: deeper than what is copied"
    } else if frames.last().is_some_and(|frame| frame.module.is_none()) {
        "incomplete: in code that is not there any more, or never was"
    } else {
        LOST
    }
}

/// Whether the function of this name, or a function inside of it, is on the stack.
fn is_on(frames: &[Frame], name: &str) -> bool {
    let mut names = frames.iter().filter_map(|frame| frame.function.as_deref());
    names.any(|function| {
        let ours = function
            .split_once("torture::")
            .and_then(|(_, rest)| rest.strip_prefix(name));
        ours.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
    })
}

/// Whether a thread of the standard library begins here. Further out is only the C library's part,
/// which may have no names.
fn is_root(frames: &[Frame]) -> bool {
    frames.iter().rev().take(6).any(|frame| {
        let function = frame.function.as_deref();
        function.is_some_and(|name| name.contains("thread_start"))
    })
}

/// The few instructions between the two stacks.
fn is_switch(frame: &Frame) -> bool {
    let function = frame.function.as_deref();
    function.is_some_and(|name| name.starts_with("rust_psm_"))
}

fn place(frame: &Frame) -> String {
    match &frame.function {
        Some(function) => function.clone(),
        None => frame.to_string(),
    }
}

/// Ends a test that hangs, and explains a deadlock.
fn abort_when_stuck() {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        thread::park_timeout(Duration::from_secs(1));
        let taken = TAKEN.load(Ordering::Relaxed);
        if taken != last {
            (last, since) = (taken, Instant::now());
        } else if STOP.load(Ordering::Relaxed) && threads().is_empty() {
            return;
        }
        if since.elapsed() < STUCK {
            continue;
        }
        eprintln!("no stack for {STUCK:?}, after {taken}; the threads:");
        for thread in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let read = |file| std::fs::read_to_string(thread.path().join(file));
            let name = read("comm").unwrap_or_default();
            let call = read("syscall").unwrap_or_default();
            eprintln!("{:?} {:?} {:?}", thread.file_name(), name, call);
        }
        if let Ok(tally) = TALLY.try_lock() {
            eprintln!("{}", tally.text());
        }
        std::process::abort();
    }
}
