//! The README against the code: every flag, default, metric, label, path and file it names.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::CommandFactory;
use common::{Exporter, config};
use zenlayer_exporter::api::Kind;
use zenlayer_exporter::config::Flags;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{Knobs, Simulator};

const README: &str = include_str!("../README.md");

/// The rows of the table under that heading, cell by cell, without head and rule.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, section) = README.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<_> = section
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| ")?.strip_suffix(" |")?.split('|').map(str::trim).collect()))
        .skip(1)
        .collect();
    assert!(!rows.is_empty(), "no table under {heading}");
    rows
}

fn code(cell: &str) -> &str {
    cell.trim_matches('`')
}

#[test]
fn the_flags_are_those_of_the_code_with_their_defaults() {
    let command = Flags::command();
    let in_code: BTreeMap<_, _> = command
        .get_arguments()
        .filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        .map(|arg| {
            let help = arg.get_help().unwrap().to_string();
            let in_help = help.split_once("[default: ").map(|(_, rest)| rest.trim_end_matches(']').to_owned());
            let default = arg.get_default_values().first().map(|value| value.to_str().unwrap().to_owned());
            (format!("--{}", arg.get_long().unwrap()), default.or(in_help))
        })
        .collect();
    let in_readme: BTreeMap<_, _> = table("Settings").into_iter().map(|row| (code(row[0]), row[1])).collect();
    let names = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(
        names(in_readme.keys().copied().collect()),
        names(in_code.keys().map(String::as_str).collect()),
        "flags in the README and in the code"
    );
    for (flag, default) in in_code {
        let shown = in_readme[&*flag];
        match default.as_deref() {
            Some(default) if shown.starts_with('`') => {
                assert_eq!(default.split(',').next(), Some(code(shown)), "{flag}");
            }
            Some(default) => assert!(default.ends_with(shown), "{flag}: {default} in the code, {shown} in the README"),
            None => assert!(["none", "off"].contains(&shown), "{flag}: {shown}"),
        }
    }
}

#[tokio::test]
async fn the_metrics_are_those_of_the_code_with_their_types_and_labels() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 50)).await.unwrap();
    // There is a metric about the web config where there is one, though it asks for nothing.
    let file = tempfile::NamedTempFile::new().unwrap();
    let web_config = format!("--web.config.file={}", file.path().display());
    let exporter = Exporter::ready(config(&simulator, &[&web_config, "--collector.instance-info"])).await;
    let metrics = exporter.until(|metrics| metrics.count("zenlayer_instance_info") == 50).await;
    let served: BTreeSet<_> = metrics
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE zenlayer_"))
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let name = format!("zenlayer_{name}");
            let labels = metrics.labels(&name);
            (name, kind.to_owned(), labels)
        })
        .collect();
    let documented: BTreeSet<_> = table("Metrics")
        .into_iter()
        .map(|row| {
            let labels = row[2].split(", ").map(code).filter(|label| !label.is_empty()).map(str::to_owned).collect();
            (code(row[0]).to_owned(), row[1].to_owned(), labels)
        })
        .collect();
    assert_eq!(documented, served);
    let without = Exporter::ready(config(&simulator, &[])).await.metrics().await;
    assert_eq!(without.count("zenlayer_exporter_web_config_reload_success"), 0);
}

#[tokio::test]
async fn the_paths_are_there() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 2)).await.unwrap();
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    for row in table("HTTP endpoints") {
        assert_eq!(exporter.get(code(row[0])).await.status, 200, "{}", row[0]);
    }
}

#[test]
fn each_kind_of_error_is_explained() {
    let explained: BTreeSet<_> = table("Troubleshooting").into_iter().map(|row| code(row[0])).collect();
    assert_eq!(explained, Kind::ALL.map(Kind::label).into_iter().collect());
}

#[test]
fn the_files_it_links_or_runs_are_there() {
    let links = README.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    let files: Vec<_> = links.filter(|link| !link.starts_with("http")).chain(["tests/run.sh"]).collect();
    assert!(files.len() > 2);
    for file in files {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).exists(), "{file}");
    }
}
