//! The parts of a stall's time, and the host's among them: no CPU, a quota, a process that stood
//! still.

use super::*;

#[test]
fn waiting_for_a_cpu_is_not_a_stall() {
    let mut world = World::polling_since(5);
    assert_eq!(world.compute(ms(3)), []);
    for _ in 0..1_000 {
        assert_eq!(world.starve(TICK), []);
    }
    // The kernel counts the wait when it ends. The code must not be blamed for it then (D77).
    world.thread.as_mut().unwrap().run_queue += TICK * 1_000;
    assert_eq!(world.compute(ms(5)), []);
    // Positive control: eight milliseconds of its own so far, two more, and the possible error of
    // the wait (D84).
    assert_eq!(world.compute(ms(2)), []);
    assert!(began(&world.compute(ms(3))).is_some());
}

#[test]
fn a_wait_that_ended_between_two_ticks_is_not_blamed_either() {
    let mut world = World::polling_since(5);
    for _ in 0..100 {
        let thread = world.thread.as_mut().unwrap();
        thread.run_queue += Duration::from_micros(4_950);
        thread.cpu += Duration::from_micros(50);
        thread.state = ThreadState::OnCpu;
        assert_eq!(world.pass(TICK), []);
    }
}

#[test]
fn nothing_is_blamed_for_the_time_before_the_first_look() {
    let mut world = World::parked().wake();
    world.begin_poll(Some(at(0)));
    world.now = 22;
    assert_eq!(
        world.compute(ms(1)),
        [],
        "it may have waited for a CPU all the time"
    );
    assert_eq!(world.compute(TICK), []);
    // Positive control: its age is known, once the rest is its own.
    let stall = began(&world.compute(TICK)).unwrap();
    assert_eq!(stall.duration, ms(33));
}

#[test]
fn a_process_that_stood_still_is_not_a_stall() {
    let mut world = World::polling_since(5);
    assert_eq!(world.compute(ms(3)), []);
    // SIGSTOP: everything resumes 400 ms later, the watchdog as well (D81).
    world.late = ms(397);
    world.now += 397;
    assert_eq!(world.compute(ms(3)), []);
    // Positive control: six milliseconds of its own so far, and seven more.
    assert!(began(&world.compute(ms(7))).is_some());
}

#[test]
fn a_stall_has_the_parts_of_its_time() {
    let mut world = World::polling_since(5);
    world.compute(ms(5));
    world.sleep(ms(20));
    world.sleep(ms(20));
    world.starve(ms(5));
    world.thread.as_mut().unwrap().run_queue += ms(5);
    world.late = ms(30);
    world.compute(ms(30)); // stopped for all of it: the CPU clock cannot have moved
    world.end_poll(Some(at(87)));
    let stall = ended(&world.compute(ms(4))).unwrap();
    assert_eq!((stall.duration, stall.call), (ms(82), Some(CALL)));
    let TimeSplit {
        cpu,
        asleep,
        run_queue,
        stopped,
        unknown,
        ..
    } = stall.split;
    assert_eq!(
        [cpu, asleep, run_queue, stopped, unknown],
        [ms(7), ms(40), ms(5), ms(30), ms(0)]
    );
}

#[test]
fn other_work_a_quota_and_a_stopped_process_are_distinguished() {
    // The watchdog's lateness, and its own wait for a CPU, if known (D82). The kernel's figures of
    // the thread's waits, and of the quota. Then: asleep, without a CPU, throttled, stopped.
    #[rustfmt::skip] // The table is clearer with one row a line.
    let cases = [
        (  0, None,     80,   0, [ 20, 80,  0,   0], "other work"),
        ( 85, None,     80,   0, [ 15, 80,  0,   5], "the watchdog had no CPU either"),
        ( 85, None,     80, 160, [ 15,  0, 80,   5], "throttled on two CPUs"),
        (  0, None,     80,  30, [ 20, 50, 30,   0], "partly"),
        (100, None,      0,   0, [  0,  0,  0, 100], "stopped"),
        ( 90, Some(90),  0,   0, [100,  0,  0,   0], "only the watchdog waited"),
        ( 90, Some(90), 60,   0, [ 40, 60,  0,   0], "both did"),
        ( 95, Some(40), 40,   0, [  5, 40,  0,  55], "stopped, then both waited"),
        ( 95, Some(0),   0,   0, [  5,  0,  0,  95], "stopped, and neither waited"),
    ];
    for (late, own_wait, waited, throttled, parts, what) in cases {
        let mut world = World::polling_since(5);
        world.compute(ms(15));
        world.thread.as_mut().unwrap().run_queue += ms(waited);
        world.thread.as_mut().unwrap().runs += 1;
        world.thread.as_mut().unwrap().state = ThreadState::Asleep(Some(CALL));
        world.late = ms(late);
        world.own_wait = own_wait.map(ms);
        world.throttled += ms(throttled);
        world.pass(ms(100));
        world.compute(TICK);
        world.end_poll(Some(at(125)));
        let split = ended(&world.compute(TICK)).unwrap().split;
        let split = [
            split.asleep,
            split.run_queue,
            split.throttled,
            split.stopped,
        ];
        assert_eq!(split, parts.map(ms), "{what}");
    }
}

#[test]
fn computed_time_is_blamed_though_the_watchdog_had_no_cpu() {
    let computed = |own_wait: u64| {
        let mut world = World::polling_since(5);
        world.compute(TICK);
        world.late = ms(90);
        world.own_wait = Some(ms(own_wait));
        let found = world.compute(ms(100));
        began(&found).map(|stall| stall.split.cpu.as_millis())
    };
    assert_eq!(computed(90), Some(105));
    // A machine that stands still may let the CPU clock run on.
    assert_eq!(computed(0), Some(15));
}

#[test]
fn time_without_evidence_is_unknown() {
    let mut world = World::parked().wake();
    world.thread = None;
    world.pass(ms(5));
    world.begin_poll(Some(at(5)));
    let (_, found) = world.until_found(|world| world.pass(TICK));
    let stall = began(&found).unwrap();
    assert_eq!(stall.split, TimeSplit::unknown(stall.duration));
}

#[test]
fn time_that_is_taken_from_the_whole_machine_is_not_blamed() {
    let mut world = World::polling_since(5);
    // The thread was on one CPU all the time, and has computed for less time than has passed (D78).
    for _ in 0..20 {
        world.thread.as_mut().unwrap().cpu += Duration::from_micros(100);
        world.thread.as_mut().unwrap().state = ThreadState::OnCpu;
        assert_eq!(world.pass(TICK), []);
    }
    // Positive control: it has slept meanwhile.
    let (_, found) = world.until_found(|world| world.sleep(TICK));
    assert!(began(&found).is_some());
}

#[test]
fn missing_time_of_a_thread_that_never_slept_is_not_blamed() {
    // It is put on a CPU anew at each look, and the kernel has counted no wait: interrupts, or the
    // host of a virtual machine, had the CPU (D78).
    let stolen = |slept: bool| {
        let mut world = World::polling_since(5);
        let mut found = Findings::new();
        for _ in 0..8 {
            found.extend(world.compute(ms(1)));
            let thread = world.thread.as_mut().unwrap();
            thread.runs += 1;
            if slept {
                thread.state = ThreadState::Asleep(Some(CALL));
            }
            found.extend(world.pass(ms(2)));
        }
        began(&found)
    };
    assert_eq!(stolen(false), None, "8 ms of its own");
    assert!(stolen(true).is_some(), "24 ms, and it was seen asleep");
}

#[test]
fn time_in_which_a_signal_is_not_taken_is_not_blamed_for_up_to_a_threshold() {
    // The kernel counts it as CPU time, and the host of a virtual machine may have had the CPU.
    let computes = |unanswered: &[bool]| {
        let mut world = World::polling_since(5);
        let ticks = unanswered.iter().map(|unanswered| {
            world.unanswered = *unanswered;
            began(&world.compute(TICK)).map(|stall| stall.duration)
        });
        ticks.flatten().next()
    };
    // A tick is half of the threshold. The stack is asked for at the first one.
    let answered = computes(&[false; 8]).expect("positive control");
    assert_eq!(computes(&[false, true, true]), None);
    // A thread that takes no signal for longer computes in the kernel. By D84 it takes a tick more.
    let kernel = [&[false][..], &[true; 8]].concat();
    assert_eq!(computes(&kernel), Some(answered + THRESHOLD + TICK));
    // A sleep is blamed, whether it is interrupted or not.
    let mut world = World::polling_since(5);
    world.unanswered = true;
    let (_, found) = world.until_found(|world| world.sleep(TICK));
    assert_eq!(began(&found).map(|stall| stall.duration), Some(answered));
}

/// A world in which nothing is known of threads, and waits end with a clock of 64 Hz. Returns the
/// first report of a marked poll, which is in the middle of `stopped` milliseconds of standstill.
fn on_a_coarse_timer(usually_late: Duration, stopped: Option<u64>) -> Option<Stall> {
    let mut world = World::parked().wake();
    world.thread = None;
    world.usually_late = usually_late;
    world.pass(TICK);
    world.begin_poll(Some(at(5)));
    if let Some(stopped) = stopped {
        world.late = ms(stopped);
        return began(&world.pass(ms(stopped) + TICK));
    }
    (0..9).find_map(|_| {
        // A tick of 5 ms that takes 16 ms.
        world.late = ms(11);
        began(&world.pass(ms(16)))
    })
}

#[test]
fn a_coarse_timer_hides_no_stall_and_stops_no_process() {
    let stall = on_a_coarse_timer(ms(17), None).expect("150 ms are long enough");
    assert_eq!(stall.certainty, Certainty::Certain);
    assert!(stall.duration <= ms(32), "{:?}", stall.duration);
    assert_eq!(stall.split, TimeSplit::unknown(stall.duration));
    // A standstill of the whole process is no stall there either.
    assert_eq!(on_a_coarse_timer(ms(17), Some(400)), None);
    // Positive control: where timers are fine, most of the same time is the host's.
    let stall = on_a_coarse_timer(ms(0), None).expect("5 ms of each tick are the code's");
    assert!(stall.duration >= ms(48), "{:?}", stall.duration);
}

#[test]
fn a_process_is_called_stopped_only_by_a_watchdog_that_knows_its_own_wait() {
    let stopped = |own_wait: Option<u64>| {
        let mut world = World::parked().wake();
        world.thread = None;
        world.pass(TICK);
        world.begin_poll(Some(at(5)));
        world.late = ms(95);
        world.own_wait = own_wait.map(ms);
        world.pass(ms(100));
        let (_, found) = world.until_found(|world| world.pass(TICK));
        let split = began(&found).unwrap().split;
        (split.stopped, split.total() - split.unknown)
    };
    assert_eq!(stopped(None), (ms(0), ms(0)), "it may have had no CPU");
    assert_eq!(stopped(Some(95)), (ms(0), ms(0)), "it had no CPU");
    assert_eq!(stopped(Some(0)), (ms(95), ms(95)), "it was ready to run");
}

#[test]
fn a_thread_that_there_is_no_descriptor_for_is_not_blamed() {
    let mut world = World::polling_since(5);
    let known = world.thread.take();
    world.blind = true;
    for _ in 0..1_000 {
        assert_eq!(world.pass(TICK), []);
    }
    // Positive controls: it is looked at again, and a system that shows no thread blames by the
    // clock alone.
    (world.thread, world.blind) = (known, false);
    assert!((0..10).any(|_| began(&world.compute(TICK)).is_some()));
    let mut world = World::polling_since(5);
    world.thread = None;
    assert!((0..10).any(|_| began(&world.pass(TICK)).is_some()));
}

#[test]
fn a_thread_that_is_hidden_and_may_have_no_cpu_is_not_blamed() {
    let hidden = || {
        let mut world = World::polling_since(5);
        world.thread = None;
        world
    };
    let passes = |world: &mut World| (0..1_000).any(|_| !world.pass(TICK).is_empty());
    // Some thread of the process is preempted once, at the begin of the poll or during it.
    for ticks in [0, 2] {
        let mut world = hidden();
        for _ in 0..ticks {
            world.pass(TICK);
        }
        world.preempted = true;
        world.pass(TICK);
        world.preempted = false;
        assert!(!passes(&mut world), "after {ticks} ticks");
        // Its next poll is another matter.
        world.end_poll(None);
        world.begin_poll(None);
        assert!(passes(&mut world));
    }
    // Its CPU clock needs no more than its number: it computes, and is preempted all the time.
    let mut world = hidden();
    world.preempted = true;
    let computes = |world: &mut World| {
        world.clock = Some(world.clock.unwrap_or_default() + TICK);
        world.pass(TICK)
    };
    assert!((0..1_000).any(|_| !computes(&mut world).is_empty()));
    // Positive controls: none is preempted, or the thread can be seen, be it only later.
    assert!(passes(&mut hidden()));
    let mut shown = hidden();
    shown.preempted = true;
    shown.pass(TICK);
    shown.thread = World::polling_since(5).thread;
    assert!((0..10).any(|_| began(&shown.compute(TICK)).is_some()));
    let mut seen = World::polling_since(5);
    seen.preempted = true;
    assert!((0..10).any(|_| began(&seen.compute(TICK)).is_some()));
}
