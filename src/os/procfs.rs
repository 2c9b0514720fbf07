//! Thread evidence from `/proc/PID/task` and the thread CPU clock.
//!
//! *Runs on:* `stall-watchdog`; `current_tid` on every thread that takes a slot, and in the signal
//! handler.
//! *Must not:* open a file for a tick, or disturb the thread that is looked at.
//!
//! A tick uses open descriptors and `pread`: about 1 µs for everything. Functions that open a file
//! have a note. Threads of the own process need no privilege.

pub(crate) use super::calls::{call_kind, call_name, waits_for_events};
pub(crate) use super::throttle::Throttle;
use super::{Call, Descriptor, HiddenEvidence, Pid, ThreadEvidence, ThreadState};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The most descriptors that this process may have now.
pub(crate) fn descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.unwrap_or(u64::MAX)
}

/// Whether a file cannot be opened since something is short, of which there may be more later.
pub(super) fn is_short(error: &io::Error) -> bool {
    let shortages = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];
    let number = error.raw_os_error();
    number.is_some_and(|number| shortages.contains(&number))
}

/// The kernel's number for the calling thread.
pub(crate) fn current_tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// How often threads of this process have lost their CPU while they had more to compute:
/// involuntary context switches.
///
/// # Cost
///
/// One system call, which visits each thread of the process.
#[allow(unsafe_code)]
pub(crate) fn preemptions() -> Option<u64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a valid place for the answer.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: all-zero before the call, and filled in by it.
    let usage = unsafe { usage.assume_init() };
    (result == 0).then(|| u64::try_from(usage.ru_nivcsw).ok())?
}

/// Whether a debugger or tracer is attached to this process. It opens a file, so it is not for
/// every tick.
pub(crate) fn debugger_attached() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"))
            .is_some_and(|pid| pid.trim() != "0")
    })
}

/// The open files of one thread. They stay with that thread: after its exit reads fail, even if its
/// number has been given to another thread.
#[derive(Debug)]
pub(crate) struct ThreadFiles {
    process: Pid,
    tid: u32,
    schedstat: File,
    state: StateFile,
}

/// The file that tells what a thread off its CPU does.
#[derive(Debug)]
enum StateFile {
    /// `syscall`: the call it is asleep in. Readable for the owner of a process that may be dumped:
    /// not after privileges were dropped, nor with capabilities of the program's file.
    Syscall(File),
    /// `stat`: asleep or ready, for everybody to read.
    Stat(File),
    /// Neither.
    None,
}

/// Opens a file of a thread. `None` if the kernel does not offer it, or not to this process.
///
/// # Errors
///
/// Descriptors or memory are short at this moment.
fn open(process: Pid, tid: u32, name: &str) -> io::Result<Option<File>> {
    match File::open(process.file(&format!("task/{tid}/{name}"))) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_short(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

impl StateFile {
    fn open(process: Pid, tid: u32) -> io::Result<StateFile> {
        match open(process, tid, "syscall")? {
            // The kernel asks again at each read whether it is allowed.
            Some(file) if file.read_at(&mut [0; 1], 0).is_ok() => Ok(StateFile::Syscall(file)),
            _ => Ok(open(process, tid, "stat")?.map_or(StateFile::None, StateFile::Stat)),
        }
    }
}

impl ThreadFiles {
    /// Opens the files of a thread of this process. `None` if the kernel does not offer them, or
    /// if there is no descriptor for one of them.
    pub(crate) fn open(tid: u32) -> Option<ThreadFiles> {
        ThreadFiles::try_open(tid).ok().flatten()
    }

    /// Opens the files of a thread of this process. `None` if the kernel does not offer them.
    ///
    /// # Errors
    ///
    /// Descriptors or memory are short at this moment.
    pub(crate) fn try_open(tid: u32) -> io::Result<Option<ThreadFiles>> {
        ThreadFiles::open_in(Pid::OWN, tid)
    }

    /// Opens the files of a thread of a process. `None` if the kernel does not offer them, or
    /// shows zeros in one of them.
    ///
    /// # Errors
    ///
    /// Descriptors or memory are short at this moment.
    pub(crate) fn open_in(process: Pid, tid: u32) -> io::Result<Option<ThreadFiles>> {
        let Some(schedstat) = open(process, tid, "schedstat")?.filter(|_| counts_runs()) else {
            return Ok(None);
        };
        let state = StateFile::open(process, tid)?;
        Ok(Some(ThreadFiles {
            process,
            tid,
            schedstat,
            state,
        }))
    }

    /// Looks at the thread now. `None` once it has exited, or if a file must be opened anew and
    /// there is no descriptor for it.
    ///
    /// The clock of another process's thread is not to be read. Such a thread is waiting if it is
    /// on a CPU, and its CPU time moves in scheduler ticks.
    ///
    /// # Cost
    ///
    /// About 0.9 µs for a thread on a CPU, 1.6 µs for one that sleeps.
    pub(crate) fn look(&mut self) -> Option<ThreadEvidence> {
        let before = cpu_clock(self.tid);
        let early = self.schedstat()?;
        let after = cpu_clock(self.tid);
        let state = if after > before {
            ThreadState::OnCpu
        } else {
            self.off_cpu_state()?
        };
        // The kernel counts a wait when it ends, and a wait may end during this look. If the thread
        // is seen waiting, that wait must not be counted yet. If not, its last wait must be
        // counted.
        let counted = match state {
            ThreadState::Waiting => early,
            _ => self.schedstat()?,
        };
        Some(ThreadEvidence {
            // The file's own CPU time moves in scheduler ticks of milliseconds.
            cpu: after.unwrap_or(counted.cpu),
            run_queue: counted.run_queue,
            runs: counted.runs,
            state,
        })
    }

    /// How long the thread has waited for a CPU so far. Costs 0.3 µs.
    pub(crate) fn run_queue(&self) -> Option<Duration> {
        self.schedstat().map(|counted| counted.run_queue)
    }

    fn schedstat(&self) -> Option<SchedStat> {
        let mut buffer = [0; 96];
        let read = self.schedstat.read_at(&mut buffer, 0).ok()?;
        parse_schedstat(&buffer[..read])
    }

    fn off_cpu_state(&mut self) -> Option<ThreadState> {
        let mut buffer = [0; 192];
        if let StateFile::Syscall(file) = &self.state {
            match file.read_at(&mut buffer, 0) {
                Ok(read) => return Some(parse_syscall(&buffer[..read])),
                // Privileges have been dropped since, or the thread has exited.
                Err(_) => self.state = StateFile::open(self.process, self.tid).ok()?,
            }
        }
        let StateFile::Stat(file) = &self.state else {
            return Some(ThreadState::Unknown);
        };
        let read = file.read_at(&mut buffer, 0);
        Some(read.map_or(ThreadState::Unknown, |read| parse_stat(&buffer[..read])))
    }
}

/// Whether the kernel counts how often a thread is put on a CPU. One that does not shows zeros: a
/// thread would seem to be in one sleep for ever.
///
/// # Cost
///
/// It opens a file of the calling thread, until it has seen a count there.
pub(crate) fn counts_runs() -> bool {
    static ARE_SEEN: AtomicBool = AtomicBool::new(false);
    // Relaxed: it publishes nothing.
    if ARE_SEEN.load(Ordering::Relaxed) {
        return true;
    }
    let Ok(text) = std::fs::read("/proc/thread-self/schedstat") else {
        return true;
    };
    ARE_SEEN.store(parse_schedstat(&text).is_some(), Ordering::Relaxed);
    is_counted(&text)
}

/// Whether this is no `schedstat` of zeros, for a thread that has run.
fn is_counted(schedstat: &[u8]) -> bool {
    schedstat.trim_ascii() != b"0 0 0"
}

/// Looks at the calling thread as at any other. Returns the part that stays hidden.
///
/// # Cost
///
/// It opens two or three files: about 20 µs.
pub(crate) fn hidden_evidence() -> Option<HiddenEvidence> {
    let mut files = match ThreadFiles::try_open(current_tid()) {
        Ok(Some(files)) => files,
        Ok(None) if !counts_runs() => return Some(HiddenEvidence::Uncounted),
        Ok(None) => return Some(HiddenEvidence::NoFiles),
        Err(_) => return Some(HiddenEvidence::Short),
    };
    if files.look().is_none() || cpu_clock(files.tid).is_none() {
        return Some(HiddenEvidence::Unreadable);
    }
    // A thread that looks at itself is on a CPU, so the look has not read this file.
    match files.off_cpu_state() {
        None => Some(HiddenEvidence::Short),
        Some(ThreadState::Unknown) => Some(HiddenEvidence::States),
        Some(_) => (!matches!(files.state, StateFile::Syscall(_))).then_some(HiddenEvidence::Calls),
    }
}

/// The figures that the kernel's scheduler keeps of a thread.
#[derive(Debug, PartialEq, Eq)]
struct SchedStat {
    cpu: Duration,
    run_queue: Duration,
    runs: u64,
}

/// Parses `schedstat`: nanoseconds on CPU, nanoseconds in run queues, times put on a CPU. Zeros are
/// no evidence: a thread that takes part has run.
fn parse_schedstat(text: &[u8]) -> Option<SchedStat> {
    let mut fields = std::str::from_utf8(text)
        .ok()?
        .split_ascii_whitespace()
        .map(|field| field.parse::<u64>().ok());
    let mut next = || fields.next().flatten();
    Some(SchedStat {
        cpu: Duration::from_nanos(next()?),
        run_queue: Duration::from_nanos(next()?),
        runs: next().filter(|runs| *runs > 0)?,
    })
}

/// Parses `syscall`. It is `running` for a thread that is ready or on a CPU. Else it is the number
/// of the call, its six arguments, the stack pointer and the program counter. Outside of a call the
/// number is -1, and there are no arguments.
pub(super) fn parse_syscall(text: &[u8]) -> ThreadState {
    let Ok(text) = std::str::from_utf8(text) else {
        return ThreadState::Unknown;
    };
    let mut fields = text.split_ascii_whitespace();
    match fields.next().map(|first| (first, first.parse::<i64>())) {
        Some(("running", _)) => ThreadState::Waiting,
        Some((_, Ok(number))) if number < 0 => ThreadState::Asleep(None),
        Some((_, Ok(number))) => ThreadState::Asleep(Some(parse_call(number, fields))),
        _ => ThreadState::Unknown,
    }
}

/// `stat`: a number, the name in parentheses, and a letter for the state. The name may hold any
/// character.
fn parse_stat(text: &[u8]) -> ThreadState {
    let after_name = text.iter().rposition(|byte| *byte == b')');
    match after_name.and_then(|at| text.get(at + 2)) {
        Some(b'R') => ThreadState::Waiting,
        Some(b'S' | b'D') => ThreadState::Asleep(None),
        _ => ThreadState::Unknown,
    }
}

/// The call with this number, from the fields after it. Fields that are missing are zero.
fn parse_call<'a>(number: i64, mut fields: impl Iterator<Item = &'a str>) -> Call {
    let hex = |field: &str| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok();
    let first = fields.next().and_then(hex);
    let mut last = fields.skip(5).map_while(hex);
    Call {
        number,
        first: first.unwrap_or(0),
        sp: last.next().unwrap_or(0),
        pc: last.next().unwrap_or(0),
    }
}

/// Whether a thread has blocked a signal. It opens a file, so it is for requests without an answer.
pub(crate) fn is_signal_blocked(tid: u32, signal: i32) -> bool {
    blocked_signals(tid).is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

/// The signals that a thread has blocked, the lowest bit for signal 1. It opens a file.
pub(super) fn blocked_signals(tid: u32) -> Option<u64> {
    signal_set(tid, "SigBlk:")
}

/// A set of signals in the status of a thread, the lowest bit for signal 1. It opens a file.
pub(super) fn signal_set(tid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).ok()?;
    let mut lines = status.lines();
    let set = lines.find_map(|line| line.strip_prefix(field))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// The kind of a descriptor of a process, by the kernel's name for it. A call on the file itself
/// could wait for the same server as the stalled thread.
pub(crate) fn descriptor(process: Pid, number: u64) -> Descriptor {
    let Ok(link) = std::fs::read_link(process.file(&format!("fd/{number}"))) else {
        return Descriptor::Other;
    };
    let name = link.as_os_str().as_encoded_bytes();
    if name.starts_with(b"socket:") {
        Descriptor::Socket
    } else if name.starts_with(b"/") || name.starts_with(b"pipe:") {
        Descriptor::File
    } else {
        // An event counter, a timer, a process …
        Descriptor::Other
    }
}

/// CPU time of a thread of this process, by the thread's own clock. It is exact even while the
/// thread runs. `None` for a thread that has exited. Costs 0.15 µs.
#[allow(unsafe_code)]
pub(crate) fn cpu_clock(tid: u32) -> Option<Duration> {
    // The clock's number is made from the thread's, as in the C library's `pthread_getcpuclockid`:
    // the complement shifted by three, with the bits "per thread" and "scheduler's own figure".
    const PER_THREAD: libc::clockid_t = 4;
    const SCHEDULED: libc::clockid_t = 2;
    let tid = tid as libc::clockid_t;
    let clock = (!tid << 3) | PER_THREAD | SCHEDULED;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for one timespec. An unknown clock number is an error, not
    // undefined behaviour.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) } != 0;
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanos = u32::try_from(time.tv_nsec).ok()?;
    (!failed).then(|| Duration::new(seconds, nanos))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_sleeping_thread_is_seen_asleep_and_does_not_run() {
        let (send, receive) = mpsc::channel::<()>();
        let (tid_sender, tid) = mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            tid_sender.send(current_tid()).unwrap();
            receive.recv().ok();
        });
        let mut files = ThreadFiles::open(tid.recv().unwrap()).expect("Linux offers schedstat");
        let asleep = loop {
            let seen = files.look().unwrap();
            let in_futex = |call: &Call| call_name(call.number) == "futex";
            if matches!(&seen.state, ThreadState::Asleep(Some(call)) if in_futex(call)) {
                break seen;
            }
            std::thread::yield_now();
        };
        let later = files.look().unwrap();
        assert_eq!((later.cpu, later.runs), (asleep.cpu, asleep.runs));
        drop(send);
        sleeper.join().unwrap();
        // The kernel takes a thread away some time after those that join it have been woken.
        let begun = std::time::Instant::now();
        while let Some(seen) = files.look() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{seen:?} outlives the thread"
            );
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_computing_thread_is_seen_computing() {
        let mut files = ThreadFiles::open(current_tid()).unwrap();
        let first = files.look().unwrap();
        assert_eq!(
            first.state,
            ThreadState::OnCpu,
            "we are on a CPU, or could not ask"
        );
        let mut last = files.look().unwrap();
        while last.cpu < first.cpu + Duration::from_millis(2) {
            last = files.look().unwrap();
        }
    }

    #[test]
    fn nothing_is_hidden_from_a_process_that_may_be_dumped() {
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        let is_dumpable = dumpable == rustix::process::DumpableBehavior::Dumpable;
        if is_dumpable {
            assert_eq!(hidden_evidence(), None);
        }
    }

    #[test]
    fn a_descriptor_has_the_kind_of_its_object() {
        use std::os::fd::AsRawFd;
        let kind = |file: &dyn AsRawFd| descriptor(Pid::OWN, file.as_raw_fd() as u64);
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(kind(&socket), Descriptor::Socket);
        assert_eq!(
            kind(&File::open("/proc/self/maps").unwrap()),
            Descriptor::File
        );
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(kind(&reader), Descriptor::File);
        assert_eq!(descriptor(Pid::OWN, u64::MAX), Descriptor::Other);
    }

    #[test]
    fn a_blocked_signal_is_seen() {
        assert!(!is_signal_blocked(current_tid(), libc::SIGURG));
        assert!(
            !is_signal_blocked(0, libc::SIGURG),
            "there is no such thread"
        );
    }

    #[test]
    fn a_kernel_that_counts_no_runs_is_told_from_one_that_hides_them() {
        assert!(!is_counted(b"0 0 0\n"));
        assert!(is_counted(b"5 0 1\n") && is_counted(b""));
        assert!(counts_runs(), "positive control");
    }

    #[test]
    fn files_of_another_form_are_no_evidence() {
        assert_eq!(parse_schedstat(b"1 2"), None);
        assert_eq!(parse_schedstat(b""), None);
        assert_eq!(parse_schedstat(b"0 0 0\n"), None);
        let counted = parse_schedstat(b"5 0 1\n").map(|counted| counted.runs);
        assert_eq!(counted, Some(1), "positive control");
        assert_eq!(parse_stat(b"7 (a) R b) S 1 7"), ThreadState::Asleep(None));
        assert_eq!(parse_stat(b"7 (worker) R 1 7"), ThreadState::Waiting);
        assert_eq!(parse_stat(b"7 (worker) T 1 7"), ThreadState::Unknown);
        assert_eq!(parse_stat(b"7 (work"), ThreadState::Unknown);
        assert_eq!(parse_syscall(b""), ThreadState::Unknown);
        assert_eq!(parse_syscall(b"running\n"), ThreadState::Waiting);
        assert_eq!(
            parse_syscall(b"0 0x5 0x7ffd 0x400 0x0 0x0 0x0 0x7ffd10 0x7f20\n"),
            ThreadState::Asleep(Some(Call {
                number: 0,
                first: 5,
                sp: 0x7f_fd10,
                pc: 0x7f20,
            }))
        );
        assert_eq!(parse_syscall(b"-1 0x7ffd 0x7f"), ThreadState::Asleep(None));
    }
}
