//! Any bytes as the body of a refusal.

#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| zenlayer_exporter_fuzz::refusal(body));
