//! The ledger: blocking far below the threshold is seen, work and a busy host are not taken for it,
//! and the parts add up to the time that has passed.

use crate::support::load::{Hogs, compute};
use crate::support::stage::{Stage, sleeps};
use crate::support::{FOREVER, wait_until};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_stall::WorkerTime;

const NAP: Duration = Duration::from_micros(300);
const WINDOW: Duration = Duration::from_secs(4);

/// The ledger of the only worker, and its time.
struct Page(Instant, WorkerTime);

/// The difference of two pages.
struct Passed {
    wall: Duration,
    time: WorkerTime,
}

fn total(time: &WorkerTime) -> Duration {
    time.cpu + time.blocked + time.contention + time.parked + time.unknown
}

impl Page {
    /// The ledger just after something has been added to it.
    fn next(stage: &Stage) -> Page {
        let before = Page::now(stage);
        wait_until("an addition to the ledger", || Page::now(stage) != before);
        // The states are added one after the other, so the page between two additions is wanted.
        loop {
            let (at, time) = (Instant::now(), Page::now(stage));
            std::thread::sleep(Duration::from_millis(10));
            if Page::now(stage) == time {
                return Page(at, time);
            }
        }
    }

    fn now(stage: &Stage) -> WorkerTime {
        stage.watch.status().runtimes[0].worker_time[0]
    }

    fn until(&self, Page(end, last): &Page) -> Passed {
        let Page(begin, first) = self;
        let mut time = *last;
        time.cpu -= first.cpu;
        time.blocked -= first.blocked;
        time.contention -= first.contention;
        time.parked -= first.parked;
        time.unknown -= first.unknown;
        Passed {
            wall: *end - *begin,
            time,
        }
    }
}

impl Passed {
    /// The parts are the whole, and hardly any of it is unknown.
    #[track_caller]
    fn assert_adds_up(&self) {
        let Passed { wall, time } = self;
        let off = total(time).as_secs_f64() / wall.as_secs_f64() - 1.0;
        assert!(off.abs() < 0.02, "{:?} of {wall:?}: {time:?}", total(time));
        // A machine with far too much to do stands still as a whole now and then.
        let unknown = time.unknown.as_secs_f64();
        assert!(unknown < 0.05 * wall.as_secs_f64(), "{time:?}");
    }

    #[track_caller]
    fn assert_not_blocked(&self) {
        let (time, all) = (&self.time, total(&self.time));
        assert!(time.blocked < all / 50, "{time:?} of {all:?}");
    }
}

/// The naps of a task: their number, and the time from begin to end of each, added up.
#[derive(Clone, Default)]
struct Naps(Arc<(AtomicU64, AtomicU64)>);

impl Naps {
    async fn go_on(self) {
        let (number, nanos) = &*self.0;
        loop {
            let start = Instant::now();
            std::thread::sleep(NAP);
            nanos.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
            number.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn number(&self) -> u32 {
        self.0.0.load(Ordering::Relaxed).try_into().unwrap()
    }

    fn took(&self) -> Duration {
        Duration::from_nanos(self.0.1.load(Ordering::Relaxed))
    }
}

async fn works() {
    loop {
        compute(Duration::from_millis(1));
        tokio::task::yield_now().await;
    }
}

async fn yields() {
    loop {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Three runtimes of one worker each: one naps, one works, one is idle.
struct Scene {
    napping: Stage,
    working: Stage,
    idle: Stage,
    naps: Naps,
}

impl Scene {
    fn start() -> Scene {
        let one_worker = |name| Stage::multi_thread(1).named(name).start();
        let scene = Scene {
            napping: one_worker("napping"),
            working: one_worker("working"),
            idle: one_worker("idle"),
            naps: Naps::default(),
        };
        scene.napping.runtime.spawn(scene.naps.clone().go_on());
        scene.working.runtime.spawn(works());
        scene.working.runtime.spawn(yields());
        scene
    }

    fn all(&self) -> [&Stage; 3] {
        [&self.napping, &self.working, &self.idle]
    }
}

#[test]
fn small_naps_are_seen_as_blocked_time() {
    let scene = Scene::start();
    let begin = Page::next(&scene.napping);
    let (number, took) = (scene.naps.number(), scene.naps.took());
    // On a busy machine there are few naps in a window.
    let windows = std::iter::repeat_with(|| {
        std::thread::sleep(WINDOW);
        let napped = NAP * (scene.naps.number() - number);
        (napped, begin.until(&Page::next(&scene.napping)))
    });
    let is_enough = |time: WorkerTime| time.blocked > Duration::from_millis(50);
    let mut windows = windows.take(30);
    let (napped, passed) = windows.find(|(_, passed)| is_enough(passed.time)).unwrap();
    let took = scene.naps.took() - took;

    passed.assert_adds_up();
    let blocked = passed.time.blocked;
    // Each nap is at least that long. The part that tokio does not call busy hides as much of them
    // as it takes.
    let hidden = passed.time.cpu + passed.time.contention;
    println!("napped {napped:?} or more, {took:?} or less; found {blocked:?}; may hide {hidden:?}");
    assert!(blocked + hidden >= napped);
    assert!(blocked < took + took / 20);
    scene.napping.seen.assert_nothing_certain();
}

/// The second half of the time has no CPU to give for most of it.
#[test]
fn work_and_a_busy_host_are_not_blocked_time() {
    let scene = Scene::start();
    let begun = scene.all().map(Page::next);
    std::thread::sleep(WINDOW);
    let hogs = Hogs::four_for_each_cpu();
    std::thread::sleep(WINDOW);
    drop(hogs);
    let ended = scene.all().map(Page::next);

    let passed = |index: usize| begun[index].until(&ended[index]);
    let [napping, working, idle] = [0, 1, 2].map(passed);
    for passed in [&napping, &working, &idle] {
        passed.assert_adds_up();
    }
    working.assert_not_blocked();
    idle.assert_not_blocked();
    let contention = working.time.contention;
    assert!(contention > Duration::from_secs(1), "{:?}", working.time);
    let Page(_, idleness) = &ended[2];
    assert!(idleness.parked > total(idleness) / 2, "{idleness:?}");
    for stage in scene.all() {
        stage.seen.assert_nothing_certain();
    }

    // Positive control: a sleep on the idle worker is blocked time.
    scene.idle.run(sleeps(Duration::from_secs(1)));
    wait_until("the sleep in the ledger", || {
        let slept = Page::now(&scene.idle).blocked - idleness.blocked;
        slept > Duration::from_millis(250)
    });
}

/// Stops this whole process for a second, from inside a poll. Another thread may be the one that
/// takes the signal, so the poll goes on until the clock has jumped.
async fn is_stopped() {
    compute(Duration::from_millis(2));
    let begin = Instant::now();
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::STOP).unwrap();
    computes_until_a_jump(begin);
}

/// Computes until the clock has jumped by half a second, as over a stop.
fn computes_until_a_jump(begin: Instant) {
    let mut last = begin;
    let mut jump = Duration::ZERO;
    let deadline = last + FOREVER;
    while jump < Duration::from_millis(500) {
        let now = Instant::now();
        assert!(now < deadline, "the process has not been stopped");
        jump = now.duration_since(last);
        last = now;
    }
    compute(Duration::from_millis(2));
}

/// A process that waits until this one has stopped, and continues it a second later.
fn continues() -> std::process::Child {
    let own = std::process::id();
    let script = format!(
        "until grep -q '^State:.T' /proc/{own}/status; do sleep 0.05; done; \
         sleep 1; kill -CONT {own}"
    );
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).spawn().unwrap()
}

#[test]
fn a_stop_of_the_process_is_not_blocked_time() {
    crate::support::child::alone(|| {
        let stage = Stage::multi_thread(1).start();
        assert_stops_are_unknown(&stage, || {
            let mut continues = continues();
            stage.run(is_stopped());
            continues.wait().unwrap();
        });
    });
}

/// The time of three stops of a second each is of no known state. That of a sleep is.
#[track_caller]
fn assert_stops_are_unknown(stage: &Stage, stop: impl Fn()) {
    let begin = Page::next(stage);
    for _ in 0..3 {
        stop();
    }
    let passed = begin.until(&Page::next(stage));
    let time = passed.time;
    assert!(time.blocked < Duration::from_millis(500), "{time:?}");
    assert!(time.unknown > Duration::from_secs(2), "{time:?}");

    // Positive control: a sleep of the same length is blocked time, and of a known state.
    let begin = Page::next(stage);
    stage.run(sleeps(Duration::from_secs(1)));
    let Passed { time, .. } = begin.until(&Page::next(stage));
    assert!(time.blocked > Duration::from_millis(500), "{time:?}");
    assert!(time.unknown < Duration::from_millis(500), "{time:?}");
}

/// A control group that this process is in, and that can be frozen.
struct Freezer {
    group: PathBuf,
    /// Freezes the group for a second, from outside, once its standard input ends.
    script: String,
}

impl Freezer {
    /// `Err` if this machine does not let us make one.
    fn new() -> io::Result<Freezer> {
        let v1 = Path::new("/sys/fs/cgroup/freezer");
        let (parent, file, freeze, thaw) = if v1.exists() {
            (v1, "freezer.state", "FROZEN", "THAWED")
        } else {
            (Path::new("/sys/fs/cgroup"), "cgroup.freeze", "1", "0")
        };
        let group = parent.join(format!("tokio-stall-test-{}", std::process::id()));
        fs::create_dir(&group)?;
        fs::metadata(group.join(file))?;
        let (outside, file) = (parent.display(), group.join(file));
        let file = file.display();
        let script = format!(
            "echo $$ >{outside}/cgroup.procs && {{ read all; \
             echo {freeze} >{file} && sleep 1 && echo {thaw} >{file}; }}"
        );
        let freezer = Freezer { group, script };
        // The way back, which the shell must take, may be barred.
        enter(&freezer.group)?;
        enter(parent)?;
        enter(&freezer.group)?;
        Ok(freezer)
    }

    /// A poll that is frozen for a second.
    fn freeze(&self, stage: &Stage) {
        let mut shell = std::process::Command::new("sh");
        let shell = shell.args(["-c", &self.script]).stdin(Stdio::piped());
        let mut shell = shell.spawn().unwrap();
        let begins = shell.stdin.take();
        stage.run(async {
            let begin = Instant::now();
            drop(begins);
            computes_until_a_jump(begin);
        });
        assert!(shell.wait().unwrap().success());
    }
}

/// Puts this process into a control group.
fn enter(group: &Path) -> io::Result<()> {
    let mut procs = fs::File::options()
        .write(true)
        .open(group.join("cgroup.procs"))?;
    write!(procs, "{}", std::process::id())
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.group.parent().map(enter);
        fs::remove_dir(&self.group).ok();
    }
}

#[test]
fn a_freeze_of_the_process_is_not_blocked_time() {
    crate::support::child::alone(|| {
        let stage = Stage::multi_thread(1).start();
        let freezer = match Freezer::new() {
            Ok(freezer) => freezer,
            Err(error) => {
                eprintln!("NOT TRIED: no control group can be made here ({error})");
                return;
            }
        };
        assert_stops_are_unknown(&stage, || freezer.freeze(&stage));
    });
}
