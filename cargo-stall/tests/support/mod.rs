//! The programs that are observed, and the observer.

#![allow(dead_code, unreachable_pub)] // Each test binary uses a part of it.

use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A test fails after so long without what it waits for.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The folder of the package with the programs.
pub fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs")
}

/// The folder that the programs are built in.
pub fn target_folder() -> PathBuf {
    let own = Path::new(env!("CARGO_TARGET_TMPDIR"));
    own.with_file_name("programs")
}

/// The program, built once.
pub fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet"])
            .current_dir(package())
            .env("CARGO_TARGET_DIR", target_folder())
            .status();
        assert!(built.unwrap().success());
        target_folder().join("debug/programs")
    })
}

/// The program with an older version of tokio.
pub fn program_with(tokio: &str) -> PathBuf {
    let package = package().join(format!("tokio-{tokio}"));
    let target = target_folder().join(format!("tokio-{tokio}"));
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet"])
        .current_dir(package)
        .env("CARGO_TARGET_DIR", &target)
        .status();
    assert!(built.unwrap().success());
    target.join("debug/programs")
}

/// Lets a command fail to call `perf_event_open`, as many containers do.
#[allow(unsafe_code)]
fn forbid_perf(command: &mut Command) {
    const LOAD_NUMBER: libc::sock_filter = filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0);
    const ALLOW: libc::sock_filter =
        filter(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW);
    let number = u32::try_from(libc::SYS_perf_event_open).unwrap();
    let forbid = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let program = [
        LOAD_NUMBER,
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        filter(libc::BPF_RET | libc::BPF_K, 0, forbid),
        ALLOW,
    ];
    let install = move || {
        let mut program = program;
        let filters = libc::sock_fprog {
            len: 4,
            filter: program.as_mut_ptr(),
        };
        // SAFETY: two system calls; `filters` and its program outlive them.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
                | libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const filters,
                )
        };
        match failed {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure only makes system calls.
    unsafe { command.pre_exec(install) };
}

/// An instruction of a filter. `unequal` is the distance to jump if the comparison fails.
const fn filter(code: u32, unequal: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: unequal,
        k,
    }
}

/// The program without some of its names.
pub fn stripped(how: &str) -> PathBuf {
    let folder = target_folder().join(how.trim_start_matches('-'));
    std::fs::create_dir_all(&folder).unwrap();
    // The name of the program is the name of its crate.
    let path = folder.join("programs");
    let done = Command::new("strip")
        .args([how, "-o"])
        .args([&path, program()])
        .status();
    assert!(done.unwrap().success());
    path
}

/// A program that runs until it is dropped.
pub struct Service(Child);

impl Service {
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Service {
        Service::of(program(), arguments)
    }

    /// Starts this program, and waits until it says that it runs.
    #[track_caller]
    pub fn of(program: &Path, arguments: &[&str]) -> Service {
        let child = Command::new(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Service(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it has used more CPU than now.
    #[track_caller]
    pub fn assert_goes_on(&self) {
        let before = cpu(self.pid());
        wait_until("the process goes on", || cpu(self.pid()) > before);
        assert!(is_running(self.pid()));
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The state of a process, and its CPU time in ticks.
fn stat(pid: u32) -> (char, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, after) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = after.split(' ').collect();
    let time = |index: usize| fields[index].parse::<u64>().unwrap();
    (fields[0].chars().next().unwrap(), time(11) + time(12))
}

fn cpu(pid: u32) -> u64 {
    stat(pid).1
}

/// Whether a process runs or sleeps, and no thread of it is stopped or traced.
pub fn is_running(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let states = tasks.flatten().filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    });
    let states: Vec<char> = states.collect();
    !states.is_empty() && states.iter().all(|state| matches!(state, 'R' | 'S' | 'D'))
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A `tokio-stall attach` that writes JSON.
pub struct Observer {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Observer {
    pub fn attach(pid: u32, options: &[&str]) -> Observer {
        Observer::start(
            Command::new(env!("CARGO_BIN_EXE_tokio-stall")),
            pid,
            options,
        )
    }

    /// The same in a sandbox without `perf_event_open`.
    pub fn attach_without_breakpoints(pid: u32, options: &[&str]) -> Observer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tokio-stall"));
        forbid_perf(&mut command);
        Observer::start(command, pid, options)
    }

    fn start(mut command: Command, pid: u32, options: &[&str]) -> Observer {
        // It ends the wait for a report that does not come.
        let end = ["--duration", "120s"];
        let is_endless = !options.contains(&end[0]);
        let mut child = command
            .args(["attach", &pid.to_string(), "--json"])
            .args(end.iter().filter(|_| is_endless))
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Observer { child, said }
    }

    /// The first report that is wanted.
    #[track_caller]
    pub fn find(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        let mut line = String::new();
        while begun.elapsed() < PATIENCE {
            line.clear();
            let read = self.said.read_line(&mut line).unwrap();
            if read == 0 {
                let mut text = String::new();
                let mut stderr = self.child.stderr.take().unwrap();
                stderr.read_to_string(&mut text).unwrap();
                panic!("the observer has ended: {text}");
            }
            let report: Value = serde_json::from_str(&line).unwrap();
            if wanted(&report) {
                return report;
            }
        }
        panic!("no such report after {PATIENCE:?}; the last one: {line}");
    }

    /// Ends the observation as Ctrl-C does. Returns what it says on standard error.
    #[track_caller]
    pub fn interrupt(self) -> String {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status();
        assert!(sent.unwrap().success());
        self.until_the_end().1
    }

    /// The reports and the words until it ends by itself.
    #[track_caller]
    pub fn until_the_end(mut self) -> (Vec<Value>, String) {
        let lines = self.said.lines().map(|line| line.unwrap());
        let reports = lines.map(|line| serde_json::from_str(&line).unwrap());
        let reports = reports.collect();
        let mut text = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut text).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {text}");
        (reports, text)
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Runs `tokio-stall`, and returns its exit code and all its words.
pub fn output_of(arguments: &[&str]) -> (Option<i32>, String) {
    run(Command::new(env!("CARGO_BIN_EXE_tokio-stall")).args(arguments))
}

/// The same as another user. `None` if this one may not become another.
pub fn as_nobody(arguments: &[&str]) -> Option<(Option<i32>, String)> {
    const NOBODY: u32 = 65534;
    // The other user may not be allowed into the folder of the build.
    let folder = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let copy = folder.path().join("tokio-stall");
    std::fs::copy(env!("CARGO_BIN_EXE_tokio-stall"), &copy).unwrap();
    let mut command = Command::new(copy);
    command.args(arguments).uid(NOBODY).gid(NOBODY);
    match command.output() {
        Ok(_) => Some(run(&mut command)),
        Err(_) => None,
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text.into_owned())
}

/// The text of a dump.
#[track_caller]
pub fn dump(pid: u32) -> String {
    let (code, text) = output_of(&["dump", &pid.to_string()]);
    assert_eq!(code, Some(0), "{text}");
    text
}
