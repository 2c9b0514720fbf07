//! A real Prometheus watches a service through a stall of all workers, with this crate's alerts.
//!
//! Needs `prometheus` and `promtool`, in the folder that `PROMETHEUS_BIN` names or on the path.
//! Without them nothing is checked, and the tests say so.

use crate::support::scraped::{free_address, get, scrape, wait_for};
use crate::support::stage::Stage;
use crate::support::{Held, wait_within};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio_stall::FutureExt as _;

const WORKERS: usize = 4;
/// The bound of waits, of which each takes some seconds at most.
const FOREVER: Duration = Duration::from_secs(90);

/// A program of the Prometheus package, if it is there.
fn program(name: &str) -> Option<PathBuf> {
    let given = std::env::var_os("PROMETHEUS_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    given
        .into_iter()
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// Stopped when dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    fn start(program: &Path, folder: &Path, target: SocketAddr) -> Prometheus {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("monitoring/prometheus/rules/tokio-stall.rules.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 900ms, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n- job_name: service\n  static_configs: [{{targets: ['{target}']}}]\n",
            rules.display()
        );
        let file = folder.join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let address = free_address();
        let data = folder.join("data");
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let prometheus = Prometheus { child, address };
        let ready = || get(address, "/-/ready").is_some_and(|answer| answer.status == 200);
        prometheus.wait("ready", ready);
        prometheus
    }

    fn wait(&self, what: &str, fits: impl Fn() -> bool) {
        wait_within(FOREVER, what, || {
            std::thread::sleep(Duration::from_millis(100));
            fits()
        });
    }

    #[track_caller]
    fn assert_is(&self, query: &str, expected: f64) {
        assert_eq!(self.value(query), Some(expected), "{query}");
    }

    /// The values of an instant query, each with its labels.
    fn query(&self, query: &str) -> Vec<(serde_json::Value, f64)> {
        let escaped: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .collect();
        let path = format!("/api/v1/query?query={escaped}");
        let answer = get(self.address, &path).expect("Prometheus answers");
        // It answers in chunks; a short answer is one.
        let json = answer.body.find('{').zip(answer.body.rfind('}'));
        let json = json
            .map(|(first, last)| &answer.body[first..=last])
            .unwrap_or_default();
        let json: serde_json::Value =
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
        assert_eq!(json["status"], "success", "{query}: {json}");
        let results = json["data"]["result"].as_array().unwrap().iter();
        results
            .map(|result| {
                let value = result["value"][1].as_str().unwrap().parse().unwrap();
                (result["metric"].clone(), value)
            })
            .collect()
    }

    fn value(&self, query: &str) -> Option<f64> {
        self.query(query).first().map(|(_, value)| *value)
    }

    fn firing(&self) -> Vec<String> {
        let alerts = self.query("ALERTS{alertstate=\"firing\"}");
        let names = alerts
            .iter()
            .map(|(labels, _)| labels["alertname"].as_str().unwrap().to_owned());
        names.collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Prometheus and promtool, or a word that there are none.
fn programs() -> Option<(PathBuf, PathBuf)> {
    let programs = program("prometheus").zip(program("promtool"));
    if programs.is_none() {
        // To the real standard error: libtest swallows prints of a test that passes.
        writeln!(
            std::io::stderr().lock(),
            "NOT CHECKED: neither PROMETHEUS_BIN nor the path has prometheus and promtool; \
             `bash .ci/prometheus` fetches them"
        )
        .unwrap();
    }
    programs
}

/// A service with some well behaved tasks, and its address.
fn service() -> (Stage, SocketAddr) {
    let stage = Stage::multi_thread(WORKERS).named("api");
    let stage = stage.settings(|builder| builder.serve(([127, 0, 0, 1], 0)));
    let stage = stage.start();
    for _ in 0..WORKERS {
        let task = async {
            loop {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        };
        stage.runtime.spawn(task.watched("well behaved"));
    }
    let served_at = stage.watch.served_at().unwrap();
    (stage, served_at)
}

/// Has `promtool check metrics` read the text.
fn check_with(promtool: &Path, scrape: &str) {
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = check.stdin.take().unwrap();
    stdin.write_all(scrape.as_bytes()).unwrap();
    drop(stdin);
    let checked = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned()
        + &String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "promtool: {said}");
    assert!(said.trim().is_empty(), "promtool: {said}");
}

#[test]
fn promtool_has_nothing_to_say_about_a_scrape() {
    let Some((_, promtool)) = programs() else {
        return;
    };
    let (_stage, served_at) = service();
    let polls = "tokio_stall_poll_duration_seconds_count";
    wait_for(
        || Some(scrape(served_at)),
        |scraped| scraped.sum(polls, &[]) > 0.0,
    );
    check_with(&promtool, &get(served_at, "/metrics").unwrap().body);
}

const ENDED: &str = "sum(tokio_stall_stall_duration_seconds_count)";

/// The service is healthy, then stalled, then healthy again.
#[test]
fn prometheus_sees_a_stall_before_it_ends_and_keeps_its_target() {
    let Some((program, _)) = programs() else {
        return;
    };
    let (stage, served_at) = service();
    let folder = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(&program, folder.path(), served_at);
    prometheus.wait("the first scrapes", || {
        prometheus.value("count_over_time(tokio_stall_build_info[1m])") >= Some(8.0)
    });
    assert_eq!(prometheus.firing(), [""; 0], "nothing is wrong");

    let (release, held) = Held::new();
    for _ in 0..WORKERS {
        let held = held.clone();
        let planted = async move { held.wait() };
        stage.runtime.spawn(planted.watched("planted"));
    }
    let ended = assert_stall_is_seen(&prometheus);
    drop(release);
    assert_end_is_seen(&prometheus, ended);
}

/// All workers are stalled, and stay so until the end of this. Returns the number of stalls that
/// have ended before: a machine with more to do than CPUs may bring one about.
fn assert_stall_is_seen(prometheus: &Prometheus) -> f64 {
    prometheus.wait("the age of the stall going on", || {
        let stalled = "count(tokio_stall_worker_stalled_seconds > 0)";
        prometheus.value(stalled) == Some(WORKERS as f64)
    });
    let ended = prometheus.value(ENDED).expect("it begins at zero");
    prometheus.wait("both alerts about stalled workers", || {
        let firing = prometheus.firing();
        let mut alerts = ["TokioWorkerStalledNow", "TokioAllWorkersStalled"].iter();
        alerts.all(|alert| firing.iter().any(|name| name == alert))
    });
    // No scrape has failed on the way.
    assert!(prometheus.value("max(tokio_stall_worker_stalled_seconds)") > Some(5.0));
    prometheus.assert_is("min_over_time(up[5m])", 1.0);
    prometheus.assert_is(ENDED, ended);
    ended
}

fn assert_end_is_seen(prometheus: &Prometheus, before: f64) {
    let all = Some(WORKERS as f64);
    let ended = Some(before + WORKERS as f64);
    prometheus.wait("the end", || prometheus.value(ENDED) >= ended);
    prometheus.wait("the alerts' end", || prometheus.firing().is_empty());
    // Counters that begin at zero have an increase, extrapolated to the whole window as ever.
    let increase = prometheus.value("max(increase(tokio_stall_stalls_total[5m]))");
    assert!(increase >= all, "{increase:?}");
    prometheus.assert_is("sum(resets(tokio_stall_stalls_total[5m]))", 0.0);
    prometheus.assert_is("min_over_time(up[5m])", 1.0);
}
