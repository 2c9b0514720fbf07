//! A reference that lives for ever, as a constant may hold it.
//!
//! *Runs on:* worker threads, inside every poll.
//! *Must not:* do more than a load.
//!
//! Rust 1.85 refuses a constant that refers to a static with atomics in it, and takes a pointer to
//! one. A thread-local that is no constant would test at each access whether it has its value.

/// A `&'static T` that a constant may hold on every Rust that this crate compiles with.
#[derive(Debug)]
pub(crate) struct StaticRef<T: 'static>(*const T);

impl<T> StaticRef<T> {
    pub(crate) const fn new(value: &'static T) -> StaticRef<T> {
        StaticRef(value)
    }

    #[inline]
    #[allow(unsafe_code)]
    pub(crate) fn get(self) -> &'static T {
        // SAFETY: the pointer was made of such a reference, in `new`.
        unsafe { &*self.0 }
    }
}

impl<T> Clone for StaticRef<T> {
    fn clone(&self) -> StaticRef<T> {
        *self
    }
}

impl<T> Copy for StaticRef<T> {}
