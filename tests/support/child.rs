//! Tests in a process of their own: one test of a binary starts another one, and listens.

use std::env;
use std::process::{Child, Command, Stdio};

/// Whether this process was started with this mark. A child's test does nothing without it.
pub fn is_here(mark: &str) -> bool {
    env::var_os(mark).is_some()
}

/// Runs one test of this same binary in a process of its own, with `mark` in its environment.
pub fn start(test: &str, mark: &str) -> Child {
    command(test, mark).spawn().unwrap()
}

/// The command for that, before it runs. Tests are named as libtest names them: with their module,
/// without the crate.
pub fn command(test: &str, mark: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(mark, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs the calling test's body in a process of its own, in which nothing else has run.
#[track_caller]
pub fn alone<F: FnOnce()>(body: F) {
    const MARK: &str = "TOKIO_STALL_TEST_ALONE";
    if is_here(MARK) {
        return body();
    }
    // The closure is named after the test that it stands in.
    let (_, name) = std::any::type_name::<F>().split_once("::").unwrap();
    let test = name.strip_suffix("::{{closure}}").expect("a closure");
    println!("{}", assert_said(start(test, MARK), "1 passed"));
}

/// Waits until the child has ended well and has said this. Returns all its words.
#[track_caller]
pub fn assert_said(child: Child, wanted: &str) -> String {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains(wanted),
        "{}:\n{text}",
        output.status
    );
    text.into_owned()
}
