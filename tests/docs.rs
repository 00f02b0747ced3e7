//! Compares README.md, docs/ and the other documents with the code: flags, defaults, variables, metrics, HTTP paths, alerts, files
//! and links, in both directions.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use clap::CommandFactory;
use common::{Exporter, config};
use zenlayer_exporter::api::Kind;
use zenlayer_exporter::config::Flags;
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{Knobs, Simulator};

const SERVICES: [Service; 2] = [Service::Vm, Service::Zec];
/// Folders whose files the documents name from the root of the repository.
const FOLDERS: [&str; 6] = ["benches/", "deploy/", "docs/", "grafana/", "src/", "tests/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The files in that folder and below with one of these extensions, as paths from the root of the repository.
fn files(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = vec![];
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            if entry.file_name() != "target" {
                found.extend(files(&path, extensions));
            }
        } else if extensions.iter().any(|extension| path.ends_with(&format!(".{extension}"))) {
            found.push(path);
        }
    }
    found
}

/// Every document for people, with its text.
fn documents() -> BTreeMap<String, String> {
    let at_the_root = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(str::to_owned);
    let below = ["docs", "deploy", "grafana"].into_iter().flat_map(|folder| files(folder, &["md"]));
    at_the_root.into_iter().chain(below).map(|file| (file.clone(), read(&file))).collect()
}

/// The lines that are not in a fenced block of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The rows of every table whose first column has that title, cell by cell.
fn rows<'a>(text: &'a str, title: &str) -> Vec<Vec<&'a str>> {
    let mut found = vec![];
    let mut is_found = None;
    for line in prose(text) {
        let Some(line) = line.strip_prefix('|') else {
            is_found = None;
            continue;
        };
        let cells: Vec<_> = line.trim_end_matches('|').split('|').map(str::trim).collect();
        match is_found {
            None => is_found = Some(cells[0] == title),
            Some(true) if !cells[0].starts_with("--") => found.push(cells),
            Some(_) => {}
        }
    }
    assert!(!found.is_empty(), "no table with the column {title}");
    found
}

fn code(cell: &str) -> &str {
    cell.trim_matches('`')
}

/// The words of a text, where those characters are letters besides the usual ones.
fn words<'a>(text: &'a str, letters: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(move |c: char| !c.is_ascii_alphanumeric() && !letters.contains(c)).filter(|word| !word.is_empty())
}

/// The default of each flag, as the table of the documents shows it, or as the end of what it shows.
fn flags() -> BTreeMap<String, Option<String>> {
    let command = Flags::command();
    let arguments = command.get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()));
    arguments
        .map(|arg| {
            let help = arg.get_help().unwrap().to_string();
            let in_help = help.split_once("[default: ").map(|(_, rest)| rest.trim_end_matches(']').to_owned());
            let default = arg.get_default_values().first().map(|value| value.to_str().unwrap().to_owned());
            (format!("--{}", arg.get_long().unwrap()), default.or(in_help))
        })
        .collect()
}

fn assert_defaults(rows: &[Vec<&str>]) {
    let in_code = flags();
    for row in rows {
        let (flag, shown) = (code(row[0]), row[1]);
        let default = in_code.get(flag).unwrap_or_else(|| panic!("{flag} is not a flag"));
        match default.as_deref() {
            Some(default) if shown.starts_with('`') => {
                assert_eq!(default.split(',').next(), Some(code(shown)), "{flag}");
            }
            Some(default) => {
                assert!(default.ends_with(shown), "{flag}: {default} in the code, {shown} in the document");
            }
            None => assert!(["none", "off"].contains(&shown), "{flag}: {shown}"),
        }
    }
}

#[test]
fn flags_and_defaults_match_the_code() {
    let text = read("docs/configuration.md");
    let documented = rows(&text, "flag");
    assert_defaults(&documented);
    let names: BTreeSet<_> = documented.iter().map(|row| code(row[0]).to_owned()).collect();
    assert_eq!(names, flags().into_keys().collect());
    assert_eq!(names.len(), documented.len(), "a flag has two rows");
}

#[test]
fn readme_lists_ten_settings_with_their_defaults() {
    let text = read("README.md");
    let documented = rows(&text, "flag");
    assert_defaults(&documented);
    assert_eq!(documented.len(), 10);
}

#[test]
fn every_flag_in_the_documents_exists() {
    let known = flags();
    let families: BTreeSet<_> = known.keys().filter_map(|flag| Some(flag.split_once('.')?.0)).collect();
    let other_programs = ["--help", "--version", "--write", "--storage.tsdb.retention.time"];
    for (file, text) in documents() {
        let in_prose =
            prose(&text).flat_map(|line| line.split('`').skip(1).step_by(2)).filter(|code| code.starts_with("--"));
        let of_a_family = words(&text, "-._")
            .filter(|word| word.split_once('.').is_some_and(|(family, _)| families.contains(family)));
        for flag in in_prose.chain(of_a_family) {
            let flag = flag.split(['=', ' ']).next().unwrap().trim_end_matches('.');
            let exists = known.contains_key(flag) || other_programs.contains(&flag);
            assert!(exists, "{file}: {flag} is not a flag");
        }
    }
}

/// The names of variables that the sources quote, tests excluded.
fn variables_in_code() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in files("src", &["rs"]) {
        let text = read(&file);
        let text = text.split("#[cfg(test)]").next().unwrap();
        for quoted in text.split('"').filter(|text| text.bytes().all(|c| c.is_ascii_uppercase() || c == b'_')) {
            let is_vendor = quoted.starts_with("ZENLAYER_") || quoted.starts_with("ZENLAYERCLOUD_");
            if (is_vendor || quoted.ends_with("_PROXY")) && !quoted.ends_with('_') {
                found.insert(quoted.to_owned());
            }
        }
    }
    // A variable of the build.
    found.retain(|name| !name.starts_with("ZENLAYER_EXPORTER_"));
    assert!(found.len() > 8, "{found:?}");
    found
}

#[test]
fn variables_match_the_code() {
    let in_code = variables_in_code();
    let configuration = read("docs/configuration.md");
    for name in &in_code {
        assert!(words(&configuration, "_").any(|word| word == name), "docs/configuration.md does not have {name}");
    }
    let of_flags: BTreeSet<_> = flags()
        .into_keys()
        .map(|flag| format!("ZENLAYER_EXPORTER_{}", flag[2..].replace(['.', '-'], "_").to_uppercase()))
        .collect();
    // The prefix, one that Kubernetes sets, one of the build, and two of the tests.
    let others = [
        "ZENLAYER_EXPORTER_",
        "ZENLAYER_EXPORTER_SERVICE_HOST",
        "ZENLAYER_EXPORTER_REVISION",
        "STATIC_EXPORTER",
        "FUZZ_SECONDS",
    ];
    let is_upper = |word: &&str| word.contains('_') && word.bytes().all(|c| c.is_ascii_uppercase() || c == b'_');
    let sources = files("src", &["rs"]).iter().map(|file| read(file)).collect::<String>();
    // Statuses and codes of the API, too.
    let in_sources: BTreeSet<_> = words(&sources, "_").filter(is_upper).collect();
    for (file, text) in documents() {
        for name in words(&text, "_").filter(is_upper) {
            let exists = in_sources.contains(name) && !name.starts_with("ZENLAYER_EXPORTER_");
            let exists = exists || of_flags.contains(name) || others.contains(&name);
            assert!(exists, "{file}: {name} is neither a variable, a status nor a code");
        }
    }
}

#[tokio::test]
async fn metrics_match_the_code_with_types_and_labels() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 50)).await.unwrap();
    // The metric about the web config is served only with one, which may be empty.
    let file = tempfile::NamedTempFile::new().unwrap();
    let web_config = format!("--web.config.file={}", file.path().display());
    let exporter = Exporter::ready(config(&simulator, &[&web_config, "--collector.instance-info"])).await;
    let metrics = exporter.until(|metrics| metrics.count("zenlayer_instance_info") == 50).await;
    let served: BTreeMap<_, _> = metrics
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE zenlayer_"))
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let name = format!("zenlayer_{name}");
            let labels = metrics.labels(&name);
            (name, (kind.to_owned(), labels))
        })
        .collect();
    let text = read("docs/metrics.md");
    let documented: BTreeMap<_, _> = rows(&text, "metric")
        .into_iter()
        .map(|row| {
            let labels = row[2].split(", ").map(code).filter(|label| !label.is_empty()).map(str::to_owned).collect();
            (code(row[0]).to_owned(), (row[1].to_owned(), labels))
        })
        .collect();
    assert_eq!(documented, served);
    for (file, text) in documents() {
        for word in words(&text, "_").filter(|word| word.starts_with("zenlayer_")) {
            let name = ["_bucket", "_sum", "_count"].into_iter().find_map(|suffix| word.strip_suffix(suffix));
            let exists = served.contains_key(word) || name.is_some_and(|name| served.contains_key(name));
            assert!(exists, "{file}: {word} is not a metric");
        }
    }
    let without = Exporter::ready(config(&simulator, &[])).await.metrics().await;
    assert_eq!(without.count("zenlayer_exporter_web_config_reload_success"), 0);
}

#[tokio::test]
async fn http_paths_match_the_code() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 2)).await.unwrap();
    let exporter = Exporter::ready(config(&simulator, &[])).await;
    let text = read("docs/metrics.md");
    let documented: BTreeSet<_> = rows(&text, "path").iter().map(|row| code(row[0]).to_owned()).collect();
    for path in &documented {
        assert_eq!(exporter.get(path).await.status, 200, "{path}");
    }
    let mut in_code = BTreeSet::from(["/metrics".to_owned()]);
    for file in files("src", &["rs"]) {
        let routes = read(&file);
        in_code.extend(routes.lines().filter_map(|line| {
            let (path, _) = line.trim().strip_prefix('"')?.split_once("\" => Route::")?;
            Some(path.to_owned())
        }));
    }
    assert_eq!(documented, in_code);
}

#[test]
fn every_kind_of_error_is_explained() {
    let text = read("docs/troubleshooting.md");
    let explained: BTreeSet<_> = rows(&text, "outcome").into_iter().map(|row| code(row[0]).to_owned()).collect();
    assert_eq!(explained, Kind::ALL.map(|kind| kind.label().to_owned()).into_iter().collect());
}

#[test]
fn services_match_the_code() {
    let configuration = read("docs/configuration.md");
    let versions: Vec<_> = rows(&configuration, "service")
        .into_iter()
        .map(|row| (code(row[0]).to_owned(), code(row[1]).to_owned()))
        .collect();
    assert_eq!(versions, SERVICES.map(|service| (service.name().to_owned(), service.newest_version().to_owned())));
    let metrics = read("docs/metrics.md");
    let statuses: Vec<_> = rows(&metrics, "service")
        .into_iter()
        .map(|row| (code(row[0]).to_owned(), row[1].split(", ").map(|status| code(status).to_owned()).collect()))
        .collect();
    let in_code = |service: Service| {
        let statuses: Vec<_> = service.documented_statuses().iter().map(|&status| status.to_owned()).collect();
        (service.name().to_owned(), statuses)
    };
    assert_eq!(statuses, SERVICES.map(in_code));
}

#[test]
fn alerts_match_the_rules() {
    let rules = read("deploy/prometheus/rules.yaml");
    let in_rules: Vec<_> = rules
        .split("- alert: ")
        .skip(1)
        .map(|alert| {
            let severity = alert.split_once("severity: ").unwrap().1.lines().next().unwrap();
            (alert.lines().next().unwrap().to_owned(), severity.to_owned())
        })
        .collect();
    let text = read("docs/grafana-and-alerts.md");
    let documented: Vec<_> = rows(&text, "alert")
        .into_iter()
        .map(|row| (row[0].trim_start_matches('[').split(']').next().unwrap().to_owned(), row[1].to_owned()))
        .collect();
    assert_eq!(documented, in_rules);
    let files = documents();
    let runbooks: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: ")).collect();
    assert_eq!(runbooks.len(), in_rules.len());
    for runbook in runbooks {
        assert_eq!(problem_with(runbook, "README.md", &files), None, "{runbook}");
    }
}

#[test]
fn the_modules_are_those_of_the_library() {
    let library = read("src/lib.rs");
    let in_code: Vec<_> =
        library.lines().filter_map(|line| line.strip_prefix("//! ").filter(|row| row.starts_with('|'))).collect();
    let text = read("docs/architecture.md");
    let (_, copy) = text.split_once("<!-- src/lib.rs -->\n").unwrap();
    let copy: Vec<_> = copy.split("<!-- end -->").next().unwrap().lines().collect();
    assert_eq!(
        copy, in_code,
        "CONTRIBUTING.md has the command that copies the table of src/lib.rs to docs/architecture.md"
    );
}

#[test]
fn the_stages_are_those_of_the_tests() {
    let text = read("CONTRIBUTING.md");
    let documented: Vec<_> = rows(&text, "stage").into_iter().map(|row| code(row[0])).collect();
    let script = read("tests/run.sh");
    let (_, stages) = script.split_once("stages=(quick ").unwrap();
    assert_eq!(documented, stages.split(')').next().unwrap().split(' ').collect::<Vec<_>>());
    let usage = script.split("END'\n").nth(1).unwrap().split("\nEND").next().unwrap();
    // Those of the usage itself are indented deeper.
    let rows = usage.lines().filter_map(|line| line.strip_prefix("  ").filter(|row| !row.starts_with(' ')));
    let described: Vec<_> = rows.filter_map(|row| row.split(' ').next()).collect();
    assert_eq!(described.split_first(), Some((&"quick", &*documented)), "tests/run.sh --help");
    let workflow = read(".github/workflows/ci.yml");
    let (_, jobs) = workflow.split_once("stage: [quick, ").unwrap();
    assert_eq!(documented, jobs.split(']').next().unwrap().split(", ").collect::<Vec<_>>(), "ci.yml");
    let scripts: BTreeSet<_> = files("tests/stages", &["sh"]).into_iter().collect();
    let stages = documented.iter().chain([&"quick"]);
    assert_eq!(scripts, stages.map(|stage| format!("tests/stages/{stage}.sh")).collect());
}

#[test]
fn measured_ratios_are_those_of_the_benchmark() {
    let text = read("docs/performance.md");
    let ratios: Vec<_> =
        rows(&text, "measurement").into_iter().filter_map(|row| row[2].strip_suffix(" ×")).map(str::to_owned).collect();
    let [plain, gzip] = &*ratios else { panic!("{ratios:?}") };
    assert!(read("README.md").contains(&format!("[{plain} times the scrapes per second]")), "{plain} in README.md");
    let architecture = read("docs/architecture.md").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        architecture.contains(&format!("serves {plain} times as many plain scrapes")),
        "{plain} in docs/architecture.md"
    );
    assert!(architecture.contains(&format!("and {gzip} times as many with gzip")), "{gzip} in docs/architecture.md");
}

#[test]
fn readme_has_at_most_150_lines() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 150, "README.md has {lines} lines");
}

#[test]
fn every_page_is_linked_from_the_readme() {
    let readme = read("README.md");
    for page in files("docs", &["md"]) {
        assert!(readme.contains(&format!("]({page})")), "README.md does not link {page}");
    }
}

/// The anchor that GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// The anchors of a document. A heading that occurs again gets a number.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let headings = prose(text).filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    for name in headings.map(anchor) {
        let numbered = (1..).map(|number| format!("{name}-{number}"));
        let name = std::iter::once(name.clone()).chain(numbered).find(|name| !found.contains(name)).unwrap();
        found.insert(name);
    }
    found
}

/// Why a link from that file leads nowhere.
fn problem_with(link: &str, file: &str, documents: &BTreeMap<String, String>) -> Option<String> {
    let (path, fragment) = link.split_once('#').map_or((link, None), |(path, fragment)| (path, Some(fragment)));
    let mut target = Path::new(file).parent().unwrap().to_owned();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir if !target.pop() => return Some("leads out of the repository".to_owned()),
            Component::ParentDir => {}
            part => target.push(part),
        }
    }
    let target = if path.is_empty() { PathBuf::from(file) } else { target };
    if !root().join(&target).exists() {
        return Some("does not exist".to_owned());
    }
    let fragment = fragment?;
    let Some(text) = documents.get(target.to_str().unwrap()) else {
        return Some("has an anchor, but is not a document".to_owned());
    };
    (!anchors(text).contains(fragment)).then(|| "has no such heading".to_owned())
}

#[test]
fn every_link_resolves() {
    let documents = documents();
    let mut count = 0;
    for (file, text) in &documents {
        let text = prose(text).collect::<Vec<_>>().join("\n");
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if !link.starts_with("https://") {
                assert_eq!(problem_with(link, file, &documents), None, "{file} links to {link}");
                count += 1;
            }
        }
    }
    assert!(count > 100, "{count} links");
}

#[test]
fn every_file_in_the_documents_exists() {
    for (file, text) in documents() {
        for word in words(&text, "._-/") {
            let path = word.trim_start_matches("../zenlayer-exporter/").trim_end_matches(['.', '-', '/']);
            // Tests make this one.
            let is_made = path == "tests/output";
            if FOLDERS.iter().any(|folder| path.starts_with(folder)) && !is_made {
                assert!(root().join(path).exists(), "{file}: {path} does not exist");
            }
        }
    }
}

/// The pages of docs/ that a text names.
fn pages(text: &str) -> impl Iterator<Item = &str> {
    let words = words(text, "._-/").map(|word| word.trim_end_matches('.'));
    words.filter(|word| word.starts_with("docs/") && word.strip_suffix(".md").is_some())
}

#[test]
fn every_page_that_the_sources_name_exists() {
    let mut count = 0;
    for folder in ["benches", "deploy", "grafana", "src", "tests"] {
        for file in files(folder, &["json", "py", "rs", "sh", "toml", "yaml", "yml"]) {
            let text = read(&file);
            for page in pages(&text) {
                // The exporter-toolkit's.
                if page != "docs/web-configuration.md" {
                    assert!(root().join(page).exists(), "{file}: {page} does not exist");
                    count += 1;
                }
            }
        }
    }
    assert!(count > 5, "{count} pages are named");
}
