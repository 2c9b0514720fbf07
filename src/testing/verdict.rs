//! Whether a poll has blocked: decided by what the kernel says the thread did, never by how long it took.
//!
//! *Runs on:* the thread that was measured, after the poll.
//! *Here:* pure. Cost and the names on a stack in, a verdict out; no clock, no threads, no I/O.
//!
//! A poll is blamed if its thread gave up the CPU by itself, slept in a system call, and the stack of that
//! sleep is not one of the few that no code can avoid. Waiting for a CPU and being preempted count for nothing,
//! so a busy machine changes no verdict.

use super::meter::{Cost, Known};
use crate::report::{Blocking, Frame, Origin};
use std::time::Duration;

/// A lock that is free a moment later is nobody's fault. Measured: an `fsync` sleeps for 100 µs and more.
///
/// Waiting for a CPU counts up to here if a sleep was met: the signal that met it has woken the thread, and on a busy
/// machine the rest of the sleep passes in a run queue.
pub(super) const FLOOR: Duration = Duration::from_micros(50);

/// A read of a cached file may meet a page that is being written back, or another reader. Measured: up to
/// 0.18 ms, in one of 400 reads.
pub(super) const FLOOR_OF_FILES: Duration = Duration::from_micros(500);

/// Without a stack, nothing tells a sleep of the code's own from a lock inside of the runtime. Half of the
/// shortest sleep that a test must see.
pub(super) const FLOOR_UNSEEN: Duration = Duration::from_micros(500);

/// Where the system tells nothing about threads: no host trouble that a test survives takes so long, and what
/// blocks for ever is found.
pub(super) const NO_PROGRESS: Duration = Duration::from_secs(1);

/// A wait for a CPU that is worth a line in the output.
const WORTH_A_LINE: Duration = Duration::from_millis(10);

/// What was on the stack of the first sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slept {
    /// Nobody could look.
    NotAsked,
    /// No sleep in a system call was long enough to be met.
    NotMet,
    /// In a call of the code's own.
    In(Blocking),
    /// In one that a cache answers, as a rule: a file is read, written or opened.
    InFile,
    /// In something that code cannot avoid.
    Excused(Excuse),
}

/// Why a sleep is not the code's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excuse {
    /// A lock inside of tokio, whose holder had no CPU.
    RuntimeLock,
    /// A lock inside of the allocator.
    AllocatorLock,
    /// The kernel's lock on the memory of the process, as when another thread starts.
    Memory,
    /// Sleeps outside of system calls, or too short to be met: a page of the program that had to be read, or a
    /// process that was stopped.
    PageFault,
    /// `block_in_place` had handed the worker to another thread.
    MovedAway,
    /// There was no CPU for the thread.
    NoCpu,
}

impl Excuse {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Excuse::RuntimeLock => "a lock of the runtime's own, whose holder had no CPU",
            Excuse::AllocatorLock => "a lock of the allocator's own, whose holder had no CPU",
            Excuse::Memory => "the kernel's lock on the memory of this process",
            Excuse::PageFault => "no system call: pages were read in, or the process was stopped",
            Excuse::MovedAway => "in `block_in_place`, which holds no worker",
            Excuse::NoCpu => "without a CPU",
        }
    }
}

/// What is said of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Clean,
    Blocked,
    OverBudget,
    Excused(Excuse),
    /// Nothing is known but the clock on the wall, and it went on for [`NO_PROGRESS`].
    NoProgress,
}

/// Judges one poll.
pub(super) fn judge(cost: &Cost, slept: Slept, cpu_budget: Option<Duration>) -> Verdict {
    let Some(known) = cost.known else {
        return if cost.wall >= NO_PROGRESS {
            Verdict::NoProgress
        } else {
            Verdict::Clean
        };
    };
    match sleep(&known, slept) {
        Verdict::Blocked => Verdict::Blocked,
        _ if cpu_budget.is_some_and(|budget| known.cpu > budget) => Verdict::OverBudget,
        Verdict::Clean if known.run_queue >= WORTH_A_LINE => Verdict::Excused(Excuse::NoCpu),
        other => other,
    }
}

/// The budget of a poll during which the host has taken CPU time away: nothing tells from which thread, and the figure
/// is behind by up to one of its steps of 10 ms.
pub(super) fn with_stolen(budget: Duration, stolen: Duration) -> Duration {
    if stolen.is_zero() {
        budget
    } else {
        budget + stolen + Duration::from_millis(10)
    }
}

fn sleep(known: &Known, slept: Slept) -> Verdict {
    if known.sleeps == 0 {
        return Verdict::Clean;
    }
    let is_long = match slept {
        Slept::NotAsked => known.asleep >= FLOOR_UNSEEN,
        Slept::InFile | Slept::NotMet => known.asleep >= FLOOR_OF_FILES,
        // No signal wakes a thread that waits for a disk.
        Slept::In(Blocking::File) => known.asleep >= FLOOR,
        Slept::In(_) | Slept::Excused(_) => known.asleep + known.run_queue >= FLOOR,
    };
    if !is_long {
        return Verdict::Clean;
    }
    match slept {
        Slept::NotAsked | Slept::In(_) | Slept::InFile => Verdict::Blocked,
        Slept::NotMet => Verdict::Excused(Excuse::PageFault),
        Slept::Excused(excuse) => Verdict::Excused(excuse),
    }
}

/// What the stack of a sleep says of it, innermost frame first.
pub(super) fn slept(frames: &[Frame]) -> Slept {
    let plumbing = |frame: &&Frame| {
        matches!(frame.origin, Origin::System | Origin::Std)
            || names(frame, &["parking_lot", "lock_api::"])
    };
    let caller = frames.iter().find(|frame| !plumbing(frame));
    if caller.is_some_and(|frame| frame.origin == Origin::Detector && !names(frame, &["testing::"]))
    {
        // A short lock of this crate's.
        return Slept::Excused(Excuse::RuntimeLock);
    }
    let frames = of_the_measured(frames);
    let tokio = |frame: &&Frame| frame.origin == Origin::Runtime;
    if frames
        .iter()
        .filter(tokio)
        .any(|frame| names(frame, &["block_in_place"]))
    {
        return Slept::Excused(Excuse::MovedAway);
    }
    // What the code called: down to the first frame that is neither the system's nor the standard library's.
    let depth = frames.iter().position(|frame| !plumbing(&frame));
    let (called, caller) = frames.split_at(depth.unwrap_or(frames.len()));
    let by_runtime = caller.first().is_some_and(|frame| {
        let function = frame.function.as_deref();
        frame.origin == Origin::Runtime
            || function.is_some_and(|name| name.trim_start_matches('<').starts_with("tokio::"))
    });
    let any = |parts: &[&str]| called.iter().any(|frame| names(frame, parts));
    let spawns = any(&["std::process", "std::sys::process", "posix_spawn"]);
    if by_runtime && any(LOCKS) {
        return Slept::Excused(Excuse::RuntimeLock);
    }
    if !spawns && called.first().is_some_and(|leaf| names(leaf, MEMORY)) {
        return Slept::Excused(Excuse::Memory);
    }
    if !spawns && any(&["pthread_create", "thread::Thread::new"]) {
        return Slept::Excused(Excuse::Memory);
    }
    let allocates = called.iter().find(|frame| frame.origin != Origin::System);
    if allocates.is_some_and(|frame| names(frame, ALLOCATOR)) {
        return Slept::Excused(Excuse::AllocatorLock);
    }
    if spawns {
        return Slept::In(Blocking::Process);
    }
    match KINDS.iter().find(|(_, parts)| any(parts)) {
        Some((kind, _)) => Slept::In(*kind),
        None if any(CACHED) => Slept::InFile,
        None => Slept::In(Blocking::Other),
    }
}

/// The frames inside of the innermost measured poll.
pub(super) fn of_the_measured(frames: &[Frame]) -> &[Frame] {
    let ours = |frame: &Frame| frame.origin == Origin::Detector && names(frame, &["testing::"]);
    let end = frames.iter().position(ours).unwrap_or(frames.len());
    &frames[..end]
}

fn names(frame: &Frame, parts: &[&str]) -> bool {
    let function = frame.function.as_deref();
    function.is_some_and(|function| parts.iter().any(|part| function.contains(part)))
}

/// The slow ways into a lock.
const LOCKS: &[&str] = &[
    "lock_contended",
    "lock_slow",
    "lll_lock",
    "pthread_mutex_lock",
    "read_contended",
    "write_contended",
];

/// Calls that change the memory of the process.
const MEMORY: &[&str] = &["mmap", "munmap", "mprotect", "madvise", "mremap", "brk"];

const ALLOCATOR: &[&str] = &[
    "__rust_alloc",
    "__rust_dealloc",
    "__rust_realloc",
    "__rdl_",
    "alloc::alloc::",
    "alloc::System",
];

/// What a thread sleeps for, by the functions that it sleeps in; the first that fits.
const KINDS: &[(Blocking, &[&str])] = &[
    // What is synchronised, made or cut short is written to the disk; no cache helps.
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

/// Calls about files that a cache answers, as a rule.
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
            known: Some(Known {
                cpu: 5 * MS,
                run_queue: Duration::ZERO,
                asleep,
                sleeps,
            }),
        }
    }

    #[test]
    fn to_block_takes_a_sleep_and_time_asleep() {
        let judged = |sleeps, asleep, slept| judge(&cost(sleeps, asleep), slept, None);
        let own = Slept::In(Blocking::Lock);
        assert_eq!(judged(1, FLOOR, own), Verdict::Blocked);
        assert_eq!(
            judged(1, FLOOR - NS, own),
            Verdict::Clean,
            "too short to be met"
        );
        assert_eq!(
            judged(0, 400 * MS, own),
            Verdict::Clean,
            "a CPU taken away by the host"
        );
        assert_eq!(judged(0, 400 * MS, Slept::NotAsked), Verdict::Clean);
        let mut woken = cost(1, NS);
        woken.known.as_mut().unwrap().run_queue = FLOOR;
        assert_eq!(
            judge(&woken, own, None),
            Verdict::Blocked,
            "woken by our own signal"
        );
        assert_eq!(judge(&woken, Slept::NotAsked, None), Verdict::Clean);
        let file = Slept::InFile;
        assert_eq!(judged(1, FLOOR_OF_FILES, file), Verdict::Blocked);
        assert_eq!(judged(1, FLOOR_OF_FILES - NS, file), Verdict::Clean);
        assert_eq!(judged(1, FLOOR_UNSEEN, Slept::NotAsked), Verdict::Blocked);
        assert_eq!(
            judged(1, FLOOR_UNSEEN - NS, Slept::NotAsked),
            Verdict::Clean
        );
    }

    #[test]
    fn what_is_excused_is_never_blamed_however_long() {
        let excused = |slept| judge(&cost(9, 400 * MS), slept, None);
        for excuse in [
            Excuse::RuntimeLock,
            Excuse::AllocatorLock,
            Excuse::Memory,
            Excuse::MovedAway,
        ] {
            assert_eq!(excused(Slept::Excused(excuse)), Verdict::Excused(excuse));
        }
        assert_eq!(excused(Slept::NotMet), Verdict::Excused(Excuse::PageFault));
    }

    #[test]
    fn the_budget_is_of_cpu_time_and_is_inclusive() {
        let judged = |budget| judge(&cost(0, Duration::ZERO), Slept::NotMet, Some(budget));
        assert_eq!(judged(5 * MS), Verdict::Clean);
        assert_eq!(judged(5 * MS - NS), Verdict::OverBudget);
        let blocked = judge(&cost(1, MS), Slept::NotAsked, Some(MS));
        assert_eq!(
            blocked,
            Verdict::Blocked,
            "the sleep is the worse of the two"
        );
        let excused = judge(&cost(1, MS), Slept::Excused(Excuse::Memory), Some(MS));
        assert_eq!(
            excused,
            Verdict::OverBudget,
            "an excuse is none for computing"
        );
    }

    #[test]
    fn stolen_time_is_added_to_the_budget() {
        assert_eq!(with_stolen(5 * MS, Duration::ZERO), 5 * MS);
        assert_eq!(with_stolen(5 * MS, 10 * MS), 25 * MS);
    }

    #[test]
    fn waiting_for_a_cpu_is_listed_and_never_fails() {
        let mut waited = cost(0, Duration::ZERO);
        waited.known.as_mut().unwrap().run_queue = WORTH_A_LINE;
        let verdict = judge(&waited, Slept::NotMet, None);
        assert_eq!(verdict, Verdict::Excused(Excuse::NoCpu));
        waited.known.as_mut().unwrap().run_queue = WORTH_A_LINE - NS;
        assert_eq!(judge(&waited, Slept::NotMet, None), Verdict::Clean);
    }

    #[test]
    fn without_evidence_only_no_progress_is_blamed() {
        let judged = |wall| judge(&Cost { wall, known: None }, Slept::NotAsked, Some(MS));
        assert_eq!(judged(NO_PROGRESS), Verdict::NoProgress);
        assert_eq!(judged(NO_PROGRESS - NS), Verdict::Clean);
    }

    #[test]
    fn a_stack_tells_whose_sleep_it_is() {
        let stack = |names: &[&str]| -> Vec<Frame> {
            let frame = |name: &&str| {
                let (origin, function) = name.split_once(' ').unwrap();
                Frame {
                    function: Some(function.to_owned()),
                    file: None,
                    line: None,
                    module: None,
                    offset: 0,
                    build_id: None,
                    origin: match origin {
                        "own" => Origin::Own,
                        "dep" => Origin::Dependency,
                        "std" => Origin::Std,
                        "rt" => Origin::Runtime,
                        _ => Origin::System,
                    },
                    inlined: false,
                }
            };
            names.iter().map(frame).collect()
        };
        let lock = ["sys syscall", "std futex_wait", "std Mutex::lock_contended"];
        let of = |rest: &[&str]| slept(&stack(&[&lock, rest].concat()));
        let excused = |excuse| Slept::Excused(excuse);
        assert_eq!(
            of(&["own app::f", "rt tokio::run"]),
            Slept::In(Blocking::Lock)
        );
        assert_eq!(
            of(&["dep pool::get", "own app::f"]),
            Slept::In(Blocking::Lock)
        );
        assert_eq!(
            of(&["dep lock_api::Mutex::lock", "rt tokio::spawn", "own app::f"]),
            excused(Excuse::RuntimeLock)
        );
        assert_eq!(
            of(&["rt tokio::spawn", "own app::f"]),
            excused(Excuse::RuntimeLock)
        );
        for (names, expected) in [
            (
                &["sys clock_nanosleep", "std std::thread::sleep", "own f"][..],
                Slept::In(Blocking::Sleep),
            ),
            (
                &["sys fsync", "std std::fs::File::sync_all", "own f"],
                Slept::In(Blocking::File),
            ),
            (&["sys read", "std std::fs::read", "own f"], Slept::InFile),
            (
                &["sys connect", "std std::net::TcpStream::connect", "own f"],
                Slept::In(Blocking::Network),
            ),
            (
                &[
                    "sys clone3",
                    "sys posix_spawn",
                    "std std::process::Command::output",
                    "own f",
                ],
                Slept::In(Blocking::Process),
            ),
            (
                &[
                    "sys mmap",
                    "sys pthread_create",
                    "std std::thread::spawn",
                    "own f",
                ],
                excused(Excuse::Memory),
            ),
            (
                &[
                    "sys __lll_lock_wait",
                    "sys malloc",
                    "std __rust_alloc",
                    "own f",
                ],
                excused(Excuse::AllocatorLock),
            ),
            (
                &[
                    "sys read",
                    "own f",
                    "rt tokio::task::block_in_place",
                    "own g",
                ],
                excused(Excuse::MovedAway),
            ),
            (
                &[
                    "sys syscall",
                    "std park",
                    "rt tokio::runtime::Runtime::shutdown_timeout",
                    "own f",
                ],
                Slept::In(Blocking::Lock),
            ),
        ] {
            assert_eq!(slept(&stack(names)), expected, "{names:?}");
        }
    }
}
