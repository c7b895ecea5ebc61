//! What is trained at a head, of no model: what [`Beside`] is asked for, chunk by chunk.

use std::ops::Range;

use super::Answer;
use crate::ops::head::Beside;
use crate::ops::lora::{self, Columns};
use crate::ops::machine::{Buffer, Input, Machine, Pair, Part, PartMut, Sums};

/// Trained beside a head's weight.
struct Adapted<'a, 'g> {
    machine: &'a Machine,
    pair: Pair<'a>,
    /// Gradients of A, then of B.
    sums: &'a mut Sums<'g>,
    places: [Range<usize>; 2],
    columns: Columns,
    /// Of the chunk in progress.
    u: Option<Buffer>,
    /// The first row of the next one.
    next: usize,
}

/// Losses and the gradient of x, which `run` makes with the adapter beside a head of so many outputs; and the gradients of A and B.
pub(super) fn adapted(
    machine: &Machine,
    pair: lora::Pair<'_, f32>,
    outputs: usize,
    run: impl FnOnce(&mut dyn Beside) -> Answer<[Vec<f32>; 2]>,
) -> Answer<[Vec<f32>; 4]> {
    let (numbers, a) = ([pair.a, pair.b].concat(), pair.a.len());
    let (operand, places) = (machine.operand((&numbers).into()), [0..a, a..numbers.len()]);
    let mut grads = vec![0.0; numbers.len()];
    let [losses, dx] = machine.adding(&mut [&mut grads], |sums| {
        let [a, b] = places.clone().map(|place| operand.part(place));
        let pair = Pair { a, b, rank: pair.rank, scale: pair.scale };
        let columns = Columns::all(outputs);
        run(&mut Adapted { machine, pair, sums: &mut sums[0], places, columns, u: None, next: 0 })
    })?;
    let db = grads.split_off(a);
    Ok([losses, dx, grads, db])
}

/// The head's own weight, trained itself.
struct Own<'a, 'g> {
    machine: &'a Machine,
    inputs: usize,
    columns: Columns,
    sums: &'a mut Sums<'g>,
}

/// Losses and the gradient of x, which `run` makes with a head of so many outputs and inputs that is trained itself; and its gradient, added to
/// what is given.
pub(super) fn own(
    machine: &Machine,
    (outputs, inputs): (usize, usize),
    dw: &[f32],
    run: impl FnOnce(&mut dyn Beside) -> Answer<[Vec<f32>; 2]>,
) -> Answer<[Vec<f32>; 3]> {
    let mut grads = dw.to_vec();
    let [losses, dx] = machine.adding(&mut [&mut grads], |sums| {
        run(&mut Own { machine, inputs, columns: Columns::all(outputs), sums: &mut sums[0] })
    })?;
    Ok([losses, dx, grads])
}

impl Beside for Own<'_, '_> {
    fn forward(&mut self, _: Range<usize>, _: &Part<'_>, _: PartMut<'_>) {}

    fn backward(&mut self, _: Range<usize>, x: &Part<'_>, dlogits: &Part<'_>, _: PartMut<'_>) {
        let to = self.sums.at(0..self.inputs * self.columns.count);
        self.machine.weight_backward((x, self.inputs), (dlogits, self.columns), to);
    }
}

impl Beside for Adapted<'_, '_> {
    fn forward(&mut self, rows: Range<usize>, x: &Part<'_>, logits: PartMut<'_>) {
        assert_eq!(rows.start, self.next, "chunks come in order");
        let mut u = self.machine.take(rows.len() * self.pair.rank);
        self.machine.lora(&self.pair, &self.input(&rows, x), u.all_mut(), logits, self.columns);
        (self.u, self.next) = (Some(u), rows.end);
    }

    fn backward(&mut self, rows: Range<usize>, x: &Part<'_>, dlogits: &Part<'_>, dx: PartMut<'_>) {
        assert_eq!(rows.end, self.next, "right after the chunk's forward");
        let (u, input) = (self.u.take().expect("kept"), self.input(&rows, x));
        let (passed, sums) = ((u.all(), dlogits, self.columns), (&mut *self.sums, self.places.clone()));
        self.machine.lora_backward(&self.pair, &input, passed, sums, Some(dx));
        self.machine.give(u);
    }
}

impl Adapted<'_, '_> {
    /// All rows of a chunk, and not one more.
    fn input<'x>(&self, rows: &Range<usize>, x: &Part<'x>) -> Input<'x> {
        Input { x: x.slice(0..rows.len() * self.places[0].len() / self.pair.rank), mask: None }
    }
}
