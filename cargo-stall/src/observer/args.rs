//! The arguments of both programs.
//!
//! *Runs on:* the main thread.

use crate::observer::problem::Problem;
use lexopt::{Arg, Parser, ValueExt as _};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// The threshold of stalls, unless another one is given.
const THRESHOLD: Duration = Duration::from_millis(100);

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Version,
    Dump(u32),
    Attach(u32),
    Report(PathBuf),
    /// Builds a binary as `cargo run` would, and runs it.
    Run(CargoArguments),
    /// Builds tests as `cargo test` would, and runs them.
    Test(CargoArguments),
    /// The same with `cargo nextest run`.
    Nextest(CargoArguments),
}

/// The arguments that are handed on: those for cargo, and those for the program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CargoArguments {
    pub(crate) cargo: Vec<OsString>,
    pub(crate) program: Vec<OsString>,
}

/// The options of all commands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) threshold: Duration,
    pub(crate) duration: Option<Duration>,
    pub(crate) json: bool,
    pub(crate) all: bool,
    pub(crate) likely: bool,
    pub(crate) own: Vec<String>,
    pub(crate) baseline: Option<PathBuf>,
    pub(crate) junit: Option<PathBuf>,
    pub(crate) sarif: Option<PathBuf>,
    pub(crate) flamegraph: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            threshold: THRESHOLD,
            duration: None,
            json: false,
            all: false,
            likely: false,
            own: Vec::new(),
            baseline: None,
            junit: None,
            sarif: None,
            flamegraph: None,
        }
    }
}

pub(crate) const HELP: &str = "\
Finds the code that blocks the Tokio event loops of a program, from outside and unchanged.

  tokio-stall attach PID       watches a process, and reports its stalls
  tokio-stall dump PID         shows the stacks of all workers and blocking threads now
  tokio-stall report FILE      sums up reports, one JSON object a line, by site
  cargo stall test [ARGS]      builds and runs tests as `cargo test ARGS` does, under observation
  cargo stall nextest [ARGS]   the same for `cargo nextest run ARGS`
  cargo stall run [ARGS]       the same for `cargo run ARGS`

Options, before ARGS:
  --threshold 100ms            a poll that holds its worker for so long is a stall
  --duration 30s               attach: ends after this time
  --json                       one JSON object a line for each report
  --all                        dump: also threads that are no part of a runtime
  --likely                     attach: also code that computes in what may be several polls
  --own CRATE                  this crate is your own code, too; may be repeated
  --baseline FILE              test, run: stalls at these sites are known, and pass
  --junit FILE                 test, run: writes a JUnit report
  --sarif FILE                 test, run: writes a SARIF report
  --flamegraph FILE            report, attach: writes a flame graph of the time lost, as SVG

Exit codes: 0 no stall that counts, 1 stalls (test, run), 2 an error. A program that fails by
itself hands its own code on. Only certain stalls count.
";

/// Reads the arguments of a program: those after its name.
pub(crate) fn parse(
    arguments: impl Iterator<Item = OsString>,
) -> Result<(Command, Options), Problem> {
    let mut parser = Parser::from_args(arguments);
    let mut options = Options::default();
    let mut words: Vec<String> = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok((Command::Help, options)),
            Arg::Short('V') | Arg::Long("version") => return Ok((Command::Version, options)),
            Arg::Value(word) => {
                let word = word.string()?;
                let Some(command) = command_of_cargo(&word).filter(|_| words.is_empty()) else {
                    words.push(word);
                    continue;
                };
                let handed_on = cargo_arguments(&mut parser, &mut options)?;
                return Ok((without_run(command(handed_on)), options));
            }
            Arg::Long(name) => {
                let name = name.to_owned();
                if !options.read(&name, &mut parser)? {
                    return Err(Problem::Usage(format!("`--{name}` is no option")));
                }
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok((command(&words)?, options))
}

/// The command that has cargo build and run.
fn command_of_cargo(word: &str) -> Option<fn(CargoArguments) -> Command> {
    match word {
        "test" => Some(Command::Test),
        "nextest" => Some(Command::Nextest),
        "run" => Some(Command::Run),
        _ => None,
    }
}

/// `cargo stall nextest run` is what a user of nextest types.
fn without_run(command: Command) -> Command {
    let Command::Nextest(mut arguments) = command else {
        return command;
    };
    if arguments.cargo.first().is_some_and(|first| first == "run") {
        arguments.cargo.remove(0);
    }
    Command::Nextest(arguments)
}

impl Options {
    /// Reads an option of ours. Returns false if it is none.
    fn read(&mut self, name: &str, parser: &mut Parser) -> Result<bool, Problem> {
        match name {
            "threshold" => self.threshold = duration(&parser.value()?.string()?)?,
            "duration" => self.duration = Some(duration(&parser.value()?.string()?)?),
            "json" => self.json = true,
            "all" => self.all = true,
            "likely" => self.likely = true,
            "own" => self.own.push(parser.value()?.string()?),
            "baseline" => self.baseline = Some(parser.value()?.into()),
            "junit" => self.junit = Some(parser.value()?.into()),
            "sarif" => self.sarif = Some(parser.value()?.into()),
            "flamegraph" => self.flamegraph = Some(parser.value()?.into()),
            _ => return Ok(false),
        }
        if self.threshold < Duration::from_millis(10) {
            return Err(Problem::Usage(
                "a threshold below 10 ms is not seen from outside".to_owned(),
            ));
        }
        Ok(true)
    }
}

/// The arguments for cargo and for the program. Ours are taken out, up to `--`.
fn cargo_arguments(parser: &mut Parser, options: &mut Options) -> Result<CargoArguments, Problem> {
    let mut handed_on = CargoArguments::default();
    let mut rest = parser.raw_args()?.collect::<Vec<_>>().into_iter();
    while let Some(argument) = rest.next() {
        if argument == "--" {
            handed_on.program.extend(rest);
            break;
        }
        let name = argument.to_str().and_then(|text| text.strip_prefix("--"));
        let name = name.map(|name| name.split('=').next().unwrap_or(name).to_owned());
        let Some(name) = name.filter(|name| is_ours(name)) else {
            handed_on.cargo.push(argument);
            continue;
        };
        let takes_value = !matches!(name.as_str(), "json" | "all");
        let has_value = argument.to_string_lossy().contains('=');
        let value = (takes_value && !has_value).then(|| rest.next()).flatten();
        let mut one = Parser::from_args([argument].into_iter().chain(value));
        one.next()?;
        options.read(&name, &mut one)?;
    }
    Ok(handed_on)
}

/// Whether an option among those for cargo is ours.
fn is_ours(name: &str) -> bool {
    let ours = [
        "threshold",
        "json",
        "own",
        "baseline",
        "junit",
        "sarif",
        "flamegraph",
    ];
    ours.contains(&name)
}

fn command(words: &[String]) -> Result<Command, Problem> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words.as_slice() {
        [] | ["help"] => Ok(Command::Help),
        ["dump", pid] => Ok(Command::Dump(number(pid)?)),
        ["attach", pid] => Ok(Command::Attach(number(pid)?)),
        ["report", file] => Ok(Command::Report(file.into())),
        ["dump" | "attach"] => Err(Problem::Usage("the number of a process is missing".into())),
        ["report"] => Err(Problem::Usage(
            "the file with the reports is missing".into(),
        )),
        _ => Err(Problem::Usage(format!(
            "`{}` is no command",
            words.join(" ")
        ))),
    }
}

fn number(text: &str) -> Result<u32, Problem> {
    let number = text.parse();
    number.map_err(|_| Problem::Usage(format!("`{text}` is not the number of a process")))
}

/// A duration with its unit: `100ms`, `1.5s`, `2m`.
fn duration(text: &str) -> Result<Duration, Problem> {
    let at = text.find(|c: char| c.is_ascii_alphabetic());
    let (figure, unit) = text.split_at(at.unwrap_or(text.len()));
    let seconds = match unit {
        "ms" => Some(1e-3),
        "s" => Some(1.0),
        "m" | "min" => Some(60.0),
        _ => None,
    };
    let figure = figure.trim().parse::<f64>().ok();
    let both = seconds.zip(figure);
    let time = both.and_then(|(unit, figure)| Duration::try_from_secs_f64(figure * unit).ok());
    time.ok_or_else(|| Problem::Usage(format!("`{text}` is no duration, as `100ms` or `30s` are")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Command, Options), String> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse(words.into_iter()).map_err(|problem| problem.to_string())
    }

    #[test]
    fn a_process_is_attached_with_its_options() {
        let (command, options) = parsed("attach 7 --threshold 50ms --duration=2s").unwrap();
        assert_eq!(command, Command::Attach(7));
        assert_eq!(options.threshold, Duration::from_millis(50));
        assert_eq!(options.duration, Some(Duration::from_secs(2)));
    }

    #[test]
    fn options_of_cargo_are_handed_on_and_ours_are_not() {
        let line = "test --release --threshold 20ms -p app --json name -- --nocapture --json";
        let (command, options) = parsed(line).unwrap();
        let Command::Test(handed_on) = command else {
            panic!("{command:?}");
        };
        assert_eq!(handed_on.cargo, ["--release", "-p", "app", "name"]);
        assert_eq!(handed_on.program, ["--nocapture", "--json"]);
        assert!(options.json);
        assert_eq!(options.threshold, Duration::from_millis(20));
    }

    #[test]
    fn a_program_and_each_runner_of_tests_is_a_command() {
        for (line, expected) in [
            ("run app", Command::Run as fn(_) -> _),
            ("test app", Command::Test),
            ("nextest app", Command::Nextest),
            ("nextest run app", Command::Nextest),
        ] {
            let handed_on = CargoArguments {
                cargo: vec!["app".into()],
                program: Vec::new(),
            };
            assert_eq!(parsed(line).unwrap().0, expected(handed_on));
        }
    }

    #[test]
    fn arguments_without_sense_are_said_to_be_so() {
        for (line, said) in [
            ("attach", "the number of a process is missing"),
            ("attach x", "`x` is not the number of a process"),
            ("attach 7 --threshold 1ms", "a threshold below 10 ms"),
            ("attach 7 --threshold soon", "`soon` is no duration"),
            ("attach 7 --fast", "`--fast` is no option"),
            ("watch 7", "`watch 7` is no command"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
