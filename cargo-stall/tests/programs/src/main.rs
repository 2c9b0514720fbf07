//! A service that falls into one trap: `programs FLAVOR TRAP [MILLISECONDS [ROUNDS]]`.

use programs::{
    checks, churns, compute, computes, hides, is_honestly_busy, locks, naps, sleeps, waits,
    waits_hidden,
};
use std::time::Duration;

async fn trap(name: String, time: Duration, rounds: u64) {
    for _ in 0..rounds {
        let (name, pause) = (name.clone(), time);
        let trapped = async move {
            match name.as_str() {
                "idle" => tokio::time::sleep(pause).await,
                "sleep" => sleeps(pause).await,
                "compute" => computes(pause).await,
                "hidden" => hides(pause).await,
                "waits" => waits(pause).await,
                "waits_hidden" => waits_hidden(pause).await,
                "naps" => naps(pause).await,
                "lock" => locks(pause).await,
                "pool" => tokio::task::spawn_blocking(move || compute(pause))
                    .await
                    .unwrap(),
                "in_place" => tokio::task::block_in_place(|| std::thread::sleep(pause)),
                "busy" => is_honestly_busy().await,
                "checks" => checks().await,
                "churns" => churns(pause).await,
                other => panic!("no trap is called {other}"),
            }
        };
        tokio::spawn(trapped).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let flavor = arguments.next().expect("a flavor");
    let name = arguments.next().expect("a trap");
    let time = arguments.next().map_or(300, |time| time.parse().unwrap());
    let rounds = arguments
        .next()
        .map_or(u64::MAX, |rounds| rounds.parse().unwrap());
    let mut builder = match flavor.as_str() {
        "multi" => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    println!("ready");
    runtime.block_on(trap(name, Duration::from_millis(time), rounds));
}
