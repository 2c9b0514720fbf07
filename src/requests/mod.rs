//! Requests: which part of their time was their own, and for which part they were ready and were
//! not polled.
//!
//! *Runs on:* the threads that poll requests, and any thread that wakes one.
//! *Must not:* lock in a poll or a wake.
//!
//! A layer of `tower` wraps each request. It marks the polls by the name of the route, and notes
//! each wake. Requests that were ready for a while tell the detector, which compares the time with
//! the runtime's stalls.

mod board;
mod boards;
mod body;
mod intervals;
mod layer;
mod request;
mod routes;
mod time;
mod timing;
mod waker;

pub(crate) use board::{Board, RequestNews};
pub(crate) use boards::add;
pub use body::ResponseBody;
pub use layer::{RequestLayer, RequestService, ResponseFuture};
pub(crate) use routes::Route;
pub(crate) use time::{RequestTime, Stretch};
