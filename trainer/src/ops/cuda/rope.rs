//! [`crate::ops::rope`] on the device, with the norms over heads of [`crate::ops::qk_norm`] where a model has them: one kernel does
//! both.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use cudarc::driver::{CudaFunction, CudaSlice, CudaView, CudaViewMut};
use half::bf16;
use lorikeet_plan::GPU_HEAD_PARTS;

use super::{Done, Gpu, GpuError, launch, number, per_warp};
use crate::ops::attention::Heads;
use crate::ops::rope::{Rotations, Tables};

/// The rotation of every row of a pass, by one rope, on the device.
#[derive(Debug)]
pub struct Turns {
    tables: Arc<OnDevice>,
    places: CudaSlice<u32>,
}

/// Tables of the host, and those of the device that are the same.
#[derive(Debug)]
pub(super) struct OnDevice {
    of: Arc<Tables>,
    cos: CudaSlice<f32>,
    sin: CudaSlice<f32>,
}

/// Tables that stay on a device: no model has more ropes.
const KEPT: usize = 2;

impl Turns {
    /// Those of the host; tables that are there already are not brought again.
    pub fn upload(gpu: &Gpu, rotations: &Rotations) -> Result<Turns, GpuError> {
        let (tables, places) = rotations.tables();
        Ok(Turns { tables: on_device(gpu, tables)?, places: gpu.upload(places)? })
    }

    fn half(&self) -> usize {
        self.tables.of.pairs()
    }
}

fn on_device(gpu: &Gpu, tables: &Arc<Tables>) -> Result<Arc<OnDevice>, GpuError> {
    let mut kept = gpu.turns.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kept.iter().find(|known| Arc::ptr_eq(&known.of, tables)) {
        return Ok(Arc::clone(known));
    }
    let [cos, sin] = tables.numbers();
    let new = Arc::new(OnDevice { of: Arc::clone(tables), cos: gpu.upload(cos)?, sin: gpu.upload(sin)? });
    if kept.len() == KEPT {
        kept.remove(0);
    }
    kept.push(Arc::clone(&new));
    Ok(new)
}

/// The norms over heads: gains of query and key heads, and what is kept for the backward, q and k of every row as they were.
#[derive(Debug)]
pub struct HeadNorm<'a> {
    /// Of query heads.
    pub queries: &'a CudaView<'a, f32>,
    /// Of key heads.
    pub keys: &'a CudaView<'a, f32>,
    /// As in the configuration.
    pub eps: f64,
}

/// Norms, where there is something to norm by, and turns the query and key heads of every row, in place. `raw` is written with
/// what they were before the norm; without one it is not looked at.
pub fn forward(
    gpu: &Gpu,
    heads: Heads,
    norm: Option<&HeadNorm<'_>>,
    turns: &Turns,
    qkv: &mut CudaViewMut<'_, bf16>,
    raw: Option<&mut CudaViewMut<'_, bf16>>,
) -> Done {
    let rows = rows(heads, norm, turns, qkv.len(), raw.as_ref().map(|raw| raw.len()));
    let raw = gpu.address(raw.map(|raw| raw.as_view()).as_ref());
    run(gpu, gpu.function("rope_forward"), heads, norm, (turns, rows), raw, qkv)
}

/// Turns the gradient back and carries it through the norm, in place.
pub fn backward(
    gpu: &Gpu,
    heads: Heads,
    norm: Option<&HeadNorm<'_>>,
    turns: &Turns,
    raw: Option<&CudaView<'_, bf16>>,
    dqkv: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let rows = rows(heads, norm, turns, dqkv.len(), raw.map(|raw| raw.len()));
    run(gpu, gpu.function("rope_backward"), heads, norm, (turns, rows), gpu.address(raw), dqkv)
}

/// Adds to the gradients of the gains of query and key heads, at those places of the sums, from the gradient of turned heads: before
/// [`backward`] carries it further.
pub fn gains_backward(
    gpu: &Gpu,
    heads: Heads,
    eps: f64,
    turns: &Turns,
    (raw, dqkv): (&CudaView<'_, bf16>, &CudaView<'_, bf16>),
    (sums, places): (&mut CudaSlice<f32>, [Range<usize>; 2]),
) -> Done {
    let rows = rows(heads, None, turns, dqkv.len(), None);
    let width = heads.width;
    assert_eq!(raw.len(), rows * heads.turned(), "a norm keeps what it norms");
    assert!(places.iter().all(|place| place.len() == width), "a gain per column of a head");
    let (of_part, many) = super::sums::parts(rows, GPU_HEAD_PARTS);
    let mut parts = gpu.take::<f32>(2 * many * width)?;
    launch!(
        gpu,
        "rope_gains",
        per_warp(2 * many),
        dqkv,
        raw,
        &turns.tables.cos,
        &turns.tables.sin,
        &turns.places,
        &mut parts,
        &number(rows),
        &number(heads.queries),
        &number(heads.keys),
        &number(width),
        &number(turns.half()),
        &number(heads.stride()),
        &(eps as f32),
        &number(of_part),
        &number(many),
    )?;
    let of_kind = |kind: usize| kind * many * width..(kind + 1) * many * width;
    places.into_iter().enumerate().try_for_each(|(kind, place)| {
        super::sums::add_parts(gpu, &parts.slice(of_kind(kind)), &mut sums.slice_mut(place))
    })
}

/// Both kernels take the same.
fn run(
    gpu: &Gpu,
    function: &CudaFunction,
    heads: Heads,
    norm: Option<&HeadNorm<'_>>,
    (turns, rows): (&Turns, usize),
    raw: u64,
    qkv: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let gain = |gain: Option<&CudaView<'_, f32>>| gpu.address(gain);
    let (queries, keys) = (gain(norm.map(|norm| norm.queries)), gain(norm.map(|norm| norm.keys)));
    let eps = norm.map_or(0.0, |norm| norm.eps as f32);
    launch!(
        gpu,
        function,
        "rope",
        per_warp(rows * (heads.queries + heads.keys)),
        qkv,
        &raw,
        &queries,
        &keys,
        &turns.tables.cos,
        &turns.tables.sin,
        &turns.places,
        &number(rows),
        &number(heads.queries),
        &number(heads.keys),
        &number(heads.width),
        &number(turns.half()),
        &number(heads.stride()),
        &eps,
    )
}

fn rows(heads: Heads, norm: Option<&HeadNorm<'_>>, turns: &Turns, len: usize, raw: Option<usize>) -> usize {
    let rows = turns.places.len();
    assert_eq!(len, rows * heads.stride(), "one row of q, k and v per rotation");
    assert!(2 * turns.half() <= heads.width, "a head has the columns that turn");
    if let Some(norm) = norm {
        assert_eq!(raw, Some(rows * heads.turned()), "a norm keeps what it norms");
        assert!(norm.queries.len() == heads.width && norm.keys.len() == heads.width, "a gain per column of a head");
    }
    rows
}
