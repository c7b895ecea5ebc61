//! Whether a GPU may be trusted with work: a judgement over its counters and the driver's error reports.
//!
//! A GPU is set aside when memory errors that nothing corrects grow while we look, when a faulty row of memory waits to be replaced
//! or cannot be, or when the driver reports an error of the card itself. It comes back with the next start of the agent, for
//! which somebody has looked at it, or reset it; a count that merely stands where it stood is history.

use lorikeet_protocol::id::DeviceId;
use std::collections::BTreeMap;

/// What a GPU says of itself; what it does not say is not held against it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Signs {
    /// Memory errors since the last reset that could not be corrected.
    pub(super) uncorrected: u64,
    /// A faulty row is replaced at the next reset.
    pub(super) remap_pending: bool,
    /// A faulty row could not be replaced.
    pub(super) remap_failed: bool,
}

/// Errors that the program brings upon itself: a bad access, a process that was ended. They say nothing about the card.
const OF_PROGRAMS: [u64; 5] = [8, 13, 31, 43, 45];

/// What is remembered of every GPU.
#[derive(Debug, Default)]
pub(super) struct Health {
    first: BTreeMap<DeviceId, u64>,
    faults: BTreeMap<DeviceId, String>,
}

impl Health {
    /// The driver reported an error (NVIDIA's XID) of this GPU.
    pub(super) fn reported(&mut self, device: &DeviceId, xid: u64) {
        if !OF_PROGRAMS.contains(&xid) {
            self.set_aside(device, format!("the driver reported error XID {xid}"));
        }
    }

    /// Whether it may be used, from what it says now and said before.
    pub(super) fn judge(&mut self, device: &DeviceId, now: Signs) -> Result<(), String> {
        let first = *self.first.entry(device.clone()).or_insert(now.uncorrected);
        if now.uncorrected > first {
            self.set_aside(device, format!("{} memory errors that could not be corrected", now.uncorrected - first));
        }
        if now.remap_failed {
            self.set_aside(device, "a faulty row of its memory could not be replaced".into());
        } else if now.remap_pending {
            self.set_aside(device, "a faulty row of its memory waits for a reset to be replaced".into());
        }
        self.faults.get(device).map_or(Ok(()), |fault| Err(fault.clone()))
    }

    /// The first reason stays.
    fn set_aside(&mut self, device: &DeviceId, fault: String) {
        self.faults
            .entry(device.clone())
            .or_insert_with(|| format!("set aside: {fault}; look at it, then restart the agent"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_errors_that_grow_set_one_gpu_aside_and_old_ones_do_not() {
        let (mut health, [a, b]) = (Health::default(), ["a", "b"].map(|id| DeviceId(id.into())));
        let signs = |uncorrected| Signs { uncorrected, ..Signs::default() };
        assert_eq!([health.judge(&a, signs(7)), health.judge(&b, signs(0))], [Ok(()), Ok(())]);
        assert_eq!(health.judge(&a, signs(7)), Ok(()), "a count that stands is history");
        let fault = health.judge(&a, signs(9)).unwrap_err();
        assert!(fault.contains("2 memory errors"), "{fault}");
        assert_eq!(health.judge(&a, signs(0)), Err(fault), "a reset counter takes nothing back");
        assert_eq!(health.judge(&b, signs(0)), Ok(()));
    }

    #[test]
    fn rows_that_cannot_be_replaced_or_wait_for_it_set_a_gpu_aside() {
        let device = DeviceId("a".into());
        for signs in
            [Signs { remap_pending: true, ..Signs::default() }, Signs { remap_failed: true, ..Signs::default() }]
        {
            assert!(Health::default().judge(&device, signs).unwrap_err().contains("faulty row"));
        }
    }

    #[test]
    fn errors_of_the_card_set_it_aside_and_errors_of_programs_do_not() {
        let (mut health, device) = (Health::default(), DeviceId("a".into()));
        OF_PROGRAMS.iter().for_each(|xid| health.reported(&device, *xid));
        assert_eq!(health.judge(&device, Signs::default()), Ok(()));
        health.reported(&device, 79);
        health.reported(&device, 48);
        assert!(health.judge(&device, Signs::default()).unwrap_err().contains("XID 79"), "the first reason stays");
    }
}
