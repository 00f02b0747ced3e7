//! Any bytes as the body of a successful answer that tells more than statuses.

#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| zenlayer_exporter_fuzz::info(body));
