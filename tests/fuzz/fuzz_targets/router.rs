//! Any bytes as a request.

#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| zenlayer_exporter_fuzz::router(text));
