//! A linear layer of a block and whatever adapters sit on it. One weight may hold several modules, one below the other
//! (q, k and v; gate and up): one product makes all of them, and each module's adapter adds to its own columns.

use std::ops::Range;

use lorikeet_plan::Module;

use crate::lora::Site;
use crate::ops::lora::Columns;
use crate::ops::machine::{Buffer, Machine, Sums, Weight};
use crate::ops::profile::Op;

use super::new::New;
use super::pass::{Adapted, Pass, Products};

/// A weight and the modules it is made of.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Weight,
    parts: Vec<(Module, Range<usize>)>,
}

/// What its backward needs beside its input.
#[derive(Debug)]
pub(super) struct LinearKept(Vec<Products>);

impl LinearKept {
    pub(super) fn give(self, machine: &Machine) {
        self.0.into_iter().for_each(|products| products.give(machine));
    }
}

impl Linear {
    /// `parts` are the modules and the rows of the weight that are theirs.
    pub(super) fn new(weight: Weight, parts: Vec<(Module, Range<usize>)>) -> Linear {
        Linear { weight, parts }
    }

    /// Numbers in a row of the output.
    pub(super) fn outputs(&self) -> usize {
        self.weight.rows()
    }

    /// `y = layer(x)`.
    pub(super) fn forward(&self, pass: &Pass<'_>, layer: usize, x: &Buffer, y: &mut Buffer) -> LinearKept {
        pass.time(Op::Linear, || pass.machine.linear(x, &self.weight, y));
        self.add_adapters(pass, layer, x, y)
    }

    /// `y = onto + layer(x)`.
    pub(super) fn forward_onto(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        x: &Buffer,
        onto: &Buffer,
        y: &mut Buffer,
    ) -> LinearKept {
        pass.time(Op::Linear, || pass.machine.linear_onto(x, &self.weight, onto, y));
        self.add_adapters(pass, layer, x, y)
    }

    fn add_adapters(&self, pass: &Pass<'_>, layer: usize, x: &Buffer, y: &mut Buffer) -> LinearKept {
        let add = |(module, rows): &(Module, Range<usize>)| {
            let adapted = self.adapted(Site::Block(layer, *module), rows);
            pass.time(Op::Lora, || pass.lora_forward(adapted, &pass.all, &x.all(), y.all_mut()))
        };
        LinearKept(self.parts.iter().map(add).collect())
    }

    /// Adds the gradients of adapters, or of weight and bias, to `grads`; overwrites `dx` where the gradient for x is wanted.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        (x, kept): (&Buffer, &LinearKept),
        dy: &Buffer,
        mut dx: Option<&mut Buffer>,
        grads: &mut [Sums<'_>],
    ) {
        if let Some(dx) = dx.as_deref_mut() {
            pass.time(Op::Linear, || pass.machine.linear_backward(dy, &self.weight, dx));
        }
        for (module, rows) in &self.parts {
            self.weights_backward(pass, (layer, *module), self.columns(rows), (x, dy), grads);
        }
        for ((module, rows), products) in self.parts.iter().zip(&kept.0) {
            let adapted = self.adapted(Site::Block(layer, *module), rows);
            let (x, dy, dx) = (x.all(), dy.all(), dx.as_deref_mut().map(Buffer::all_mut));
            pass.time(Op::Lora, || pass.lora_backward(adapted, &pass.all, (&x, products), &dy, dx, grads));
        }
    }

    /// Where the model itself is trained: the gradients of one module's weight and bias.
    fn weights_backward(
        &self,
        pass: &Pass<'_>,
        (layer, module): (usize, Module),
        columns: Columns,
        (x, dy): (&Buffer, &Buffer),
        grads: &mut [Sums<'_>],
    ) {
        let (path, machine) = (module.path(layer), pass.machine);
        let Some(dw) = pass.own(&format!("{path}.weight"), grads) else { return };
        let (x, dy) = ((&x.all(), self.weight.cols()), (&dy.all(), columns));
        pass.time(Op::Linear, || machine.weight_backward(x, dy, dw));
        if module.has_bias(pass.config)
            && let Some(db) = pass.own(&format!("{path}.bias"), grads)
        {
            pass.time(Op::Linear, || machine.bias_backward(dy, db));
        }
    }

    /// Takes new numbers.
    pub(super) fn set(&mut self, layer: usize, new: &New<'_>) {
        for (module, rows) in &self.parts {
            let path = module.path(layer);
            new.rows(&format!("{path}.weight"), &mut self.weight, rows.clone());
            if module.has_bias(new.config) {
                new.bias(&format!("{path}.bias"), &mut self.weight, rows.clone());
            }
        }
    }

    /// The weight under one module, if it is here.
    pub(super) fn weight_of(&self, module: Module) -> Option<(&Weight, Range<usize>)> {
        let (_, rows) = self.parts.iter().find(|(part, _)| *part == module)?;
        Some((&self.weight, rows.clone()))
    }

    fn adapted(&self, site: Site, rows: &Range<usize>) -> Adapted<'_> {
        Adapted { site, weight: &self.weight, columns: self.columns(rows) }
    }

    fn columns(&self, rows: &Range<usize>) -> Columns {
        Columns { first: rows.start, count: rows.len(), stride: self.weight.rows() }
    }
}
