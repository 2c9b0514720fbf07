//! The atomics of the slot protocol: the standard library's, or loom's when its model checker runs.
//!
//! *Runs on:* any thread.
//!
//! Targets without 64-bit atomics get them here too, by locks of `portable_atomic`.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, Ordering, fence};

#[cfg(all(not(loom), target_has_atomic = "64"))]
pub(crate) use std::sync::atomic::AtomicU64;

#[cfg(all(not(loom), not(target_has_atomic = "64")))]
pub(crate) use portable_atomic::AtomicU64;

/// Defines a `const fn`, or under loom a plain one: loom's atomics cannot be made in constants.
macro_rules! const_unless_loom {
    ($(#[$attribute:meta])* $visible:vis fn $name:ident() -> $made:ty $body:block) => {
        #[cfg(not(loom))]
        $(#[$attribute])* $visible const fn $name() -> $made $body
        #[cfg(loom)]
        $(#[$attribute])* $visible fn $name() -> $made $body
    };
}

pub(crate) use const_unless_loom;

#[cfg(loom)]
pub(crate) use loom::cell::UnsafeCell;

/// The standard library's cell with loom's methods.
#[cfg(not(loom))]
#[derive(Debug)]
#[allow(dead_code)] // Used only where stacks are copied.
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
#[allow(dead_code)]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
