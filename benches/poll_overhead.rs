//! What a mark adds to a poll, and to entering and leaving a span.
//!
//! Run with: `cargo bench --bench poll_overhead`. Compare rows of one run only.

use divan::{Bencher, black_box};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio_stall::{FutureExt as _, PollTiming};
use tracing::span::Span;
use tracing_subscriber::layer::Identity;
use tracing_subscriber::prelude::*;

/// Polls in one sample: what is timed is far longer than a clock read.
const POLLS: usize = 10_000;

fn main() {
    divan::main();
}

/// Is never ready, and does next to nothing to find that out.
struct Countdown(u64);

impl Future for Countdown {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.0 = black_box(self.0).wrapping_sub(1);
        Poll::Pending
    }
}

fn poll_many(bencher: Bencher, future: impl Future<Output = ()>, around: impl Fn()) {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    bencher.counter(POLLS).bench_local(|| {
        for _ in 0..POLLS {
            around();
            let _ = black_box(future.as_mut().poll(&mut context));
        }
    });
}

#[divan::bench_group(name = "poll")]
mod poll {
    use super::*;

    #[divan::bench]
    fn bare(bencher: Bencher) {
        poll_many(bencher, Countdown(0), || {});
    }

    #[divan::bench]
    fn watched_untimed(bencher: Bencher) {
        with_timing(PollTiming::Off, || {
            poll_many(bencher, Countdown(0).watched("poll"), || {})
        });
    }

    #[divan::bench]
    fn watched_sampled(bencher: Bencher) {
        with_timing(PollTiming::Sampled, || {
            poll_many(bencher, Countdown(0).watched("poll"), || {})
        });
    }

    #[divan::bench]
    fn watched_every_poll_timed(bencher: Bencher) {
        with_timing(PollTiming::Every, || {
            poll_many(bencher, Countdown(0).watched("poll"), || {})
        });
    }

    #[divan::bench]
    fn instant_now_twice(bencher: Bencher) {
        poll_many(bencher, Countdown(0), || {
            black_box(Instant::now().elapsed());
        });
    }

    /// The mode of timing is the process's; a watch sets it. Its runtime is idle.
    fn with_timing(timing: PollTiming, run: impl FnOnce()) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime");
        let watch = tokio_stall::Builder::new()
            .runtime("bench", runtime.handle().clone())
            .poll_timing(timing);
        let _watch = watch.start().expect("nothing else is watched");
        run();
    }
}

#[divan::bench_group(name = "span enter and exit")]
mod span {
    use super::*;

    fn enter_many(bencher: Bencher, span: &Span) {
        bencher.counter(POLLS).bench_local(|| {
            for _ in 0..POLLS {
                span.in_scope(|| black_box(()));
            }
        });
    }

    #[divan::bench]
    fn registry_and_an_empty_layer(bencher: Bencher) {
        let subscriber = tracing_subscriber::registry().with(Identity::new());
        tracing::subscriber::with_default(subscriber, || {
            enter_many(bencher, &tracing::info_span!("request"))
        });
    }

    #[divan::bench]
    fn registry_and_our_layer(bencher: Bencher) {
        let subscriber = tracing_subscriber::registry().with(tokio_stall::layer());
        tracing::subscriber::with_default(subscriber, || {
            enter_many(bencher, &tracing::info_span!("request"))
        });
    }
}
