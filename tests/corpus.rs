//! The seeds of the fuzz targets, replayed: what once was a crash, or is likely to be one, is tried in every test run.

#[path = "fuzz/properties.rs"]
pub mod properties;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Checks every seed in that folder, in the order of their names, and tells of all that fail. What a run of the fuzzer
/// left beside them is passed over: the test says the same in every checkout.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut seeds: Vec<_> = entries.map(|entry| entry.expect("a folder that opens can be read").path()).collect();
    seeds.retain(|path| path.extension().is_some_and(|extension| extension == "body"));
    seeds.sort();
    assert!(!seeds.is_empty(), "no seed in {}", folder.display());
    let failed: Vec<_> = seeds
        .iter()
        .filter(|seed| {
            let body = fs::read(seed).unwrap_or_else(|error| panic!("{}: {error}", seed.display()));
            catch_unwind(AssertUnwindSafe(|| check(&body))).is_err()
        })
        .collect();
    assert!(failed.is_empty(), "{} of {} seeds: {failed:#?}", failed.len(), seeds.len());
}

#[test]
fn every_seed_of_a_page_has_the_properties() {
    replay("page", properties::page);
}

#[test]
fn every_seed_of_an_info_has_the_properties() {
    replay("info", properties::info);
    // What can break the envelope can break it here.
    replay("page", properties::info);
}

#[test]
fn every_seed_of_a_refusal_has_the_properties() {
    replay("refusal", properties::refusal);
}

#[test]
fn every_seed_of_a_web_config_has_the_properties() {
    replay("web_config", properties::web_config);
}

#[test]
fn every_seed_of_a_request_has_the_properties() {
    replay("router", properties::router);
}
