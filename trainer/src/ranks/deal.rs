//! Which micro-batches of a step are whose. A function of lengths, limit and seat alone: the same on every rank, and after a resume.

use std::cmp::Reverse;

use super::Seat;
use crate::data::pack;

/// The micro-batches of one rank. Alone it has those that the step always had. Of several ranks each gets about as many tokens: a
/// step that would be one micro-batch becomes several, and the largest go first, each to whoever has least.
pub(super) fn deal(lengths: &[usize], micro_tokens: usize, seat: Seat) -> Vec<Vec<usize>> {
    if seat.ranks == 1 {
        return pack::first_fit(lengths, micro_tokens);
    }
    let share = lengths.iter().sum::<usize>().div_ceil(seat.ranks).max(1);
    // as many equal parts of the share as the limit asks for
    let limit = share.div_ceil(share.div_ceil(micro_tokens));
    let mut bins = pack::first_fit(lengths, limit);
    let tokens = |bin: &Vec<usize>| bin.iter().map(|example| lengths[*example]).sum::<usize>();
    bins.sort_by_key(|bin| Reverse(tokens(bin)));
    let (mut loads, mut ours) = (vec![0; seat.ranks], Vec::new());
    for bin in bins {
        let least = (0..seat.ranks).min_by_key(|rank| loads[*rank]).expect("there is a rank");
        loads[least] += tokens(&bin);
        if least == seat.rank {
            ours.push(bin);
        }
    }
    ours
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hands(lengths: &[usize], micro_tokens: usize, ranks: usize) -> Vec<Vec<Vec<usize>>> {
        (0..ranks).map(|rank| deal(lengths, micro_tokens, Seat { rank, ranks })).collect()
    }

    fn loads(lengths: &[usize], hands: &[Vec<Vec<usize>>]) -> Vec<usize> {
        hands.iter().map(|hand| hand.iter().flatten().map(|example| lengths[*example]).sum()).collect()
    }

    #[test]
    fn alone_nothing_is_divided() {
        assert_eq!(hands(&[30, 50, 20], 1000, 1), [pack::first_fit(&[30, 50, 20], 1000)]);
    }

    #[test]
    fn ranks_get_about_as_much() {
        let even = [100; 6];
        assert_eq!(loads(&even, &hands(&even, 200, 2)), [300, 300]);
        // nobody waits for more than the longest example, which is one rank's whatever is done
        let one_is_long = [1000, 100, 100, 100, 100, 100, 100, 100, 100, 100, 100];
        let slowest = loads(&one_is_long, &hands(&one_is_long, 4000, 4)).into_iter().max();
        assert_eq!(slowest, Some(1000));
        let mixed = [700, 80, 420, 310, 55, 900, 130, 260, 640, 45, 380, 210];
        let slowest = loads(&mixed, &hands(&mixed, 2048, 4)).into_iter().max();
        assert!(slowest.is_some_and(|load| load <= 1150), "{slowest:?} of {} in all", mixed.iter().sum::<usize>());
    }

    proptest! {
        #[test]
        fn every_example_is_dealt_once_and_no_limit_is_broken(
            lengths in prop::collection::vec(1usize..50, 0..60), limit in 1usize..200, ranks in 2usize..9
        ) {
            let hands = hands(&lengths, limit, ranks);
            let mut seen: Vec<usize> = hands.iter().flatten().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for bin in hands.iter().flatten() {
                let tokens: usize = bin.iter().map(|example| lengths[*example]).sum();
                prop_assert!(bin.len() == 1 || tokens <= limit);
            }
        }
    }
}
