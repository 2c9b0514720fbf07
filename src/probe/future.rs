//! A future whose polls are marked with a name: `work.watched("reindex").await`.
//!
//! *Runs on:* worker threads, inside every poll of that future.
//! *Must not:* do more than begin and end a mark around the inner poll. No clock is read for it.

use crate::slot::{self, Mark, names};
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Names futures for the detector.
pub trait FutureExt: Future + Sized {
    /// Marks every poll of this future with `name`.
    ///
    /// A stall in one of them is then certain from the first tick, and its report carries the name.
    /// The future needs neither a span nor `tokio_unstable`, and a watch may start later or not at
    /// all.
    ///
    /// # Cost
    ///
    /// Creating: a search for the name's number, some nanoseconds, and 8 bytes in the future. The
    /// first use of a name allocates. Per poll: about 15 instructions, most of them stores to the
    /// thread's own cache line.
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
        // No other field: each poll would load and save it.
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
        let _marked = mark(*this.number);
        this.inner.poll(cx)
    }
}

/// Begins a mark with the number of a name. It ends with the value.
#[inline]
pub(crate) fn mark(number: u32) -> Marked {
    slot::begin(Mark::NAME, number.into());
    Marked
}

/// Ends the mark also when the inner poll panics.
#[must_use]
pub(crate) struct Marked;

impl Drop for Marked {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = slot::end_quickly() {
            slot.end_name_slowly();
        }
    }
}
