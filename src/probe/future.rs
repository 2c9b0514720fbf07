//! A future whose polls are marked with a name: `work.watched("reindex").await`.
//!
//! *Runs on:* worker threads, inside every poll of that future.
//! *Here:* two marks around the inner poll, no clock.

use crate::slot::{self, Mark, Slot, names};
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Names futures for the detector.
pub trait FutureExt: Future + Sized {
    /// Marks every poll of this future with `name`.
    ///
    /// A stall in one of them is then certain from the first tick, and its report carries the name. The
    /// future needs no span, no `tokio_unstable`, and no watch to be running.
    ///
    /// # Cost
    ///
    /// Creating: finding the name's number, some nanoseconds (allocates when a name is first used). Per
    /// poll: a handful of stores to the thread's own cache line.
    ///
    /// # Examples
    ///
    /// ```
    /// use tokio_stall::FutureExt as _;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let answer = async { 6 * 7 }.watched("multiply").await;
    /// assert_eq!(answer, 42);
    /// # }
    /// ```
    fn watched(self, name: &'static str) -> Watched<Self> {
        Watched {
            name,
            number: names::number(names::Name::Text(name)),
            inner: self,
        }
    }
}

impl<F: Future> FutureExt for F {}

pin_project! {
    /// A future whose polls carry a name; made by [`FutureExt::watched`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Watched<F> {
        name: &'static str,
        number: u32,
        #[pin]
        inner: F,
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _poll = Marked {
            slot: slot::begin(Mark::NAME, (*this.number).into()),
            name: this.name,
        };
        this.inner.poll(cx)
    }
}

/// Ends the mark also when the inner poll panics.
struct Marked<'a> {
    slot: &'static Slot,
    /// By reference: after most polls nobody asks.
    name: &'a &'static str,
}

impl Drop for Marked<'_> {
    #[inline]
    fn drop(&mut self) {
        let name = self.name;
        self.slot.end(move || Some(*name));
    }
}
