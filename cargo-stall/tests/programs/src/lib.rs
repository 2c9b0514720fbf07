//! The ways to hold a worker, and the ways to be busy without it.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Computes for so long.
pub fn compute(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        black_box((0..1000_u64).sum::<u64>());
    }
}

/// Sleeps in a poll.
pub async fn sleeps(time: Duration) {
    std::thread::sleep(time);
}

/// Computes in a poll.
pub async fn computes(time: Duration) {
    compute(time);
}

/// Sleeps many times in a poll.
pub async fn naps(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Waits for a lock in a poll.
pub async fn locks(time: Duration) {
    let lock = Arc::new(Mutex::new(()));
    let (theirs, (held, is_held)) = (lock.clone(), std::sync::mpsc::channel());
    let holder = std::thread::spawn(move || {
        let _guard = theirs.lock().unwrap();
        held.send(()).unwrap();
        std::thread::sleep(time);
    });
    is_held.recv().unwrap();
    drop(lock.lock().unwrap());
    holder.join().unwrap();
}

/// Many tasks with polls of a millisecond, and one that computes in pieces of one.
pub async fn is_honestly_busy() {
    for _ in 0..8 {
        tokio::spawn(async {
            loop {
                compute(Duration::from_micros(800));
                tokio::task::yield_now().await;
            }
        });
    }
    std::future::pending().await
}

/// Checks all that it does, for ever: sums in long polls, timers, and bytes through a socket. The
/// process aborts at the first error, also at a call that was interrupted.
pub async fn checks() {
    std::thread::spawn(|| or_abort(echo()));
    tokio::spawn(async {
        loop {
            let wanted = Duration::from_millis(3);
            let begun = Instant::now();
            tokio::time::sleep(wanted).await;
            or_abort(
                (begun.elapsed() >= wanted)
                    .then_some(())
                    .ok_or("a timer is early"),
            );
        }
    });
    loop {
        let sum: u64 = (0..black_box(20_000_000_u64)).map(black_box).sum();
        or_abort(
            (sum == 199_999_990_000_000)
                .then_some(())
                .ok_or("a sum is wrong"),
        );
        tokio::task::yield_now().await;
    }
}

/// Threads that compute for a moment and exit, all the time, also at the end of the process.
pub async fn churns(time: Duration) {
    let begun = Instant::now();
    for _ in 0..8 {
        std::thread::spawn(|| {
            loop {
                let short = std::thread::spawn(|| compute(Duration::from_millis(30)));
                short.join().unwrap();
            }
        });
    }
    while begun.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Sends bytes through a socket and compares those that come back.
fn echo() -> std::io::Result<()> {
    let (mut near, mut far) = UnixStream::pair()?;
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        loop {
            let read = or_abort(far.read(&mut bytes));
            or_abort(far.write_all(&bytes[..read]));
        }
    });
    let (mut sent, mut back) = ([0; 4096], [0; 4096]);
    for round in 0_u64.. {
        sent.fill(round as u8);
        near.write_all(&sent)?;
        near.read_exact(&mut back)?;
        or_abort((sent == back).then_some(()).ok_or("bytes are lost"));
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn or_abort<T, E: std::fmt::Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| {
        eprintln!("programs: {error:?}");
        std::process::abort()
    })
}

/// Sleeps in a function that cannot be unwound without its frame pointer.
pub async fn hides(time: Duration) {
    unsafe { hidden_sleep(time.as_secs()) }
}

/// Waits for a child that has this process's memory: no signal and no stop ends that.
pub async fn waits(time: Duration) {
    unsafe { wait_for_child(time.as_secs()) }
}

/// As `hides`, in such a wait.
pub async fn waits_hidden(time: Duration) {
    unsafe { hidden_wait_for_child(time.as_secs()) }
}

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    fn hidden_sleep(seconds: u64);
    fn wait_for_child(seconds: u64);
    fn hidden_wait_for_child(seconds: u64);
}

/// Elsewhere, all three are a sleep.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn hidden_sleep(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}
#[cfg(not(target_arch = "x86_64"))]
use {hidden_sleep as hidden_wait_for_child, hidden_sleep as wait_for_child};

// The system call has the number 35, `nanosleep`.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".globl hidden_sleep",
    ".type hidden_sleep, @function",
    "hidden_sleep:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "lea rsp, [rsp - 64]",
    "mov [rsp], rdi",
    "mov qword ptr [rsp + 8], 0",
    "mov rdi, rsp",
    "xor esi, esi",
    "mov eax, 35",
    "syscall",
    "mov rsp, rbp",
    "pop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".size hidden_sleep, . - hidden_sleep",
);

// The system calls are `vfork` (58), in the child `nanosleep` (35) and `exit` (60), and then `wait4`
// (61). The child uses this stack, too, while its parent waits.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".macro wait_for_a_child",
    "mov [rsp], rdi",
    "mov qword ptr [rsp + 8], 0",
    "mov eax, 58",
    "syscall",
    "test eax, eax",
    "jnz 2f",
    "mov rdi, rsp",
    "xor esi, esi",
    "mov eax, 35",
    "syscall",
    "xor edi, edi",
    "mov eax, 60",
    "syscall",
    "2:",
    "mov edi, eax",
    "xor esi, esi",
    "xor edx, edx",
    "xor r10d, r10d",
    "mov eax, 61",
    "syscall",
    ".endm",
    ".globl wait_for_child",
    ".type wait_for_child, @function",
    "wait_for_child:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "sub rsp, 16",
    ".cfi_def_cfa_offset 32",
    "wait_for_a_child",
    "add rsp, 16",
    ".cfi_def_cfa_offset 16",
    "pop rbp",
    ".cfi_def_cfa_offset 8",
    "ret",
    ".cfi_endproc",
    ".size wait_for_child, . - wait_for_child",
    ".globl hidden_wait_for_child",
    ".type hidden_wait_for_child, @function",
    "hidden_wait_for_child:",
    ".cfi_startproc",
    "push rbp",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset rbp, -16",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "lea rsp, [rsp - 64]",
    "wait_for_a_child",
    "mov rsp, rbp",
    "pop rbp",
    ".cfi_def_cfa rsp, 8",
    "ret",
    ".cfi_endproc",
    ".size hidden_wait_for_child, . - hidden_wait_for_child",
);
