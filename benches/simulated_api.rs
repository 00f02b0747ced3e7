//! A simulated API in a process of its own, so that what an exporter costs can be told from what its API costs.
//!
//! `simulated_api N LATENCY TICK` has N instances, takes so long for each answer, and lets a second of its instances'
//! lives go by at each tick, or none where that is `0s`. It prints its endpoint and ends with its standard input.

use std::io::Read;
use std::time::Duration;

use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{Knobs, Simulator};

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let instances = arguments.next().and_then(|count| count.parse().ok()).expect("a number of instances");
    let mut duration = || arguments.next().and_then(|text| humantime::parse_duration(&text).ok());
    let latency = duration().expect("a latency like 50ms");
    let tick = duration().expect("a tick like 1s");
    let tick = (tick > Duration::ZERO).then_some(tick);
    let knobs = Knobs { latency, tick, ..Knobs::still(Service::Vm, instances) };
    let simulator = Simulator::start(knobs).await.expect("a loopback port");
    println!("{}", simulator.endpoint());
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await;
    ended.expect("reading does not panic").expect("standard input can be read");
}
