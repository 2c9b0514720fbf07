//! The signal that takes a stack restarts most system calls. The few that are never restarted
//! return early, once, and std makes those again. A call that would fail is not signalled.

use crate::support::stage::{Setup, Stage};
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio_stall::{FutureExt as _, Missing, NoStack, Phase, Stacks, StallReport};

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
fn polls_nothing(milliseconds: i32) -> (i64, Option<i32>) {
    // SAFETY: no descriptors, so that nothing is read or written.
    called(|| unsafe { libc::poll(std::ptr::null_mut(), 0, milliseconds) }.into())
}

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

#[test]
fn a_poll_returns_early() {
    let stage = one_worker().start();
    let (send, until_told) = mpsc::channel::<()>();
    let polling = stage.runtime.spawn(
        async move {
            let returned = polls_nothing(20_000);
            // The stack is taken a tick before this is a stall. Without this wait it would not be.
            until_told.recv().ok();
            returned
        }
        .watched("polls"),
    );
    // It was our signal: there is a stack, of this call.
    let told = stage.seen.wait(has_stack);
    drop(send);
    let names = told.stacks[0].frames.iter();
    let mut names = names.filter_map(|frame| frame.function.as_deref());
    assert!(
        names.any(|name| name == "it::interrupted_calls::polls_nothing"),
        "{told:#?}"
    );
    assert_eq!(stage.block_on(polling).unwrap(), INTERRUPTED);
}

#[test]
fn a_poll_that_is_made_again_is_interrupted_once() {
    let stage = one_worker().start();
    let (reader, mut writer) = io::pipe().unwrap();
    let polling = stage.runtime.spawn(
        async move {
            let mut early = 0;
            loop {
                match polls_until_readable(reader.as_fd()) {
                    INTERRUPTED => early += 1,
                    returned => return (early, returned),
                }
            }
        }
        .watched("polls"),
    );
    // By then the stall was announced five times, and each time was an occasion.
    let told = stage
        .seen
        .wait(|report| has_stack(report) && report.duration >= Duration::from_millis(160));
    writer.write_all(b"x").unwrap();
    let polled = stage.block_on(polling).unwrap();
    assert_eq!(
        polled,
        (1, (1, None)),
        "{:#?}",
        stage.seen.wait_for_end(told.id)
    );
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

/// The kernel never makes a call on a socket with a timeout again, and std does not either.
#[test]
fn a_read_with_a_timeout_is_left_alone() {
    let long = Some(Duration::from_secs(600));
    // By then a stack was wanted five times. Had there been a signal, the read would be over.
    let (told, read) = reads_from_a_peer(long, |report| {
        report.duration >= Duration::from_millis(160) || report.phase == Phase::Ended
    });
    assert_eq!(read.expect("it goes on"), 1);
    assert_eq!(told.phase, Phase::Ongoing, "{told:#?}");
    assert_eq!(told.asleep_in.as_deref(), Some("recvfrom"), "{told:#?}");
    assert!(!has_stack(&told), "{told:#?}");
    let why = Missing::Stack(NoStack::WouldInterrupt);
    assert!(told.missing.contains(&why), "{told:#?}");
}

/// The control: a call on the same socket without a timeout goes on after the signal.
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
    // The signal came inside of the sleep.
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

/// The control: our signal interrupts, and nothing else does.
#[test]
fn without_stacks_nothing_is_interrupted() {
    let stage = one_worker().settings(|builder| builder.stacks(Stacks::Off));
    let stage = stage.start();
    let (reader, mut writer) = io::pipe().unwrap();
    let polling = async move { polls_until_readable(reader.as_fd()) };
    let polling = stage.runtime.spawn(polling.watched("polls"));
    // The stall is seen all the same, for as long as five stacks would have taken.
    let told = stage
        .seen
        .wait(|report| report.duration >= Duration::from_millis(160));
    writer.write_all(b"x").unwrap();
    assert_eq!(stage.block_on(polling).unwrap(), (1, None));
    let ended = stage.seen.wait_for_end(told.id);
    // Newer architectures have no `poll`: the C library makes the other call.
    let call = if cfg!(target_arch = "x86_64") {
        "poll"
    } else {
        "ppoll"
    };
    assert_eq!(ended.asleep_in.as_deref(), Some(call), "{ended:#?}");
    assert!(
        ended.missing.contains(&Missing::Stack(NoStack::Off)),
        "{ended:#?}"
    );
    assert!(!stage.seen.all().iter().any(has_stack));
}
