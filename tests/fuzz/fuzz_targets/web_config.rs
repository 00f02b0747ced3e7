//! Any bytes as a web config.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| zenlayer_exporter_fuzz::web_config(text));
