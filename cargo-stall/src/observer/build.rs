//! Lets cargo build and run the programs, each with this one as its runner.
//!
//! *Runs on:* the main thread.
//!
//! A runner is started with the program and its arguments, in the directory and with the
//! environment that cargo gives to the program. It leaves its reports in a folder that `cargo
//! stall` reads at the end.

use crate::observer::args::CargoArguments;
use crate::observer::problem::Problem;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// The first argument of a runner.
pub(crate) const RUNNER: &str = "--as-runner";

/// The environment variable with the folder for reports.
pub(crate) const FOLDER: &str = "TOKIO_STALL_FOLDER";

/// The environment variable with the threshold in milliseconds.
pub(crate) const THRESHOLD: &str = "TOKIO_STALL_THRESHOLD_MS";

/// The environment variable with the crates that are own code, with spaces between.
pub(crate) const OWN: &str = "TOKIO_STALL_OWN";

/// Runs cargo with this program as the runner. Returns how it has ended.
pub(crate) fn cargo(
    subcommand: &[&str],
    arguments: &CargoArguments,
    variables: &[(&str, OsString)],
) -> Result<ExitStatus, Problem> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(subcommand);
    for triple in triples(&cargo, &arguments.cargo)? {
        command.arg("--config").arg(runner_of(&triple)?);
    }
    command.args(&arguments.cargo);
    if !arguments.program.is_empty() {
        command.arg("--").args(&arguments.program);
    }
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    let start = |error| Problem::Start(PathBuf::from(&cargo), error);
    command.status().map_err(start)
}

/// The platforms that programs may be built for: the one of cargo itself, and those that are asked
/// for.
fn triples(cargo: &OsString, arguments: &[OsString]) -> Result<Vec<String>, Problem> {
    let output = Command::new(cargo).arg("-vV").output();
    let output = output.map_err(|error| Problem::Start(PathBuf::from(cargo), error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    let mut triples: Vec<String> = host.into_iter().map(str::to_owned).collect();
    let arguments: Vec<_> = arguments
        .iter()
        .map(|each| each.to_string_lossy())
        .collect();
    for (index, argument) in arguments.iter().enumerate() {
        let given = match argument.strip_prefix("--target") {
            Some("") => arguments.get(index + 1).map(ToString::to_string),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        triples.extend(given.filter(|given| !given.ends_with(".json")));
    }
    triples.dedup();
    Ok(triples)
}

/// The setting of cargo that makes this program the runner.
fn runner_of(triple: &str) -> Result<String, Problem> {
    let program = std::env::current_exe()?;
    // JSON's texts are TOML's, too.
    let quoted = serde_json::to_string(&program.to_string_lossy()).map_err(std::io::Error::from)?;
    Ok(format!("target.{triple}.runner=[{quoted}, \"{RUNNER}\"]"))
}

/// A folder for reports that nobody else can read.
pub(crate) struct ReportFolder(PathBuf);

impl ReportFolder {
    pub(crate) fn new() -> Result<ReportFolder, Problem> {
        use std::os::unix::fs::DirBuilderExt as _;
        let name = format!("cargo-stall-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| Problem::File(path.clone(), error))?;
        Ok(ReportFolder(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The files in it, in order of their names.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten();
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        files
    }
}

impl Drop for ReportFolder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}
