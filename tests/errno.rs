//! The signal that takes a stack leaves `errno` alone: the handler may run between a call and a
//! look at its error.
//!
//! A program of its own: its threads are in a sandbox, which never lets a thread out.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use support::Stop;
use support::signal::forbid_process_vm_readv;
use support::stage::Stage;

const MANY: usize = 200;

#[allow(unsafe_code)]
fn errno() -> i32 {
    // SAFETY: the place of this thread's own `errno`, which is valid while the thread is. Volatile,
    // since the compiler does not know that a handler may write there.
    unsafe { libc::__errno_location().read_volatile() }
}

/// Fails with `EBADF`, and then looks at `errno` until it is told to stop. Returns the number of
/// looks, and the first that showed something else.
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

/// Takes many stacks of a worker that is in [`watches_errno`], called by `call`.
fn has_its_stack_taken(call: impl FnOnce(&AtomicBool) -> (u64, Option<i32>) + Send + 'static) {
    let stage = Stage::multi_thread(1).start();
    let (stop, stopped) = Stop::new();
    let looking = stage.runtime.spawn(async move { call(&stopped) });
    // Positive control: they are stacks of exactly that loop.
    stage.take_stacks_in(&["errno::watches_errno", "errno::errno"], MANY);
    drop(stop);
    let (looks, changed) = stage.block_on(looking).unwrap();
    assert_eq!(changed, None, "in {looks} looks");
    assert!(looks > MANY as u64);
}

#[test]
fn errno_stays_the_same() {
    has_its_stack_taken(watches_errno);
}

/// The handler does not know the bounds of the stack, and makes a system call.
#[test]
fn errno_stays_the_same_on_another_stack() {
    has_its_stack_taken(|stop| stacker::grow(1024 * 1024, || watches_errno(stop)));
}

/// As under a policy of the host: the system call of the handler fails, and so sets `errno`.
#[test]
fn errno_stays_the_same_if_the_handlers_call_fails() {
    has_its_stack_taken(|stop| {
        forbid_process_vm_readv().unwrap();
        assert_is_forbidden();
        stacker::grow(1024 * 1024, || watches_errno(stop))
    });
}

/// The call fails on the calling thread, and sets `errno`.
#[allow(unsafe_code)]
fn assert_is_forbidden() {
    // SAFETY: reads nothing, and is refused before the kernel looks at it.
    let read = unsafe {
        libc::process_vm_readv(libc::getpid(), std::ptr::null(), 0, std::ptr::null(), 0, 0)
    };
    assert_eq!((read, errno()), (-1, libc::EPERM));
}

/// The control: a look tells of the next failure.
#[test]
fn another_failure_is_seen() {
    assert!(std::fs::read_dir("/there/is/no/such/place").is_err());
    assert_eq!(errno(), libc::ENOENT);
    watches_errno(&AtomicBool::new(true));
    assert_eq!(errno(), libc::EBADF);
}
