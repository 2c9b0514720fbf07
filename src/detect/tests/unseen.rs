//! Polls that were over before a tick could see them (D31–D33).

use super::*;

impl World {
    /// The worker parks, wakes and computes in three turns more, so that the busy counter counts.
    fn goes_on_for_three_turns(&mut self) -> Findings {
        let turns = (0..3).flat_map(|_| {
            self.counters.parks += 2;
            self.next_turn();
            self.compute(TICK)
        });
        turns.collect()
    }
}

#[test]
fn a_short_visit_to_block_in_place_between_two_ticks_is_not_a_stall() {
    let unseen = |busy| {
        let mut world = World::parked();
        world.compute(ms(1));
        let poll = PollKey {
            thread: THREAD,
            epoch: 1,
        };
        world.slot().epoch += 2;
        world.slot().started = Some(at(3));
        world.record(poll, at(20));
        world.counters.parks += 2;
        world.publish(busy);
        let mut found = world.compute(ms(25));
        for _ in 0..3 {
            world.counters.parks += 2;
            found.extend(world.compute(TICK));
        }
        found
    };
    assert_eq!(unseen(ms(1)), [], "the busy counter has not counted it");
    let stall = ended(&unseen(ms(18))).expect("the busy counter has counted it");
    assert_eq!(stall.duration, ms(17));
}

#[test]
fn a_poll_that_is_over_waits_for_its_stack_while_that_is_being_explained() {
    let after_a_long_wait = |is_explaining: bool| {
        let mut world = World::polling_since(5).with_stacks();
        world.sleep(TICK);
        world.sleep(ms(20));
        let serial = world.detector.hold_serial().expect("the poll goes on");
        world.is_explaining = is_explaining;
        world.end_poll(Some(at(world.now)));
        world.publish(ms(30));
        world.counters.parks += 1;
        let mut found = Findings::new();
        for _ in 0..2 * TICKS_FOR_A_STACK {
            found.extend(world.pass(TICK));
        }
        world.is_explaining = false;
        world.shown.push((serial, StackVerdict::Driving));
        found.extend(world.pass(TICK));
        found
    };
    assert!(ended(&after_a_long_wait(true)).is_some());
    assert_eq!(after_a_long_wait(false), []);
}

#[test]
fn a_record_that_is_read_long_after_the_sample_blames_nobody_for_the_time_between() {
    // D239. The watchdog loses its CPU between its look at the thread and its look at the record.
    let ended_at = |started: u64, end: u64, looked_at: u64| {
        let mut world = World::parked().wake().with_turns();
        world.compute(ms(5));
        let poll = PollKey {
            thread: THREAD,
            epoch: 1,
        };
        world.slot().epoch += 2;
        world.slot().started = Some(at(started));
        world.record(poll, at(end));
        world.next_turn();
        let mut found = world.compute(ms(looked_at - 5));
        world.publish(ms(end));
        found.extend(world.goes_on_for_three_turns());
        found
    };
    assert!(ended(&ended_at(6, 26, 30)).is_some());
    assert_eq!(ended_at(6, 26, 10), [], "it goes on after the look");
    assert_eq!(ended_at(12, 32, 10), [], "it begins after the look");
    let stall = ended(&ended_at(6, 26, 20)).expect("14 ms were looked at");
    assert_eq!(stall.duration, ms(20));
    assert_eq!((stall.split.cpu, stall.split.unknown), (ms(14), ms(6)));
}

#[test]
fn the_end_of_a_poll_that_lies_after_the_sample_blames_nobody_for_the_time_between() {
    // D239.
    let ended_at = |end: u64, looked_at: u64| {
        let mut world = World::polling_since(5).with_turns();
        world.compute(ms(3));
        world.end_poll(Some(at(end)));
        let mut found = world.compute(ms(looked_at - 8));
        world.publish(ms(end));
        for _ in 0..3 {
            world.counters.parks += 2;
            found.extend(world.compute(TICK));
        }
        found
    };
    assert_eq!(ended(&ended_at(20, 21)).expect("15 ms").name, NAME);
    assert_eq!(ended_at(40, 12), []);
}

#[test]
fn blocking_that_was_allowed_in_a_poll_that_no_look_has_met_does_not_count() {
    // D80.
    let ended_after = |allowed_until: u64| {
        let mut world = World::parked().wake().with_turns();
        world.compute(ms(5));
        let poll = PollKey {
            thread: THREAD,
            epoch: 1,
        };
        let slot = world.slot();
        slot.epoch += 2;
        slot.started = Some(at(6));
        slot.allowed_until = Some(at(allowed_until));
        world.record(poll, at(26));
        world.next_turn();
        let mut found = world.sleep(ms(25));
        world.publish(ms(26));
        found.extend(world.goes_on_for_three_turns());
        found
    };
    assert_eq!(ended_after(17), [], "9 ms of its own");
    let stall = ended(&ended_after(15)).expect("11 ms of its own");
    assert_eq!((stall.since, stall.duration), (at(15), ms(11)));
}

#[test]
fn blocking_that_was_allowed_just_before_the_end_does_not_count() {
    // D80.
    let ended_after = |allowed_until: Option<u64>| {
        let mut world = World::polling_since(5).with_turns();
        world.compute(ms(8));
        world.slot().allowed_until = allowed_until.map(at);
        world.end_poll(Some(at(18)));
        let mut found = world.sleep(ms(6));
        world.publish(ms(18));
        found.extend(world.goes_on_for_three_turns());
        found
    };
    assert!(ended(&ended_after(None)).is_some());
    assert_eq!(ended_after(Some(17)), []);
}

#[test]
fn a_poll_that_was_first_met_just_before_its_end_is_followed() {
    // D239. The record is read long after the sample that met the mark.
    let mut world = World::parked().wake().with_turns();
    world.compute(ms(5));
    world.begin_poll(Some(at(9)));
    let poll = world.slot().poll();
    world.record(poll, at(26));
    world.next_turn();
    let mut found = world.compute(TICK);
    world.slot().epoch += 1;
    found.extend(world.compute(ms(17)));
    world.publish(ms(26));
    found.extend(world.goes_on_for_three_turns());
    let stall = ended(&found).expect("17 ms");
    assert_eq!(stall.duration, ms(17));
}
