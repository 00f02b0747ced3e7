//! The simulated instances and their lives.
//!
//! Invariant: ids are unique and never used again. It must not know HTTP.

use std::ops::Range;

use fastrand::Rng;
use serde_json::{Map, Value};

use crate::model::Service;

/// How one status ends: after so many ticks, in one of these, by weight. No next status: the instance is gone.
struct Stage {
    status: &'static str,
    ticks: Range<u32>,
    next: &'static [(u32, Option<&'static str>)],
}

/// A plausible life: mostly running, passing through short statuses, now and then created or released.
const LIFE: [Stage; 14] = [
    Stage { status: "PENDING", ticks: 2..5, next: &[(1, Some("DEPLOYING"))] },
    Stage { status: "DEPLOYING", ticks: 5..20, next: &[(19, Some("RUNNING")), (1, Some("CREATE_FAILED"))] },
    Stage { status: "CREATE_FAILED", ticks: 60..180, next: &[(1, None)] },
    Stage {
        status: "RUNNING",
        ticks: 60..900,
        next: &[(8, Some("STOPPING")), (6, Some("REBOOT")), (3, Some("IMAGING")), (2, Some("REBUILDING"))],
    },
    Stage { status: "REBOOT", ticks: 5..20, next: &[(1, Some("RUNNING"))] },
    Stage { status: "IMAGING", ticks: 20..60, next: &[(1, Some("RUNNING"))] },
    Stage { status: "REBUILDING", ticks: 20..60, next: &[(1, Some("RUNNING"))] },
    Stage { status: "STOPPING", ticks: 5..15, next: &[(1, Some("STOPPED"))] },
    Stage { status: "STOPPED", ticks: 30..120, next: &[(6, Some("BOOTING")), (2, Some("RECYCLING"))] },
    Stage { status: "BOOTING", ticks: 5..20, next: &[(1, Some("RUNNING"))] },
    Stage { status: "RESIZING", ticks: 10..30, next: &[(1, Some("STOPPED"))] },
    Stage { status: "RECYCLING", ticks: 5..10, next: &[(1, Some("RECYCLE"))] },
    Stage { status: "RECYCLE", ticks: 60..120, next: &[(1, Some("RELEASING")), (1, Some("BOOTING"))] },
    Stage { status: "RELEASING", ticks: 5..15, next: &[(1, None)] },
];

/// One simulated instance.
#[derive(Debug, Clone)]
pub struct Machine {
    /// 18 digits, as the API's often are.
    pub id: String,
    /// `None` where the API is to leave it out.
    pub status: Option<String>,
    /// The fields that DescribeInstances is to have besides `instanceId`, or instead of it; `None`: plausible ones.
    pub details: Option<Box<Map<String, Value>>>,
    /// Ticks left in this status.
    ticks: u32,
}

/// Every simulated instance, in the order in which pages list them.
#[derive(Debug)]
pub struct Fleet {
    /// The instances; a test may put in what it likes.
    pub machines: Vec<Machine>,
    service: Service,
    rng: Rng,
    next_id: u64,
}

impl Fleet {
    /// That many instances in the middle of their lives; the same for the same seed.
    pub fn new(service: Service, instances: usize, seed: u64) -> Self {
        let mut fleet =
            Self { machines: Vec::with_capacity(instances), service, rng: Rng::with_seed(seed), next_id: 0 };
        for _ in 0..instances {
            let status = if fleet.rng.u8(..20) == 0 { "STOPPED" } else { "RUNNING" };
            fleet.add(status);
            let machine = fleet.machines.last_mut().expect("it was just added");
            machine.ticks = fleet.rng.u32(1..=machine.ticks);
        }
        fleet
    }

    /// Creates an instance as a customer would.
    pub fn create(&mut self) {
        let first = match self.service {
            Service::Vm => "PENDING",
            Service::Zec => "DEPLOYING",
        };
        self.add(first);
    }

    /// Adds an instance in that status.
    pub fn add(&mut self, status: &str) {
        // An odd factor is a bijection of 59 bits: ids look random, and none comes twice.
        self.next_id += 1;
        let id = 100_000_000_000_000_000 + (self.next_id.wrapping_mul(0x9E37_79B9_7F4A_7C15) & ((1 << 59) - 1));
        let ticks = ticks(status, &mut self.rng);
        self.machines.push(Machine { id: id.to_string(), status: Some(status.to_owned()), details: None, ticks });
    }

    /// Deletes one instance, whichever, and creates another.
    pub fn churn(&mut self) {
        if !self.machines.is_empty() {
            let place = self.rng.usize(..self.machines.len());
            self.machines.remove(place);
        }
        self.create();
    }

    /// A second goes by.
    pub fn tick(&mut self) {
        let mut gone = 0;
        let Self { machines, rng, .. } = self;
        machines.retain_mut(|machine| {
            machine.ticks = machine.ticks.saturating_sub(1);
            if machine.ticks > 0 {
                return true;
            }
            let next = machine.status.as_deref().and_then(stage).and_then(|stage| next_status(stage, rng));
            gone += usize::from(next.is_none());
            if let Some(next) = next {
                machine.ticks = ticks(next, rng);
                machine.status = Some(next.to_owned());
            }
            next.is_some()
        });
        for _ in 0..gone {
            self.create();
        }
    }
}

fn stage(status: &str) -> Option<&'static Stage> {
    LIFE.iter().find(|stage| stage.status == status)
}

fn ticks(status: &str, rng: &mut Rng) -> u32 {
    stage(status).map_or(u32::MAX, |stage| rng.u32(stage.ticks.clone()))
}

fn next_status(stage: &Stage, rng: &mut Rng) -> Option<&'static str> {
    let total: u32 = stage.next.iter().map(|(weight, _)| weight).sum();
    let mut left = rng.u32(..total);
    for (weight, status) in stage.next {
        if left < *weight {
            return *status;
        }
        left -= weight;
    }
    unreachable!("the weights sum up to the total")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_documented_status_is_a_stage_of_a_life() {
        for service in [Service::Vm, Service::Zec] {
            for status in service.documented_statuses() {
                assert!(stage(status).is_some(), "{status}");
            }
        }
        for next in LIFE.iter().flat_map(|stage| stage.next).filter_map(|(_, next)| *next) {
            assert!(stage(next).is_some(), "{next}");
        }
    }

    #[test]
    fn ids_are_unique_and_18_digits() {
        let fleet = Fleet::new(Service::Vm, 20_000, 1);
        let ids: HashSet<_> = fleet.machines.iter().map(|machine| &machine.id).collect();
        assert_eq!(ids.len(), 20_000);
        assert!(ids.iter().all(|id| id.len() == 18));
    }

    #[test]
    fn a_fleet_lives_and_keeps_its_size() {
        let mut fleet = Fleet::new(Service::Vm, 500, 1);
        let before: HashSet<_> = fleet.machines.iter().map(|machine| machine.id.clone()).collect();
        let mut seen = HashSet::new();
        for _ in 0..3600 {
            fleet.tick();
            seen.extend(fleet.machines.iter().filter_map(|machine| machine.status.clone()));
        }
        assert_eq!(fleet.machines.len(), 500);
        assert!(fleet.machines.iter().any(|machine| !before.contains(&machine.id)), "none was ever replaced");
        for status in Service::Vm.documented_statuses() {
            assert!(seen.contains(*status), "{status} was never seen");
        }
        let running = fleet.machines.iter().filter(|machine| machine.status.as_deref() == Some("RUNNING")).count();
        assert!((300..500).contains(&running), "{running} of 500 are running");
    }
}
