//! A model from a Hugging Face directory: `config.json` and safetensors in f32, bf16 or f16, one file or several.
//!
//! Everything is judged before a byte is used: headers against the file sizes, names, shapes and types against what the config
//! calls for (`lorikeet_plan::inspect_base`). Pickles are never opened. All numbers become `f32`, or weights what is asked for.

mod quantised;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::bf16;
use lorikeet_plan::{Base, BaseDtype, ModelConfig, Module, Quantisation, TensorPlace, WeightDtype, inspect_base};
use rayon::prelude::*;

use super::attention::Attention;
use super::block::Block;
use super::ends::{Entry, Exit};
use super::gain::Gain;
use super::linear::Linear;
use super::mlp::Mlp;
use super::{Model, gpu, refusable_for};
use crate::TrainError;
use crate::ops::linear;
use crate::ops::machine::Machine;
use crate::ops::profile::Profile;
use crate::ops::rope::Known;
use crate::ops::widen::{Stored, widen};
use crate::quant::Stack;

/// Numbers read at a time by one thread.
const PIECE: usize = 1 << 18;

impl Model {
    /// Reads the directory; all weights become `f32`. The first fault is named and nothing is loaded.
    pub fn load(dir: &Path) -> Result<Model, TrainError> {
        Model::load_unless(dir, BaseDtype::F32, &|| false)
    }

    /// As [`Model::load`], the weights held as `dtype` says; `stop` is asked before every piece of a tensor and ends it with
    /// [`TrainError::Stopped`].
    pub fn load_unless(dir: &Path, dtype: BaseDtype, stop: &(dyn Fn() -> bool + Sync)) -> Result<Model, TrainError> {
        Model::load_on(Machine::default(), dir, dtype, stop)
    }

    /// As [`Model::load_unless`], to compute on `machine`. A GPU gets every tensor as soon as it is read, so that the base never exists
    /// twice; it computes with brain floats, whatever `dtype` says of 32 bits.
    pub fn load_on(
        machine: Machine,
        dir: &Path,
        dtype: BaseDtype,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Model, TrainError> {
        let dtype = if machine.is_gpu() && dtype == BaseDtype::F32 { BaseDtype::Bf16 } else { dtype };
        refusable_for(|| "the base's weights".into(), || Model::read(machine, dir, dtype, stop))
    }

    fn read(
        machine: Machine,
        dir: &Path,
        dtype: BaseDtype,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Model, TrainError> {
        let base = inspect_base(dir);
        let files = Files::judged(dir, &base, dtype, stop)?;
        let Base { config: Some(config), .. } = base else {
            return Err(TrainError::Internal("a base without faults has a config".into()));
        };
        if machine.is_gpu() {
            gpu::takes_model(&config)?;
        }
        machine.prepare(config.head_dim);
        let loading = Loading { files: &files, config: &config, machine: &machine };
        let table = |module: &str| files.weight(&[module.into()]).map(|weight| machine.put_weight(weight));
        Ok(Model {
            embedding: table("model.embed_tokens")?,
            blocks: (0..config.num_hidden_layers).map(|layer| loading.block(layer)).collect::<Result<_, _>>()?,
            norm: loading.gain("model.norm")?,
            head: if config.tie_word_embeddings { None } else { Some(table("lm_head")?) },
            machine,
            turns: config.ropes.iter().map(|_| Known::default()).collect(),
            profile: Profile::default(),
            recompute: 0,
            config,
        })
    }
}

/// A model on its way from the files to its machine.
struct Loading<'a> {
    files: &'a Files<'a>,
    config: &'a ModelConfig,
    machine: &'a Machine,
}

impl Loading<'_> {
    fn block(&self, layer: usize) -> Result<Block, TrainError> {
        let config = self.config;
        let gain = |name: &str| self.gain(&format!("model.layers.{layer}.{name}"));
        let linear = |modules: &[Module]| self.linear(layer, modules);
        // in a block with norms on both sides the one called `post_attention` is behind the attention, else before the MLP
        let before_mlp = if config.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        let behind = |name: &str| config.post_norms.then(|| gain(name)).transpose();
        Ok(Block {
            attention: Attention {
                entry: Entry { norm: gain("input_layernorm")?, linear: linear(Module::of_qkv(config))? },
                qk_norm: match config.qk_norm {
                    true => Some([gain("self_attn.q_norm")?, gain("self_attn.k_norm")?]),
                    false => None,
                },
                exit: Exit { linear: linear(&[Module::OProj])?, norm: behind("post_attention_layernorm")? },
            },
            mlp: Mlp {
                entry: Entry { norm: gain(before_mlp)?, linear: linear(Module::of_gate_up(config))? },
                exit: Exit { linear: linear(&[Module::DownProj])?, norm: behind("post_feedforward_layernorm")? },
            },
        })
    }

    /// The gain of a norm as it multiplies, whatever the files hold.
    fn gain(&self, module: &str) -> Result<Gain, TrainError> {
        let tensor = format!("{module}.weight");
        let mut values = self.files.vector(&tensor)?;
        if self.config.norm_offset {
            values.iter_mut().for_each(|g| *g += 1.0);
        }
        Ok(Gain { tensor, values: self.machine.put_exact(values) })
    }

    fn linear(&self, layer: usize, modules: &[Module]) -> Result<Linear, TrainError> {
        let (files, config) = (self.files, self.config);
        let mut rows = 0;
        let part = |module: &Module| {
            let first = rows;
            rows += module.out_features(config);
            (*module, first..rows)
        };
        let parts = modules.iter().map(part).collect();
        let paths: Vec<String> = modules.iter().map(|module| module.path(layer)).collect();
        let biased = paths.iter().zip(modules).filter(|(_, module)| module.has_bias(config));
        let biases = biased.map(|(path, _)| files.vector(&format!("{path}.bias"))).collect::<Result<Vec<_>, _>>()?;
        let weight =
            if files.is_quantised(&paths) { files.stack(&paths, config, modules)? } else { files.weight(&paths)? };
        Ok(Linear::new(self.machine.put_weight(weight.with_bias(biases.concat())), parts))
    }
}

/// Open weight files, already judged.
pub(crate) struct Files<'a> {
    places: BTreeMap<String, TensorPlace>,
    open: BTreeMap<String, (PathBuf, File)>,
    /// How weights are held; gains and biases are `f32` always.
    dtype: BaseDtype,
    /// Whether projections that lie there plainly are quantised; beside quantised ones they stay as they are.
    quantises: bool,
    stop: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Files<'a> {
    /// Of a base without faults; the first fault is named. Projections that are quantised already stay as they are.
    pub(crate) fn judged(
        dir: &Path,
        base: &Base,
        dtype: BaseDtype,
        stop: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<Files<'a>, TrainError> {
        if let Some(fault) = base.faults.first() {
            let hint = fault.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
            return Err(TrainError::Base { path: dir.join(&fault.file), reason: format!("{}{hint}", fault.message) });
        }
        let found = base.config.as_ref().and_then(|config| config.quantisation).map(Quantisation::dtype);
        if let Some(found) = found.filter(|found| dtype.is_quantised() && dtype != *found) {
            let reason = format!("is quantised to {} and cannot become {}", found.name(), dtype.name());
            return Err(TrainError::Base { path: dir.to_owned(), reason });
        }
        let quantises = found.is_none() && dtype.is_quantised();
        Ok(Files { quantises, ..Files::open(dir, base.places.clone(), found.unwrap_or(dtype), stop)? })
    }

    fn open(
        dir: &Path,
        places: BTreeMap<String, TensorPlace>,
        dtype: BaseDtype,
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
        Ok(Files { places, open, dtype, quantises: false, stop })
    }

    fn vector(&self, tensor: &str) -> Result<Vec<f32>, TrainError> {
        self.numbers(&[self.place(tensor)], |x| x)
    }

    /// One tensor's numbers.
    pub(super) fn read_into(&self, tensor: &str, numbers: &mut [f32]) -> Result<(), TrainError> {
        self.read(self.place(tensor), numbers, &|x| x)
    }

    /// The weights of several modules, one below the other.
    fn weight(&self, modules: &[String]) -> Result<linear::Weight, TrainError> {
        let places: Vec<_> = modules.iter().map(|module| self.place(&format!("{module}.weight"))).collect();
        let rows = places.iter().map(|place| place.shape[0]).sum();
        let cols = places[0].shape[1];
        Ok(match self.dtype {
            BaseDtype::F32 => linear::Weight::new(self.numbers(&places, |x| x)?, rows, cols),
            // embedding and head of a quantised base are brain floats, as its projections were or might have been
            BaseDtype::Bf16 | BaseDtype::Int8 | BaseDtype::Nf4 => {
                linear::Weight::new(self.numbers(&places, bf16::from_f32)?, rows, cols)
            }
        })
    }

    /// Whether modules that share a weight lie in fewer bits: as the files hold them, or because that was asked for.
    fn is_quantised(&self, modules: &[String]) -> bool {
        let of = |module: &String| self.place(&format!("{module}.weight")).dtype;
        self.quantises || modules.iter().any(|module| matches!(of(module), WeightDtype::U8 | WeightDtype::I8))
    }

    /// The weights of several modules in fewer bits, one below the other.
    fn stack(&self, paths: &[String], config: &ModelConfig, modules: &[Module]) -> Result<linear::Weight, TrainError> {
        let cols = modules[0].in_features(config);
        let part = |(path, module): (&String, &Module)| {
            let rows = module.out_features(config);
            let quantised = self.quantised(&format!("{path}.weight"), [rows, cols], self.dtype)?;
            Ok((rows, quantised))
        };
        let parts = paths.iter().zip(modules).map(part).collect::<Result<Vec<_>, TrainError>>()?;
        let rows = parts.iter().map(|(rows, _)| rows).sum();
        Ok(linear::Weight::new(Stack::new(parts, cols), rows, cols))
    }

    fn place(&self, tensor: &str) -> &TensorPlace {
        self.places.get(tensor).expect("a base without faults has every tensor of its config")
    }

    /// The numbers of several tensors, one after another, as the model holds them.
    fn numbers<N: Copy + Default + Send>(
        &self,
        places: &[&TensorPlace],
        held: impl Fn(f32) -> N + Sync,
    ) -> Result<Vec<N>, TrainError> {
        let len = |place: &TensorPlace| place.shape.iter().product::<usize>();
        let mut numbers = vec![N::default(); places.iter().map(|place| len(place)).sum()];
        let mut rest = &mut numbers[..];
        for place in places {
            let (part, others) = rest.split_at_mut(len(place));
            self.read(place, part, &held)?;
            rest = others;
        }
        Ok(numbers)
    }

    fn read<N: Send>(
        &self,
        place: &TensorPlace,
        numbers: &mut [N],
        held: &(impl Fn(f32) -> N + Sync),
    ) -> Result<(), TrainError> {
        let (path, file) = self.open.get(&place.file).expect("every file that holds a tensor was opened");
        let stored = stored(place.dtype);
        let read = |(piece, numbers): (usize, &mut [N])| {
            if (self.stop)() {
                return Err(TrainError::Stopped);
            }
            let mut bytes = vec![0; numbers.len() * stored.bytes()];
            let offset = place.offset + (piece * PIECE * stored.bytes()) as u64;
            file.read_exact_at(&mut bytes, offset).map_err(TrainError::io("read", path))?;
            let mut wide = vec![0.0; numbers.len()];
            widen(stored, &bytes, &mut wide);
            self.refuse_non_finite(&wide, place, path)?;
            numbers.iter_mut().zip(wide).for_each(|(number, x)| *number = held(x));
            Ok(())
        };
        numbers.par_chunks_mut(PIECE).enumerate().try_for_each(read)
    }
}

impl Files<'_> {
    /// A model says nothing with such a number, trains to none, and in fewer bits it would be another.
    fn refuse_non_finite(&self, numbers: &[f32], place: &TensorPlace, path: &Path) -> Result<(), TrainError> {
        let Some(x) = numbers.iter().find(|x| !x.is_finite()) else { return Ok(()) };
        let name = self.places.iter().find_map(|(name, known)| std::ptr::eq(known, place).then_some(name.as_str()));
        let reason = format!("tensor {} holds {x}, which is not a finite number", name.unwrap_or_default());
        Err(TrainError::Base { path: path.to_owned(), reason })
    }

    /// A tensor's bytes as the files hold them.
    fn bytes_at(&self, place: &TensorPlace) -> Result<Vec<u8>, TrainError> {
        let (path, file) = self.open.get(&place.file).expect("every file that holds a tensor was opened");
        if (self.stop)() {
            return Err(TrainError::Stopped);
        }
        let mut bytes = vec![0; place.bytes as usize];
        file.read_exact_at(&mut bytes, place.offset).map_err(TrainError::io("read", path))?;
        Ok(bytes)
    }

    /// How a tensor that is plain numbers lies there.
    pub(crate) fn stored(&self, tensor: &str) -> Stored {
        stored(self.place(tensor).dtype)
    }

    /// Its bytes as they are.
    pub(crate) fn raw(&self, tensor: &str) -> Result<Vec<u8>, TrainError> {
        self.bytes_at(self.place(tensor))
    }
}

/// How the numbers of a judged tensor lie on disk.
pub(crate) fn stored(dtype: WeightDtype) -> Stored {
    let known = [(WeightDtype::F32, Stored::F32), (WeightDtype::F16, Stored::F16), (WeightDtype::Bf16, Stored::Bf16)];
    let found = known.into_iter().find(|(known, _)| *known == dtype);
    found.expect("a base without faults holds f32, f16 or bf16").1
}
