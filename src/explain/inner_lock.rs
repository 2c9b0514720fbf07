//! Locks inside of the allocator and of tokio: they are held for microseconds, by code that no user
//! has written.
//!
//! *Runs on:* `stall-reporter`; in tests also a thread that measures itself.
//!
//! A long wait for one means that the thread that holds it has no CPU, so no code can avoid it.

use super::own_code::crate_of;
use crate::report::{Frame, Origin};

/// A lock that is not held by a user's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InnerLock {
    /// Inside of tokio.
    Runtime,
    /// Inside of the allocator.
    Allocator,
}

/// The inner lock that a thread waits for, by its stack, innermost frame first.
pub(crate) fn inner_lock(frames: &[Frame]) -> Option<InnerLock> {
    let (called, caller) = called(frames);
    if any_names(called, LOCKS) && caller.is_some_and(is_of_tokio) {
        return Some(InnerLock::Runtime);
    }
    is_in_allocator(called).then_some(InnerLock::Allocator)
}

/// The called functions, down to the first frame that is not plumbing, and that frame.
pub(crate) fn called(frames: &[Frame]) -> (&[Frame], Option<&Frame>) {
    let depth = frames.iter().position(|frame| !is_plumbing(frame));
    let (called, callers) = frames.split_at(depth.unwrap_or(frames.len()));
    (called, callers.first())
}

/// Whether the frame is of the system, of the standard library, or of a library of locks.
pub(crate) fn is_plumbing(frame: &Frame) -> bool {
    let krate = frame.function.as_deref().and_then(crate_of);
    matches!(frame.origin, Origin::System | Origin::Std)
        || matches!(krate, Some("parking_lot" | "parking_lot_core" | "lock_api"))
}

/// Whether one of these parts is in the name of the frame's function.
pub(crate) fn names(frame: &Frame, parts: &[&str]) -> bool {
    let function = frame.function.as_deref();
    function.is_some_and(|function| parts.iter().any(|part| function.contains(part)))
}

/// Whether one of these parts is in the name of any of the functions.
pub(crate) fn any_names(frames: &[Frame], parts: &[&str]) -> bool {
    frames.iter().any(|frame| names(frame, parts))
}

/// Whether tokio takes the lock, and holds it for its own code only: the value of a `watch` channel
/// is locked for as long as a user keeps a reference to it.
fn is_of_tokio(frame: &Frame) -> bool {
    let function = frame.function.as_deref();
    let is_tokio = frame.origin == Origin::Runtime
        || function.is_some_and(|name| name.trim_start_matches('<').starts_with("tokio::"));
    is_tokio && !names(frame, &["tokio::sync::watch::"])
}

/// Whether the innermost Rust function is the allocator's. Without debug information it is inlined
/// and has no name, and one of the C functions that it calls has.
fn is_in_allocator(called: &[Frame]) -> bool {
    let is_c = |frame: &&Frame| frame.origin == Origin::System;
    let rust = called.iter().find(|frame| !is_c(frame));
    let in_c = called.iter().take_while(is_c);
    rust.is_some_and(|frame| names(frame, ALLOCATOR))
        || in_c
            .filter_map(|frame| frame.function.as_deref())
            .any(|name| C_ALLOCATOR.contains(&name.trim_start_matches('_')))
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

/// Functions of the allocator.
const ALLOCATOR: &[&str] = &[
    "__rust_alloc",
    "__rust_dealloc",
    "__rust_realloc",
    "__rdl_",
    "alloc::alloc::",
    "alloc::System",
];

/// Functions of the allocator in C, without the underscores in front.
const C_ALLOCATOR: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "free",
    "cfree",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "libc_malloc",
    "libc_calloc",
    "libc_realloc",
    "libc_free",
    "libc_memalign",
    "int_malloc",
    "int_free",
    "int_realloc",
];

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn stack(functions: &[(&str, Origin)]) -> Vec<Frame> {
        let frames = functions.iter();
        frames
            .map(|(name, origin)| Frame::of(name, *origin))
            .collect()
    }

    const WAIT: (&str, Origin) = ("__lll_lock_wait_private", Origin::System);

    #[test]
    fn a_wait_inside_of_the_allocator_is_seen_with_and_without_inlined_frames() {
        let own = ("app::handler", Origin::Own);
        let free = ("cfree", Origin::System);
        let rust = ("alloc::alloc::dealloc", Origin::Std);
        for frames in [&[WAIT, free, rust, own][..], &[WAIT, free, own]] {
            let found = inner_lock(&stack(frames));
            assert_eq!(found, Some(InnerLock::Allocator), "{frames:?}");
        }
    }

    #[test]
    fn a_lock_is_tokio_s_if_tokio_takes_it_and_the_user_s_if_a_user_does() {
        let slow = (
            "std::sys::sync::mutex::futex::Mutex::lock_contended",
            Origin::Std,
        );
        let tokio = ("tokio::runtime::scheduler::inject::push", Origin::Runtime);
        let own = ("app::handler", Origin::Own);
        assert_eq!(
            inner_lock(&stack(&[slow, tokio, own])),
            Some(InnerLock::Runtime)
        );
        assert_eq!(inner_lock(&stack(&[slow, own, tokio])), None);
        let own = ("app::with::<parking_lot::Mutex<u8>>", Origin::Own);
        assert_eq!(inner_lock(&stack(&[slow, own, tokio])), None);
        // A user may hold a reference to the value of the channel.
        let watch = ("tokio::sync::watch::Sender<T>::send", Origin::Runtime);
        assert_eq!(inner_lock(&stack(&[slow, watch, own])), None);
        // It is named like the allocator's function, and is the user's.
        assert_eq!(
            inner_lock(&stack(&[slow, ("app::free", Origin::Own)])),
            None
        );
    }
}
