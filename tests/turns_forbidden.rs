//! Sandboxes that forbid to read one's own memory: turns are read another way, or are given up with a word,
//! and nothing else changes.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod seen;

use seen::{Seen, child, compute, workers};
use std::time::Duration;
use tokio_stall::{Certainty, FutureExt as _, Phase};

const LONG: Duration = Duration::from_millis(100);

/// Has the kernel refuse `process_vm_readv` to this process from now on, as container runtimes do.
#[allow(unsafe_code)]
fn forbid_the_call() {
    let statement = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let number = libc::SYS_process_vm_readv as u32;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: `program` and what it points to live until the calls return.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            ) != 0
    };
    assert!(!refused, "{}", std::io::Error::last_os_error());
}

/// Hides `/proc` from this process. Returns false where that needs more rights than there are.
#[allow(unsafe_code)]
fn hide_proc() -> bool {
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

/// Rows of unmarked polls, of which there is nothing to report.
async fn is_silent(seen: &Seen) {
    for _ in 0..100 {
        let row = async {
            compute(Duration::from_millis(3));
            tokio::task::yield_now().await;
            compute(Duration::from_millis(3));
        };
        tokio::spawn(row).await.unwrap();
    }
    seen.assert_nothing();
}

#[test]
fn where_the_call_is_forbidden_the_file_shows_turns() {
    const MARK: &str = "TOKIO_STALL_WITHOUT_THE_CALL";
    if !child::is_here(MARK) {
        let test = "where_the_call_is_forbidden_the_file_shows_turns";
        child::assert_said(child::start(test, MARK), "found by turns");
        return;
    }
    forbid_the_call();
    let runtime = workers(2);
    runtime.block_on(async {
        let (watch, seen) = Seen::watch();
        assert!(watch.coverage()[0].turns, "{}", watch.coverage()[0]);
        is_silent(&seen).await;
        while watch.coverage()[0].known_threads < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::spawn(async { compute(LONG) }).await.unwrap();
        let began = seen.wait(|report| report.phase == Phase::Began);
        assert_eq!(began.certainty, Certainty::Certain, "{began}");
        println!("found by turns");
    });
}

#[test]
fn where_neither_is_to_be_had_there_are_marks_and_coverage_says_so() {
    const MARK: &str = "TOKIO_STALL_WITHOUT_MEMORY";
    if !child::is_here(MARK) {
        let test = "where_neither_is_to_be_had_there_are_marks_and_coverage_says_so";
        child::assert_said(child::start(test, MARK), "as well as can be");
        return;
    }
    if !hide_proc() {
        eprintln!("NOT TRIED: hiding /proc needs CAP_SYS_ADMIN");
        println!("as well as can be");
        return;
    }
    forbid_the_call();
    workers(2).block_on(async {
        let (watch, seen) = Seen::watch();
        let coverage = &watch.coverage()[0];
        assert!(!coverage.turns, "{coverage}");
        let why = coverage.no_turns.expect("it says why");
        assert!(why.contains("forbids"), "{coverage}");
        is_silent(&seen).await;
        // Computing without a mark is not told from a row.
        tokio::spawn(async { compute(LONG) }).await.unwrap();
        seen.assert_nothing();
        tokio::spawn(async { compute(LONG) }.watched("marked"))
            .await
            .unwrap();
        let began = seen.wait(|report| report.phase == Phase::Began);
        assert_eq!(began.span.as_deref(), Some("marked"), "{began}");
        println!("as well as can be");
    });
}
