//! Threads and files of this process, as the kernel lists them.

use std::ffi::CString;
use std::path::Path;

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

/// Hides `/proc` from the calling thread, and from those that it starts. Returns false if that needs
/// more rights than there are.
#[allow(unsafe_code)]
pub fn hide_proc() -> bool {
    // SAFETY: a plain call with constant strings.
    own_mounts() && unsafe { mount(c"none", c"/proc", Some(c"tmpfs"), 0) }
}

/// Makes this file of each thread that there is now an empty one, for the calling thread and for
/// those that it starts. Returns false if that needs more rights than there are.
pub fn hide_files_of_threads(name: &str) -> bool {
    cover_files_of_threads(name, Path::new("/dev/null"))
}

/// The same with another file in their place.
pub fn cover_files_of_threads(name: &str, with: &Path) -> bool {
    let files = std::fs::read_dir("/proc/self/task").unwrap();
    let files = files.map(|task| task.unwrap().path().join(name));
    let files: Vec<_> = files.collect();
    own_mounts() && files.iter().all(|file| is_covered(file, with))
}

/// Puts a file in the place of another, for the calling thread and for those that it starts.
/// Returns false if that needs more rights than there are.
pub fn cover(file: &Path, with: &Path) -> bool {
    own_mounts() && is_covered(file, with)
}

fn is_covered(file: &Path, with: &Path) -> bool {
    let [file, with] = [file, with].map(|path| CString::new(path.to_str().unwrap()).unwrap());
    // SAFETY: a plain call with strings that outlive it.
    #[allow(unsafe_code)]
    unsafe {
        mount(&with, &file, None, libc::MS_BIND)
    }
}

/// Gives the calling thread, and those that it starts, mounts of their own.
#[allow(unsafe_code)]
fn own_mounts() -> bool {
    // SAFETY: plain calls with constant strings.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE)
    }
}

/// # Safety
///
/// The flags need no data.
#[allow(unsafe_code)]
unsafe fn mount(
    source: &std::ffi::CStr,
    target: &std::ffi::CStr,
    kind: Option<&std::ffi::CStr>,
    flags: libc::c_ulong,
) -> bool {
    let kind = kind.map_or(std::ptr::null(), std::ffi::CStr::as_ptr);
    let (source, target) = (source.as_ptr(), target.as_ptr());
    // SAFETY: all pointers are of strings that outlive the call, or null.
    unsafe { libc::mount(source, target, kind, flags, std::ptr::null()) == 0 }
}
