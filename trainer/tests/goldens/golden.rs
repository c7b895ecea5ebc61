//! A golden case with the model and the adapter that it begins with, for whoever passes and steps it: on the processor
//! (`tests/goldens.rs`) and on a GPU (`tests/goldens_on_gpu.rs`).

#![expect(unreachable_pub, reason = "shared by test programs, each of which is a crate of its own")]
#![allow(dead_code, reason = "none of them uses all of it")]

use lorikeet_dataset::{PrepareConfig, Tokenizer, prepare};
use lorikeet_trainer::config::{Length, Settings};
use lorikeet_trainer::data::MicroBatch;
use lorikeet_trainer::lora::{self, AdapterView, Init, LoraLayout};
use lorikeet_trainer::model::Model;
use lorikeet_trainer::schedule::Curve;
use lorikeet_trainer::{Run, Taken, step};
use safetensors::SafeTensors;

use crate::case::{Case, Sequence};

/// Fewer than a batch of most cases has, so that its gradient is summed over several micro-batches.
const MICRO_TOKENS: usize = 40;

/// One case, with the model and the adapter that it begins with.
pub struct Golden {
    pub case: Case,
    pub model: Model,
    pub layout: LoraLayout,
    pub params: Vec<f32>,
    pub expected: Vec<u8>,
}

impl Golden {
    pub fn open(name: &str) -> Golden {
        let case = Case::open(name);
        let model = Model::load(&case.folder.join("base")).expect("a sound base");
        let mut config = lora::read_config(&case.folder.join("adapter")).expect("PEFT's settings");
        config.init = if name == "pissa" { Init::Pissa } else { Init::Default };
        let layout = LoraLayout::new(model.config(), &config).expect("targets match");
        let params = match config.init {
            Init::Default => lora::load(&case.folder.join("adapter"), &layout).expect("PEFT's adapter"),
            Init::Pissa => model.start(&layout, 1),
        };
        let expected = std::fs::read(case.folder.join("expected.safetensors")).expect("expected numbers");
        Golden { case, model, layout, params, expected }
    }

    pub fn view(&self) -> AdapterView<'_> {
        AdapterView { layout: &self.layout, params: (&self.params).into(), dropout: None }
    }

    pub fn expected(&self, key: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.expected).expect("safetensors");
        let bytes = file.tensor(key).expect(key).data().to_vec();
        bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
    }

    /// How far gradients are from the reference's, each kind together as a share of its length: A's, B's, and those of row lengths, where
    /// there are any.
    pub fn gradients_apart(&self, grads: &[f32]) -> Vec<f64> {
        let (mut apart, mut whole) = ([0.0; 3], [0.0; 3]);
        for entry in self.layout.entries() {
            let places = [entry.a.clone(), entry.b.clone(), entry.magnitude.clone()];
            for (kind, (key, place)) in entry.keys().iter().zip(places).enumerate() {
                for (ours, theirs) in grads[place].iter().zip(self.expected(&format!("grad.{key}"))) {
                    apart[kind] += f64::from(ours - theirs).powi(2);
                    whole[kind] += f64::from(theirs).powi(2);
                }
            }
        }
        apart.iter().zip(whole).filter(|(_, whole)| *whole > 0.0).map(|(apart, whole)| (apart / whole).sqrt()).collect()
    }

    /// The loss sum of a batch, its gradient added to `grads`.
    pub fn add(&self, batch: &MicroBatch, grads: &mut [f32]) -> f64 {
        let sums = self.model.forward_backward(batch, &[self.view()], &[1.0], &mut [grads], &|| false);
        sums.expect("a pass")[0].sum
    }

    /// The whole run, by the steps of the trainer: loss, rate and norm of each, and the weights after it.
    pub fn train(&self) -> (Vec<[f64; 3]>, Vec<f32>) {
        let place = tempfile::tempdir().expect("a directory");
        let (base, file) = (place.path().join("base"), place.path().join("data.jsonl"));
        self.case.write_base(&base);
        self.case.write_data(&file);
        let tokenizer = Tokenizer::load(&base).expect("a tokenizer");
        let config = PrepareConfig { validation_fraction: 0.0, ..PrepareConfig::new(&file, place.path()) };
        let data = prepare(&config, &tokenizer, &mut |_| {}, &|| false).expect("a dataset");
        let settings = &self.case.run;
        let settings = Settings {
            lora: self.layout.config().clone(),
            learning_rate: settings.lr,
            schedule: Curve::Cosine,
            warmup_ratio: settings.warmup as f64 / self.case.steps as f64,
            length: Length::Steps(self.case.steps as u64),
            batch_size: settings.batch as u64,
            weight_decay: settings.weight_decay,
            max_grad_norm: settings.max_grad_norm,
            shuffle: false,
            plus_ratio: settings.plus_ratio,
            ..Settings::default()
        };
        let mut run = Run::new(&settings, self.layout.clone(), self.params.clone(), data.train);
        let mut one = || match step(&self.model, std::slice::from_mut(&mut run), MICRO_TOKENS, &|| false) {
            Ok(taken) => match taken[0] {
                Taken::Done(step) => [step.loss, step.lr, step.grad_norm],
                Taken::NotFinite { .. } => panic!("{}: {taken:?}", self.case.name),
            },
            Err(error) => panic!("{}: {error}", self.case.name),
        };
        let steps = (0..self.case.steps).map(|_| one()).collect();
        (steps, run.params().expect("read back").into_owned())
    }

    pub fn assert_near(&self, what: &str, ours: &[f32], theirs: &[f32]) {
        self.assert_within(what, ours, theirs, 1e-4);
    }

    /// Relative to the whole tensor: |ours − theirs| ≤ tolerance · |theirs|.
    pub fn assert_within(&self, what: &str, ours: &[f32], theirs: &[f32], tolerance: f64) {
        assert_eq!(ours.len(), theirs.len(), "{}: {what}", self.case.name);
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let apart = norm(&mut ours.iter().zip(theirs).map(|(a, b)| f64::from(a - b)));
        let size = norm(&mut theirs.iter().map(|x| f64::from(*x)));
        assert!(
            size > 0.0 && apart <= tolerance * size,
            "{}: {what} is {apart:e} off a norm of {size:e}",
            self.case.name
        );
    }
}

pub fn batch<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> MicroBatch {
    let mut batch = MicroBatch::default();
    for (example, sequence) in (0..).zip(sequences) {
        batch.push(&sequence.tokens, &sequence.supervised, 0, example, 0);
    }
    batch
}
