//! Several exporters for one account: together they have every instance, and none has another's.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::BTreeSet;

use common::{Exporter, Metrics, config, held};
use zenlayer_exporter::model::Service;
use zenlayer_exporter::shard::Shard;
use zenlayer_exporter::simulator::{Knobs, Simulator};

async fn simulator(instances: usize) -> Simulator {
    Simulator::start(Knobs::still(Service::Vm, instances)).await.unwrap()
}

/// That many exporters, one for each shard, after the first successful poll of each.
async fn shards(simulator: &Simulator, total: usize, flags: &[&str]) -> Vec<Exporter> {
    let total_shards = format!("--total-shards={total}");
    let mut exporters = Vec::new();
    for number in 0..total {
        let own = [&*format!("--shard={number}"), &total_shards].map(str::to_owned);
        let own: Vec<_> = own.iter().map(|flag| &**flag).chain(flags.iter().copied()).collect();
        exporters.push(Exporter::ready(config(simulator, &own)).await);
    }
    exporters
}

/// The instances of all scrapes; fails where two have the same.
fn union(scrapes: &[Metrics]) -> BTreeSet<(String, String)> {
    let all: Vec<_> = scrapes.iter().flat_map(Metrics::instances).collect();
    let distinct: BTreeSet<_> = all.iter().cloned().collect();
    assert_eq!(distinct.len(), all.len(), "an instance is on two shards");
    distinct
}

async fn scrape(exporters: &[Exporter]) -> Vec<Metrics> {
    let mut scrapes = Vec::new();
    for exporter in exporters {
        scrapes.push(exporter.metrics().await);
    }
    scrapes
}

#[tokio::test]
async fn four_shards_are_the_whole_account_and_share_nothing() {
    let simulator = simulator(12_345).await;
    let mut scrapes = Vec::new();
    for number in 0..4 {
        // One at a time: what each serves depends on no other.
        let exporter = Exporter::ready(config(&simulator, &[&format!("--shard={number}"), "--total-shards=4"])).await;
        scrapes.push(exporter.metrics().await);
    }
    assert_eq!(union(&scrapes), held(&simulator));
    for scrape in &scrapes {
        let share = scrape.instances().len();
        assert!(share.abs_diff(12_345 / 4) < 200, "{share} on one shard");
        assert_eq!(scrape.value("zenlayer_up", &[]), Some(1.0));
    }
    let counted: f64 = scrapes.iter().map(|scrape| scrape.sum("zenlayer_instances")).sum();
    assert_eq!(counted, 12_345.0);
}

#[tokio::test]
async fn whoever_lives_through_constant_change_is_always_on_its_shard() {
    let simulator = simulator(1000).await;
    let exporters = shards(&simulator, 3, &["--zenlayer.page-size=100"]).await;
    let before = held(&simulator);
    simulator.set(|knobs| knobs.churn = true);
    let mut scrapes = Vec::new();
    for _ in 0..5 {
        for (number, exporter) in exporters.iter().enumerate() {
            scrapes.push((number, exporter.polls(1).await));
        }
    }
    simulator.set(|knobs| knobs.churn = false);
    let after = held(&simulator);
    let survivors: Vec<_> = before.intersection(&after).collect();
    assert!(survivors.len() > 300 && survivors.len() < 950, "{} of 1000 live on", survivors.len());
    for (number, scrape) in &scrapes {
        let shard = Shard::new(*number, 3).unwrap();
        let instances = scrape.instances();
        assert!(instances.iter().all(|(id, _)| shard.owns(id)));
        let missed: Vec<_> = survivors.iter().filter(|(id, _)| shard.owns(id)).collect();
        let missed: Vec<_> = missed.into_iter().filter(|instance| !instances.contains(**instance)).collect();
        assert!(missed.is_empty(), "{shard} misses {missed:?}");
    }
    let corrections = |scrape: &Metrics| scrape.value("zenlayer_exporter_poll_corrections_total", &[]).unwrap();
    let corrected: f64 = scrapes.iter().rev().take(3).map(|(_, scrape)| corrections(scrape)).sum();
    assert!(corrected > 0.0, "paging alone would have missed some");
}

#[tokio::test]
async fn changes_are_counted_once_by_whichever_shard_sees_them() {
    let simulator = simulator(100).await;
    let exporters = shards(&simulator, 3, &[]).await;
    simulator.with_fleet(|fleet| {
        for machine in &mut fleet.machines[..20] {
            machine.status = Some("IMAGING".to_owned());
        }
    });
    for exporter in &exporters {
        exporter.polls(2).await;
    }
    let scrapes = scrape(&exporters).await;
    let counted = |scrape: &Metrics| scrape.sum("zenlayer_instance_status_transitions_total");
    assert_eq!(scrapes.iter().map(counted).sum::<f64>(), 20.0);
    assert!(scrapes.iter().all(|scrape| counted(scrape) < 20.0), "one shard counted for all");
    assert_eq!(union(&scrapes), held(&simulator));
}

#[tokio::test]
async fn each_shard_asks_for_its_own_of_the_named_instances() {
    let simulator = simulator(600).await;
    let named: Vec<_> = held(&simulator).into_iter().map(|(id, _)| id).take(250).collect();
    let flag = format!("--zenlayer.instance-ids={}", named.join(","));
    let exporters = shards(&simulator, 4, &[&flag]).await;
    let scrapes = scrape(&exporters).await;
    let ids: BTreeSet<_> = union(&scrapes).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, named.into_iter().collect());
    for scrape in scrapes {
        let polls = scrape.sum("zenlayer_exporter_polls_total");
        let requests = scrape.sum("zenlayer_exporter_api_requests_total");
        // A poll may be under way. All 250 would take three requests per poll.
        assert!((polls..=polls + 1.0).contains(&requests), "{requests} requests in {polls} polls");
    }
}

#[tokio::test]
async fn a_shard_with_none_of_the_named_instances_asks_for_nothing() {
    let simulator = simulator(600).await;
    let one = held(&simulator).into_iter().next().unwrap().0;
    let flag = format!("--zenlayer.instance-ids={one}");
    let exporters = shards(&simulator, 2, &[&flag]).await;
    let (mut asked, mut found) = (Vec::new(), Vec::new());
    for scrape in scrape(&exporters).await {
        asked.push(scrape.sum("zenlayer_exporter_api_requests_total") > 0.0);
        found.push(scrape.instances().len());
    }
    let owner = usize::from(Shard::new(1, 2).unwrap().owns(&one));
    assert_eq!((asked[owner], found[owner]), (true, 1));
    assert_eq!((asked[1 - owner], found[1 - owner]), (false, 0));
}

#[tokio::test]
async fn the_page_says_which_part_it_shows() {
    let simulator = simulator(10).await;
    for (number, exporter) in shards(&simulator, 2, &[]).await.iter().enumerate() {
        let page = exporter.get("/").await;
        let polled =
            format!("{}, shard {number} (numbered 0 to 1) (", simulator.endpoint().as_str().trim_end_matches('/'));
        assert!(page.text().contains(&polled), "{}", page.text());
    }
    let whole = Exporter::ready(config(&simulator, &[])).await;
    assert!(!whole.get("/").await.text().contains("shard"));
}

#[tokio::test]
async fn shards_take_accounts_that_are_too_large_for_one() {
    let simulator = simulator(10).await;
    simulator.set(|knobs| knobs.total_count = Some(5_000_000));
    for (total, says) in [
        ("2", "the API counts 5000000 instances, more than the 4000000 that many shards take: spread them over more"),
        // The simulated API has not so many: what matters is that it was asked for the other pages.
        ("3", ": 0 of 10 entries expected with totalCount 5000000"),
    ] {
        let total = format!("--total-shards={total}");
        let exporter = Exporter::start(config(&simulator, &["--zenlayer.page-size=10", "--shard=1", &total])).await;
        exporter.until(|metrics| metrics.sum("zenlayer_exporter_polls_total") >= 1.0).await;
        let page = exporter.get("/").await;
        assert!(page.text().contains(says), "{}", page.text());
    }
}

#[tokio::test]
async fn names_are_served_by_the_shard_that_has_the_instance() {
    let simulator = simulator(600).await;
    let exporters = shards(&simulator, 3, &["--collector.instance-info"]).await;
    let mut named = 0;
    for exporter in &exporters {
        let metrics =
            exporter.until(|metrics| metrics.count("zenlayer_instance_info") == metrics.instances().len()).await;
        for (id, _) in metrics.instances() {
            let info = format!("\nzenlayer_instance_info{{instanceId=\"{id}\",");
            assert!(metrics.text.contains(&info), "no info of {id}");
        }
        named += metrics.count("zenlayer_instance_info");
    }
    assert_eq!(named, 600);
}

#[tokio::test]
async fn a_shard_without_any_of_the_named_instances_asks_for_none() {
    let simulator = simulator(50).await;
    let id = simulator.with_fleet(|fleet| fleet.machines[0].id.clone());
    let elsewhere = (0..2).find(|&number| !Shard::new(number, 2).unwrap().owns(&id)).unwrap();
    let flags = [
        format!("--zenlayer.instance-ids={id}"),
        format!("--shard={elsewhere}"),
        "--total-shards=2".to_owned(),
        "--collector.instance-info".to_owned(),
    ];
    let flags: Vec<_> = flags.iter().map(|flag| &**flag).collect();
    let exporter = Exporter::ready(config(&simulator, &flags)).await;
    let done = |metrics: &Metrics| {
        metrics.value("zenlayer_exporter_collector_success", &[("collector", "instance-info")]) == Some(1.0)
    };
    let metrics = exporter.until(done).await;
    assert_eq!((metrics.instances().len(), metrics.count("zenlayer_instance_info")), (0, 0));
    assert_eq!(simulator.tally().answered, 0);
}
