//! Metadata of simulated instances: derived from the ID, so that a million need no memory for it.
//!
//! Invariant: the same id, seed and time, the same details. It must not know HTTP.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Machine;
use crate::model::Service;

const DAY: u64 = 24 * 60 * 60;
/// Subscriptions are renewed for so long.
const TERM: u64 = 365 * DAY;
/// The first instance was created on 1 January 2024.
const FOUNDED: u64 = 1_704_067_200;

const ROLES: [&str; 8] = ["web", "api", "db", "cache", "queue", "edge", "build", "mail"];
const TEAMS: [&str; 4] = ["shop", "search", "platform", "media"];
const ENVIRONMENTS: [&str; 4] = ["prod", "prod", "staging", "dev"];
const IMAGES: [&str; 5] = ["Ubuntu 24.04", "Ubuntu 22.04", "Debian 12", "Rocky Linux 9", "Windows Server 2022"];
const GROUPS: [&str; 3] = ["Default Resource Group", "customers", "internal"];
/// Cities with their zones.
const VM_ZONES: [(&str, &str); 6] =
    [("hkg", "HKG-A"), ("sin", "SIN-A"), ("fra", "FRA-A"), ("lax", "LAX-A"), ("gru", "SAO-A"), ("sgn", "SGN-A")];
const ZEC_ZONES: [(&str, &str); 4] =
    [("hkg", "asia-east-1a"), ("sin", "asia-southeast-1a"), ("fra", "europe-central-1a"), ("lax", "na-west-1a")];
/// Types with their processors and GiB of memory.
const TYPES: [(&str, u64, u64); 4] =
    [("z2a.cpu.1", 1, 2), ("z2a.cpu.2", 2, 4), ("z2a.cpu.4", 4, 8), ("z2a.cpu.8", 8, 16)];

/// An entry of the answer at `now`, in Unix seconds; of its own fields where a test has given it any.
pub(super) fn details(machine: &Machine, service: Service, seed: u64, now: u64) -> Value {
    let Some(own) = &machine.details else { return made_up(machine, service, seed, now) };
    let mut entry = json!({"instanceId": machine.id});
    for (field, value) in &**own {
        entry[field] = value.clone();
    }
    entry
}

fn made_up(machine: &Machine, service: Service, seed: u64, now: u64) -> Value {
    let mut dice = Dice(hash(machine.id.as_bytes(), seed));
    let zones = if service == Service::Vm { &VM_ZONES[..] } else { &ZEC_ZONES[..] };
    let ((city, zone), (kind, processors, memory)) = (dice.pick(zones), dice.pick(&TYPES));
    let (role, team, environment) = (dice.pick(&ROLES), dice.pick(&TEAMS), dice.pick(&ENVIRONMENTS));
    let (image, group, number) = (dice.pick(&IMAGES), dice.pick(&GROUPS), dice.below(100));
    let created = FOUNDED + dice.below(TERM / DAY) * DAY + dice.below(DAY);
    let prepaid = dice.below(3) == 0;
    let terms = now.saturating_sub(created) / TERM + 1;
    let charge_type = if prepaid { "PREPAID" } else { "POSTPAID" };
    let mut entry = json!({
        "instanceId": machine.id,
        "instanceName": format!("{role}-{city}-{environment}-{number:02}"),
        "zoneId": zone,
        "instanceType": kind,
        "memory": memory,
        "imageId": image.to_lowercase().replace(' ', "-"),
        "imageName": image,
        "publicIpAddresses": [format!("203.0.113.{number}")],
        "privateIpAddresses": [format!("10.0.{}.{number}", dice.below(256))],
        "createTime": time(created),
        "expiredTime": prepaid.then(|| time(created + terms * TERM)),
        "resourceGroupId": group.to_lowercase().replace(' ', "-"),
        "resourceGroupName": group,
        "tags": {"tags": [{"key": "env", "value": environment}, {"key": "team", "value": team}]},
    });
    // Of some fields each service has its own name, and one tells no charge type, as the vendor's SDK has them.
    let (status, processor_count) = match service {
        Service::Vm => ("instanceStatus", "cpuCount"),
        Service::Zec => ("status", "cpu"),
    };
    entry[status] = json!(machine.status);
    entry[processor_count] = json!(processors);
    if service == Service::Vm {
        entry["instanceChargeType"] = json!(charge_type);
    }
    entry
}

fn time(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// FNV-1a.
fn hash(bytes: &[u8], seed: u64) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325 ^ seed, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// Throws of which each follows from the one before (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let place = self.below(choices.len() as u64);
        choices[usize::try_from(place).expect("less than a length")]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Fleet;
    use super::*;

    #[test]
    fn details_are_plausible_and_the_same_for_the_same_seed() {
        let now = 1_790_000_000;
        let fleet = Fleet::new(Service::Vm, 2000, 1);
        let of =
            |seed| fleet.machines.iter().map(|machine| details(machine, Service::Vm, seed, now)).collect::<Vec<_>>();
        let entries = of(1);
        assert_eq!(entries, of(1));
        assert_ne!(entries, of(2));
        let zones: BTreeSet<_> = entries.iter().map(|entry| entry["zoneId"].as_str().unwrap()).collect();
        assert_eq!(zones.len(), VM_ZONES.len());
        for entry in &entries {
            let time = |field: &str| humantime::parse_rfc3339(entry[field].as_str().unwrap()).unwrap();
            let now = UNIX_EPOCH + Duration::from_secs(now);
            assert!(time("createTime") < now, "{entry}");
            match entry["instanceChargeType"].as_str() {
                Some("PREPAID") => assert!(now < time("expiredTime"), "{entry}"),
                Some("POSTPAID") => assert!(entry["expiredTime"].is_null(), "{entry}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_test_s_own_fields_stand_alone() {
        let mut fleet = Fleet::new(Service::Vm, 1, 1);
        let machine = &mut fleet.machines[0];
        let own = json!({"instanceName": 7});
        machine.details = own.as_object().cloned().map(Box::new);
        assert_eq!(details(machine, Service::Vm, 1, 0), json!({"instanceId": machine.id, "instanceName": 7}));
    }
}
