//! What devices draw, and how it is shared out to the attempts that hold them.
//!
//! Each device has a gauge: its driver's own counter of energy, or, where it has none, power times the time between two looks. Between looks a gauge
//! goes on at the pace of the last interval, so that an attempt is charged from the moment it is accepted to the moment it ends and
//! not from look to look; what that was wrong by is put right with the next look. On a shared device everybody who holds it at the time
//! is charged the same part.
//!
//! An account remembers up to where the driver's counter was charged, and outlives the agent with its attempt's record: what was drawn while no
//! agent was there is charged by the next. Power that nobody read is not.

use lorikeet_protocol::id::DeviceId;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// A gauge that no look has moved for so long stands still: its device is gone, or its driver silent.
const GOES_ON: Duration = Duration::from_secs(30);

/// What a device says of the energy that it takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Drawn {
    /// Millijoules since its driver was loaded.
    Counted(u64),
    /// Watts at this moment.
    Watts(f32),
}

/// The gauges of all devices.
#[derive(Debug, Default)]
pub(super) struct Gauges(BTreeMap<DeviceId, Gauge>);

#[derive(Debug, Clone, Copy)]
struct Gauge {
    /// In millijoules: the driver's counter, or the sum of what was read.
    stands: u64,
    /// At this time.
    at: Duration,
    /// In the last interval.
    watts: f64,
    /// Whether `stands` means the same to another agent.
    is_counted: bool,
}

/// What an attempt is charged, by device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account(BTreeMap<DeviceId, Charge>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Charge {
    millijoules: u64,
    /// Where the gauge stood when it was last charged; `None`: it has to be read first.
    through: Option<u64>,
    /// Whether that was the driver's counter.
    is_counted: bool,
}

impl Gauges {
    /// A look.
    pub(super) fn read(&mut self, drawn: &BTreeMap<DeviceId, Drawn>, now: Duration) {
        for (device, drawn) in drawn {
            let last = self.0.get(device).copied();
            self.0.insert(device.clone(), Gauge::read(last, *drawn, now));
        }
    }

    /// Where each stands now.
    fn now(&self, device: &DeviceId, now: Duration) -> Option<(u64, bool)> {
        let gauge = self.0.get(device)?;
        let seconds = now.saturating_sub(gauge.at).min(GOES_ON).as_secs_f64();
        Some((gauge.stands.saturating_add((gauge.watts * seconds * 1e3) as u64), gauge.is_counted))
    }
}

impl Gauge {
    fn read(last: Option<Self>, drawn: Drawn, at: Duration) -> Self {
        let passed = last.map_or(Duration::ZERO, |last| at.saturating_sub(last.at));
        match drawn {
            Drawn::Counted(stands) => {
                let last = last.filter(|last| last.is_counted && last.stands <= stands && !passed.is_zero());
                let watts = last.map_or(0.0, |last| (stands - last.stands) as f64 / passed.as_secs_f64() / 1e3);
                Self { stands, at, watts, is_counted: true }
            }
            Drawn::Watts(watts) => {
                let watts = f64::from(watts).max(0.0);
                let last = last.filter(|last| !last.is_counted);
                // The mean of both ends, for as long as somebody looked.
                let mean = last.map_or(0.0, |last| f64::midpoint(last.watts, watts));
                let drawn = mean * passed.min(GOES_ON).as_secs_f64() * 1e3;
                Self {
                    stands: last.map_or(0, |last| last.stands).saturating_add(drawn as u64),
                    at,
                    watts,
                    is_counted: false,
                }
            }
        }
    }
}

impl Account {
    /// Charges what the devices drew since it was charged last; `sharers` says how many hold a device. Whether a device is charged for the
    /// first time.
    pub(super) fn charge(
        &mut self,
        devices: &[DeviceId],
        gauges: &Gauges,
        sharers: impl Fn(&DeviceId) -> u64,
        now: Duration,
    ) -> bool {
        let mut begins = false;
        for device in devices {
            let Some((stands, is_counted)) = gauges.now(device, now) else { continue };
            begins |= !self.0.contains_key(device);
            let charge = self.0.entry(device.clone()).or_default();
            if let Some(through) = charge.through.filter(|_| charge.is_counted == is_counted) {
                // It went on too fast since the last look, or the driver was loaded anew, which another look tells apart.
                if stands < through && !is_restarted(stands, through) {
                    continue;
                }
                let part = stands.saturating_sub(through) / sharers(device).max(1);
                charge.millijoules = charge.millijoules.saturating_add(part);
            }
            (charge.through, charge.is_counted) = (Some(stands), is_counted);
        }
        begins
    }

    /// For another agent, perhaps of another boot: what means nothing there has to be read anew.
    pub(super) fn taken_up(mut self, same_boot: bool) -> Self {
        for charge in self.0.values_mut() {
            charge.through = charge.through.filter(|_| same_boot && charge.is_counted);
        }
        self
    }

    /// In joules; `None` where one of the devices never said.
    pub(super) fn joules(&self, devices: &[DeviceId]) -> Option<u64> {
        let said: BTreeSet<_> = self.0.keys().collect();
        devices
            .iter()
            .all(|device| said.contains(device))
            .then(|| self.0.values().fold(0u64, |sum, charge| sum.saturating_add(charge.millijoules)) / 1_000)
    }
}

/// No pace is wrong by half of what a driver has counted since it was loaded, unless that was a moment ago.
fn is_restarted(stands: u64, through: u64) -> bool {
    stands < through / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_attempt_is_charged_between_the_looks_as_well() {
        let (mut gauges, gpu, mut account) = (Gauges::default(), [gpu("a")], Account::default());
        gauges.read(&counted("a", 1_000_000), 10 * SECOND);
        gauges.read(&counted("a", 2_000_000), 20 * SECOND);
        assert!(account.charge(&gpu, &gauges, |_| 1, 22 * SECOND), "accepted two seconds later, at 100 W");
        gauges.read(&counted("a", 4_000_000), 30 * SECOND);
        assert!(!account.charge(&gpu, &gauges, |_| 1, 30 * SECOND));
        assert_eq!(account.joules(&gpu), Some(1_800));
        account.charge(&gpu, &gauges, |_| 1, 33 * SECOND);
        assert_eq!(account.joules(&gpu), Some(2_400), "three more seconds, at 200 W");
        account.charge(&gpu, &gauges, |_| 1, 3_000 * SECOND);
        assert_eq!(account.joules(&gpu), Some(1_800 + 6_000), "a driver that is silent says nothing");
    }

    #[test]
    fn what_is_shared_is_charged_once() {
        let (mut gauges, gpu, mut both) = (Gauges::default(), [gpu("a")], [Account::default(), Account::default()]);
        gauges.read(&counted("a", 0), SECOND);
        both[0].charge(&gpu, &gauges, |_| 1, SECOND);
        gauges.read(&counted("a", 60_000), 2 * SECOND);
        both[0].charge(&gpu, &gauges, |_| 1, 2 * SECOND);
        both[1].charge(&gpu, &gauges, |_| 2, 2 * SECOND);
        gauges.read(&counted("a", 100_000), 3 * SECOND);
        both.iter_mut().for_each(|account| _ = account.charge(&gpu, &gauges, |_| 2, 3 * SECOND));
        assert_eq!(both.map(|account| account.joules(&gpu)), [Some(80), Some(20)]);
    }

    #[test]
    fn a_device_without_a_counter_is_charged_its_power_over_time() {
        let (mut gauges, gpu, mut account) = (Gauges::default(), [gpu("a")], Account::default());
        let power = |watts| BTreeMap::from([(gpu[0].clone(), Drawn::Watts(watts))]);
        gauges.read(&power(100.0), SECOND);
        account.charge(&gpu, &gauges, |_| 1, SECOND);
        gauges.read(&power(300.0), 6 * SECOND);
        account.charge(&gpu, &gauges, |_| 1, 6 * SECOND);
        assert_eq!(account.joules(&gpu), Some(1_000));
    }

    #[test]
    fn a_counter_that_begins_anew_takes_nothing_back() {
        let (mut gauges, gpu, mut account) = (Gauges::default(), [gpu("a")], Account::default());
        for (stands, second) in [(1_000_000, 1), (1_500_000, 2), (1_000, 3), (301_000, 4)] {
            gauges.read(&counted("a", stands), second * SECOND);
            account.charge(&gpu, &gauges, |_| 1, second * SECOND);
        }
        assert_eq!(account.joules(&gpu), Some(800));
    }

    #[test]
    fn what_a_pace_was_wrong_by_is_put_right_with_the_next_look() {
        let (mut gauges, gpu, mut account) = (Gauges::default(), [gpu("a")], Account::default());
        gauges.read(&counted("a", 1_000_000), SECOND);
        account.charge(&gpu, &gauges, |_| 1, SECOND);
        gauges.read(&counted("a", 1_500_000), 2 * SECOND);
        account.charge(&gpu, &gauges, |_| 1, 3 * SECOND);
        gauges.read(&counted("a", 1_600_000), 3 * SECOND);
        account.charge(&gpu, &gauges, |_| 1, 3 * SECOND);
        gauges.read(&counted("a", 2_600_000), 4 * SECOND);
        account.charge(&gpu, &gauges, |_| 1, 4 * SECOND);
        assert_eq!(account.joules(&gpu), Some(1_600), "the counter at the end less the counter at the start");
    }

    #[test]
    fn another_agent_goes_on_where_the_counter_was_and_only_in_the_same_boot() {
        let (mut gauges, gpu, mut account) = (Gauges::default(), [gpu("a")], Account::default());
        gauges.read(&counted("a", 1_000), SECOND);
        account.charge(&gpu, &gauges, |_| 1, SECOND);
        let taken_up = |same_boot| {
            let json = serde_json::to_string(&account).unwrap();
            let mut account = serde_json::from_str::<Account>(&json).unwrap().taken_up(same_boot);
            let mut gauges = Gauges::default();
            gauges.read(&counted("a", 901_000), 60 * SECOND);
            assert!(!account.charge(&gpu, &gauges, |_| 1, 60 * SECOND));
            account.joules(&gpu)
        };
        assert_eq!([taken_up(true), taken_up(false)], [Some(900), Some(0)]);
    }

    #[test]
    fn one_silent_device_of_several_makes_the_sum_unknown() {
        let (mut gauges, devices, mut account) = (Gauges::default(), [gpu("a"), gpu("b")], Account::default());
        gauges.read(&counted("a", 1_000), SECOND);
        account.charge(&devices, &gauges, |_| 1, SECOND);
        assert_eq!((account.joules(&devices), account.joules(&devices[..1])), (None, Some(0)));
    }

    fn counted(name: &str, millijoules: u64) -> BTreeMap<DeviceId, Drawn> {
        BTreeMap::from([(gpu(name), Drawn::Counted(millijoules))])
    }

    fn gpu(name: &str) -> DeviceId {
        DeviceId(name.into())
    }
}
