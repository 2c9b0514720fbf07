//! Stacks that are deep, elsewhere, of a library that came later, or of a thread that goes: the
//! calls of a report are right, and the report says which ones it misses.

use crate::support::signal::block_sigurg;
use crate::support::stage::{Setup, Stage};
use crate::support::{FOREVER, assert_site, wait_until};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio_stall::{Frame, Missing, NoStack, StallReport, WorkerStack};

/// One worker with room for deep stacks.
fn one_worker() -> Setup {
    let room = 4 * 1024 * 1024;
    Stage::multi_thread(1).runtime(|builder| builder.thread_stack_size(room))
}

/// Has the worker block in `call` until a report has a site. Returns that report.
fn stall(stage: &Stage, call: impl FnOnce(Receiver<()>) + Send + 'static) -> StallReport {
    stage.block_until_reported("blocks", call).told
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
        let rest = name.and_then(|name| name.strip_prefix(function));
        rest.is_some_and(|rest| !rest.starts_with('_'))
    });
    found.unwrap_or_else(|| panic!("{function} is not in {report:#?}"))
}

#[track_caller]
fn assert_complete(report: &StallReport) {
    assert!(report.stacks[0].complete, "{report:#?}");
    let cut = [Missing::Truncated, Missing::Lost];
    for missing in cut
        .into_iter()
        .chain([Missing::GuessedCalls, Missing::GuessedSite])
    {
        assert!(!report.missing.contains(&missing), "{report:#?}");
    }
}

#[track_caller]
fn assert_truncated(report: &StallReport) {
    assert!(!report.stacks[0].complete);
    let missing = &report.missing;
    assert!(missing.contains(&Missing::Truncated), "{missing:?}");
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
fn a_stack_within_the_copy_has_all_its_calls() {
    let stage = one_worker().start();
    // Half of the bytes that are copied.
    let shallow = stall(&stage, |until_told| descends(15, &until_told));
    assert_site(&shallow, file!(), DEEPEST, "it::odd_stacks::descends");
    let calls = calls_of(&shallow, "it::odd_stacks::descends");
    assert_eq!(calls.len(), 16, "{shallow:#?}");
    assert_complete(&shallow);
}

#[test]
fn a_deep_recursion_is_named_by_its_innermost_call() {
    let stage = one_worker().start();
    // Four times the bytes that are copied.
    let is_down = |report: &StallReport| {
        let site = report.site.as_ref();
        site.is_some_and(|site| site.line == Some(DEEPEST))
    };
    // A slow machine is looked at before it is there.
    let descend = |until_told| descends(127, &until_told);
    let deep = stage.block_until("descends", is_down, descend).ended;
    assert_site(&deep, file!(), DEEPEST, "it::odd_stacks::descends");
    let calls = calls_of(&deep, "it::odd_stacks::descends").len();
    // Of 256 KiB, with something else to each call.
    assert!((24..=32).contains(&calls), "{calls} in {deep:#?}");
    assert_truncated(&deep);
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
    let stage = one_worker().start();
    let many = stall(&stage, |until_told| steps(600, &until_told));
    assert_site(&many, file!(), LAST_STEP, "it::odd_stacks::steps");
    let calls = calls_of(&many, "it::odd_stacks::steps").len();
    assert!((450..=512).contains(&calls), "{calls}");
    assert_truncated(&many);

    let fewer = stall(&stage, |until_told| steps(300, &until_told));
    assert_eq!(calls_of(&fewer, "it::odd_stacks::steps").len(), 301);
    assert_complete(&fewer);
}

const BLOCKS: u32 = line!() + 2;
fn blocks(until_told: &Receiver<()>) {
    until_told.recv().ok();
}

#[test]
fn a_stack_elsewhere_is_read_as_far_as_it_goes() {
    let stage = one_worker().start();
    let elsewhere = stall(&stage, |until_told| {
        stacker::grow(256 * 1024, || blocks(&until_told));
    });
    assert_site(&elsewhere, file!(), BLOCKS, "it::odd_stacks::blocks");
    // The place where one stack goes over into the other cannot be seen.
    assert!(!elsewhere.stacks[0].complete, "{elsewhere:#?}");
    let mut cut = [Missing::Truncated, Missing::Lost].iter();
    let is_told = cut.any(|cut| elsewhere.missing.contains(cut));
    assert!(is_told, "{elsewhere:#?}");
    // Back on its own stack, the same thread has a complete one.
    let back = stall(&stage, |until_told| blocks(&until_told));
    assert_site(&back, file!(), BLOCKS, "it::odd_stacks::blocks");
    assert_complete(&back);
}

/// Compiles a library with one function, which calls the one that it is given.
fn library(directory: &Path, name: &str, function: &str, options: &[&str]) -> PathBuf {
    let text = format!("int {function}(void (*f)(void)) {{ f(); return 1; }}\n");
    compiled(directory, name, &text, options)
}

fn compiled(directory: &Path, name: &str, text: &str, options: &[&str]) -> PathBuf {
    let source = directory.join("through.c");
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

/// The end of [`calls_back`]; C hands nothing through. Tests that use it hold [`LIBRARIES`].
static UNTIL_TOLD: Mutex<Option<Receiver<()>>> = Mutex::new(None);
static LIBRARIES: Mutex<()> = Mutex::new(());

const CALLED_BACK: u32 = line!() + 4;
extern "C" fn calls_back() {
    let until_told = UNTIL_TOLD.lock().unwrap().take();
    if let Some(until_told) = until_told {
        until_told.recv().ok();
    }
}

/// Loads a library. On a slow machine this alone would be a stall.
#[allow(unsafe_code)]
fn loaded(library: &Path) -> libloading::Library {
    tokio_stall::allow_blocking("a library is loaded", || {
        // SAFETY: the library has no constructors.
        unsafe { libloading::Library::new(library) }.unwrap()
    })
}

/// Loads the library, blocks in a function that it calls back, and unloads it.
#[allow(unsafe_code)]
fn goes_through(library: &Path, function: &str, until_told: Receiver<()>) {
    *UNTIL_TOLD.lock().unwrap() = Some(until_told);
    type Through = unsafe extern "C" fn(extern "C" fn()) -> i32;
    let library = loaded(library);
    // SAFETY: the function has this type.
    let through = unsafe { library.get::<Through>(function.as_bytes()) }.unwrap();
    // SAFETY: it calls what it is given, which does not unwind.
    let returned = unsafe { through(calls_back) };
    assert_eq!(returned, 1);
}

/// The frame that lies between the two of ours.
#[track_caller]
fn between(report: &StallReport) -> &Frame {
    assert_site(report, file!(), CALLED_BACK, "it::odd_stacks::calls_back");
    assert_complete(report);
    let inner = place_of(report, "it::odd_stacks::calls_back");
    let outer = place_of(report, "it::odd_stacks::goes_through");
    assert_eq!(outer, inner + 2, "{report:#?}");
    &report.stacks[0].frames[inner + 1]
}

/// The stage's watch has looked at the libraries, and so knows none that is loaded later.
fn stage_that_knows_its_libraries() -> Stage {
    let stage = one_worker().start();
    assert!(stall(&stage, |until_told| blocks(&until_told)).stacks[0].complete);
    assert_eq!(stage.watch.worker_stacks().len(), 1);
    stage
}

#[test]
fn a_library_loaded_later_has_its_name() {
    let _alone = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let stage = stage_that_knows_its_libraries();
    let with_symbols = library(directory.path(), "libthrough.so", "through", &[]);
    let through = stall(&stage, move |until_told| {
        goes_through(&with_symbols, "through", until_told);
    });
    let frame = between(&through);
    assert_eq!(frame.function.as_deref(), Some("through"), "{frame:#?}");
    assert_eq!(frame.module.as_deref(), Some("libthrough.so"));
    assert!(frame.build_id.is_some() || frame.offset > 0, "{frame:#?}");
}

#[test]
fn a_stripped_library_has_its_exports_and_its_build_id() {
    let _alone = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let stage = stage_that_knows_its_libraries();
    let id = "-Wl,--build-id=0x0123456789abcdef";
    let options = ["-s", "-fomit-frame-pointer", id];
    let stripped = library(directory.path(), "libthrough2.so", "through2", &options);
    let through = stall(&stage, move |until_told| {
        goes_through(&stripped, "through2", until_told);
    });
    let frame = between(&through);
    assert_eq!(frame.module.as_deref(), Some("libthrough2.so"));
    assert_eq!(frame.build_id.as_deref(), Some("0123456789abcdef"));
    assert_eq!(frame.function.as_deref(), Some("through2"), "{frame:#?}");
}

/// A plug-in that is built anew: the old one is unloaded and deleted, and the new one has its path,
/// most likely its addresses, and on some file systems its inode.
#[test]
fn a_library_that_replaces_another_has_its_own_names() {
    let _alone = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let stage = one_worker().start();
    // All are built beforehand: the compiler's files in between would take the inode.
    let functions = ["first_plugin", "second_plugin", "third_plugin"];
    let built =
        functions.map(|function| (function, library(directory.path(), function, function, &[])));
    let plugin = directory.path().join("libplugin.so");
    for (function, built) in built {
        std::fs::copy(built, &plugin).unwrap();
        let path = plugin.clone();
        let through = stall(&stage, move |until_told| {
            goes_through(&path, function, until_told);
        });
        let frame = between(&through);
        assert_eq!(frame.function.as_deref(), Some(function), "{frame:#?}");
        assert_eq!(frame.module.as_deref(), Some("libplugin.so"));
        std::fs::remove_file(&plugin).unwrap();
    }
}

/// As some C libraries are built.
const WITHOUT_TABLES: [&str; 3] = [
    "-fno-asynchronous-unwind-tables",
    "-fno-unwind-tables",
    "-fomit-frame-pointer",
];

#[test]
fn calls_beyond_code_without_tables_are_guesses_and_said_to_be() {
    let _alone = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let stage = stage_that_knows_its_libraries();
    let bare = library(directory.path(), "libbare.so", "bare", &WITHOUT_TABLES);
    let through = stall(&stage, move |until_told| {
        goes_through(&bare, "bare", until_told);
    });
    // The site is within the part that is certain.
    assert_site(&through, file!(), CALLED_BACK, "it::odd_stacks::calls_back");
    let stack = &through.stacks[0];
    let caller = place_of(&through, "it::odd_stacks::goes_through");
    assert_eq!(stack.certain_frames, caller, "{through:#?}");
    assert_eq!(
        stack.frames[caller - 1].module.as_deref(),
        Some("libbare.so")
    );
    assert!(!stack.complete, "{through:#?}");
    assert_eq!(through.missing, [Missing::GuessedCalls]);
}

/// Takes some room, in which old return addresses lie about.
const COMPUTES: &str = "
    static int __attribute__((noinline)) waits(volatile int *stopped) {
        volatile long room[64];
        room[0] = 1;
        while (!*stopped) {}
        return room[0];
    }
    int computes(volatile int *stopped) { return waits(stopped) + waits(stopped); }
";

type Computes = unsafe extern "C" fn(*const AtomicI32) -> i32;

/// Calls C from generic code of the standard library, which keeps frame pointers.
struct Row<'a>(Computes, &'a AtomicI32);

const CALLS_C: u32 = line!() + 5;
#[inline(never)]
#[allow(unsafe_code)]
fn calls_c(row: &Row<'_>) -> i32 {
    // SAFETY: the function only reads the number.
    let computed = unsafe { row.0(row.1) };
    black_box(computed) + 1
}

impl std::fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", calls_c(self))
    }
}

#[inline(never)]
#[allow(unsafe_code)]
fn renders(library: &Path, until_told: Receiver<()>) {
    let library = loaded(library);
    // SAFETY: the function has this type.
    let computes = unsafe { library.get::<Computes>(b"computes") }.unwrap();
    let stopped = &AtomicI32::new(0);
    std::thread::scope(|scope| {
        let stop = move || {
            until_told.recv().ok();
            stopped.store(1, Ordering::Relaxed);
        };
        let stopper = scope.spawn(stop);
        assert_eq!(format!("<{}>", Row(*computes, stopped)), "<3>");
        stopper.join().unwrap();
    });
}

#[test]
fn a_site_beyond_code_without_tables_is_a_guess_and_not_skipped() {
    let _alone = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let stage = stage_that_knows_its_libraries();
    let bare = compiled(
        directory.path(),
        "libcomputes.so",
        COMPUTES,
        &WITHOUT_TABLES,
    );
    let computing = stall(&stage, move |until_told| renders(&bare, until_told));
    // On aarch64 all functions keep frame pointers, so an old return address can seem to lead on.
    if cfg!(target_arch = "x86_64") {
        assert_site(&computing, file!(), CALLS_C, "it::odd_stacks::calls_c");
    }
    assert!(
        computing.missing.contains(&Missing::GuessedSite),
        "{computing:#?}"
    );
    let stack = &computing.stacks[computing.representative_stack.unwrap()];
    assert_eq!(stack.certain_frames, 1, "{computing:#?}");
    // With tables, the same call is certain.
    let full = compiled(directory.path(), "libfull.so", COMPUTES, &[]);
    let computing = stall(&stage, move |until_told| renders(&full, until_told));
    assert_site(&computing, file!(), CALLS_C, "it::odd_stacks::calls_c");
    assert_complete(&computing);
    assert_eq!(computing.missing, []);
}

/// Each function of the library signs the address that it returns to.
#[cfg(target_arch = "aarch64")]
#[test]
fn signed_return_addresses_lead_to_their_callers() {
    let _alone = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let stage = stage_that_knows_its_libraries();
    let options = ["-mbranch-protection=standard", "-fomit-frame-pointer"];
    let signed = compiled(directory.path(), "libsigned.so", COMPUTES, &options);
    let computing = stall(&stage, move |until_told| renders(&signed, until_told));
    assert_site(&computing, file!(), CALLS_C, "it::odd_stacks::calls_c");
    assert_complete(&computing);
    assert_eq!(
        place_of(&computing, "it::odd_stacks::calls_c"),
        2,
        "{computing:#?}"
    );
}

/// Waits in a call of its own, with room of a size that only the frame pointer leads back from.
#[cfg(target_arch = "x86_64")]
const WAITS_IN_ROOM: &str = "
    long read(int, void *, unsigned long);
    long waits_in_room(int file, long size) {
        volatile char room[size];
        long got = read(file, (void *)room, 1);
        room[0] = 0;
        return got + room[0];
    }
";

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[allow(unsafe_code)]
fn waits_in_room(library: &Path, until_told: Receiver<()>) {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    let library = loaded(library);
    type Waits = unsafe extern "C" fn(i32, i64) -> i64;
    // SAFETY: the function has this type.
    let waits = unsafe { library.get::<Waits>(b"waits_in_room") }.unwrap();
    let (reader, mut writer) = std::os::unix::net::UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        let told = scope.spawn(move || {
            until_told.recv().ok();
            writer.write_all(b"x").unwrap();
        });
        // SAFETY: it reads one byte into its own room.
        assert_eq!(unsafe { waits(reader.as_raw_fd(), 100) }, 1);
        told.join().unwrap();
    });
}

/// The frame pointer is not to be seen from outside.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_sleep_that_needs_its_frame_pointer_is_signalled() {
    let _alone = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let stage = stage_that_knows_its_libraries();
    let library = compiled(directory.path(), "libroom.so", WAITS_IN_ROOM, &[]);
    let function = "it::odd_stacks::waits_in_room";
    let is_placed = |report: &StallReport| {
        let site = report.site.as_ref();
        site.is_some_and(|site| site.function == function)
    };
    let waits = move |until_told| waits_in_room(&library, until_told);
    let told = stage.block_until("waits", is_placed, waits).told;
    assert_complete(&told);
}

/// Whether a worker's stack may be missing for this reason while its runtime ends.
fn is_expected(why: NoStack) -> bool {
    use NoStack::{Busy, NotAnswered, ThreadGone, ThreadUnknown};
    matches!(why, Busy | NotAnswered | ThreadGone | ThreadUnknown)
}

/// Starts a runtime, has its stacks taken all the time, and ends it at a moment of each round.
/// Returns all stacks. Deaf threads that compute do not answer, and so exit with a request under
/// way.
fn stacks_of_a_runtime_that_ends(round: u64, deaf: bool) -> Vec<WorkerStack> {
    let stage = Stage::multi_thread(3).named(format!("round {round}"));
    let block = move || {
        if deaf {
            block_sigurg();
        }
    };
    let stage = stage.runtime(|builder| builder.on_thread_start(block));
    let Stage { runtime, watch, .. } = stage.start();
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
            runtime.spawn(async { crate::support::load::compute(Duration::from_millis(15)) });
        }
        std::thread::sleep(Duration::from_millis(round % 7 * 4));
        runtime.shutdown_timeout(FOREVER);
        ended.store(true, Ordering::Release);
        asking.join().unwrap()
    })
}

#[test]
fn threads_may_exit_while_they_are_asked() {
    // Debug information is read once as long as there is a watch.
    let stays = one_worker().named("stays").start();
    let (mut taken, mut refused) = (0, 0);
    for round in 0..24 {
        let deaf = round % 4 == 3;
        for stack in stacks_of_a_runtime_that_ends(round, deaf) {
            match stack.frames {
                Ok(frames) => {
                    assert!(!frames.is_empty());
                    taken += 1;
                }
                Err(why) => {
                    assert!(is_expected(why), "{why:?} in round {round}");
                    refused += 1;
                }
            }
        }
    }
    // Both have been met, and the worker that is left has its stacks.
    assert!(taken > 0 && refused > 0, "{taken} and {refused}");
    let left = stall(&stays, |until_told| blocks(&until_told));
    assert_site(&left, file!(), BLOCKS, "it::odd_stacks::blocks");
    wait_until("the stack of the worker that is left", || {
        stays.watch.worker_stacks()[0].frames.is_ok()
    });
}
