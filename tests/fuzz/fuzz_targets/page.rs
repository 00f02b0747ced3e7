//! Any bytes as the body of a successful answer.

#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| zenlayer_exporter_fuzz::page(body));
