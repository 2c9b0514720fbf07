//! `cargo stall test` and `cargo stall run`, on a package that knows nothing of it.

mod support;

use std::process::Command;
use support::{package, run, target_folder};

fn cargo_stall(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cargo-stall"));
    command
        .arg("stall")
        .args(arguments)
        .current_dir(package())
        .env("CARGO_TARGET_DIR", target_folder())
        .env("RUST_TEST_THREADS", "8")
        .env_remove("GITHUB_ACTIONS");
    command
}

#[test]
fn tests_that_block_fail_with_their_names_and_a_baseline_lets_them_pass() {
    let folder = tempfile::tempdir().unwrap();
    let junit = folder.path().join("junit.xml");
    let junit = junit.to_str().unwrap();
    let test = &["test", "--test", "suite", "--junit", junit];
    let (code, text) = run(cargo_stall(test).env("GITHUB_ACTIONS", "true"));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("4 passed"), "{text}");
    for said in [
        "sleeps_in_a_poll in suite-",
        "where     programs::sleeps (src/lib.rs:",
        "where     programs::locks (src/lib.rs:",
        "site = \"programs::sleeps\"",
        "::error file=src/lib.rs,line=",
    ] {
        assert!(text.contains(said), "{said}:\n{text}");
    }
    for honest in ["waits_without_blocking in", "blocks_without_a_runtime in"] {
        assert!(!text.contains(honest), "{honest}:\n{text}");
    }
    let written = std::fs::read_to_string(junit).unwrap();
    assert!(written.contains("failures=\"2\""), "{written}");

    let baseline = folder.path().join("stalls.toml");
    let known = "[[known]]\nsite = \"programs::sleeps\"\n[[known]]\nsite = \"programs::locks\"\n";
    std::fs::write(&baseline, known).unwrap();
    let with = ["--baseline", baseline.to_str().unwrap()];
    let (code, text) = run(&mut cargo_stall(
        &[&["test", "--test", "suite"][..], &with].concat(),
    ));
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("known to block, 1 times: programs::sleeps"),
        "{text}"
    );
}

#[test]
fn a_program_that_blocks_fails_and_an_honest_one_does_not() {
    let blocks = ["run", "--quiet", "--", "current", "sleep", "3000", "1"];
    let (code, text) = run(&mut cargo_stall(&blocks));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("programs::sleeps"), "{text}");
    let honest = ["run", "--quiet", "--", "current", "idle", "1000", "2"];
    let (code, text) = run(&mut cargo_stall(&honest));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("cargo-stall: no stalls"), "{text}");
}

#[test]
fn each_test_of_nextest_is_a_process_with_its_name() {
    let version = Command::new(env!("CARGO"))
        .args(["nextest", "--version"])
        .output();
    if !version.is_ok_and(|version| version.status.success()) {
        eprintln!("NOT CHECKED: cargo-nextest is not installed");
        return;
    }
    let (code, text) = run(&mut cargo_stall(&[
        "nextest",
        "--test",
        "suite",
        "--no-fail-fast",
    ]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("4 passed"), "{text}");
    for name in ["sleeps_in_a_poll", "waits_for_a_lock_on_a_worker"] {
        assert!(text.contains(&format!("{name} in suite-")), "{text}");
    }
    assert!(text.contains("cargo-stall: 2 stalls"), "{text}");
}

#[test]
fn threads_that_exit_in_a_stop_do_not_hold_a_child_back() {
    let churns = [
        "run",
        "--threshold",
        "10ms",
        "--quiet",
        "--",
        "multi",
        "churns",
        "2000",
        "1",
    ];
    let (code, text) = run(&mut cargo_stall(&churns));
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_program_that_fails_hands_its_code_on() {
    let (code, text) = run(&mut cargo_stall(&[
        "run", "--quiet", "--", "current", "no_trap",
    ]));
    assert_eq!(code, Some(101), "{text}");
    assert!(text.contains("no trap is called no_trap"), "{text}");
}
