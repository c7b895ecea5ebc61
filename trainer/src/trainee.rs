//! A model, an adapter on it and the optimizer's state, for whoever measures steps: on the processor (`examples/step.rs`) and on a GPU
//! (`bin/lorikeet-gpu`). Sequences are token ids; every token but a sequence's first is a target.

use std::path::Path;
use std::time::Instant;

use lorikeet_plan::{AdapterShape, Module, Processor, Settings, flops_per_token};

use crate::TrainError;
use crate::config::BaseDtype;
use crate::data::MicroBatch;
use crate::lora::{self, AdapterView, Dropout, LoraConfig, LoraLayout};
use crate::model::Model;
use crate::ops::adamw::{AdamW, adamw, clip_factor, norm};
use crate::ops::machine::Machine;
use crate::ops::profile::Op;

/// Of the adapter on every linear layer.
const RANK: usize = 16;

/// What takes steps.
#[derive(Debug)]
pub struct Trainee {
    model: Model,
    layout: LoraLayout,
    params: Vec<f32>,
    moments: [Vec<f32>; 2],
    dropout: Option<Dropout>,
    steps: u64,
}

/// One step.
#[derive(Debug, Clone)]
pub struct Measured {
    /// From the batch to the updated adapter.
    pub seconds: f64,
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
        let params = lora::init(&layout, 1);
        let moments = [vec![0.0; params.len()], vec![0.0; params.len()]];
        let dropout = (dropout > 0.0).then_some(Dropout { p: dropout, seed: 1 });
        Ok(Trainee { model, layout, params, moments, dropout, steps: 0 })
    }

    /// Its model.
    pub fn model(&mut self) -> &mut Model {
        &mut self.model
    }

    /// One step of AdamW, clipped at 1; as many sequences at a time as `together` says.
    pub fn step(&mut self, sequences: &[Vec<u32>], together: usize) -> Result<Measured, TrainError> {
        let (start, before) = (Instant::now(), self.model.profile().spent());
        let targets: usize = sequences.iter().map(|ids| ids.len() - 1).sum();
        let mut grads = vec![0.0; self.params.len()];
        let (mut loss, mut example) = (0.0, 0);
        let views = [AdapterView { layout: &self.layout, params: &self.params, dropout: self.dropout }];
        let mut work = self.model.work(&views, vec![&mut grads])?;
        for some in sequences.chunks(together) {
            let mut batch = MicroBatch::default();
            for ids in some {
                batch.push(ids, &vec![true; ids.len()], 0, example, self.steps as u32);
                example += 1;
            }
            loss += work.pass(&batch, &[1.0 / targets as f32], &|| false)?[0].sum;
        }
        work.finish()?;
        self.steps += 1;
        let settings = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        let ([m, v], clip) = (&mut self.moments, clip_factor(norm(&grads), Some(1.0)));
        adamw(&mut self.params, m, v, &grads, settings, self.steps, clip);
        let spent = self.model.profile().spent().into_iter().zip(before);
        Ok(Measured {
            seconds: start.elapsed().as_secs_f64(),
            tokens: sequences.iter().map(Vec::len).sum(),
            loss: loss / targets as f64,
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
