//! Clients: well-behaved requests at a steady rate, and now and then one that blocks.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

const WAYS: [&str; 5] = ["sleep", "cpu", "lock", "file", "process"];
const LENGTHS: [u32; 6] = [15, 40, 120, 30, 300, 900];

/// Asks until the program ends.
pub(crate) fn run(service: SocketAddr, per_second: u32, blocking_per_minute: u32) {
    let every = |events: u32, time: Duration| time.checked_div(events);
    let good = every(per_second, Duration::from_secs(1));
    let bad = every(blocking_per_minute, Duration::from_secs(60));
    let mut next_good = good.map(|_| Instant::now());
    let mut next_bad = bad.map(|_| Instant::now() + Duration::from_secs(5));
    let mut asked = 0_usize;
    loop {
        let now = Instant::now();
        if let (Some(due), Some(every)) = (&mut next_good, good) {
            if *due <= now {
                *due += every;
                let path = if asked % 10 == 9 { "report" } else { "" };
                ask(format!("http://{service}/{path}"));
                asked += 1;
            }
        }
        if let (Some(due), Some(every)) = (&mut next_bad, bad) {
            if *due <= now {
                *due += every;
                let (how, ms) = (WAYS[asked % WAYS.len()], LENGTHS[asked % LENGTHS.len()]);
                ask(format!("http://{service}/block?ms={ms}&how={how}"));
                asked += 1;
            }
        }
        let soonest = [next_good, next_bad].into_iter().flatten().min();
        let wait = soonest.map_or(Duration::from_secs(1), |due| {
            due.saturating_duration_since(now)
        });
        std::thread::sleep(wait);
    }
}

/// On a thread of its own, so that one that hangs holds up no other.
fn ask(url: String) {
    std::thread::spawn(move || {
        ureq::get(&url)
            .call()
            .map(|answer| answer.into_body().read_to_vec())
    });
}
