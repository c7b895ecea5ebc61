//! The modules that carry an adapter, as a person reads them: those of one name and shape in one line.

use std::fmt::Write;

use super::{LoraEntry, LoraLayout, Site};

/// Modules of one name, rank and shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Matched {
    /// What the model calls them: `q_proj`, `embed_tokens`, `lm_head`.
    pub module: String,
    /// Their blocks, like `0-29` or `0, 2-5`; empty for what is in no block.
    pub layers: String,
    /// How many.
    pub count: u64,
    /// Rows of A.
    pub rank: u64,
    /// Scale times rank, or its root.
    pub alpha: f64,
    /// Numbers that go in.
    pub inputs: u64,
    /// Numbers that come out.
    pub outputs: u64,
    /// Trained numbers of all of them.
    pub parameters: u64,
}

impl LoraLayout {
    /// All that was matched, in the order of the forward pass.
    pub fn matched(&self) -> Vec<Matched> {
        let mut groups: Vec<(&LoraEntry, Vec<usize>, u64)> = Vec::new();
        let same = |a: &LoraEntry, b: &LoraEntry| {
            let shape = |e: &LoraEntry| (name(e.site), e.rank, e.in_features, e.out_features);
            shape(a) == shape(b) && a.alpha == b.alpha
        };
        for entry in self.entries() {
            let layer = match entry.site {
                Site::Block(layer, _) => Some(layer),
                Site::Embedding | Site::Head => None,
            };
            match groups.iter_mut().find(|(first, ..)| same(first, entry)) {
                Some((_, layers, count)) => {
                    layers.extend(layer);
                    *count += 1;
                }
                None => groups.push((entry, layer.into_iter().collect(), 1)),
            }
        }
        groups.into_iter().map(|(entry, layers, count)| line(entry, &layers, count)).collect()
    }
}

fn line(entry: &LoraEntry, layers: &[usize], count: u64) -> Matched {
    Matched {
        module: name(entry.site).into(),
        layers: ranges(layers),
        count,
        rank: entry.rank as u64,
        alpha: entry.alpha,
        inputs: entry.in_features as u64,
        outputs: entry.out_features as u64,
        parameters: count * entry.parameters() as u64,
    }
}

fn name(site: Site) -> &'static str {
    match site {
        Site::Embedding => "embed_tokens",
        Site::Block(_, module) => module.name(),
        Site::Head => "lm_head",
    }
}

/// Ascending numbers, neighbours together.
fn ranges(numbers: &[usize]) -> String {
    let mut text = String::new();
    for run in numbers.chunk_by(|a, b| a + 1 == *b) {
        let comma = if text.is_empty() { "" } else { ", " };
        let (first, last) = (run[0], run[run.len() - 1]);
        let written =
            if first == last { write!(text, "{comma}{first}") } else { write!(text, "{comma}{first}-{last}") };
        written.expect("a string takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_layers_stand_together() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
        assert_eq!(ranges(&[]), "");
    }
}
