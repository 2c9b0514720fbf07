//! Whether a signal would harm the thread that it is meant for.
//!
//! *Runs on:* a thread that requests a stack.
//! *Must not:* wait. It opens a file, so it is for requests and not for every tick.
//!
//! The kernel restarts most calls that a signal has interrupted, if the handler asks for that. It
//! never restarts a call on a socket with a timeout: the call fails with `EINTR`, which std passes
//! on to the program.

use super::calls::call_kind;
use super::evidence::{parse_syscall, signal_set};
use super::{Call, CallKind, ThreadState};
use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Whether a thread of this process is asleep in a call that a signal would make fail, whatever its
/// handler asks for. If the call is not to be seen, the answer is no.
///
/// # Cost
///
/// It opens a file: about 10 µs.
pub(crate) fn would_fail_by_a_signal(tid: u32) -> bool {
    let Some(call) = call_asleep_in(tid) else {
        return false;
    };
    // A call of several descriptors at once has other arguments, and fails in any case.
    let is_on_a_descriptor = matches!(
        call_kind(call.number),
        CallKind::Network | CallKind::Descriptor
    );
    is_on_a_descriptor && has_timeout(call.first)
}

/// The call that a thread of this process is asleep in.
fn call_asleep_in(tid: u32) -> Option<Call> {
    let file = File::open(format!("/proc/self/task/{tid}/syscall")).ok()?;
    let mut buffer = [0; 192];
    let read = file.read_at(&mut buffer, 0).ok()?;
    match parse_syscall(&buffer[..read]) {
        ThreadState::Asleep(call) => call,
        _ => None,
    }
}

/// Whether a descriptor is of a socket with a timeout of either direction.
fn has_timeout(descriptor: u64) -> bool {
    // The kernel looks at the lower half of the register alone.
    let descriptor = descriptor as libc::c_int;
    let timeouts = [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO];
    timeouts.iter().any(|of| is_set(descriptor, *of))
}

/// Whether an option of a socket, which is a time, is not zero. It is zero for anything else than a
/// socket.
#[allow(unsafe_code)]
fn is_set(descriptor: libc::c_int, option: libc::c_int) -> bool {
    let mut time = [0_u8; size_of::<libc::timeval>()];
    let mut size = size_of_val(&time) as libc::socklen_t;
    // SAFETY: `time` is a place for an answer of `size` bytes. A descriptor that is not a socket's,
    // or not open, is an error.
    let result = unsafe {
        libc::getsockopt(
            descriptor,
            libc::SOL_SOCKET,
            option,
            time.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    result == 0 && time.iter().any(|byte| *byte != 0)
}

/// Whether a signal that was sent to a thread of this process waits for it.
///
/// # Cost
///
/// It opens a file: about 30 µs.
pub(crate) fn is_signal_pending(tid: u32, signal: i32) -> bool {
    signal_set(tid, "SigPnd:").is_some_and(|set| set & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::current_tid;
    use std::io::Read as _;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn a_timeout_is_one_of_a_socket() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let has = |of: &dyn AsRawFd| has_timeout(of.as_raw_fd() as u64);
        assert!(!has(&socket));
        let long = Some(Duration::from_secs(60));
        socket.set_read_timeout(long).unwrap();
        assert!(has(&socket));
        socket.set_read_timeout(None).unwrap();
        socket.set_write_timeout(long).unwrap();
        assert!(has(&socket));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(!has(&reader));
        assert!(!has_timeout(u64::MAX));
    }

    /// Whether a read that nothing has come for would fail.
    fn would_fail(timeout: Option<Duration>) -> bool {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.set_read_timeout(timeout).unwrap();
        let (send, tid) = mpsc::channel();
        let reads = std::thread::spawn(move || {
            send.send(current_tid()).unwrap();
            here.read_exact(&mut [0; 1]).ok();
        });
        let tid = tid.recv().unwrap();
        let is_reading = |call: Call| call_kind(call.number) == CallKind::Network;
        while !call_asleep_in(tid).is_some_and(is_reading) {
            std::thread::yield_now();
        }
        let would_fail = would_fail_by_a_signal(tid);
        drop(there);
        reads.join().unwrap();
        would_fail
    }

    #[test]
    fn a_read_with_a_timeout_would_fail_and_one_without_goes_on() {
        assert!(would_fail(Some(Duration::from_secs(600))));
        assert!(!would_fail(None));
        assert!(!would_fail_by_a_signal(current_tid()), "it is not asleep");
    }
}
