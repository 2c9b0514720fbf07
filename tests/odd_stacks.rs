//! Stacks that are deep, elsewhere, of a library that came later, or of a thread that goes: what can be
//! told of them is right, and the rest is said to be missing.
#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

mod seen;

use seen::Seen;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_stall::{Frame, FutureExt as _, Guard, Missing, NoStack, StallReport};

fn one_worker() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_stack_size(4 * 1024 * 1024)
        .build()
        .unwrap()
}

fn watched(name: &str, runtime: &Runtime) -> (Guard, Seen) {
    let (builder, seen) = Seen::builder();
    let builder = builder.runtime(name, runtime.handle().clone());
    (builder.start().unwrap(), seen)
}

/// Has the worker block in `call` until we have been told where; returns that.
fn stall(
    runtime: &Runtime,
    seen: &Seen,
    call: impl FnOnce(Receiver<()>) + Send + 'static,
) -> StallReport {
    let (send, until_told) = mpsc::channel();
    let earlier = seen.all().last().map_or(0, |report| report.id);
    let blocked = runtime.spawn(async move { call(until_told) }.watched("blocks"));
    let told = seen.wait(|report| report.id > earlier && report.site.is_some());
    drop(send);
    runtime.block_on(blocked).unwrap();
    seen.wait_for_end(told.id);
    told
}

#[track_caller]
fn assert_site(report: &StallReport, function: &str, line: u32) {
    let site = report.site.as_ref().unwrap();
    assert_eq!(
        (&*site.function, site.line),
        (function, Some(line)),
        "{report:#?}"
    );
}

fn calls_of<'a>(report: &'a StallReport, function: &str) -> Vec<&'a Frame> {
    let frames = report.stacks[0].frames.iter();
    frames
        .filter(|frame| frame.function.as_deref() == Some(function))
        .collect()
}

fn place_of(report: &StallReport, function: &str) -> usize {
    let mut frames = report.stacks[0].frames.iter();
    let found = frames.position(|frame| {
        let name = frame.function.as_deref();
        name.is_some_and(|name| {
            name.strip_prefix(function)
                .is_some_and(|rest| !rest.starts_with('_'))
        })
    });
    found.unwrap_or_else(|| panic!("{function} is not in {report:#?}"))
}

#[track_caller]
fn assert_complete(report: &StallReport) {
    assert!(report.stacks[0].complete, "{report:#?}");
    for missing in [Missing::Truncated, Missing::Lost] {
        assert!(!report.missing.contains(&missing), "{report:#?}");
    }
}

const DEEPEST: u32 = line!() + 6;
/// Takes some 8 KiB of stack for each call.
fn descends(depth: usize, until_told: &Receiver<()>) {
    let mut room = [0_u8; 8 * 1024];
    black_box(&mut room);
    match depth {
        0 => drop(until_told.recv()),
        _ => descends(depth - 1, until_told),
    }
    black_box(&mut room);
}

#[test]
fn a_deep_recursion_is_named_by_its_innermost_call() {
    let runtime = one_worker();
    let (_watch, seen) = watched("deep", &runtime);
    // Half of what is copied, and four times as much.
    let shallow = stall(&runtime, &seen, |until_told| descends(15, &until_told));
    assert_site(&shallow, "odd_stacks::descends", DEEPEST);
    assert_eq!(
        calls_of(&shallow, "odd_stacks::descends").len(),
        16,
        "{shallow:#?}"
    );
    assert_complete(&shallow);

    let deep = stall(&runtime, &seen, |until_told| descends(127, &until_told));
    assert_site(&deep, "odd_stacks::descends", DEEPEST);
    let calls = calls_of(&deep, "odd_stacks::descends").len();
    // Of 256 KiB, with something else to each call.
    assert!((24..=32).contains(&calls), "{calls} in {deep:#?}");
    assert!(!deep.stacks[0].complete);
    assert!(
        deep.missing.contains(&Missing::Truncated),
        "{:?}",
        deep.missing
    );
}

const LAST_STEP: u32 = line!() + 4;
/// Takes little stack for each call.
fn steps(left: usize, until_told: &Receiver<()>) {
    match left {
        0 => drop(until_told.recv()),
        _ => steps(left - 1, until_told),
    }
    black_box(left);
}

#[test]
fn very_many_calls_are_cut_but_for_the_innermost() {
    let runtime = one_worker();
    let (_watch, seen) = watched("many", &runtime);
    let many = stall(&runtime, &seen, |until_told| steps(600, &until_told));
    assert_site(&many, "odd_stacks::steps", LAST_STEP);
    let calls = calls_of(&many, "odd_stacks::steps").len();
    assert!((450..=512).contains(&calls), "{calls}");
    assert!(!many.stacks[0].complete);
    assert!(
        many.missing.contains(&Missing::Truncated),
        "{:?}",
        many.missing
    );

    let fewer = stall(&runtime, &seen, |until_told| steps(300, &until_told));
    assert_eq!(calls_of(&fewer, "odd_stacks::steps").len(), 301);
    assert_complete(&fewer);
}

const ELSEWHERE: u32 = line!() + 2;
fn blocks(until_told: &Receiver<()>) {
    until_told.recv().ok();
}

#[test]
fn a_stack_that_is_elsewhere_is_told_as_far_as_it_goes() {
    let runtime = one_worker();
    let (_watch, seen) = watched("elsewhere", &runtime);
    let elsewhere = stall(&runtime, &seen, |until_told| {
        stacker::grow(256 * 1024, || blocks(&until_told));
    });
    assert_site(&elsewhere, "odd_stacks::blocks", ELSEWHERE);
    // Where one stack goes over into the other cannot be seen.
    assert!(!elsewhere.stacks[0].complete, "{elsewhere:#?}");
    let cut = [Missing::Truncated, Missing::Lost];
    assert!(
        cut.iter().any(|cut| elsewhere.missing.contains(cut)),
        "{elsewhere:#?}"
    );
    // Back on its own stack, the same thread has a complete one.
    let back = stall(&runtime, &seen, |until_told| blocks(&until_told));
    assert_site(&back, "odd_stacks::blocks", ELSEWHERE);
    assert_complete(&back);
}

/// Compiles a library with one function, which calls the one that it is given.
fn library(directory: &Path, name: &str, function: &str, options: &[&str]) -> PathBuf {
    let source = directory.join("through.c");
    let text = format!("int {function}(void (*f)(void)) {{ f(); return 1; }}\n");
    std::fs::write(&source, text).unwrap();
    let library = directory.join(name);
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-g0"])
        .args(options)
        .arg("-o")
        .args([&library, &source])
        .status()
        .expect("a C compiler");
    assert!(status.success());
    library
}

/// What [`calls_back`] waits for; C hands nothing through. Tests that use it hold [`LIBRARIES`].
static UNTIL_TOLD: Mutex<Option<Receiver<()>>> = Mutex::new(None);
static LIBRARIES: Mutex<()> = Mutex::new(());

const CALLED_BACK: u32 = line!() + 4;
extern "C" fn calls_back() {
    let until_told = UNTIL_TOLD.lock().unwrap().take();
    if let Some(until_told) = until_told {
        until_told.recv().ok();
    }
}

/// Loads the library, blocks in a function that it calls back, and unloads it.
#[allow(unsafe_code)]
fn goes_through(library: &Path, function: &str, until_told: Receiver<()>) {
    *UNTIL_TOLD.lock().unwrap() = Some(until_told);
    type Through = unsafe extern "C" fn(extern "C" fn()) -> i32;
    // SAFETY: the library has no constructors.
    let library = unsafe { libloading::Library::new(library) }.unwrap();
    // SAFETY: the function has this type.
    let through = unsafe { library.get::<Through>(function.as_bytes()) }.unwrap();
    // SAFETY: it calls what it is given, which does not unwind.
    let returned = unsafe { through(calls_back) };
    assert_eq!(returned, 1);
}

/// Tells of the frame that lies between the two of ours.
#[track_caller]
fn between(report: &StallReport) -> &Frame {
    assert_site(report, "odd_stacks::calls_back", CALLED_BACK);
    assert_complete(report);
    let inner = place_of(report, "odd_stacks::calls_back");
    let outer = place_of(report, "odd_stacks::goes_through");
    assert_eq!(outer, inner + 2, "{report:#?}");
    &report.stacks[0].frames[inner + 1]
}

#[test]
fn a_library_loaded_later_is_told_by_name() {
    let _alone = LIBRARIES.lock().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let runtime = one_worker();
    let (watch, seen) = watched("libraries", &runtime);
    // By now it is known what is loaded.
    assert!(stall(&runtime, &seen, |until_told| blocks(&until_told)).stacks[0].complete);
    assert_eq!(watch.worker_stacks().len(), 1);

    let with_symbols = library(directory.path(), "libthrough.so", "through", &[]);
    let through = stall(&runtime, &seen, move |until_told| {
        goes_through(&with_symbols, "through", until_told);
    });
    let frame = between(&through);
    assert_eq!(frame.function.as_deref(), Some("through"), "{frame:#?}");
    assert_eq!(frame.module.as_deref(), Some("libthrough.so"));
    assert!(frame.build_id.is_some() || frame.offset > 0, "{frame:#?}");

    let options = [
        "-s",
        "-fomit-frame-pointer",
        "-Wl,--build-id=0x0123456789abcdef",
    ];
    let stripped = library(directory.path(), "libthrough2.so", "through2", &options);
    let through = stall(&runtime, &seen, move |until_told| {
        goes_through(&stripped, "through2", until_told);
    });
    let frame = between(&through);
    assert_eq!(frame.module.as_deref(), Some("libthrough2.so"));
    assert_eq!(frame.build_id.as_deref(), Some("0123456789abcdef"));
    // What is exported has a name all the same.
    assert_eq!(frame.function.as_deref(), Some("through2"), "{frame:#?}");
}

/// A plug-in that is built anew: the old one is unloaded and deleted, and the new one has its path, most
/// likely its addresses, and on some file systems its inode.
#[test]
fn a_library_that_replaces_another_has_its_own_names() {
    let _alone = LIBRARIES.lock().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let runtime = one_worker();
    let (_watch, seen) = watched("plug-ins", &runtime);
    // All are built beforehand: what the compiler writes in between would take the inode.
    let functions = ["first_plugin", "second_plugin", "third_plugin"];
    let built =
        functions.map(|function| (function, library(directory.path(), function, function, &[])));
    let plugin = directory.path().join("libplugin.so");
    for (function, built) in built {
        std::fs::copy(built, &plugin).unwrap();
        let path = plugin.clone();
        let through = stall(&runtime, &seen, move |until_told| {
            goes_through(&path, function, until_told);
        });
        let frame = between(&through);
        assert_eq!(frame.function.as_deref(), Some(function), "{frame:#?}");
        assert_eq!(frame.module.as_deref(), Some("libplugin.so"));
        std::fs::remove_file(&plugin).unwrap();
    }
}

/// Whether this is a way for a worker's stack not to be had while its runtime ends.
fn is_expected(why: NoStack) -> bool {
    use NoStack::{Busy, NotAnswered, ThreadGone, ThreadUnknown};
    matches!(why, Busy | NotAnswered | ThreadGone | ThreadUnknown)
}

#[test]
fn threads_may_exit_while_they_are_asked() {
    // Debug information is read once as long as there is a watch.
    let stays = one_worker();
    let (watch_that_stays, seen_of_it) = watched("stays", &stays);
    let (mut taken, mut refused) = (0, 0);
    for round in 0..24 {
        // In each fourth runtime the threads do not answer, and so exit with a request under way.
        let deaf = round % 4 == 3;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(3)
            .on_thread_start(move || {
                if deaf {
                    block_sigurg();
                }
            })
            .build()
            .unwrap();
        let (watch, _) = watched(&format!("round {round}"), &runtime);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let (mut stacks, mut after) = (Vec::new(), 0);
                // Some more rounds after the end: there must be nothing left to ask.
                while after < 3 {
                    after += u32::from(ended.load(Ordering::Acquire));
                    stacks.extend(watch.worker_stacks());
                }
                stacks
            });
            // Enough that its workers are asked in the midst of something, a stall included.
            for _ in 0..3 {
                runtime.spawn(async { std::thread::sleep(Duration::from_millis(15)) });
            }
            std::thread::sleep(Duration::from_millis(round % 7 * 4));
            runtime.shutdown_timeout(seen::FOREVER);
            ended.store(true, Ordering::Release);
            for stack in asking.join().unwrap() {
                match stack.frames {
                    Ok(frames) => {
                        assert!(!frames.is_empty() && !deaf);
                        taken += 1;
                    }
                    Err(why) => {
                        assert!(is_expected(why), "{why:?} in round {round}");
                        refused += 1;
                    }
                }
            }
        });
    }
    // Both have been met, and who is left has its stacks.
    assert!(taken > 0 && refused > 0, "{taken} and {refused}");
    let left = stall(&stays, &seen_of_it, |until_told| blocks(&until_told));
    assert_site(&left, "odd_stacks::blocks", ELSEWHERE);
    let deadline = Instant::now() + seen::FOREVER;
    while watch_that_stays.worker_stacks()[0].frames.is_err() {
        let stacks = watch_that_stays.worker_stacks();
        assert!(Instant::now() < deadline, "{stacks:?}");
    }
}

/// For the calling thread.
#[allow(unsafe_code)]
fn block_sigurg() {
    // SAFETY: all-zero is a valid set, which is emptied, and has a valid signal added.
    let changed = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGURG);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    assert_eq!(changed, 0);
}
