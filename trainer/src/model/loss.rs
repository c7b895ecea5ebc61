//! The end of a pass: the last norm, the head and the loss over supervised rows, and what is trained there.

use std::ops::Range;

use crate::data::MicroBatch;
use crate::lora::Site;
use crate::ops::head::{Beside, Wanted};
use crate::ops::lora::Columns;
use crate::ops::machine::{Buffer, Head, LossSums, Losses, Machine, Part, PartMut, Sums};
use crate::ops::profile::Op;

use super::pass::{Adapted, Pass, Products, Rows};
use super::{EMBEDDING, HEAD, LossSum, Model};

impl Model {
    pub(super) fn head(&self) -> Head<'_> {
        let softcap = self.config.logit_softcap.map(|cap| cap as f32);
        Head { weight: self.head.as_ref().unwrap_or(&self.embedding), softcap }
    }

    /// A tied head is the embedding.
    fn head_tensor(&self) -> &'static str {
        if self.config.tie_word_embeddings { EMBEDDING } else { HEAD }
    }

    fn adapted_head(&self) -> Adapted<'_> {
        Adapted { site: Site::Head, weight: self.head().weight, columns: Columns::all(self.config.vocab_size) }
    }

    /// Losses, of which [`Pending::sums`] makes those of each adapter; where the gradient is wanted, that for `last` goes to the (zeroed)
    /// buffer for it.
    pub(super) fn head_loss(
        &self,
        pass: &Pass<'_>,
        batch: &MicroBatch,
        last: &Buffer,
        gradient: Option<Gradient<'_, '_>>,
    ) -> Option<Pending> {
        if batch.targets.is_empty() {
            return None;
        }
        let width = self.config.hidden_size;
        let rows: Vec<usize> = batch.targets.iter().map(|target| target.row as usize).collect();
        let adapter_of = |row: &usize| pass.segment_of(*row).adapter;
        let machine = &self.machine;
        let seen = machine.gather(last, width, &rows);
        let mut hidden = machine.take(rows.len() * width);
        self.norm.forward(pass, &seen, &mut hidden);
        let weight = |row: &usize| gradient.as_ref().map_or(0.0, |gradient| gradient.scale[adapter_of(row)]);
        let wanted: Vec<Wanted> = rows
            .iter()
            .zip(&batch.targets)
            .map(|(row, target)| Wanted { target: target.token, weight: weight(row) })
            .collect();
        let mut beside = BesideHead { model: self, pass, rows: rows.clone(), kept: None, grads: None };
        let losses = match gradient {
            None => pass.time(Op::Head, || machine.head_loss(&hidden, self.head(), &wanted, &mut beside, None)),
            Some(Gradient { dx, grads, .. }) => {
                let mut dhidden = machine.take(rows.len() * width);
                beside.grads = Some(&mut *grads);
                let (head, to) = (self.head(), Some(&mut dhidden));
                let losses = pass.time(Op::Head, || machine.head_loss(&hidden, head, &wanted, &mut beside, to));
                // `hidden` is done with and receives the gradient of the gathered rows
                machine.clear(&mut hidden);
                self.norm.backward(pass, &seen, &dhidden, &mut hidden, grads);
                machine.scatter(&hidden, width, &rows, dx);
                machine.give(dhidden);
                losses
            }
        };
        machine.give(hidden);
        machine.give(seen);
        Some(Pending { losses, adapters: rows.iter().map(adapter_of).collect() })
    }
}

/// Losses that may still be on their way: who asks for them before the gradients are on theirs makes a GPU wait.
pub(super) struct Pending {
    losses: Losses,
    /// Whose each of them is.
    adapters: Vec<usize>,
}

impl Pending {
    /// Of every adapter of the pass. Nothing is pending where there was no target.
    pub(super) fn sums(pending: Option<Pending>, pass: &Pass<'_>) -> Vec<LossSum> {
        let mut sums = vec![LossSum::default(); pass.adapters()];
        let Some(Pending { losses, adapters }) = pending else { return sums };
        for (loss, adapter) in pass.machine.read(losses).into_iter().zip(adapters) {
            sums[adapter].sum += loss;
            sums[adapter].count += 1;
        }
        sums
    }

    /// Adds them up, wherever they are: nobody waits.
    pub(super) fn add(pending: Option<Pending>, machine: &Machine, sums: &mut LossSums) {
        let Some(Pending { losses, adapters }) = pending else { return };
        machine.add_losses(losses, &adapters, sums);
    }
}

/// Where the gradients of a pass go.
pub(super) struct Gradient<'a, 'g> {
    /// What each adapter's loss sum counts.
    pub(super) scale: &'a [f32],
    /// The last layer's output.
    pub(super) dx: &'a mut Buffer,
    /// Every adapter's flat gradient, or that of all weights.
    pub(super) grads: &'a mut [Sums<'g>],
}

/// What is trained at the head, chunk by chunk of the rows that it sees: adapters, or its own weight.
pub(super) struct BesideHead<'a, 'g> {
    pub(super) model: &'a Model,
    pub(super) pass: &'a Pass<'a>,
    /// Which rows of the batch they are.
    pub(super) rows: Vec<usize>,
    /// Of the chunk in progress, where adapters are trained.
    pub(super) kept: Option<(Rows, Products)>,
    pub(super) grads: Option<&'a mut [Sums<'g>]>,
}

impl Beside for BesideHead<'_, '_> {
    fn forward(&mut self, rows: Range<usize>, x: &Part<'_>, logits: PartMut<'_>) {
        if !self.pass.has(Site::Head) {
            return;
        }
        let rows = self.pass.some(&self.rows[rows]);
        let products = self.pass.lora_forward(self.model.adapted_head(), &rows, x, logits);
        match self.grads {
            None => products.give(&self.model.machine),
            Some(_) => self.kept = Some((rows, products)),
        }
    }

    fn backward(&mut self, _: Range<usize>, x: &Part<'_>, dlogits: &Part<'_>, dx: PartMut<'_>) {
        let Some(grads) = self.grads.as_deref_mut() else { return };
        let (model, adapted) = (self.model, self.model.adapted_head());
        if let Some(own) = self.pass.own(model.head_tensor(), grads) {
            model.machine.weight_backward((x, model.config.hidden_size), (dlogits, adapted.columns), own);
        }
        if let Some((rows, products)) = self.kept.take() {
            self.pass.lora_backward(adapted, &rows, (x, &products), dlogits, Some(dx), grads);
            products.give(&model.machine);
        }
    }
}
