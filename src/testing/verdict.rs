//! The decision whether a poll has blocked, by the kernel's figures and never by its duration.
//!
//! *Runs on:* the measured thread, after the poll.
//! *Must not:* read a clock, or do I/O: a cost and the names on a stack go in, a verdict comes out.
//!
//! A poll is blamed if its thread gave up the CPU by itself, slept in a system call, and the stack
//! of that sleep is not one of the few that no code can avoid. Waits for a CPU and preemptions do
//! not count, so a busy machine changes no verdict.

use super::meter::{Cost, ThreadCost};
use crate::explain::{InnerLock, any_names, called, inner_lock, is_plumbing, names};
use crate::report::{Blocking, Frame, Origin};
use std::time::Duration;

/// The floor of a sleep: a lock that is free a moment later is no fault. Measured: an `fsync`
/// sleeps for 100 µs and more.
///
/// If a stack of the sleep was taken, a wait for a CPU counts up to this floor: the signal has
/// woken the thread, and on a busy machine the rest of the sleep passes in a run queue.
pub(super) const FLOOR: Duration = Duration::from_micros(50);

/// The floor of a sleep in a file: a read of a cached file may wait for a page that is being
/// written back, or for another reader. Measured: up to 0.18 ms, in one of 400 reads.
pub(super) const FLOOR_OF_FILES: Duration = Duration::from_micros(500);

/// The floor of a sleep without a stack, which may be the code's own or a lock inside of the
/// runtime. It is half of the shortest sleep that a test must see.
pub(super) const FLOOR_UNSEEN: Duration = Duration::from_micros(500);

/// The floor of a poll's duration on systems without figures about threads. Delays by the host that
/// a test survives are shorter, and a poll that blocks for ever is found.
pub(super) const NO_PROGRESS: Duration = Duration::from_secs(1);

/// The shortest wait for a CPU that is listed.
const WORTH_A_LINE: Duration = Duration::from_millis(10);

/// The kind of the first sleep of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slept {
    /// Unknown: no stack could be taken.
    NotAsked,
    /// None: no sleep in a system call was long enough to be seen.
    NotSeen,
    /// A sleep in a call of the code's own.
    In(Blocking),
    /// A sleep in a call that seldom waits: a cache has the file that is read, written or opened,
    /// or the socket does not block.
    InQuickCall(Blocking),
    /// A sleep that no code can avoid.
    Excused(Excuse),
}

/// The reason why a delay is not the code's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excuse {
    /// A call of this crate: a short lock, or a reading of clocks at the end of the poll.
    Detector,
    /// A lock inside of tokio, whose holder had no CPU.
    RuntimeLock,
    /// A lock inside of the allocator.
    AllocatorLock,
    /// The kernel's lock on the memory of the process, as when another thread starts.
    Memory,
    /// Sleeps outside of system calls, or too short to be seen: a page of the program had to be
    /// read, or the process was stopped.
    PageFault,
    /// A sleep after `block_in_place` had moved the worker to another thread.
    MovedAway,
    /// There was no CPU for the thread.
    NoCpu,
}

impl Excuse {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Excuse::Detector => "in a call of the detector's own",
            Excuse::RuntimeLock => "a lock of the runtime's own, whose holder had no CPU",
            Excuse::AllocatorLock => "a lock of the allocator's own, whose holder had no CPU",
            Excuse::Memory => "the kernel's lock on the memory of this process",
            Excuse::PageFault => "no system call: pages were read in, or the process was stopped",
            Excuse::MovedAway => "in `block_in_place`, which holds no worker",
            Excuse::NoCpu => "without a CPU",
        }
    }
}

/// The judgement of a poll's sleep. Its computing is judged apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Clean,
    Blocked,
    Excused(Excuse),
    /// It took [`NO_PROGRESS`] by the wall clock, and there are no other figures.
    NoProgress,
}

/// Judges the sleep of one poll by the poll's cost and its first sleep.
pub(super) fn judge(cost: &Cost, slept: Slept) -> Verdict {
    let Some(thread) = cost.thread else {
        return if cost.wall >= NO_PROGRESS {
            Verdict::NoProgress
        } else {
            Verdict::Clean
        };
    };
    match sleep(&thread, slept) {
        Verdict::Clean if thread.run_queue >= WORTH_A_LINE => Verdict::Excused(Excuse::NoCpu),
        other => other,
    }
}

/// The budget, if the poll has computed for longer.
pub(super) fn exceeded(cost: &Cost, cpu_budget: Option<Duration>) -> Option<Duration> {
    let thread = cost.thread?;
    cpu_budget.filter(|budget| thread.cpu > *budget)
}

/// The budget of a poll during which the host has stolen CPU time.
///
/// It may have been stolen from any thread, so all of it is added. The figure is behind by up to
/// one of its steps of 10 ms, so one step is added, too.
pub(super) fn with_stolen(budget: Duration, stolen: Duration) -> Duration {
    if stolen.is_zero() {
        budget
    } else {
        budget + stolen + Duration::from_millis(10)
    }
}

fn sleep(thread: &ThreadCost, slept: Slept) -> Verdict {
    if thread.sleeps == 0 {
        return Verdict::Clean;
    }
    let is_long = match slept {
        Slept::NotAsked => thread.asleep >= FLOOR_UNSEEN,
        Slept::InQuickCall(_) | Slept::NotSeen => thread.asleep >= FLOOR_OF_FILES,
        // A signal does not wake a thread that waits for a disk.
        Slept::In(Blocking::File) => thread.asleep >= FLOOR,
        Slept::In(_) | Slept::Excused(_) => thread.asleep + thread.run_queue >= FLOOR,
    };
    if !is_long {
        return Verdict::Clean;
    }
    match slept {
        Slept::NotAsked | Slept::In(_) | Slept::InQuickCall(_) => Verdict::Blocked,
        Slept::NotSeen => Verdict::Excused(Excuse::PageFault),
        Slept::Excused(excuse) => Verdict::Excused(excuse),
    }
}

/// The kind of a sleep, by its stack, innermost frame first.
pub(super) fn slept(frames: &[Frame]) -> Slept {
    if is_in_own_call(frames) {
        return Slept::Excused(Excuse::Detector);
    }
    let frames = of_the_measured(frames);
    let (called, caller) = called(frames);
    let of_tokio = |frame: &Frame, parts| frame.origin == Origin::Runtime && names(frame, parts);
    let has_moved = frames.iter().any(|it| of_tokio(it, &["block_in_place"]));
    // A thread that has left its worker waits for work in the pool.
    if has_moved || caller.is_some_and(|it| of_tokio(it, &["blocking::pool"])) {
        return Slept::Excused(Excuse::MovedAway);
    }
    if let Some(excuse) = excuse(frames) {
        return Slept::Excused(excuse);
    }
    if caller.is_some_and(seldom_waits) {
        return Slept::InQuickCall(Blocking::Network);
    }
    kind(called)
}

/// Whether this crate has made the call that the thread sleeps in.
fn is_in_own_call(frames: &[Frame]) -> bool {
    let ours = |frame: &Frame| names(frame, &["rustix::", "quanta::"]);
    let mut callers = frames.iter();
    let caller = callers.find(|frame| !is_plumbing(frame) && !ours(frame));
    caller.is_some_and(|frame| frame.origin == Origin::Detector && !names(frame, &["testing::"]))
}

/// The excuse of a sleep with this stack, if no code can avoid it.
fn excuse(frames: &[Frame]) -> Option<Excuse> {
    let inner = inner_lock(frames);
    if inner == Some(InnerLock::Runtime) {
        return Some(Excuse::RuntimeLock);
    }
    let (called, _) = called(frames);
    let any = |parts| any_names(called, parts);
    let changes_memory = called.first().is_some_and(|leaf| names(leaf, MEMORY));
    if !any(SPAWNS) && (changes_memory || any(&["pthread_create", "thread::Thread::new"])) {
        return Some(Excuse::Memory);
    }
    inner.map(|_| Excuse::AllocatorLock)
}

/// Whether this function calls the kernel, and does not wait there: it has sockets that do not
/// block, or a waker. The signal may have met such a call after another sleep, that was short.
fn seldom_waits(caller: &Frame) -> bool {
    let quick = [
        "mio::net",
        "mio::waker",
        "mio::io_source",
        "mio::sys::unix::waker",
    ];
    let is_own = caller.origin == Origin::Own;
    !is_own
        && names(
            caller,
            &[&quick[..], &["tokio::net::", "tokio::runtime::io::"]].concat(),
        )
}

/// The kind of a sleep in these functions.
fn kind(called: &[Frame]) -> Slept {
    let any = |parts| any_names(called, parts);
    if any(SPAWNS) {
        return Slept::In(Blocking::Process);
    }
    if any(WAKES) {
        return Slept::InQuickCall(Blocking::Lock);
    }
    match KINDS.iter().find(|(_, parts)| any(parts)) {
        Some((kind, _)) => Slept::In(*kind),
        None if any(CACHED) => Slept::InQuickCall(Blocking::File),
        None => Slept::In(Blocking::Other),
    }
}

/// The frames inside of the innermost measured poll, or all if none is.
pub(super) fn of_the_measured(frames: &[Frame]) -> &[Frame] {
    let ours = |frame: &Frame| frame.origin == Origin::Detector && names(frame, &["testing::"]);
    let end = frames.iter().position(ours).unwrap_or(frames.len());
    &frames[..end]
}

/// Calls that wake another thread, and wait for none. The signal may have met one of them after
/// another sleep, that was short.
const WAKES: &[&str] = &["futex_wake", "notify_one", "notify_all", "unpark"];

/// Calls that start a process.
const SPAWNS: &[&str] = &["std::process", "std::sys::process", "posix_spawn"];

/// Calls that change the memory of the process.
const MEMORY: &[&str] = &["mmap", "munmap", "mprotect", "madvise", "mremap", "brk"];

/// Kinds of sleeps, each with functions on the stack of one. The first that fits counts.
const KINDS: &[(Blocking, &[&str])] = &[
    // These calls write to the disk, and no cache answers them.
    (
        Blocking::File,
        &[
            "fsync",
            "fdatasync",
            "sync_all",
            "sync_data",
            "msync",
            "File::create",
            "truncate",
            "fs::write",
            "File as std::io::Write",
            "rename",
            "unlink",
            "remove_",
            "create_dir",
        ],
    ),
    (Blocking::Sleep, &["thread::sleep", "nanosleep", "usleep"]),
    (
        Blocking::Network,
        &[
            "std::net",
            "sys::net",
            "connect",
            "getaddrinfo",
            "recvfrom",
            "recvmsg",
            "accept4",
            "sendto",
            "sendmsg",
        ],
    ),
    (
        Blocking::Lock,
        &[
            "futex", "lock", "park", "join", "Condvar", "wait", "mpsc", "mpmc",
        ],
    ),
];

/// Calls about files that a cache answers as a rule.
const CACHED: &[&str] = &[
    "std::fs", "sys::fs", "std::io", "stdio", "read", "write", "open", "stat", "unlink", "rename",
];

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const NS: Duration = Duration::from_nanos(1);

    fn cost(sleeps: u64, asleep: Duration) -> Cost {
        Cost {
            wall: 500 * MS,
            thread: Some(ThreadCost {
                cpu: 5 * MS,
                run_queue: Duration::ZERO,
                asleep,
                sleeps,
            }),
        }
    }

    #[test]
    fn a_poll_blocks_by_a_sleep_and_time_asleep() {
        let judged = |sleeps, asleep, slept| judge(&cost(sleeps, asleep), slept);
        let own = Slept::In(Blocking::Lock);
        assert_eq!(judged(1, FLOOR, own), Verdict::Blocked);
        assert_eq!(
            judged(1, FLOOR - NS, own),
            Verdict::Clean,
            "too short to be seen"
        );
        assert_eq!(
            judged(0, 400 * MS, own),
            Verdict::Clean,
            "a CPU taken away by the host"
        );
        assert_eq!(judged(0, 400 * MS, Slept::NotAsked), Verdict::Clean);
        let mut woken = cost(1, NS);
        woken.thread.as_mut().unwrap().run_queue = FLOOR;
        assert_eq!(
            judge(&woken, own),
            Verdict::Blocked,
            "woken by our own signal"
        );
        assert_eq!(judge(&woken, Slept::NotAsked), Verdict::Clean);
        let file = Slept::InQuickCall(Blocking::File);
        assert_eq!(judged(1, FLOOR_OF_FILES, file), Verdict::Blocked);
        assert_eq!(judged(1, FLOOR_OF_FILES - NS, file), Verdict::Clean);
        assert_eq!(judged(1, FLOOR_UNSEEN, Slept::NotAsked), Verdict::Blocked);
        assert_eq!(
            judged(1, FLOOR_UNSEEN - NS, Slept::NotAsked),
            Verdict::Clean
        );
    }

    #[test]
    fn excused_sleeps_are_never_blamed_however_long() {
        let excused = |slept| judge(&cost(9, 400 * MS), slept);
        for excuse in [
            Excuse::RuntimeLock,
            Excuse::AllocatorLock,
            Excuse::Memory,
            Excuse::MovedAway,
        ] {
            assert_eq!(excused(Slept::Excused(excuse)), Verdict::Excused(excuse));
        }
        assert_eq!(excused(Slept::NotSeen), Verdict::Excused(Excuse::PageFault));
    }

    #[test]
    fn the_budget_is_of_cpu_time_and_is_inclusive() {
        let computed = cost(0, Duration::ZERO);
        assert_eq!(exceeded(&computed, Some(5 * MS)), None);
        assert_eq!(exceeded(&computed, Some(5 * MS - NS)), Some(5 * MS - NS));
        assert_eq!(exceeded(&computed, None), None);
    }

    #[test]
    fn stolen_time_is_added_to_the_budget() {
        assert_eq!(with_stolen(5 * MS, Duration::ZERO), 5 * MS);
        assert_eq!(with_stolen(5 * MS, 10 * MS), 25 * MS);
    }

    #[test]
    fn waiting_for_a_cpu_is_listed_and_never_fails() {
        let mut waited = cost(0, Duration::ZERO);
        waited.thread.as_mut().unwrap().run_queue = WORTH_A_LINE;
        let verdict = judge(&waited, Slept::NotSeen);
        assert_eq!(verdict, Verdict::Excused(Excuse::NoCpu));
        waited.thread.as_mut().unwrap().run_queue = WORTH_A_LINE - NS;
        assert_eq!(judge(&waited, Slept::NotSeen), Verdict::Clean);
    }

    #[test]
    fn without_evidence_only_no_progress_is_blamed() {
        let judged = |wall| judge(&Cost { wall, thread: None }, Slept::NotAsked);
        assert_eq!(judged(NO_PROGRESS), Verdict::NoProgress);
        assert_eq!(judged(NO_PROGRESS - NS), Verdict::Clean);
    }

    /// A stack of frames, each with its origin and its function.
    fn stack(names: &[&str]) -> Vec<Frame> {
        let frame = |name: &&str| {
            let (origin, function) = name.split_once(' ').unwrap();
            Frame::of(
                function,
                match origin {
                    "own" => Origin::Own,
                    "dep" => Origin::Dependency,
                    "std" => Origin::Std,
                    "rt" => Origin::Runtime,
                    "det" => Origin::Detector,
                    _ => Origin::System,
                },
            )
        };
        names.iter().map(frame).collect()
    }

    #[test]
    fn a_lock_is_of_the_code_or_of_the_runtime_by_its_caller() {
        let lock = ["sys syscall", "std futex_wait", "std Mutex::lock_contended"];
        let own = Slept::In(Blocking::Lock);
        let of_runtime = Slept::Excused(Excuse::RuntimeLock);
        for (callers, expected) in [
            (&["own app::f", "rt tokio::run"][..], own),
            (&["dep pool::get", "own app::f"], own),
            (
                &["dep lock_api::Mutex::lock", "rt tokio::spawn", "own app::f"],
                of_runtime,
            ),
            (&["rt tokio::spawn", "own app::f"], of_runtime),
        ] {
            let frames = stack(&[&lock, callers].concat());
            assert_eq!(slept(&frames), expected, "{callers:?}");
        }
    }

    #[test]
    fn the_called_functions_show_the_kind_of_a_sleep() {
        let own = |kind, stack: &'static str| (stack, Slept::In(kind));
        for (frames, expected) in [
            own(
                Blocking::Sleep,
                "sys clock_nanosleep, std std::thread::sleep, own f",
            ),
            own(
                Blocking::Sleep,
                "sys clock_nanosleep, dep rustix::thread::nanosleep, own f",
            ),
            own(
                Blocking::File,
                "sys fsync, std std::fs::File::sync_all, own f",
            ),
            (
                "sys read, std std::fs::read, own f",
                Slept::InQuickCall(Blocking::File),
            ),
            (
                "sys sendto, std std::net::tcp::TcpStream::write, dep mio::net::tcp::stream::TcpStream::write, \
                 rt tokio::net::tcp::stream::TcpStream::try_write, own f",
                Slept::InQuickCall(Blocking::Network),
            ),
            own(
                Blocking::Network,
                "sys recvfrom, std std::net::tcp::TcpStream::read, dep db::Client::query, own f",
            ),
            own(
                Blocking::Network,
                "sys connect, std std::net::TcpStream::connect, own f",
            ),
            own(
                Blocking::Process,
                "sys clone3, sys posix_spawn, std std::process::Command::output, own f",
            ),
            own(
                Blocking::Lock,
                "sys syscall, std park, rt tokio::runtime::Runtime::shutdown_timeout, own f",
            ),
            own(
                Blocking::Lock,
                "sys syscall, std futex_wait, std Condvar::wait, own f",
            ),
            (
                "sys syscall, std futex_wake, std Condvar::notify_one, \
                 rt tokio::runtime::park::Inner::unpark_condvar, rt tokio::task::spawn, own f",
                Slept::InQuickCall(Blocking::Lock),
            ),
        ] {
            let names: Vec<&str> = frames.split(", ").collect();
            assert_eq!(slept(&stack(&names)), expected, "{frames}");
        }
    }

    #[test]
    fn unavoidable_sleeps_are_excused_by_their_stack() {
        for (frames, excuse) in [
            (
                "sys mmap, sys pthread_create, std std::thread::spawn, own f",
                Excuse::Memory,
            ),
            (
                "sys __lll_lock_wait, sys malloc, std __rust_alloc, own f",
                Excuse::AllocatorLock,
            ),
            (
                "sys clock_gettime, dep rustix::time::clock_gettime, \
                 det tokio_stall::os::own_usage, det tokio_stall::testing::meter::end",
                Excuse::Detector,
            ),
            (
                "sys read, own f, rt tokio::task::block_in_place, own g",
                Excuse::MovedAway,
            ),
            (
                "sys futex, std std::sync::Condvar::wait_timeout, \
                 rt tokio::runtime::blocking::pool::Inner::run, std std::thread::run",
                Excuse::MovedAway,
            ),
        ] {
            let names: Vec<&str> = frames.split(", ").collect();
            assert_eq!(slept(&stack(&names)), Slept::Excused(excuse), "{frames}");
        }
    }
}
