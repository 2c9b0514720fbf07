//! Reads this process's own memory as a debugger would: what is not there is an answer, not a crash.
//!
//! *Runs on:* whichever thread explains a stack.
//! *Here:* one system call per read. A library may be unloaded between the list of modules and the read.

/// Copies from `address` into `to` and returns how much could be copied.
#[allow(unsafe_code)]
pub(crate) fn read(address: u64, to: &mut [u8]) -> usize {
    let local = libc::iovec {
        iov_base: to.as_mut_ptr().cast(),
        iov_len: to.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address as usize),
        iov_len: to.len(),
    };
    // SAFETY: `local` is memory of ours, written no further than its length; the kernel checks `remote`.
    let read = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    usize::try_from(read).unwrap_or(0)
}

/// Copies exactly so much, or nothing.
pub(crate) fn read_exact(address: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    (read(address, &mut bytes) == length).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_read_and_what_is_not_is_not() {
        let text = *b"stall";
        let address = text.as_ptr() as u64;
        assert_eq!(read_exact(address, 5).as_deref(), Some(&text[..]));
        assert_eq!(read_exact(8, 5), None);
    }
}
