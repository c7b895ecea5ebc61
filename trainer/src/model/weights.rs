//! A model from a Hugging Face directory: `config.json` and safetensors in f32, bf16 or f16, one file or several.
//!
//! Everything is judged before a byte is used: headers against the file sizes, names, shapes and types against what the config
//! calls for (`lorikeet_plan::inspect_base`). Pickles are never opened. All numbers become `f32`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lorikeet_plan::{Base, Module, TensorPlace, WeightDtype, inspect_base};
use rayon::prelude::*;

use super::Model;
use super::attention::Attention;
use super::block::Block;
use super::mlp::Mlp;
use crate::TrainError;
use crate::ops::buffer::Buffers;
use crate::ops::linear::Weight;
use crate::ops::profile::Profile;
use crate::ops::rope;
use crate::ops::widen::{Stored, widen};

/// Numbers read at a time by one thread.
const PIECE: usize = 1 << 18;

impl Model {
    /// Reads the directory. The first fault is named and nothing is loaded.
    pub fn load(dir: &Path) -> Result<Model, TrainError> {
        Model::load_unless(dir, &|| false)
    }

    /// As [`Model::load`]; `stop` is asked before every piece of a tensor and ends it with [`TrainError::Stopped`].
    pub fn load_unless(dir: &Path, stop: &(dyn Fn() -> bool + Sync)) -> Result<Model, TrainError> {
        let base = inspect_base(dir);
        if let Some(fault) = base.faults.first() {
            let hint = fault.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
            return Err(TrainError::Base { path: dir.join(&fault.file), reason: format!("{}{hint}", fault.message) });
        }
        let Base { config: Some(config), places, .. } = base else {
            return Err(TrainError::Internal("a base without faults has a config".into()));
        };
        let files = Files::open(dir, places, stop)?;
        let blocks = (0..config.num_hidden_layers).map(|layer| files.block(layer));
        Ok(Model {
            embedding: files.matrix(&["model.embed_tokens".into()])?,
            blocks: blocks.collect::<Result<_, _>>()?,
            norm: files.vector("model.norm")?,
            head: if config.tie_word_embeddings { None } else { Some(files.matrix(&["lm_head".into()])?) },
            frequencies: rope::frequencies(&config),
            buffers: Buffers::default(),
            profile: Profile::default(),
            config,
        })
    }
}

/// Open weight files, already judged.
struct Files<'a> {
    places: BTreeMap<String, TensorPlace>,
    open: BTreeMap<String, (PathBuf, File)>,
    stop: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Files<'a> {
    fn open(
        dir: &Path,
        places: BTreeMap<String, TensorPlace>,
        stop: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<Files<'a>, TrainError> {
        let mut open = BTreeMap::new();
        for place in places.values() {
            if !open.contains_key(&place.file) {
                let path = dir.join(&place.file);
                let file = File::open(&path).map_err(TrainError::io("read", &path))?;
                open.insert(place.file.clone(), (path, file));
            }
        }
        Ok(Files { places, open, stop })
    }

    fn block(&self, layer: usize) -> Result<Block, TrainError> {
        let paths = |modules: &[Module]| modules.iter().map(|module| module.path(layer)).collect::<Vec<_>>();
        let norm = |name: &str| self.vector(&format!("model.layers.{layer}.{name}"));
        Ok(Block {
            attention: Attention {
                norm: norm("input_layernorm")?,
                qkv: self.matrix(&paths(&[Module::QProj, Module::KProj, Module::VProj]))?,
                out: self.matrix(&paths(&[Module::OProj]))?,
            },
            mlp: Mlp {
                norm: norm("post_attention_layernorm")?,
                gate_up: self.matrix(&paths(&[Module::GateProj, Module::UpProj]))?,
                down: self.matrix(&paths(&[Module::DownProj]))?,
            },
        })
    }

    fn vector(&self, module: &str) -> Result<Vec<f32>, TrainError> {
        let place = self.place(module);
        let mut numbers = vec![0.0; place.shape.iter().product()];
        self.read(place, &mut numbers)?;
        Ok(numbers)
    }

    /// The weights of several modules, one below the other.
    fn matrix(&self, modules: &[String]) -> Result<Weight, TrainError> {
        let places: Vec<_> = modules.iter().map(|module| self.place(module)).collect();
        let rows = places.iter().map(|place| place.shape[0]).sum();
        let cols = places[0].shape[1];
        let mut numbers = vec![0.0; rows * cols];
        let mut rest = &mut numbers[..];
        for place in places {
            let (part, others) = rest.split_at_mut(place.shape[0] * cols);
            self.read(place, part)?;
            rest = others;
        }
        Ok(Weight::new(numbers, rows, cols))
    }

    fn place(&self, module: &str) -> &TensorPlace {
        self.places.get(&format!("{module}.weight")).expect("a base without faults has every tensor of its config")
    }

    fn read(&self, place: &TensorPlace, numbers: &mut [f32]) -> Result<(), TrainError> {
        let (path, file) = self.open.get(&place.file).expect("every file that holds a tensor was opened");
        let stored = stored(place.dtype);
        let read = |(piece, numbers): (usize, &mut [f32])| {
            if (self.stop)() {
                return Err(TrainError::Stopped);
            }
            let mut bytes = vec![0; numbers.len() * stored.bytes()];
            let offset = place.offset + (piece * PIECE * stored.bytes()) as u64;
            file.read_exact_at(&mut bytes, offset).map_err(TrainError::io("read", path))?;
            widen(stored, &bytes, numbers);
            Ok(())
        };
        numbers.par_chunks_mut(PIECE).enumerate().try_for_each(read)
    }
}

/// How the numbers of a judged tensor lie on disk.
fn stored(dtype: WeightDtype) -> Stored {
    let known = [(WeightDtype::F32, Stored::F32), (WeightDtype::F16, Stored::F16), (WeightDtype::Bf16, Stored::Bf16)];
    let found = known.into_iter().find(|(known, _)| *known == dtype);
    found.expect("a base without faults holds f32, f16 or bf16").1
}
