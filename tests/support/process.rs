//! Threads and files of this process, as the kernel lists them.

/// The number of the calling thread.
pub fn tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// The names of this process's threads.
pub fn thread_names() -> Vec<String> {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

/// The names of the detector's own threads.
///
/// A thread that one of these has just started for tokio bears its parent's name for a moment.
pub fn detector_threads() -> Vec<String> {
    let names = thread_names().into_iter();
    names.filter(|name| name.starts_with("stall-")).collect()
}

/// The number of files that this process has open.
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Hides `/proc` from this process. Returns false if that needs more rights than there are.
#[allow(unsafe_code)]
pub fn hide_proc() -> bool {
    // SAFETY: plain calls with constant strings.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/proc".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                std::ptr::null(),
            ) == 0
    }
}
