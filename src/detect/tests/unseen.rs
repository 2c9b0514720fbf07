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
