//! Whether a GPU may be trusted with work: a judgement over its counters and the driver's error reports.
//!
//! It failed, and whatever runs on it with it, when memory errors that nothing corrects grow while we look, or when the driver
//! reports an error of the card itself: the host takes it out, moves its work elsewhere and tests it before it is offered again. A
//! count that merely stands where it stood is history. While a faulty row of memory waits to be replaced, or cannot be, it takes
//! nothing new; a reset that mends it ends that.

use lorikeet_protocol::id::DeviceId;
use std::collections::BTreeMap;

/// What a GPU says of itself; what it does not say is not held against it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Signs {
    /// Memory errors since the last reset that could not be corrected, where it says.
    pub(super) uncorrected: Option<u64>,
    /// A faulty row is replaced at the next reset.
    pub(super) remap_pending: bool,
    /// A faulty row could not be replaced.
    pub(super) remap_failed: bool,
}

/// Errors that the program brings upon itself: a bad access, a process that was ended. They say nothing about the card.
const OF_PROGRAMS: [u64; 5] = [8, 13, 31, 43, 45];

/// What the driver says for the record, by NVIDIA's catalogue: a faulty row of memory is set down to be replaced (which the counters say as
/// well; that it cannot be is another, 64), corrected errors are many, what would mend the card is another thing than before.
const FOR_THE_RECORD: [u64; 3] = [63, 92, 154];

/// What is remembered of every GPU.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Memory errors when they were last said: a question that fails once is no reset, after which old ones would be new.
    last: BTreeMap<DeviceId, u64>,
    /// The first error that its driver reported since.
    reports: BTreeMap<DeviceId, u64>,
}

impl Health {
    /// The driver reported an error (NVIDIA's XID) of this GPU.
    pub(super) fn reported(&mut self, device: &DeviceId, xid: u64) {
        if !OF_PROGRAMS.contains(&xid) && !FOR_THE_RECORD.contains(&xid) {
            self.reports.entry(device.clone()).or_insert(xid);
        }
    }

    /// Whether it may be used, from what it says now; what went wrong since the last look joins `faults`.
    pub(super) fn judge(
        &mut self,
        device: &DeviceId,
        now: Signs,
        faults: &mut BTreeMap<DeviceId, String>,
    ) -> Result<(), String> {
        let grown = now
            .uncorrected
            .map_or(0, |count| count.saturating_sub(self.last.insert(device.clone(), count).unwrap_or(count)));
        let fault = match self.reports.remove(device) {
            Some(xid) => Some(format!("the driver reported error XID {xid}")),
            None if grown > 0 => Some(format!("{grown} memory errors that could not be corrected")),
            None => None,
        };
        faults.extend(fault.map(|fault| (device.clone(), fault)));
        if now.remap_failed {
            Err("a faulty row of its memory could not be replaced".into())
        } else if now.remap_pending {
            Err("a faulty row of its memory waits for a reset to be replaced".into())
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_errors_that_grow_are_a_fault_of_one_gpu_and_old_ones_are_not() {
        let (mut health, [a, b]) = (Health::default(), ["a", "b"].map(|id| DeviceId(id.into())));
        let mut ask = |device: &DeviceId, uncorrected| {
            let mut faults = BTreeMap::new();
            health.judge(device, Signs { uncorrected, ..Signs::default() }, &mut faults).unwrap();
            faults.remove(device)
        };
        assert_eq!([ask(&a, None), ask(&a, Some(7)), ask(&a, None), ask(&a, Some(7))], [const { None }; 4], "silence");
        let mut look = |device: &DeviceId, uncorrected| ask(device, Some(uncorrected));
        assert_eq!([look(&a, 7), look(&b, 0), look(&a, 7)], [None, None, None], "a count that stands is history");
        assert!(look(&a, 9).unwrap().contains("2 memory errors"));
        assert_eq!([look(&a, 9), look(&a, 0), look(&b, 0)], [None, None, None], "a fault is told once");
        assert!(look(&a, 1).unwrap().contains("1 memory errors"), "after a reset they count from there");
    }

    #[test]
    fn rows_that_cannot_be_replaced_or_wait_for_it_keep_work_from_a_gpu_until_it_is_reset() {
        let (mut health, device, mut faults) = (Health::default(), DeviceId("a".into()), BTreeMap::new());
        for signs in
            [Signs { remap_pending: true, ..Signs::default() }, Signs { remap_failed: true, ..Signs::default() }]
        {
            assert!(health.judge(&device, signs, &mut faults).unwrap_err().contains("faulty row"));
        }
        assert_eq!(health.judge(&device, Signs::default(), &mut faults), Ok(()));
        assert!(faults.is_empty(), "what runs there goes on: {faults:?}");
    }

    #[test]
    fn errors_of_the_card_are_a_fault_and_errors_of_programs_and_words_for_the_record_are_not() {
        let (mut health, device) = (Health::default(), DeviceId("a".into()));
        OF_PROGRAMS.iter().chain(&FOR_THE_RECORD).for_each(|xid| health.reported(&device, *xid));
        let mut faults = BTreeMap::new();
        health.judge(&device, Signs::default(), &mut faults).unwrap();
        assert!(faults.is_empty(), "{faults:?}");
        health.reported(&device, 64);
        health.judge(&device, Signs::default(), &mut faults).unwrap();
        assert!(faults.remove(&device).unwrap().contains("XID 64"), "a row that cannot be replaced");
        health.reported(&device, 79);
        health.reported(&device, 48);
        health.judge(&device, Signs::default(), &mut faults).unwrap();
        assert!(faults[&device].contains("XID 79"), "the first one says most");
    }
}
