//! Looks at the threads of another process, and explains their stacks.
//!
//! *Runs on:* the threads of the programs `tokio-stall` and `cargo-stall`.
//! *Must not:* stop a thread of the other process. The caller does that, and hands over registers.
//!
//! The scheduler's loop on a stack shows a worker, whatever its thread is called, for any version
//! of tokio from 1.20 on. The innermost call of tokio that polls a task, or the future given to
//! `block_on`, separates the poll from the loop.
//!
//! The names are those of the feature `outside`, which semantic versioning does not cover.

use super::advice::advise;
use super::stack::OneCall;
use super::{
    Explained, Explainer, OwnCode, PoolThread, SleptIn, cause, is_parked, pool_thread, tokio_names,
};
use crate::capture::Registers;
use crate::os::{self, Call, HiddenEvidence, Pid, ThreadFiles, ThreadState, memory};
use crate::report::{
    Certainty, Frame, Missing, NoStack, Origin, Phase, StackSample, StallReport, TimeSplit,
    add_stack, done_by_the_poll, site,
};
use std::io;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

/// Another process, with what is known of its files.
#[derive(Debug)]
pub struct ObservedProcess {
    process: Pid,
    explainer: Explainer,
    own: OwnCode,
}

/// The registers of a thread. Those that are not known are zero: then a stack that needs them is
/// followed up to there, and no further.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadRegisters {
    /// The next instruction.
    pub pc: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer: `rbp`, `x29`.
    pub fp: u64,
    /// The link register, `x30`; zero on x86-64.
    pub lr: u64,
}

/// Words copied from a stack, from the stack pointer on.
#[derive(Clone, Debug)]
pub struct StackCopy {
    words: Vec<u64>,
    /// Whether as much was copied as was asked for, so that there may be more.
    is_cut: bool,
}

/// The bytes of a stack that are copied at first, and for deep stacks.
const COPIED: [usize; 2] = [32 << 10, 256 << 10];

impl ObservedProcess {
    /// The process with this number. Crates with these names are own code, besides those that are
    /// own by their paths.
    ///
    /// # Cost
    ///
    /// Nothing is read before the first stack, which reads debug information: about 100 ms.
    pub fn new(number: NonZeroU32, own: impl IntoIterator<Item = String>) -> ObservedProcess {
        let process = Pid::other(number);
        let program = std::fs::read_link(process.file("exe")).unwrap_or_default();
        ObservedProcess {
            process,
            explainer: Explainer::of(process),
            own: OwnCode::of_program(&program, own),
        }
    }

    /// Reads the program's debug information, so that the first stack is not late.
    ///
    /// # Cost
    ///
    /// About 100 ms, and a second for a large program.
    pub fn prime(&mut self) {
        self.explainer.prime_program(self.process);
    }

    /// Copies a thread's stack. `deep` copies 256 KiB instead of 32.
    ///
    /// # Cost
    ///
    /// One system call: about 10 µs, and 60 µs for a deep one.
    pub fn copy_stack(&self, sp: u64, deep: bool) -> StackCopy {
        let most = COPIED[usize::from(deep)];
        let mut bytes = vec![0; most];
        let read = memory::read_in(self.process, sp & !7, &mut bytes);
        let words = bytes[..read].chunks_exact(8);
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        StackCopy {
            words: words.map(word).collect(),
            is_cut: read == most,
        }
    }

    /// Unwinds and names a stack.
    ///
    /// # Cost
    ///
    /// 20 to 200 µs, and 100 ms for the first one of a program.
    pub fn explain(&mut self, registers: ThreadRegisters, copy: &StackCopy) -> ThreadStack {
        let ThreadRegisters { pc, sp, fp, lr } = registers;
        let registers = Registers { pc, sp, fp, lr };
        let words = (&copy.words[..], copy.is_cut);
        let (explained, calls) = self.explainer.explain_copy(registers, words, &self.own);
        let (place, returns_to) = place(&explained, &calls);
        ThreadStack {
            certain_frames: explained.certain,
            complete: explained.complete,
            truncated: explained.truncated,
            lost: explained.lost,
            missing: explained.missing,
            frames: explained.frames,
            place,
            returns_to,
            asleep: false,
        }
    }

    /// Opens a thread of the process for looks. `None` if it has exited.
    ///
    /// # Errors
    ///
    /// Descriptors or memory are short, or the kernel keeps no times of threads.
    pub fn thread(&self, tid: u32) -> io::Result<Option<ObservedThread>> {
        if !os::counts_runs() {
            let why = HiddenEvidence::Uncounted.as_str();
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        Ok(ThreadFiles::open_in(self.process, tid)?.map(ObservedThread))
    }

    /// Looks up the descriptor of a call that a thread sleeps in now. Once the call is over, the
    /// descriptor may be another one.
    ///
    /// # Cost
    ///
    /// For calls on any kind of descriptor, as `read`, one system call.
    pub fn described(&self, call: SleepCall) -> DescribedCall {
        DescribedCall(SleptIn::now_in(self.process, call.0))
    }

    /// The report of a stall with all that is known of it.
    pub fn report(&self, evidence: &StallEvidence) -> StallReport {
        evidence.report()
    }
}

/// The open files of one thread of another process.
#[derive(Debug)]
pub struct ObservedThread(ThreadFiles);

impl ObservedThread {
    /// Looks at the thread now. `None` once it has exited.
    ///
    /// # Cost
    ///
    /// Two or three reads of open files: about 3 µs.
    pub fn look(&mut self) -> Option<ThreadLook> {
        let seen = self.0.look()?;
        Some(ThreadLook {
            cpu: seen.cpu,
            run_queue: seen.run_queue,
            runs: seen.runs,
            doing: match seen.state {
                ThreadState::OnCpu | ThreadState::Waiting => Doing::Runs,
                ThreadState::Asleep(call) => Doing::Sleeps(call.map(SleepCall)),
                ThreadState::Unknown => Doing::Unknown,
            },
        })
    }
}

/// A thread's figures and its state at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadLook {
    /// The time on a CPU so far. It moves in scheduler ticks of 1 to 10 ms.
    pub cpu: Duration,
    /// The time of waiting for a CPU so far.
    pub run_queue: Duration,
    /// How often it was put on a CPU. A thread that sleeps with the same number as before has slept
    /// all the time.
    pub runs: u64,
    /// The state.
    pub doing: Doing,
}

/// The state of a thread of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// On a CPU, or ready to be.
    Runs,
    /// Asleep in the kernel. The call is `None` for a page fault and the like, and if it is secret.
    Sleeps(Option<SleepCall>),
    /// Stopped, or not to be seen.
    Unknown,
}

/// The system call that a thread sleeps in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SleepCall(Call);

impl SleepCall {
    /// The name of the call: `futex`.
    pub fn name(&self) -> String {
        os::call_name(self.0.number)
    }

    /// Whether the kernel goes on with a call that was interrupted. The name of that one is lost.
    pub fn is_restarted(&self) -> bool {
        self.0.number == libc::SYS_restart_syscall
    }

    /// The registers that the kernel shows.
    pub fn registers(&self) -> ThreadRegisters {
        ThreadRegisters {
            pc: self.0.pc,
            sp: self.0.sp,
            fp: 0,
            lr: 0,
        }
    }
}

/// A call with the kind of its descriptor at the time at which the thread slept in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribedCall(SleptIn);

impl DescribedCall {
    /// The call.
    pub fn call(&self) -> SleepCall {
        SleepCall(self.0.call)
    }
}

/// A thread's stack, unwound and named.
#[derive(Clone, Debug)]
pub struct ThreadStack {
    /// The calls, innermost first.
    pub frames: Vec<Frame>,
    /// The number of innermost frames that unwind tables have led to. The others are guesses.
    pub certain_frames: usize,
    /// Whether it was followed to the thread's root, with no frame guessed.
    pub complete: bool,
    /// Whether it is deeper than the part that was copied.
    pub truncated: bool,
    /// Whether it came to a call that no unwind table explains, or that needs a register which is
    /// not known.
    pub lost: bool,
    /// The reasons why frames have no name or no line.
    pub missing: Vec<Missing>,
    /// The part of the runtime that the thread is in.
    pub place: ThreadPlace,
    /// In a poll: an instruction that the thread executes once the poll is over, and not before.
    /// `None` if the stack does not show one.
    pub returns_to: Option<u64>,
    /// Whether it was taken while the thread slept, without a stop.
    pub asleep: bool,
}

impl ThreadStack {
    /// Whether any function of the program has a name.
    pub fn has_names(&self) -> bool {
        let mut named = self.frames.iter().filter(|frame| frame.function.is_some());
        named.any(|frame| frame.origin != Origin::System)
    }
}

/// The name of a frame's function as in the source: without generic arguments and closures.
pub fn written_name(frame: &Frame) -> Option<String> {
    frame.written_name()
}

/// The part of a runtime that a thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadPlace {
    /// No scheduler is on its stack.
    Elsewhere,
    /// A thread of a blocking pool that waits for work.
    IdlePool,
    /// A thread of a blocking pool in a closure.
    BusyPool,
    /// A worker that waits for work.
    Parked,
    /// A worker in the scheduler, between two polls.
    Scheduling,
    /// A worker in a poll.
    Polling,
    /// It was a worker, and has handed that over in `block_in_place`.
    Handed,
}

impl ThreadPlace {
    /// Whether the thread drives a worker.
    pub fn is_worker(self) -> bool {
        use ThreadPlace::{Parked, Polling, Scheduling};
        matches!(self, Parked | Scheduling | Polling)
    }
}

/// The modules of tokio whose functions are a worker's loop; the last two up to 1.23.
const LOOPS: [&str; 5] = [
    "scheduler::current_thread::",
    "scheduler::multi_thread::worker::",
    "scheduler::multi_thread_alt::worker::",
    "thread_pool::worker::",
    "basic_scheduler::",
];

fn place(explained: &Explained, calls: &[OneCall]) -> (ThreadPlace, Option<u64>) {
    let frames = &explained.frames[..explained.certain];
    let passes = |part: &str| tokio_names(frames).any(|name| name.contains(part));
    if !frames.iter().any(is_loop) {
        let pool = match (
            passes("blocking::pool::"),
            pool_thread(explained) == Some(PoolThread::Holds),
        ) {
            (false, _) => ThreadPlace::Elsewhere,
            (true, false) => ThreadPlace::IdlePool,
            (true, true) => ThreadPlace::BusyPool,
        };
        return (pool, None);
    }
    if passes("block_in_place") {
        return (ThreadPlace::Handed, None);
    }
    if is_parked(frames) || waits_for_a_thread(frames) {
        return (ThreadPlace::Parked, None);
    }
    let Some((inside, returns_to)) = poll_of(frames, calls) else {
        return (ThreadPlace::Scheduling, None);
    };
    // Tokio's own work inside of a poll is short: a task is taken apart.
    let is_of_the_user = |frame: &Frame| matches!(frame.origin, Origin::Own | Origin::Dependency);
    match frames[..inside].iter().any(is_of_the_user) {
        true => (ThreadPlace::Polling, returns_to),
        false => (ThreadPlace::Scheduling, None),
    }
}

/// Whether the innermost function of tokio is a wait that only runtimes without sockets have, or
/// versions up to 1.21.
fn waits_for_a_thread(frames: &[Frame]) -> bool {
    let innermost = tokio_names(frames).find(|name| !name.contains("tokio::loom::"));
    let waits = ["runtime::park::", "tokio::park::", "thread_pool::park::"];
    innermost.is_some_and(|name| waits.iter().any(|part| name.contains(part)))
}

/// The number of frames inside of the innermost poll by the runtime, and the instruction after it.
fn poll_of(frames: &[Frame], calls: &[OneCall]) -> Option<(usize, Option<u64>)> {
    let calls = &calls[..calls.partition_point(|call| call.frames.end <= frames.len())];
    let names = |call: &OneCall| frames[call.frames.clone()].iter();
    // A worker's thread is itself a task of the blocking pool, further out than the loop.
    let outermost = calls.iter().rposition(|call| names(call).any(is_loop))?;
    let mut inside = calls[..outermost].iter();
    if let Some(at) = inside.position(|call| names(call).any(polls_task)) {
        // The loop calls tasks through a table, so the function that polls one is a function of its
        // own, and the user's code may be inlined into it.
        let returns_to = calls.get(at + 1).map(|call| call.address + 1);
        return Some((calls[at].frames.end, returns_to));
    }
    let at = calls.iter().position(|call| names(call).any(polls_root))?;
    // The whole loop may be one function with the user's code inlined. Then nothing in it is
    // executed once for each poll.
    let is_foreign = |frame: &Frame| matches!(frame.origin, Origin::Runtime | Origin::Std);
    let is_apart = at > 0 && names(&calls[at]).all(|frame| is_foreign(frame) && is_placed(frame));
    let returns_to = is_apart.then(|| calls[at].address + 1);
    Some((calls[at].frames.end, returns_to))
}

fn is_placed(frame: &Frame) -> bool {
    frame.file.is_some()
}

/// The name of a function of tokio.
fn tokio_name(frame: &Frame) -> Option<&str> {
    tokio_names(std::slice::from_ref(frame)).next()
}

/// Whether it is a function of a worker's loop. The types of tasks have schedulers in their names.
fn is_loop(frame: &Frame) -> bool {
    let is_of_loop = |name: &str| LOOPS.iter().any(|module| name.contains(module));
    tokio_name(frame).is_some_and(|name| is_of_loop(name) && !name.contains("::task::"))
}

/// Whether it is the function that polls a task.
fn polls_task(frame: &Frame) -> bool {
    let machines = ["::task::raw", "::task::harness", "::task::core"];
    let is_machine = |name: &str| machines.iter().any(|module| name.contains(module));
    tokio_name(frame).is_some_and(|name| is_machine(name) && name.contains("poll"))
}

/// Whether it is the loop of a current-thread runtime, which polls the future given to `block_on`.
fn polls_root(frame: &Frame) -> bool {
    let is_single = |name: &str| !name.contains("multi_thread") && !name.contains("thread_pool");
    let parts = ["block_on", "CoreGuard", "Context"];
    let has_part = |name: &str| parts.iter().any(|part| name.contains(part));
    is_loop(frame) && tokio_name(frame).is_some_and(|name| is_single(name) && has_part(name))
}

/// The evidence of one stall.
#[derive(Clone, Debug)]
pub struct StallEvidence {
    /// Its number.
    pub id: u64,
    /// Whether it goes on.
    pub phase: Phase,
    /// Whether it is proven that it was one poll.
    pub certainty: Certainty,
    /// The name of the program.
    pub runtime: String,
    /// The number of the worker.
    pub worker: usize,
    /// The thread's name.
    pub thread: String,
    /// The thread's number.
    pub tid: u32,
    /// When it was first seen.
    pub started_at: SystemTime,
    /// How long it has been seen.
    pub duration: Duration,
    /// How much longer it may have taken.
    pub duration_error: Duration,
    /// The time, by the way in which it was spent.
    pub time: TimeSplit,
    /// The threshold.
    pub threshold: Duration,
    /// The call that it was seen asleep in longest.
    pub asleep_in: Option<DescribedCall>,
    /// The stacks taken of it.
    pub stacks: Vec<StackSample>,
    /// The parts that are missing.
    pub missing: Vec<Missing>,
}

impl StallEvidence {
    /// Adds a stack, taken so long after the start.
    pub fn add(&mut self, stack: &ThreadStack, after: Duration) {
        let sample = StackSample {
            after,
            count: 1,
            frames: stack.frames.clone(),
            certain_frames: stack.certain_frames,
            complete: stack.complete,
            asleep: stack.asleep,
        };
        add_stack(&mut self.stacks, sample);
        let gaps = [
            (stack.truncated, Missing::Truncated),
            (stack.lost, Missing::Lost),
        ];
        let gaps = gaps.into_iter().filter(|(holds, _)| *holds);
        let gaps = gaps.map(|(_, missing)| missing);
        for missing in stack.missing.iter().copied().chain(gaps) {
            if !self.missing.contains(&missing) {
                self.missing.push(missing);
            }
        }
    }

    fn report(&self) -> StallReport {
        let slept = self.asleep_in.filter(|_| self.time.has_slept());
        let slept_in = slept.map(|DescribedCall(slept_in)| slept_in);
        let telling = site::telling(&self.stacks, self.time.asleep > self.time.cpu);
        let frames = telling.map_or(&[][..], |index| &self.stacks[index].frames);
        let cause = cause(&self.time, self.threshold, slept_in, frames);
        let asleep_in = slept.map(|described| described.call().name());
        let advice = advise(done_by_the_poll(frames), cause, asleep_in.as_deref());
        let site = site::site(frames);
        let dependency = site::dependency(frames).filter(|_| site.is_none());
        StallReport {
            id: self.id,
            phase: self.phase,
            certainty: self.certainty,
            runtime: self.runtime.clone(),
            worker: self.worker,
            thread: Some(self.thread.clone()),
            tid: Some(self.tid),
            span: None,
            trace: None,
            task: None,
            spawned_at: None,
            started_at: self.started_at,
            duration: self.duration,
            duration_error: self.duration_error,
            time: self.time,
            cause,
            asleep_in,
            driver_frozen: None,
            victims: None,
            dependency,
            stacks: self.stacks.clone(),
            representative_stack: telling,
            advice: advice.map(str::to_owned),
            seen_here: 0,
            lost_here: Duration::ZERO,
            missing: self.missing(site.is_some()),
            site,
            suppressed: 0,
        }
    }

    fn missing(&self, has_site: bool) -> Vec<Missing> {
        let mut missing = self.missing.clone();
        let has_lines = self.stacks.iter().any(StackSample::has_lines);
        if self.stacks.is_empty() {
            missing.push(Missing::Stack(NoStack::MovedOn));
        } else if !has_lines && missing.is_empty() {
            missing.push(Missing::NoDebugInfo);
        } else if !has_site && has_lines {
            missing.push(Missing::NoOwnCode);
        }
        if self.certainty == Certainty::Likely {
            missing.push(Missing::OnePoll);
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The place of a stack of these calls. Functions of one call are separated by a comma, those
    /// that were inlined first. The address of a call is its index.
    fn place_of(calls: &[&str]) -> (ThreadPlace, Option<u64>) {
        let mut frames = Vec::new();
        let mut ones = Vec::new();
        for (address, call) in (0..).zip(calls) {
            let first = frames.len();
            frames.extend(call.split(", ").map(frame));
            ones.push(OneCall {
                address,
                frames: first..frames.len(),
            });
        }
        let explained = Explained {
            certain: frames.len(),
            frames,
            missing: Vec::new(),
            complete: true,
            truncated: false,
            lost: false,
        };
        place(&explained, &ones)
    }

    fn frame(function: &str) -> Frame {
        let origin = match function.split("::").next() {
            Some("tokio" | "<tokio") => Origin::Runtime,
            Some("std" | "core") => Origin::Std,
            Some("app") => Origin::Own,
            _ => Origin::System,
        };
        Frame {
            file: Some("a.rs".to_owned()),
            ..Frame::of(function, origin)
        }
    }

    const RUN: &str = "tokio::runtime::scheduler::multi_thread::worker::Context::run";
    const POOL: &str = "tokio::runtime::blocking::pool::Inner::run";
    /// The worker's own thread is a task of the pool. Its type has the scheduler in its name.
    const LAUNCH: &str = "tokio::runtime::task::raw::poll::<tokio::runtime::blocking::task::\
                          BlockingTask<tokio::runtime::scheduler::multi_thread::worker::launch>>";
    const TASK: &str = "tokio::runtime::task::raw::poll";

    #[test]
    fn a_poll_lies_between_the_loop_and_the_users_code() {
        let polling = [
            "nanosleep",
            "std::thread::sleep",
            "app::f",
            TASK,
            RUN,
            LAUNCH,
            POOL,
        ];
        assert_eq!(place_of(&polling), (ThreadPlace::Polling, Some(5)));
        // The poll may be inlined into the function that polls it.
        let inlined = format!("app::f, {TASK}");
        let polling = ["nanosleep", &inlined, RUN, LAUNCH, POOL];
        assert_eq!(place_of(&polling), (ThreadPlace::Polling, Some(3)));
    }

    #[test]
    fn a_worker_without_a_poll_is_in_its_loop_and_no_closure() {
        let scheduling = ["write", "mio::wake", RUN, LAUNCH, POOL];
        assert_eq!(place_of(&scheduling), (ThreadPlace::Scheduling, None));
        let taken_apart = ["free", "core::ptr::drop", TASK, RUN, LAUNCH, POOL];
        assert_eq!(place_of(&taken_apart).0, ThreadPlace::Scheduling);
    }

    #[test]
    fn waits_and_closures_are_no_polls() {
        for park in [
            "tokio::runtime::park::Inner::park",
            "tokio::park::thread::Inner::park",
            "tokio::runtime::io::driver::Driver::turn",
        ] {
            let parked = ["futex", "std::condvar::wait", park, RUN, LAUNCH, POOL];
            assert_eq!(place_of(&parked).0, ThreadPlace::Parked, "{park}");
        }
        let left = [
            "nanosleep",
            "app::f",
            "tokio::task::block_in_place",
            TASK,
            RUN,
        ];
        assert_eq!(place_of(&left).0, ThreadPlace::Handed);
        let closure = [
            "nanosleep",
            "app::f",
            "tokio::runtime::blocking::task::poll",
            POOL,
        ];
        assert_eq!(place_of(&closure).0, ThreadPlace::BusyPool);
        let idle = ["futex", "std::condvar::wait", POOL];
        assert_eq!(place_of(&idle).0, ThreadPlace::IdlePool);
        assert_eq!(
            place_of(&["nanosleep", "app::main"]).0,
            ThreadPlace::Elsewhere
        );
    }

    #[test]
    fn the_future_of_block_on_has_an_end_if_it_is_a_function_of_its_own() {
        let block_on = "tokio::runtime::scheduler::current_thread::CoreGuard::block_on";
        let apart = [
            "nanosleep",
            "app::f",
            "core::future::poll",
            block_on,
            "app::main",
        ];
        assert_eq!(place_of(&apart), (ThreadPlace::Polling, Some(4)));
        let inlined = format!("app::f, {block_on}");
        let one = ["nanosleep", &inlined, "app::main"];
        assert_eq!(place_of(&one), (ThreadPlace::Polling, None));
    }

    #[test]
    fn loops_of_older_versions_are_known() {
        for run in [
            "tokio::runtime::thread_pool::worker::Context::run",
            "tokio::runtime::basic_scheduler::Context::run_task",
        ] {
            assert_eq!(
                place_of(&["app::f", TASK, run]).0,
                ThreadPlace::Polling,
                "{run}"
            );
        }
    }
}
