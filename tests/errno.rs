//! To have one's stack taken leaves `errno` alone: the handler may run between a call and a look at why it
//! has failed.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

mod seen;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tokio_stall::WorkerStack;

const MANY: usize = 200;

#[allow(unsafe_code)]
fn errno() -> i32 {
    // SAFETY: the place of this thread's own `errno`, which is valid while the thread is. Volatile, since
    // the compiler does not know that a handler may write there.
    unsafe { libc::__errno_location().read_volatile() }
}

/// Fails with `EBADF`, and then looks at `errno` until it is told to stop. Returns how many looks there
/// were, and the first that showed something else.
fn watches_errno(stop: &AtomicBool) -> (u64, Option<i32>) {
    #[allow(unsafe_code)]
    // SAFETY: closes nothing, there is no such descriptor.
    let failed = unsafe { libc::close(-1) };
    assert_eq!((failed, errno()), (-1, libc::EBADF));
    let (mut looks, mut changed) = (0, None);
    while !stop.load(Ordering::Relaxed) {
        let now = errno();
        looks += 1;
        if now != libc::EBADF {
            changed = changed.or(Some(now));
        }
    }
    (looks, changed)
}

/// Stops what spins, also when the test has failed: its runtime waits for it.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes that many stacks of a worker that is in [`watches_errno`], called by `call`.
fn watched(call: impl FnOnce(&AtomicBool) -> (u64, Option<i32>) + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let name = format!("{:?}", std::thread::current().id());
    let watch = tokio_stall::Builder::new()
        .runtime(name, runtime.handle().clone())
        .start()
        .unwrap();
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = Stop(stopped.clone());
    let looking = runtime.spawn(async move { call(&stopped) });

    // Positive control: they are stacks of exactly that loop.
    let is_looking = |stack: &WorkerStack| {
        let mut names = stack.frames.iter().flatten();
        names.any(|frame| {
            let function = frame.function.as_deref();
            matches!(function, Some("errno::watches_errno" | "errno::errno"))
        })
    };
    let deadline = Instant::now() + seen::FOREVER * 3;
    let mut taken = 0;
    while taken < MANY {
        let stacks = watch.worker_stacks();
        taken += stacks.iter().filter(|stack| is_looking(stack)).count();
        assert!(Instant::now() < deadline, "{taken}, and then {stacks:#?}");
    }
    drop(stop);
    let (looks, changed) = runtime.block_on(looking).unwrap();
    assert_eq!(changed, None, "in {looks} looks");
    assert!(looks > MANY as u64);
}

#[test]
fn errno_stays_what_it_was() {
    watched(watches_errno);
}

/// There the handler does not know the bounds of the stack, and makes a system call.
#[test]
fn errno_stays_what_it_was_on_another_stack() {
    watched(|stop| stacker::grow(1024 * 1024, || watches_errno(stop)));
}

/// As under a policy of the host's: the system call fails, and so sets `errno`.
#[test]
fn errno_stays_what_it_was_where_the_handlers_call_fails() {
    watched(|stop| {
        forbid_process_vm_readv();
        stacker::grow(1024 * 1024, || watches_errno(stop))
    });
}

/// On the calling thread; it fails with `EPERM` from now on.
#[allow(unsafe_code)]
fn forbid_process_vm_readv() {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let number_at = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let forbidden = libc::SYS_process_vm_readv as u32;
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, number_at),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, forbidden),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: a flag of this thread's, which is what the next call wants.
    let flagged = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the kernel copies and checks the program, which lives until then.
    let filtered = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(
        (flagged, filtered),
        (0, 0),
        "{}",
        io::Error::last_os_error()
    );
    // SAFETY: reads nothing, and is refused before it is looked at.
    let read = unsafe {
        libc::process_vm_readv(libc::getpid(), std::ptr::null(), 0, std::ptr::null(), 0, 0)
    };
    assert_eq!((read, errno()), (-1, libc::EPERM));
}

/// Control: a look tells of the next failure.
#[test]
fn a_call_that_fails_otherwise_is_seen() {
    assert!(std::fs::read_dir("/there/is/no/such/place").is_err());
    assert_eq!(errno(), libc::ENOENT);
    watches_errno(&AtomicBool::new(true));
    assert_eq!(errno(), libc::EBADF);
}
