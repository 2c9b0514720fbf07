//! A test in a process of its own: one test of a binary starts another one of it, and listens.

use std::env;
use std::process::{Child, Command, Stdio};

/// Whether we have been started with this mark. The test of the child does nothing where it was not.
pub fn is_here(mark: &str) -> bool {
    env::var_os(mark).is_some()
}

/// Runs one test of this same binary in a process of its own, with `mark` in its environment.
pub fn start(test: &str, mark: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(mark, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until the child has ended well and has said this. Returns all that it has said.
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
