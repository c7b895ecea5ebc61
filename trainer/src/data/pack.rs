//! Which examples of a step share a micro-batch: first fit, in the step's order.
//!
//! Packing only rearranges examples inside one step, so it changes speed and memory and never the mathematics. It is a
//! function of lengths and limit alone: the same plan gives the same micro-batches on every machine and after every resume.

/// Places for `lengths` under a limit of `micro_tokens`: each inner list holds positions into `lengths`, ascending.
/// An example longer than the limit has a micro-batch of its own.
pub fn first_fit(lengths: &[usize], micro_tokens: usize) -> Vec<Vec<usize>> {
    let mut bins: Vec<(usize, Vec<usize>)> = Vec::new();
    for (position, &length) in lengths.iter().enumerate() {
        match bins.iter_mut().find(|(used, _)| used + length <= micro_tokens) {
            Some((used, members)) => {
                *used += length;
                members.push(position);
            }
            None => bins.push((length, vec![position])),
        }
    }
    bins.into_iter().map(|(_, members)| members).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn examples_go_into_the_first_micro_batch_with_room() {
        assert_eq!(first_fit(&[6, 5, 4, 3, 20, 2], 10), vec![vec![0, 2], vec![1, 3, 5], vec![4]]);
    }

    proptest! {
        #[test]
        fn every_example_is_packed_once_and_no_limit_is_broken(lengths in prop::collection::vec(1usize..50, 0..60), limit in 1usize..80) {
            let bins = first_fit(&lengths, limit);
            let mut seen: Vec<usize> = bins.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for bin in bins {
                let used: usize = bin.iter().map(|&i| lengths[i]).sum();
                prop_assert!(bin.len() == 1 || used <= limit);
            }
        }
    }
}
