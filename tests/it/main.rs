//! The tests that share a process with others: none of them changes anything of the whole process.
//!
//! A child that a test starts is this same program, and has a process of its own.

#[path = "../support/mod.rs"]
mod support;

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod changed_files;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod current_thread;
#[cfg(target_os = "linux")]
mod endless;
mod five_minutes;
mod hooks;
#[cfg(target_os = "linux")]
mod host;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod interrupted_calls;
mod layer_callsites;
#[cfg(target_os = "linux")]
mod ledger;
#[cfg(target_os = "linux")]
mod many_workers;
#[cfg(feature = "prometheus")]
mod metrics;
#[cfg(feature = "metrics")]
mod monitoring;
#[cfg(all(feature = "testing", target_os = "linux"))]
mod never_blocks;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod odd_stacks;
#[cfg(all(
    feature = "serve",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod page;
mod plain_main;
mod pool_wait;
#[cfg(all(
    feature = "serve",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod profiles;
#[cfg(target_os = "linux")]
mod quota;
#[cfg(feature = "serve")]
mod real_prometheus;
#[cfg(feature = "serve")]
mod recording;
#[cfg(feature = "axum")]
mod request_truth;
#[cfg(feature = "axum")]
mod requests;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod served;
mod several_runtimes;
#[cfg(target_os = "linux")]
mod shortages;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod sites;
#[cfg(all(feature = "testing", target_os = "linux"))]
mod test_runtime;
#[cfg(all(feature = "testing", target_os = "linux"))]
mod test_watch;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod unmarked;
#[cfg(target_os = "linux")]
mod why;
