//! Flat micro-batches: what a pass over the model sees, and the order in which examples reach it.
//!
//! A micro-batch is one `[tokens]` row of ids with segment offsets and no padding anywhere. [`pack`] decides which examples
//! of a step share a micro-batch, [`cursor`] which examples a step has and where the data stands after it.

pub mod cursor;
pub mod pack;

/// One example's place in a micro-batch: rows `start..start + len` of the flat token matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Which adapter this segment trains: an index into the adapters of the pass.
    pub adapter: usize,
    /// The example's number in its data set; keys dropout, whatever the packing.
    pub example: u64,
    /// The epoch in which it is seen; keys dropout.
    pub epoch: u32,
}

/// A token to be predicted: the logits of `row` are judged against `token`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Row of the flat token matrix whose logits predict the token after it.
    pub row: u32,
    /// The token that follows.
    pub token: u32,
}

/// Flat tokens with their segments and targets; targets have ascending rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids of all segments, one after another.
    pub tokens: Vec<u32>,
    /// The examples, in row order, covering every row.
    pub segments: Vec<Segment>,
    /// What is to be predicted, rows ascending.
    pub targets: Vec<Target>,
}

impl MicroBatch {
    /// Appends one example for `adapter`. A supervised first token has no row that predicts it and is no target.
    pub fn push(&mut self, tokens: &[u32], supervised: &[bool], adapter: usize, example: u64, epoch: u32) {
        assert_eq!(tokens.len(), supervised.len(), "one flag per token");
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.segments.push(Segment { start, len: tokens.len(), adapter, example, epoch });
        let wanted = (1..tokens.len()).filter(|&i| supervised[i]);
        self.targets.extend(wanted.map(|i| Target { row: (start + i - 1) as u32, token: tokens[i] }));
    }

    /// How many targets belong to segments of `adapter`.
    pub fn targets_of(&self, adapter: usize) -> u64 {
        let mine = self.segments.iter().filter(|segment| segment.adapter == adapter);
        mine.map(|segment| {
            let rows = segment.start as u32..(segment.start + segment.len) as u32;
            self.targets.iter().filter(|target| rows.contains(&target.row)).count() as u64
        })
        .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_the_token_after_its_row_and_never_the_first_of_a_segment() {
        let mut batch = MicroBatch::default();
        batch.push(&[5, 6, 7], &[true, false, true], 0, 11, 2);
        batch.push(&[8, 9], &[true, true], 1, 12, 2);
        assert_eq!(batch.targets, vec![Target { row: 1, token: 7 }, Target { row: 3, token: 9 }]);
        assert_eq!((batch.targets_of(0), batch.targets_of(1)), (1, 1));
        assert_eq!(batch.segments[1], Segment { start: 3, len: 2, adapter: 1, example: 12, epoch: 2 });
    }
}
