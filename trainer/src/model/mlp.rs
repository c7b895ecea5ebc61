//! The MLP half of a block: `x' = mid + down_proj(f(gate) · up)` with gate and up from `norm(mid)`.

use lorikeet_plan::Module;

use crate::ops::machine::{Buffer, Machine, Sums};
use crate::ops::profile::Op;

use super::attention;
use super::ends::{Entry, Exit, ExitKept};
use super::linear::LinearKept;
use super::pass::Pass;

const GATE_UP: [Module; 3] = [Module::GateProj, Module::UpProj, Module::GateUpProj];

/// Weights of the half.
#[derive(Debug)]
pub(super) struct Mlp {
    /// gate and up.
    pub(super) entry: Entry,
    /// down_proj.
    pub(super) exit: Exit,
}

/// What its backward needs beside mid.
#[derive(Debug)]
pub(super) struct MlpKept {
    gate_up: Buffer,
    entry: LinearKept,
    exit: ExitKept,
}

impl MlpKept {
    pub(super) fn give(self, machine: &Machine) {
        machine.give(self.gate_up);
        self.entry.give(machine);
        self.exit.give(machine);
    }
}

impl Mlp {
    pub(super) fn forward(&self, pass: &Pass<'_>, layer: usize, mid: &Buffer) -> (Buffer, MlpKept) {
        let (gate_up, entry) = self.entry.forward(pass, layer, mid);
        let act = activated(pass, &gate_up);
        let (next, exit) = self.exit.forward(pass, layer, &act, mid);
        pass.machine.give(act);
        (next, MlpKept { gate_up, entry, exit })
    }

    /// Turns the gradient of x' into that of mid, as far down as one is wanted. What was kept is used up.
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        (mid, kept): (&Buffer, &mut MlpKept),
        dx: &mut Buffer,
        grads: &mut [Sums<'_>],
    ) {
        let (config, machine) = (pass.config, pass.machine);
        let below = pass.reaches(layer, &attention::MODULES);
        let wanted = below || pass.reaches(layer, &GATE_UP);
        let act = activated(pass, &kept.gate_up);
        let mut dact = machine.take(act.len());
        self.exit.backward(pass, layer, (&act, &kept.exit), dx, wanted.then_some(&mut dact), grads);
        machine.give(act);
        if wanted {
            let width = config.intermediate_size;
            pass.time(Op::Glu, || machine.glu_backward(config.activation, &mut kept.gate_up, width, &dact));
            self.entry.backward(pass, layer, (mid, &kept.entry), &kept.gate_up, (dx, below), grads);
        }
        machine.give(dact);
    }
}

fn activated(pass: &Pass<'_>, gate_up: &Buffer) -> Buffer {
    let width = pass.config.intermediate_size;
    let mut act = pass.machine.take(pass.rows() * width);
    pass.time(Op::Glu, || pass.machine.glu(pass.config.activation, gate_up, width, &mut act));
    act
}
