//! The bounds of a thread's stack.
//!
//! *Runs on:* the thread itself, when it takes its slot.

/// The bounds of the calling thread's stack, lowest address first. Zeros if the C library has none.
///
/// # Cost
///
/// About 1 µs. On the main thread the C library reads `/proc/self/maps`.
#[allow(unsafe_code)]
pub(crate) fn own_bounds() -> (usize, usize) {
    let mut attributes = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: initialises `attributes`, or returns an error.
    if unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) } != 0 {
        return (0, 0);
    }
    let (mut low, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: initialised above.
    let failed =
        unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut size) };
    // SAFETY: initialised above, and not used after this.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    if failed != 0 {
        return (0, 0);
    }
    (low.addr(), low.addr() + size)
}
