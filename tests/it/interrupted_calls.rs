//! A thread that sleeps in a call is not signalled for its stack: some calls fail after a signal,
//! and others return early.

use crate::support::stage::{Setup, Stage};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use tokio_stall::{FutureExt as _, Missing, NoStack, Phase, StallReport};

fn one_worker() -> Setup {
    Stage::multi_thread(1)
}

fn has_stack(report: &StallReport) -> bool {
    !report.stacks.is_empty()
}

/// Makes a call. Returns its result, and the error of one that failed.
fn called(call: impl FnOnce() -> i64) -> (i64, Option<i32>) {
    let returned = call();
    let error = (returned < 0).then(|| io::Error::last_os_error().raw_os_error());
    (returned, error.flatten())
}

const INTERRUPTED: (i64, Option<i32>) = (-1, Some(libc::EINTR));

#[allow(unsafe_code)]
fn polls_until_readable(file: BorrowedFd<'_>) -> (i64, Option<i32>) {
    let mut wanted = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one descriptor, which is open.
    called(|| unsafe { libc::poll(&raw mut wanted, 1, -1) }.into())
}

#[allow(unsafe_code)]
fn reads_a_byte(file: BorrowedFd<'_>, byte: &mut u8) -> (i64, Option<i32>) {
    let to = std::ptr::from_mut(byte).cast();
    // SAFETY: there is room for one byte, and one byte is asked for.
    called(|| unsafe { libc::read(file.as_raw_fd(), to, 1) } as i64)
}

/// Has a worker wait for a byte, in a call that the kernel never makes again after a signal.
/// `meanwhile` is called once its stack has been taken. Returns what the call has returned.
fn polls_while(meanwhile: impl FnOnce(&Stage, &StallReport)) -> (i64, Option<i32>) {
    let stage = one_worker().start();
    let (reader, mut writer) = UnixStream::pair().unwrap();
    let polling = async move { polls_until_readable(reader.as_fd()) };
    let polling = stage.runtime.spawn(polling.watched("polls"));
    // By then the stall was announced five times, and each time was an occasion.
    let told = stage.seen.wait(|report| {
        let is_old = report.duration >= Duration::from_millis(160);
        report.phase == Phase::Ended || is_old && has_stack(report)
    });
    let frames = told.stacks.iter().flat_map(|stack| &stack.frames);
    let mut names = frames.filter_map(|frame| frame.function.as_deref());
    let polls = "it::interrupted_calls::polls_until_readable";
    assert!(names.any(|name| name == polls), "{told:#?}");
    meanwhile(&stage, &told);
    // Nobody reads it if the call has failed.
    writer.write_all(b"x").ok();
    stage.block_on(polling).unwrap()
}

/// A thread that sleeps is not signalled.
#[test]
fn a_poll_goes_on() {
    assert_eq!(polls_while(|_, _| ()), (1, None));
}

/// The control: a signal would have ended it.
#[test]
#[allow(unsafe_code)]
fn a_poll_does_not_go_on_after_a_signal() {
    let returned = polls_while(|stage, told| {
        let tid = told.tid.expect("a thread");
        // SAFETY: the signal of the detector, which has a handler.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGURG) };
        assert_eq!(sent, 0);
        // The call is over before there is a byte.
        stage.seen.wait_for_end(told.id);
    });
    assert_eq!(returned, INTERRUPTED);
}

#[test]
fn a_read_goes_on() {
    let stage = one_worker().start();
    let (reader, mut writer) = io::pipe().unwrap();
    let reading = stage.runtime.spawn(
        async move {
            let mut byte = 0;
            (reads_a_byte(reader.as_fd(), &mut byte), byte)
        }
        .watched("reads"),
    );
    // The stack has been taken, and the thread is still in the call.
    let told = stage
        .seen
        .wait(|report| has_stack(report) && report.duration >= Duration::from_millis(160));
    assert_eq!(told.phase, Phase::Ongoing, "{told:#?}");
    assert_eq!(told.asleep_in.as_deref(), Some("read"), "{told:#?}");
    writer.write_all(b"x").unwrap();
    let read = stage.block_on(reading).unwrap();
    assert_eq!(read, ((1, None), b'x'));
}

const NOT_YET: Missing = Missing::Stack(NoStack::NotYet);

/// Both ends of a connection.
fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (here, listener.accept().unwrap().0)
}

/// Has a worker read from a connection until a report of it fits. Returns that report, and what the
/// read has returned by then and a byte from the peer.
fn reads_from_a_peer(
    timeout: Option<Duration>,
    fits: impl Fn(&StallReport) -> bool,
) -> (StallReport, io::Result<usize>) {
    let stage = one_worker().start();
    let (mut here, mut peer) = connected();
    here.set_read_timeout(timeout).unwrap();
    let reading = async move { here.read(&mut [0; 1]) }.watched("reads");
    let reading = stage.runtime.spawn(reading);
    let told = stage.seen.wait(fits);
    peer.write_all(b"x").unwrap();
    (told, stage.block_on(reading).unwrap())
}

/// The kernel never makes a call on a socket with a timeout again, and std does not either. So the
/// stack is read without a signal.
#[test]
fn a_read_with_a_timeout_is_left_alone() {
    let long = Some(Duration::from_secs(600));
    // By then a stack was wanted five times. Had there been a signal, the read would be over.
    let (told, read) = reads_from_a_peer(long, |report| {
        let is_old = report.duration >= Duration::from_millis(160);
        report.phase == Phase::Ended || is_old && !report.missing.contains(&NOT_YET)
    });
    assert_eq!(read.expect("it goes on"), 1);
    assert_eq!(told.phase, Phase::Ongoing, "{told:#?}");
    assert_eq!(told.asleep_in.as_deref(), Some("recvfrom"), "{told:#?}");
    let site = told.site.as_ref().expect("a site");
    assert!(site.function.contains("reads_from_a_peer"), "{told:#?}");
    assert!(told.stacks[0].complete, "{told:#?}");
}

#[test]
fn a_read_without_a_timeout_has_a_stack() {
    let (told, read) = reads_from_a_peer(None, has_stack);
    assert_eq!(read.expect("it goes on"), 1);
    assert_eq!(told.asleep_in.as_deref(), Some("recvfrom"), "{told:#?}");
}

#[test]
fn a_sleep_of_std_is_not_cut_short() {
    const LONG: Duration = Duration::from_millis(1_500);
    let stage = one_worker().start();
    let slept = stage.runtime.spawn(
        async {
            let start = Instant::now();
            std::thread::sleep(LONG);
            start.elapsed()
        }
        .watched("sleeps"),
    );
    let slept = stage.block_on(slept).unwrap();
    assert!(slept >= LONG, "{slept:?}");
    // Its stack was taken inside of the sleep.
    let ended = stage
        .seen
        .wait(|report| report.phase == Phase::Ended && has_stack(report));
    let sleeps = |name: &str| name.contains("nanosleep");
    let mut names = ended.stacks[0].frames.iter();
    assert!(
        names.any(|frame| frame.function.as_deref().is_some_and(sleeps)),
        "{ended:#?}"
    );
}
