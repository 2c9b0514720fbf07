//! The files of `monitoring/` and the crate's list of metrics agree.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tokio_stall::metrics::{METRICS, Metric, MetricKind};

const DASHBOARD: &str = "grafana/dashboards/tokio-stall.json";
const RULES: &str = "prometheus/rules/tokio-stall.rules.yml";
const TABLE: &str = "METRICS.md";
const OF_OPERATOR: &str = "kubernetes/prometheusrule.yaml";

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("monitoring")
        .join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The metrics in a text. Recorded series have a colon before the name.
fn named(text: &str) -> BTreeSet<String> {
    let is_of_name =
        |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    text.split(|character| !is_of_name(character))
        .filter(|word| word.starts_with("tokio_stall_"))
        .map(|word| {
            let histogram = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| word.strip_suffix(suffix))
                .find(|base| {
                    let is_it = |metric: &&Metric| metric.name == *base;
                    METRICS
                        .iter()
                        .find(is_it)
                        .is_some_and(|metric| metric.kind == MetricKind::Histogram)
                });
            histogram.unwrap_or(word).to_owned()
        })
        .collect()
}

fn listed() -> BTreeSet<String> {
    METRICS
        .iter()
        .map(|metric| metric.name.to_owned())
        .collect()
}

#[test]
fn the_dashboard_shows_every_metric_and_no_other() {
    let text = read(DASHBOARD);
    serde_json::from_str::<serde_json::Value>(&text).expect("the dashboard is JSON");
    assert_eq!(named(&text), listed());
}

/// The panels of the dashboard, without the rows' titles.
fn panels() -> Vec<serde_json::Value> {
    let dashboard: serde_json::Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    panels
        .filter(|panel| panel["type"] != "row")
        .cloned()
        .collect()
}

/// Legends leave out missing samples: a mean of those above zero is larger than the mean of all.
#[test]
fn no_legend_has_the_mean_or_the_last_of_samples_above_zero() {
    let [mut filtered, mut with_mean] = [0, 0];
    for panel in panels() {
        let targets = panel["targets"].as_array().expect("targets").iter();
        let is_filtered = targets
            .filter_map(|target| target["expr"].as_str())
            .any(|query| query.ends_with("> 0"));
        let calcs = panel["options"]["legend"]["calcs"].as_array();
        let Some(calcs) = calcs.filter(|calcs| !calcs.is_empty()) else {
            continue;
        };
        let has = |name: &str| calcs.iter().any(|calc| calc == name);
        filtered += usize::from(is_filtered);
        with_mean += usize::from(has("mean"));
        let misleads = is_filtered && (has("mean") || has("lastNotNull"));
        assert!(!misleads, "{}", panel["title"]);
    }
    assert!(filtered >= 3 && with_mean >= 3, "{filtered}, {with_mean}");
}

#[test]
fn no_panel_lies_on_another() {
    let mut taken = BTreeMap::new();
    for panel in panels() {
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| {
            let side = panel["gridPos"][side].as_u64();
            side.unwrap_or_else(|| panic!("{}: no place", panel["title"]))
        });
        assert!(x + w <= 24, "{}", panel["title"]);
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            let before = taken.insert(place, panel["title"].clone());
            assert_eq!(before, None, "{}", panel["title"]);
        }
    }
    assert!(taken.len() > 1000, "{} places are taken", taken.len());
}

#[test]
fn the_rules_speak_of_no_other_metrics() {
    let unknown: Vec<_> = named(&read(RULES)).difference(&listed()).cloned().collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn every_alert_has_a_test_and_a_section_in_the_runbook() {
    let (rules, tests, runbook) = (
        read(RULES),
        read("prometheus/rules/tokio-stall.rules.test.yml"),
        read("RUNBOOK.md"),
    );
    let alerts: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 8, "{alerts:?}");
    for alert in alerts {
        assert!(
            tests.contains(&format!("alertname: {alert}\n")),
            "{alert} has no test"
        );
        assert!(
            runbook
                .lines()
                .any(|line| line.starts_with('#') && line.contains(alert)),
            "{alert}"
        );
    }
}

#[test]
fn names_of_metrics_are_found_in_a_query() {
    let found = named(
        "rate(tokio_stall_stalls_total[5m]) + a:tokio_stall_b:c \
         \"tokio_stall_scheduler_lag_seconds_bucket{\"",
    );
    let expected = [
        "tokio_stall_scheduler_lag_seconds",
        "tokio_stall_stalls_total",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
}

/// The values of labels. Those of a cause are the text of reports and logs, parted at the slash.
const LABELS: &str = "
Values of labels:

| label | values |
|---|---|
| `cause` | `cpu`, `blocked`, `contention`, `throttled`, `suspended`, `unknown` |
| `kind` | with the cause `blocked`: `sleep`, `lock`, `file`, `network`, `process`, `other`; else empty |
| `certainty` | `certain`, `likely` |
| `state` | `cpu`, `blocked`, `contention`, `parked`, `unknown` |
| `sees` | `workers`, `polls`, `spans`, `causes`, `calls`, `stacks`, `lines`, `turns`, `runtimes`, `block_on`, `log` |
| `what` | `reports`, `callbacks`, `labels`, `polls`, `requests` |
| `site` | a function, without its line |
| `span` | names of spans and of watched futures, without fields |

`blocked/sleep` in a log or a report is `cause=\"blocked\", kind=\"sleep\"` here.
";

/// The list as a table for people. This writes it:
///
/// ```sh
/// TOKIO_STALL_WRITE=1 cargo test --all-features --test it monitoring
/// ```
#[test]
fn the_table_is_made_from_the_list() {
    let mut table = String::from(
        "# Metrics\n\nMade from `tokio_stall::metrics::METRICS` by `tests/it/monitoring.rs`.\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for metric in METRICS {
        let labels: Vec<String> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        writeln!(
            table,
            "| `{}` | {} | {} | {} |",
            metric.name,
            metric.kind.as_str(),
            labels.join(", "),
            metric.help
        )
        .unwrap();
    }
    table.push_str("\nUpper bounds of the buckets, in seconds:\n\n| name | bounds |\n|---|---|\n");
    for metric in METRICS.iter().filter(|metric| !metric.buckets.is_empty()) {
        let bounds: Vec<String> = metric.buckets.iter().map(f64::to_string).collect();
        writeln!(table, "| `{}` | {} |", metric.name, bounds.join(", ")).unwrap();
    }
    table.push_str(LABELS);
    if std::env::var_os("TOKIO_STALL_WRITE").is_some() {
        std::fs::write(path(TABLE), &table).unwrap();
    }
    assert_eq!(read(TABLE), table, "monitoring/{TABLE} is not up to date");
}

/// The rules as an object of the Prometheus operator.
fn of_operator(rules: &str) -> String {
    let mut object = String::from(
        "# Made from monitoring/prometheus/rules/tokio-stall.rules.yml by tests/it/monitoring.rs. The \
         label\n# \"release\" is the one that your Prometheus selects rules by.\n\
         apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  \
         name: tokio-stall\n  labels:\n    release: prometheus\nspec:\n",
    );
    let (_, groups) = rules.split_once("\ngroups:\n").expect("groups");
    for line in std::iter::once("groups:").chain(groups.lines()) {
        let indent = if line.is_empty() { "" } else { "  " };
        writeln!(object, "{indent}{line}").unwrap();
    }
    object
}

/// This writes it:
///
/// ```sh
/// TOKIO_STALL_WRITE=1 cargo test --all-features --test it monitoring
/// ```
#[test]
fn the_rules_for_kubernetes_are_made_from_the_rules() {
    let object = of_operator(&read(RULES));
    if std::env::var_os("TOKIO_STALL_WRITE").is_some() {
        std::fs::write(path(OF_OPERATOR), &object).unwrap();
    }
    assert_eq!(
        read(OF_OPERATOR),
        object,
        "monitoring/{OF_OPERATOR} is not up to date"
    );
    // A change of the rules is one of the object.
    let changed = read(RULES).replacen("_seconds > 5", "_seconds > 6", 1);
    assert_ne!(of_operator(&changed), object);
    assert!(object.contains("    - name: tokio-stall.now\n      rules:\n"));
}
