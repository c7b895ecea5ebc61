//! Strangers whose joins were refused: an address that is refused again and again is not asked about any more for a while. Who joins with a good string is
//! never counted, so that a rack of machines behind one address comes in together.

use crate::access::Refusal;
use lorikeet_protocol::rate::Bucket;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Refusals at once: a person who pastes the wrong string tries a few times.
pub(super) const REFUSALS: u64 = 10;
/// One more in so many seconds.
const SECONDS: u64 = 6;
/// Addresses that are remembered: a stranger has proved each, and the one that was refused longest ago makes room.
const ADDRESSES: usize = 1_024;

#[derive(Debug)]
struct Stranger {
    refusals: Bucket,
    last: Duration,
}

/// Addresses that were refused lately.
#[derive(Debug)]
pub(super) struct Doormat {
    started: Instant,
    strangers: Mutex<HashMap<IpAddr, Stranger>>,
}

impl Default for Doormat {
    fn default() -> Self {
        Self { started: Instant::now(), strangers: Mutex::default() }
    }
}

impl Doormat {
    /// Whether a join from there is looked at.
    pub(super) fn hears(&self, from: IpAddr) -> bool {
        let (now, mut strangers) =
            (self.started.elapsed(), self.strangers.lock().unwrap_or_else(PoisonError::into_inner));
        strangers.get_mut(&of_one_stranger(from)).is_none_or(|known| known.refusals.holds(SECONDS, now))
    }

    /// The driver refused a join from there. That it can take nothing now says nothing about who asks.
    pub(super) fn judged(&self, from: IpAddr, why: &Refusal) {
        if !matches!(why, Refusal::NoSpace | Refusal::Unavailable) {
            self.refused(from);
        }
    }

    /// A join from there was refused.
    pub(super) fn refused(&self, from: IpAddr) {
        let (now, from) = (self.started.elapsed(), of_one_stranger(from));
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.len() >= ADDRESSES && !strangers.contains_key(&from) {
            let oldest = strangers.iter().min_by_key(|(_, known)| known.last).map(|(address, _)| *address);
            oldest.and_then(|oldest| strangers.remove(&oldest));
        }
        let full = || Stranger { refusals: Bucket::new(1, REFUSALS * SECONDS), last: now };
        let known = strangers.entry(from).or_insert_with(full);
        known.last = now;
        known.refusals.take_if_there(SECONDS, now);
    }
}

/// A machine has a whole /64 of IPv6.
fn of_one_stranger(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_refused_again_and_again_is_not_heard_and_the_others_are() {
        let (doormat, [stranger, neighbour, other]) = (
            Doormat::default(),
            ["2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1"].map(|text| text.parse().unwrap()),
        );
        for _ in 0..REFUSALS {
            assert!(doormat.hears(stranger));
            doormat.refused(stranger);
        }
        assert!(!doormat.hears(stranger) && !doormat.hears(neighbour) && doormat.hears(other));
    }

    #[test]
    fn a_coordinator_that_can_take_nothing_sends_no_address_away() {
        let (doormat, rack) = (Doormat::default(), IpAddr::V4(7.into()));
        for _ in 0..REFUSALS {
            doormat.judged(rack, &Refusal::NoSpace);
            doormat.judged(rack, &Refusal::Unavailable);
        }
        assert!(doormat.hears(rack));
        (0..REFUSALS).for_each(|_| doormat.judged(rack, &Refusal::conflict("used by another key")));
        assert!(!doormat.hears(rack));
    }

    #[test]
    fn addresses_without_end_take_no_memory_without_end() {
        let doormat = Doormat::default();
        for n in 0..10_000_u32 {
            doormat.refused(IpAddr::V4(n.into()));
        }
        assert_eq!(doormat.strangers.lock().unwrap().len(), ADDRESSES);
    }
}
