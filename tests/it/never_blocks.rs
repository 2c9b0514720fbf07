//! `assert_never_blocks`: the blocking calls it finds, the ones it passes over, and its words.

use crate::support::load::compute;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::support::signal::block_sigurg;
use futures::FutureExt as _;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_stall::testing::{self, NeverBlocks, assert_never_blocks};

const MS: Duration = Duration::from_millis(1);

/// The text that the assertion fails with, if it does.
async fn failure<F: Future>(assertion: NeverBlocks<F>) -> Option<String> {
    let failed = AssertUnwindSafe(assertion).catch_unwind().await.err()?;
    Some(*failed.downcast::<String>().expect("a text"))
}

const READS: u32 = line!() + 3;
#[inline(never)]
fn read_slowly() {
    std::thread::sleep(3 * MS);
}

/// The text without the parts that differ from run to run: figures, and frames of the standard
/// library.
fn redacted(text: &str) -> String {
    let is_std = |line: &&str| !line.contains("(std/src") && !line.contains("nanosleep");
    let lines = text.lines().filter(is_std).map(|line| {
        let mut out = String::new();
        let mut words = line.split(' ').peekable();
        while let Some(word) = words.next() {
            let is_figure = word.parse::<f64>().is_ok()
                && words.peek().is_some_and(|unit| {
                    ["s", "ms", "µs", "sleep"]
                        .iter()
                        .any(|known| unit.starts_with(known))
                });
            out.push_str(if is_figure { "N" } else { word });
            out.push(' ');
        }
        let out = out.trim_end().replace("N µs", "N ms");
        out.replace("N sleep,", "N sleeps,")
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[tokio::test]
async fn a_failure_says_what_blocked_where_why_and_what_to_do() {
    let asserts = line!() + 1;
    let text = failure(assert_never_blocks(async { read_slowly() })).await;
    let text = redacted(&text.expect("3 ms of sleep"));
    let test = "it::never_blocks::a_failure_says_what_blocked_where_why_and_what_to_do";
    let future = format!("{test}::{{{{closure}}}}::{{{{closure}}}}");
    let file = file!();
    let expected = format!(
        "blocked its thread: asleep for N ms
  where     it::never_blocks::read_slowly ({file}:{READS})
  in        poll 1 of {future}, asserted at {file}:{asserts}:24
  why       blocked/sleep: asleep N ms in N sleeps, computing N ms; \
            without a CPU N ms, which does not count
            it::never_blocks::read_slowly ({file}:{READS})
            {test} ({file}:{asserts})
  do        Sleep with `tokio::time::sleep(…).await`, which leaves the worker to other tasks.
  or        say why it may: `tokio_stall::allow_blocking(\"…\", || …)`; \
            for later, in a baseline file:
                [[known]]
                site = \"it::never_blocks::read_slowly\"
                cause = \"blocked/sleep\""
    );
    assert_eq!(text, expected, "\n{text}");
}

#[tokio::test]
async fn only_the_poll_that_blocks_is_named() {
    let text = failure(assert_never_blocks(async {
        tokio::task::yield_now().await;
        tokio::time::sleep(MS).await;
        std::thread::sleep(MS);
    }));
    let text = text.await.expect("it sleeps");
    assert!(text.contains("poll 3 of"), "{text}");
}

#[tokio::test]
async fn the_output_is_the_one_of_the_future() {
    assert_eq!(assert_never_blocks(async { 42 }).await, 42);
}

#[test]
fn any_executor_will_do() {
    assert_eq!(
        futures::executor::block_on(assert_never_blocks(async { 7 })),
        7
    );
    let text = futures::executor::block_on(failure(assert_never_blocks(async { read_slowly() })));
    assert!(text.expect("it sleeps").contains("read_slowly"));
}

#[tokio::test]
async fn the_budget_is_of_cpu_time() {
    let within = assert_never_blocks(async { compute(5 * MS) }).cpu_budget(20 * MS);
    assert_eq!(failure(within).await, None);
    // Time that the hypervisor takes is added to the budget, in steps of ten milliseconds.
    let mut texts = Vec::new();
    for _ in 0..20 {
        let beyond = assert_never_blocks(async { compute(25 * MS) }).cpu_budget(20 * MS);
        texts.extend(failure(beyond).await);
        let is_told = |text: &String| {
            text.starts_with("one poll computed for")
                && text.contains("more than its budget of 20.0 ms")
        };
        if texts.iter().any(is_told) {
            return;
        }
    }
    panic!("no poll was beyond its budget: {texts:#?}");
}

/// As a query of a synchronous database that computes and does not sleep.
#[tokio::test]
async fn a_poll_that_computes_for_more_than_a_second_fails_without_a_budget() {
    let long = async { compute(1_100 * MS) };
    let text = failure(assert_never_blocks(long)).await.expect("too long");
    assert!(text.contains("more than its budget of 1.00 s"), "{text}");
    if cfg!(feature = "stacks") {
        let line = text.lines().find(|line| line.starts_with("  where     "));
        let line = line.unwrap_or_else(|| panic!("no line: {text}"));
        assert!(line.ends_with(", when the budget was used up"), "{text}");
        assert!(line.contains("tests/"), "the test's own code: {text}");
    }
    let long = async { compute(1_100 * MS) };
    let allowed = assert_never_blocks(long).cpu_budget(Duration::MAX);
    assert_eq!(failure(allowed).await, None);
}

#[tokio::test]
async fn allowed_blocking_passes_and_blocking_beside_it_does_not() {
    let allowed = || tokio_stall::allow_blocking("it is a test", || std::thread::sleep(5 * MS));
    assert_eq!(
        failure(assert_never_blocks(async { allowed() })).await,
        None
    );
    let beside = assert_never_blocks(async {
        allowed();
        read_slowly();
    });
    let text = failure(beside).await.expect("it sleeps beside");
    assert!(text.contains("read_slowly"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn block_in_place_holds_no_worker() {
    let task = tokio::spawn(failure(assert_never_blocks(async {
        tokio::task::block_in_place(|| std::thread::sleep(20 * MS));
    })));
    assert_eq!(task.await.unwrap(), None);
    let control = tokio::spawn(failure(assert_never_blocks(async {
        std::thread::sleep(20 * MS)
    })));
    assert!(control.await.unwrap().is_some());
}

#[tokio::test]
async fn a_known_site_passes_and_a_new_one_fails() {
    let path = std::env::temp_dir().join(format!("known_{}.toml", std::process::id()));
    std::fs::write(
        &path,
        "[[known]]\nsite = \"it::never_blocks::read_slowly\"\ncause = \"blocked/sleep\"\n\
         [[known]]\nsite = \"it::never_blocks::fixed\"\n",
    )
    .unwrap();
    let known = testing::baseline(&path);
    std::fs::remove_file(&path).unwrap();
    let old = assert_never_blocks(async { read_slowly() }).known(&known);
    assert_eq!(failure(old).await, None);
    assert_eq!(
        known.met(),
        [("it::never_blocks::read_slowly".to_owned(), 1)]
    );
    assert_eq!(known.vanished(), ["it::never_blocks::fixed"]);
    let new = assert_never_blocks(async { std::thread::sleep(2 * MS) }).known(&known);
    assert!(failure(new).await.is_some());
}

/// The sleep of a poll does not hide its computing, nor does one that is known.
#[tokio::test]
async fn a_poll_that_sleeps_and_computes_has_two_failures() {
    let both = || async {
        read_slowly();
        compute(100 * MS);
    };
    let text = failure(assert_never_blocks(both()).cpu_budget(20 * MS));
    let text = text.await.expect("both");
    assert!(text.starts_with("blocked its thread: asleep for"), "{text}");
    assert!(text.contains("\n\none poll computed for"), "{text}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("known.toml");
    std::fs::write(
        &path,
        "[[known]]\nsite = \"it::never_blocks::read_slowly\"\n",
    )
    .unwrap();
    let known = testing::baseline(&path);
    let text = failure(
        assert_never_blocks(both())
            .cpu_budget(20 * MS)
            .known(&known),
    );
    let text = text.await.expect("the computing");
    assert!(text.starts_with("one poll computed for"), "{text}");
    assert!(!text.contains("blocked its thread"), "{text}");
}

#[tokio::test]
async fn a_free_lock_passes_and_a_held_one_does_not() {
    let lock = Arc::new(Mutex::new(0));
    let free = assert_never_blocks(async { *lock.lock().unwrap() += 1 });
    assert_eq!(failure(free).await, None);
    let (held, is_held) = std::sync::mpsc::channel();
    let holder = std::thread::spawn({
        let lock = lock.clone();
        move || {
            let _guard = lock.lock().unwrap();
            held.send(()).unwrap();
            std::thread::sleep(200 * MS);
        }
    });
    is_held.recv().unwrap();
    let text = failure(assert_never_blocks(async { *lock.lock().unwrap() += 1 })).await;
    assert!(text.expect("it is held").contains("blocked/lock"));
    holder.join().unwrap();
}

#[tokio::test]
async fn assertions_nest() {
    let nested = assert_never_blocks(assert_never_blocks(async { read_slowly() }));
    let text = failure(nested).await.expect("it sleeps");
    assert!(text.contains("read_slowly"), "{text}");
    let fine = assert_never_blocks(assert_never_blocks(async {
        tokio::time::sleep(MS).await;
    }));
    assert_eq!(failure(fine).await, None);
}

/// Without its signal there is no stack. The figures decide alone, and the text says that the stack
/// is missing.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn a_thread_that_blocks_the_signal_is_not_passed_blindly() {
    let blind = |measured_before: bool| {
        std::thread::spawn(move || {
            if measured_before {
                futures::executor::block_on(assert_never_blocks(async {}));
            }
            block_sigurg();
            futures::executor::block_on(failure(assert_never_blocks(async { read_slowly() })))
        })
        .join()
        .unwrap()
    };
    for measured_before in [false, true] {
        let text = blind(measured_before).expect("it sleeps");
        assert!(text.starts_with("blocked its thread"), "{text}");
        assert!(text.contains("missing   no stack"), "{text}");
    }
}
