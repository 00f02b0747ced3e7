//! A baseline: the plain way, a `GaugeVec` that is encoded at every scrape, and compressed where gzip is accepted.
//!
//! `plain_way N` serves N simulated instances, prints its address and ends with its standard input.

#[path = "serve/mod.rs"]
mod serve;

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use prometheus::{IntGaugeVec, Opts, Registry, TextEncoder};
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::Fleet;

#[tokio::main]
async fn main() {
    let instances = std::env::args().nth(1).and_then(|count| count.parse().ok()).expect("a number of instances");
    let registry = registry_of(instances);
    serve::until_stdin_ends(move |is_zipped| {
        let text = TextEncoder::new().encode_to_string(&registry.gather()).expect("no family is empty");
        if is_zipped { zip(&text) } else { text.into() }
    })
    .await;
}

fn registry_of(instances: usize) -> Registry {
    let opts = Opts::new("zenlayer_instance_status", "Status of each instance: 1 for the status it is in.");
    let gauges = IntGaugeVec::new(opts, &["instanceId", "status"]).expect("a valid metric");
    for machine in Fleet::new(Service::Vm, instances, 1).machines {
        gauges.with_label_values(&[&machine.id, &machine.status.unwrap_or_default()]).set(1);
    }
    let registry = Registry::new();
    registry.register(Box::new(gauges)).expect("it is the only metric");
    registry
}

fn zip(text: &str) -> Bytes {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(text.as_bytes()).expect("memory takes it");
    gzip.finish().expect("memory takes it").into()
}
