//! A model and data, for as many runs as a test wants: on the processor (`tests/stepping.rs`) and on a GPU (`tests/goldens_on_gpu.rs`).

#![expect(unreachable_pub, reason = "shared by test programs, each of which is a crate of its own")]

use std::path::Path;

use lorikeet_dataset::{OnFault, PrepareConfig, Prepared, Tokenizer, prepare};
use lorikeet_trainer::config::Settings;
use lorikeet_trainer::lora::{self, LoraLayout};
use lorikeet_trainer::model::Model;
use lorikeet_trainer::{Config, Run};

use crate::place::Place;

/// One model, one dataset.
pub struct Work {
    pub config: Config,
    pub model: Model,
    pub data: Prepared,
    _place: Place,
}

impl Work {
    pub fn new(load: impl FnOnce(&Path) -> Model) -> Work {
        let place = Place::new(14);
        let config = place.config("attempt");
        let tokenizer = Tokenizer::load(&config.base).expect("a tokenizer");
        let wanted = PrepareConfig {
            file: config.data.file.clone(),
            validation_file: None,
            validation_fraction: 0.0,
            max_seq_length: 256,
            supervise: config.settings.supervise,
            seed: 1,
            filters: config.data.filters.clone(),
            on_fault: OnFault::Refuse,
            cache_dir: place.path("cache"),
        };
        let data = prepare(&wanted, &tokenizer, &mut |_| {}, &|| false).expect("sound data");
        Work { model: load(&config.base), config, data, _place: place }
    }

    pub fn layout(&self, settings: &Settings) -> LoraLayout {
        LoraLayout::new(self.model.config(), &settings.lora).expect("matches")
    }

    pub fn run(&self, settings: &Settings) -> Run {
        let layout = self.layout(settings);
        let params = lora::init(&layout, settings.seed);
        self.run_from(settings, layout, params)
    }

    pub fn run_from(&self, settings: &Settings, layout: LoraLayout, params: Vec<f32>) -> Run {
        Run::new(settings, layout, params, self.data.train.clone())
    }
}
