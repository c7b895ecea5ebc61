//! A model, an adapter on it and the optimizer's state, for whoever measures steps: on the processor (`examples/step.rs`) and on a GPU
//! (`bin/lorikeet-gpu`). Sequences are token ids; every token but a sequence's first is a target.

use std::path::Path;
use std::time::Instant;

use lorikeet_plan::{AdapterShape, Module, Processor, Settings, flops_per_token};

use crate::TrainError;
use crate::config::BaseDtype;
use crate::data::MicroBatch;
use crate::lora::{self, AdapterView, Dropout, LoraConfig, LoraLayout};
use crate::model::{Model, refusable_for};
use crate::ops::machine::{Clip, Exact, Machine};
use crate::ops::profile::Op;
use crate::optim::{AdamWSettings, Optimizer};

/// Of the adapter on every linear layer.
const RANK: usize = 16;

/// What takes steps.
#[derive(Debug)]
pub struct Trainee {
    model: Model,
    layout: LoraLayout,
    params: Exact,
    grads: Exact,
    clip: Clip,
    optimizer: Optimizer,
    dropout: Option<Dropout>,
    steps: u64,
}

/// One step.
#[derive(Debug, Clone)]
pub struct Measured {
    /// From the batch to the updated adapter.
    pub seconds: f64,
    /// Until everything was asked for: on a GPU, until it was all on the stream.
    pub asked: f64,
    /// In all sequences.
    pub tokens: usize,
    /// Mean over the targets.
    pub loss: f64,
    /// Multiplications and additions that the step calls for, whoever takes it.
    pub flops: u64,
    /// Seconds by operation.
    pub spent: Vec<(Op, f64)>,
}

impl Trainee {
    /// On the base in `dir`, with a fresh adapter of rank 16 on every linear layer.
    pub fn new(machine: Machine, dir: &Path, dtype: BaseDtype, dropout: f64) -> Result<Trainee, TrainError> {
        let model = Model::load_on(machine, dir, dtype, &|| false)?;
        let layout = LoraLayout::new(model.config(), &LoraConfig::plain(RANK, 32.0, dropout))?;
        let dropout = (dropout > 0.0).then_some(Dropout { p: dropout, seed: 1 });
        let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
        let mut optimizer = Optimizer::new(layout.len(), settings);
        refusable_for(
            || "what is trained and its moments".into(),
            || {
                let zeros = || model.machine().put_exact(vec![0.0; layout.len()]);
                (optimizer.m, optimizer.v) = (zeros(), zeros());
                let (params, clip) =
                    (model.machine().put_exact(lora::init(&layout, 1)), model.machine().clip(layout.len()));
                Ok(Trainee { grads: zeros(), params, clip, optimizer, dropout, steps: 0, layout, model })
            },
        )
    }

    /// Its model.
    pub fn model(&mut self) -> &mut Model {
        &mut self.model
    }

    /// One step of AdamW, clipped at 1; as many sequences at a time as `together` says.
    pub fn step(&mut self, sequences: &[Vec<u32>], together: usize) -> Result<Measured, TrainError> {
        let (start, before) = (Instant::now(), self.model.profile().spent());
        let targets: usize = sequences.iter().map(|ids| ids.len() - 1).sum();
        let mut example = 0;
        let machine = self.model.machine();
        let views = [AdapterView { layout: &self.layout, params: self.params.params(), dropout: self.dropout }];
        refusable_for(
            || "the gradient".into(),
            || {
                machine.clear_exact(&mut self.grads);
                Ok(())
            },
        )?;
        let mut work = self.model.work(&views, vec![self.grads.sums()])?;
        for some in sequences.chunks(together) {
            let mut batch = MicroBatch::default();
            for ids in some {
                batch.push(ids, &vec![true; ids.len()], 0, example, self.steps as u32);
                example += 1;
            }
            work.pass(&batch, &[1.0 / targets as f32], &|| false)?;
        }
        let losses = work.finish();
        self.steps += 1;
        let (judged, asked) = refusable_for(
            || "an update".into(),
            || {
                let of_step = (&losses, 0, targets as u64);
                let sent = machine.judge(&mut self.clip, &self.grads, of_step, Some(1.0));
                self.optimizer.update(machine, &mut self.params, (&self.grads, &self.clip), self.steps, 1e-4);
                let asked = start.elapsed().as_secs_f64();
                Ok((machine.receive(sent), asked))
            },
        )?;
        let spent = self.model.profile().spent().into_iter().zip(before);
        Ok(Measured {
            seconds: start.elapsed().as_secs_f64(),
            asked,
            tokens: sequences.iter().map(Vec::len).sum(),
            loss: judged.loss,
            flops: sequences.iter().map(|ids| self.flops(ids.len())).sum(),
            spent: spent.map(|((op, after), (_, before))| (op, (after - before).as_secs_f64())).collect(),
        })
    }

    fn flops(&self, tokens: usize) -> u64 {
        let config = self.model.config();
        let settings = Settings {
            adapters: vec![AdapterShape::uniform(config, RANK, &Module::of(config))],
            base_dtype: BaseDtype::F32,
            processor: Processor::Cpu,
            tokens_per_micro: tokens,
            longest_segment: tokens,
            supervised_rows: tokens - 1,
            recompute: 0,
        };
        let flops = flops_per_token(config, &settings);
        (flops.forward + flops.backward) * tokens as u64
    }
}
