//! Polls that were over before a tick could see them (D31–D33).

use super::*;

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
        let serial = world.detector.watches().expect("the poll goes on");
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
