//! A GPU's forms, over the same slices: copied there, computed into buffers full of NaN, copied back.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::CudaSlice;
use half::bf16;
use lorikeet_plan::Activation;

use super::{Answer, Begun, Forms, Lengthened, Norm, Product, Turned, Update, beside};
use crate::ops::adamw::AdamW;
use crate::ops::attention::Heads;
use crate::ops::cuda::adamw::{Clip, Judge};
use crate::ops::cuda::attention::Tiles;
use crate::ops::cuda::dora::{self, Dora, Lengths};
use crate::ops::cuda::dropout::RowMasks;
use crate::ops::cuda::head::Targets;
use crate::ops::cuda::linear::Weight;
use crate::ops::cuda::lora::{Input, Pair};
use crate::ops::cuda::rope::{HeadNorm, Turns};
use crate::ops::cuda::{
    Gpu, GpuError, adamw, attention, decode, glu, head, linear, lookup, lora, norm, quant, rope, rows,
};
use crate::ops::head::Wanted;
use crate::ops::lookup::Standing;
use crate::ops::lora::{self as lora_plain, Columns};
use crate::ops::machine::Machine;
use crate::ops::random::Masks;

/// An open device.
#[derive(Debug)]
pub struct OnGpu<'a>(pub &'a Arc<Gpu>);

impl OnGpu<'_> {
    /// Rounded to bf16, on the device.
    fn put(&self, numbers: &[f32]) -> Result<CudaSlice<bf16>, GpuError> {
        self.0.upload(&numbers.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>())
    }

    fn put32(&self, numbers: &[f32]) -> Result<CudaSlice<f32>, GpuError> {
        self.0.upload(numbers)
    }

    fn room(&self, len: usize) -> Result<CudaSlice<bf16>, GpuError> {
        self.0.poisoned(len)
    }

    fn get(&self, buffer: &CudaSlice<bf16>) -> Result<Vec<f32>, GpuError> {
        Ok(self.0.download(&buffer.as_view())?.into_iter().map(bf16::to_f32).collect())
    }

    fn get32(&self, buffer: &CudaSlice<f32>) -> Result<Vec<f32>, GpuError> {
        self.0.download(&buffer.as_view())
    }
}

impl Forms for OnGpu<'_> {
    fn norm_forward(&self, Norm { x, gain, eps }: Norm<'_>) -> Answer<Vec<f32>> {
        let (x, gain, mut y) = (self.put(x)?, self.put32(gain)?, self.room(x.len())?);
        norm::forward(self.0, &x.as_view(), &gain.as_view(), eps, &mut y.as_view_mut())?;
        Ok(self.get(&y)?)
    }

    fn norm_forward_add(&self, Norm { x, gain, eps }: Norm<'_>, y: &[f32]) -> Answer<Vec<f32>> {
        let (x, gain, mut y) = (self.put(x)?, self.put32(gain)?, self.put(y)?);
        norm::forward_add(self.0, &x.as_view(), &gain.as_view(), eps, &mut y.as_view_mut())?;
        Ok(self.get(&y)?)
    }

    fn norm_backward(&self, Norm { x, gain, eps }: Norm<'_>, dy: &[f32], dx: &[f32]) -> Answer<Vec<f32>> {
        let (x, gain, dy, mut dx) = (self.put(x)?, self.put32(gain)?, self.put(dy)?, self.put(dx)?);
        norm::backward(self.0, &x.as_view(), &gain.as_view(), eps, &dy.as_view(), &mut dx.as_view_mut())?;
        Ok(self.get(&dx)?)
    }

    fn gain_backward(&self, Norm { x, eps, .. }: Norm<'_>, dy: &[f32], dgain: &[f32]) -> Answer<Vec<f32>> {
        let (x, dy, mut dgain) = (self.put(x)?, self.put(dy)?, self.put32(dgain)?);
        norm::gain_backward(self.0, &x.as_view(), eps, &dy.as_view(), &mut dgain.as_view_mut())?;
        Ok(self.get32(&dgain)?)
    }

    fn rope_forward(&self, Turned { heads, norm, rotations }: Turned<'_>, qkv: &[f32]) -> Answer<[Vec<f32>; 2]> {
        let turns = Turns::upload(self.0, rotations)?;
        let rows = qkv.len() / heads.stride();
        let mut qkv = self.put(qkv)?;
        let Some(([queries, keys], eps)) = norm else {
            rope::forward(self.0, heads, None, &turns, &mut qkv.as_view_mut(), None)?;
            return Ok([self.get(&qkv)?, Vec::new()]);
        };
        let (queries, keys, mut raw) = (self.put32(queries)?, self.put32(keys)?, self.room(rows * heads.turned())?);
        let norm = HeadNorm { queries: &queries.as_view(), keys: &keys.as_view(), eps };
        let raw_view = Some(&mut raw.as_view_mut());
        rope::forward(self.0, heads, Some(&norm), &turns, &mut qkv.as_view_mut(), raw_view)?;
        Ok([self.get(&qkv)?, self.get(&raw)?])
    }

    fn rope_backward(&self, turned: Turned<'_>, raw: &[f32], dqkv: &[f32]) -> Answer<Vec<f32>> {
        let Turned { heads, norm, rotations } = turned;
        let turns = Turns::upload(self.0, rotations)?;
        let mut dqkv = self.put(dqkv)?;
        let Some(([queries, keys], eps)) = norm else {
            rope::backward(self.0, heads, None, &turns, None, &mut dqkv.as_view_mut())?;
            return Ok(self.get(&dqkv)?);
        };
        let (queries, keys, raw) = (self.put32(queries)?, self.put32(keys)?, self.put(raw)?);
        let norm = HeadNorm { queries: &queries.as_view(), keys: &keys.as_view(), eps };
        rope::backward(self.0, heads, Some(&norm), &turns, Some(&raw.as_view()), &mut dqkv.as_view_mut())?;
        Ok(self.get(&dqkv)?)
    }

    fn head_gains(
        &self,
        Turned { heads, norm, rotations }: Turned<'_>,
        raw: &[f32],
        dqkv: &[f32],
        [queries, keys]: [&[f32]; 2],
    ) -> Answer<[Vec<f32>; 2]> {
        let (_, eps) = norm.ok_or("there are gains")?;
        let turns = Turns::upload(self.0, rotations)?;
        let (raw, dqkv) = (self.put(raw)?, self.put(dqkv)?);
        // one behind the other, as in a flat gradient, keys' first
        let (width, mut sums) = (heads.width, self.put32(&[keys, queries].concat())?);
        let to = (&mut sums, [width..2 * width, 0..width]);
        rope::gains_backward(self.0, heads, eps, &turns, (&raw.as_view(), &dqkv.as_view()), to)?;
        let sums = self.get32(&sums)?;
        Ok([sums[width..].to_vec(), sums[..width].to_vec()])
    }

    fn glu_forward(&self, activation: Activation, gate_up: &[f32], width: usize) -> Answer<Vec<f32>> {
        let (mut y, gate_up) = (self.room(gate_up.len() / 2)?, self.put(gate_up)?);
        glu::forward(self.0, activation, &gate_up.as_view(), width, &mut y.as_view_mut())?;
        Ok(self.get(&y)?)
    }

    fn glu_backward(&self, activation: Activation, gate_up: &[f32], width: usize, dy: &[f32]) -> Answer<Vec<f32>> {
        let (mut gate_up, dy) = (self.put(gate_up)?, self.put(dy)?);
        glu::backward(self.0, activation, &mut gate_up.as_view_mut(), width, &dy.as_view())?;
        Ok(self.get(&gate_up)?)
    }

    fn attention_forward(&self, heads: Heads, segments: &[Range<usize>], qkv: &[f32]) -> Answer<[Vec<f32>; 2]> {
        let rows = qkv.len() / heads.stride();
        let tiles = Tiles::upload(self.0, segments)?;
        let (qkv, mut out) = (self.put(qkv)?, self.room(rows * heads.out_stride())?);
        let mut lse = self.0.poisoned::<f32>(rows * heads.queries)?;
        let (to, sums) = (&mut out.as_view_mut(), &mut lse.as_view_mut());
        attention::forward(self.0, heads, &tiles, &qkv.as_view(), to, sums)?;
        Ok([self.get(&out)?, self.get32(&lse)?])
    }

    fn attention_backward(
        &self,
        heads: Heads,
        segments: &[Range<usize>],
        qkv: &[f32],
        [out, lse]: [&[f32]; 2],
        dout: &[f32],
    ) -> Answer<Vec<f32>> {
        let tiles = Tiles::upload(self.0, segments)?;
        let (mut dqkv, qkv, dout) = (self.room(qkv.len())?, self.put(qkv)?, self.put(dout)?);
        let (out, lse) = (self.put(out)?, self.put32(lse)?);
        let kept = (&out.as_view(), &lse.as_view());
        let to = &mut dqkv.as_view_mut();
        attention::backward(self.0, heads, &tiles, &qkv.as_view(), kept, &dout.as_view(), to)?;
        Ok(self.get(&dqkv)?)
    }

    fn decode(&self, heads: Heads, qkv: &[f32], new: usize) -> Answer<Vec<f32>> {
        let (before, rows) = qkv.split_at(qkv.len() - new * heads.stride());
        let (before, rows, mut out) = (self.put(before)?, self.put(rows)?, self.room(new * heads.out_stride())?);
        let mut kept = decode::Kept::default();
        // a buffer of nothing has a number all the same
        kept.push(self.0, heads, &before.slice(..qkv.len() - new * heads.stride()))?;
        kept.push(self.0, heads, &rows.as_view())?;
        decode::forward(self.0, heads, &rows.as_view(), &kept, &mut out.as_view_mut())?;
        Ok(self.get(&out)?)
    }

    fn gather(&self, table: &[f32], rows: &[u32], width: usize, scale: f32) -> Answer<Vec<f32>> {
        let mut y = self.room(rows.len() * width)?;
        let (table, rows) = (self.put(table)?, self.0.upload(rows)?);
        rows::gather(self.0, &table.as_view(), &rows.as_view(), width, scale, &mut y.as_view_mut())?;
        Ok(self.get(&y)?)
    }

    fn scatter(&self, x: &[f32], rows: &[u32], width: usize, y: &[f32]) -> Answer<Vec<f32>> {
        let (x, rows, mut y) = (self.put(x)?, self.0.upload(rows)?, self.put(y)?);
        rows::scatter(self.0, &x.as_view(), &rows.as_view(), width, &mut y.as_view_mut())?;
        Ok(self.get(&y)?)
    }

    fn table_backward(
        &self,
        (tokens, padding): (&[u32], Option<u32>),
        dy: &[f32],
        scale: f32,
        width: usize,
        dtable: &[f32],
    ) -> Answer<Vec<f32>> {
        let standing = lookup::Standing::upload(self.0, &Standing::new(tokens, padding))?;
        let (dy, mut dtable) = (self.put(dy)?, self.put32(dtable)?);
        lookup::table_backward(self.0, &standing, &dy.as_view(), scale, width, &mut dtable.as_view_mut())?;
        Ok(self.get32(&dtable)?)
    }

    fn dropout(&self, masks: &[(Masks, u32)], module: u32, width: usize) -> Answer<Vec<f32>> {
        Ok(RowMasks::upload(self.0, masks)?.draw(self.0, module, width)?.factors(self.0)?)
    }

    fn linear_forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Answer<Vec<f32>> {
        let weight = self.weight(weight, bias, bias.len())?;
        let (mut y, x) = (self.room(x.len() / weight.cols() * weight.rows())?, self.put(x)?);
        linear::forward(self.0, &x.as_view(), &weight, &mut y.as_view_mut())?;
        Ok(self.get(&y)?)
    }

    fn linear_onto(&self, x: &[f32], weight: &[f32], bias: &[f32], onto: &[f32]) -> Answer<Vec<f32>> {
        let weight = self.weight(weight, bias, bias.len())?;
        let (mut y, x, before) = (self.room(onto.len())?, self.put(x)?, self.put(onto)?);
        linear::forward_onto(self.0, &x.as_view(), &weight, &before.as_view(), &mut y.as_view_mut())?;
        assert_eq!(self.get(&before)?, onto, "what is added to stays as it is");
        Ok(self.get(&y)?)
    }

    fn linear_backward(&self, dy: &[f32], weight: &[f32], outputs: usize) -> Answer<Vec<f32>> {
        let weight = self.weight(weight, &[], outputs)?;
        let (mut dx, dy) = (self.room(dy.len() / outputs * weight.cols())?, self.put(dy)?);
        linear::backward(self.0, &dy.as_view(), &weight, &mut dx.as_view_mut())?;
        Ok(self.get(&dx)?)
    }

    fn weight_backward(
        &self,
        x: &[f32],
        (dy, columns): (&[f32], Columns),
        [dw, db]: [&[f32]; 2],
    ) -> Answer<[Vec<f32>; 2]> {
        let (x, dy, mut dw, mut db) = (self.put(x)?, self.put(dy)?, self.put32(dw)?, self.put32(db)?);
        let (inputs, dy) = (dw.len() / columns.count, (&dy.as_view(), columns));
        linear::weight_backward(self.0, &x.as_view(), inputs, dy, &mut dw.as_view_mut())?;
        linear::bias_backward(self.0, dy, &mut db.as_view_mut())?;
        Ok([self.get32(&dw)?, self.get32(&db)?])
    }

    fn lora_forward(&self, product: Product<'_>, y: &[f32]) -> Answer<[Vec<f32>; 2]> {
        let tokens = product.x.len() * product.rank / product.a.len();
        let (mut u, mut y) = (self.room(tokens * product.rank)?, self.put(y)?);
        self.with(product, |pair, input| {
            lora::forward(self.0, pair, input, &mut u.as_view_mut(), &mut y.as_view_mut(), product.columns)
        })?;
        Ok([self.get(&u)?, self.get(&y)?])
    }

    fn lora_backward(
        &self,
        product: Product<'_>,
        u: &[f32],
        dy: &[f32],
        [da, db, dx]: [&[f32]; 3],
    ) -> Answer<[Vec<f32>; 3]> {
        let (u, dy) = (self.put(u)?, self.put(dy)?);
        let (mut da, mut db, mut dx) = (self.put32(da)?, self.put32(db)?, self.put(dx)?);
        self.with(product, |pair, input| {
            let kept = (&u.as_view(), &dy.as_view(), product.columns);
            let gradients = [&mut da.as_view_mut(), &mut db.as_view_mut()];
            lora::backward(self.0, pair, input, kept, gradients, Some(&mut dx.as_view_mut()))
        })?;
        Ok([self.get32(&da)?, self.get32(&db)?, self.get(&dx)?])
    }

    fn dora_lengths(&self, dora: Lengthened<'_>) -> Answer<[Vec<f32>; 2]> {
        let mut both = Default::default();
        self.with_lengths(dora, |of, _, _| {
            both = of.lengths.read(self.0)?;
            Ok(())
        })?;
        Ok(both)
    }

    fn dora_forward(&self, dora: Lengthened<'_>, y: &[f32]) -> Answer<[Vec<f32>; 3]> {
        let (product, columns) = (dora.product, dora.product.columns);
        let tokens = product.x.len() * product.rank / product.a.len();
        let (mut u, mut v, mut y) =
            (self.room(tokens * product.rank)?, self.room(tokens * columns.count)?, self.put(y)?);
        self.with_lengths(dora, |dora, pair, input| {
            let kept = (&mut u.as_view_mut(), &mut v.as_view_mut());
            dora::forward(self.0, dora, pair, input, kept, (&mut y.as_view_mut(), columns))
        })?;
        Ok([self.get(&u)?, self.get(&v)?, self.get(&y)?])
    }

    fn dora_backward(
        &self,
        dora: Lengthened<'_>,
        [u, v]: [&[f32]; 2],
        dy: &[f32],
        [da, db, dm, dx]: [&[f32]; 4],
    ) -> Answer<[Vec<f32>; 4]> {
        let (u, v, dy, columns) = (self.put(u)?, self.put(v)?, self.put(dy)?, dora.product.columns);
        let (mut da, mut db, mut dm, mut dx) = (self.put32(da)?, self.put32(db)?, self.put32(dm)?, self.put(dx)?);
        self.with_lengths(dora, |dora, pair, input| {
            let (kept, dy) = ((input, &u.as_view(), &v.as_view()), (&dy.as_view(), columns));
            let gradients = [&mut da.as_view_mut(), &mut db.as_view_mut(), &mut dm.as_view_mut()];
            dora::backward(self.0, dora, pair, kept, dy, gradients, Some(&mut dx.as_view_mut()))
        })?;
        Ok([self.get32(&da)?, self.get32(&db)?, self.get32(&dm)?, self.get(&dx)?])
    }

    fn lookup_forward(&self, pair: lora_plain::Pair<'_, f32>, tokens: &[u32], y: &[f32]) -> Answer<Vec<f32>> {
        let (a, b, mut y) = (self.put(pair.a)?, self.put(pair.b)?, self.put(y)?);
        let (a, b) = (a.as_view(), b.as_view());
        let pair = Pair { a: &a, b: &b, rank: pair.rank, scale: pair.scale };
        lookup::forward(self.0, pair, tokens, &mut y.as_view_mut())?;
        Ok(self.get(&y)?)
    }

    fn lookup_backward(
        &self,
        pair: lora_plain::Pair<'_, f32>,
        tokens: (&[u32], Option<u32>),
        dy: &[f32],
        [da, db]: [&[f32]; 2],
    ) -> Answer<[Vec<f32>; 2]> {
        let (a, b, dy) = (self.put(pair.a)?, self.put(pair.b)?, self.put(dy)?);
        let (mut da, mut db, a, b) = (self.put32(da)?, self.put32(db)?, a.as_view(), b.as_view());
        let pair = Pair { a: &a, b: &b, rank: pair.rank, scale: pair.scale };
        let gradients = [&mut da.as_view_mut(), &mut db.as_view_mut()];
        lookup::backward(self.0, pair, tokens, &dy.as_view(), gradients)?;
        Ok([self.get32(&da)?, self.get32(&db)?])
    }

    fn head(
        &self,
        x: &[f32],
        weight: &[f32],
        wanted: &[Wanted],
        softcap: Option<f32>,
        dw: &[f32],
    ) -> Answer<[Vec<f32>; 3]> {
        let weight = self.weight(weight, &[], weight.len() * wanted.len() / x.len())?;
        let targets = Targets::upload(self.0, wanted)?;
        let (mut dx, x) = (self.room(x.len())?, self.put(x)?);
        let mut losses = self.0.poisoned::<f32>(wanted.len())?;
        beside::own(&Machine::Gpu(Arc::clone(self.0)), (weight.rows(), weight.cols()), dw, |own| {
            let (sums, to) = (&mut losses.as_view_mut(), Some(&mut dx.as_view_mut()));
            head::loss(self.0, &x.as_view(), (&weight, softcap), &targets, own, sums, to)?;
            Ok([self.get32(&losses)?, self.get(&dx)?])
        })
    }

    fn head_adapted(
        &self,
        x: &[f32],
        weight: &[f32],
        wanted: &[Wanted],
        pair: lora_plain::Pair<'_, f32>,
    ) -> Answer<[Vec<f32>; 4]> {
        let weight = self.weight(weight, &[], weight.len() * wanted.len() / x.len())?;
        let targets = Targets::upload(self.0, wanted)?.in_chunks_of(128);
        let (mut dx, x) = (self.room(x.len())?, self.put(x)?);
        let mut losses = self.0.poisoned::<f32>(wanted.len())?;
        beside::adapted(&Machine::Gpu(Arc::clone(self.0)), pair, weight.rows(), |beside| {
            let (sums, to) = (&mut losses.as_view_mut(), Some(&mut dx.as_view_mut()));
            head::loss(self.0, &x.as_view(), (&weight, None), &targets, beside, sums, to)?;
            Ok([self.get32(&losses)?, self.get(&dx)?])
        })
    }

    fn loss_sums(&self, losses: &[f32], adapters: &[u32], count: usize) -> Answer<Vec<f64>> {
        let (losses, adapters) = (self.put32(losses)?, self.0.upload(adapters)?);
        let adapters = adapters.as_view();
        let mut sums = self.0.zeros::<f64>(count)?;
        let of_several = (count > 1).then_some(&adapters);
        head::add_losses(self.0, &losses.as_view(), of_several, &mut sums.as_view_mut())?;
        Ok(self.0.download(&sums.as_view())?)
    }

    fn adamw(&self, begun: Begun<'_>, settings: AdamW) -> Answer<Update> {
        const TARGETS: f64 = 8.0;
        let [p, m, v] = begun.state;
        let (mut p, mut m, mut v, grads) = (self.put32(p)?, self.put32(m)?, self.put32(v)?, self.put32(begun.grads)?);
        let loss = self.0.upload(&[TARGETS * begun.loss])?;
        let mut judge = Judge::new(self.0, grads.len())?;
        judge.judge(self.0, &grads.as_view(), Some((&loss.as_view(), TARGETS)), begun.max_norm)?;
        let state = [&mut p.as_view_mut(), &mut m.as_view_mut(), &mut v.as_view_mut()];
        adamw::adamw(self.0, state, &grads.as_view(), &judge, settings, 3)?;
        let Clip { norm, loss, finite, .. } = judge.read(self.0)?;
        assert_eq!(loss.to_bits(), begun.loss.to_bits(), "the mean of what was summed");
        assert_eq!(finite == 1, norm.is_finite() && loss.is_finite());
        Ok(Update { state: [self.get32(&p)?, self.get32(&m)?, self.get32(&v)?], norm })
    }

    fn nf4(&self, codes: &[u8], factors: &[f32]) -> Answer<Vec<f32>> {
        let mut y = self.room(2 * codes.len())?;
        let (codes, factors) = (self.0.upload(codes)?, self.put32(factors)?);
        quant::nf4(self.0, &codes.as_view(), &factors.as_view(), 64, &mut y.as_view_mut())?;
        Ok(self.get(&y)?)
    }

    fn int8(&self, codes: &[i8], factors: &[f32], width: usize) -> Answer<Vec<f32>> {
        let mut y = self.room(codes.len())?;
        let (codes, factors) = (self.0.upload(codes)?, self.put32(factors)?);
        quant::int8(self.0, &codes.as_view(), &factors.as_view(), width, &mut y.as_view_mut())?;
        Ok(self.get(&y)?)
    }

    fn narrow(&self, x: &[f32]) -> Answer<Vec<f32>> {
        let (mut y, x) = (self.room(x.len())?, self.put32(x)?);
        rows::narrow(self.0, &x.as_view(), &mut y.as_view_mut())?;
        Ok(self.get(&y)?)
    }

    fn shift(&self, x: &[f32], by: f32) -> Answer<Vec<f32>> {
        let (mut y, x) = (self.0.poisoned::<f32>(x.len())?, self.put32(x)?);
        rows::shift(self.0, &x.as_view(), by, &mut y.as_view_mut())?;
        Ok(self.get32(&y)?)
    }
}

impl OnGpu<'_> {
    fn weight(&self, weight: &[f32], bias: &[f32], outputs: usize) -> Result<Weight, GpuError> {
        let numbers: Vec<bf16> = weight.iter().map(|x| bf16::from_f32(*x)).collect();
        Weight::upload(self.0, &numbers, bias, outputs, weight.len() / outputs)
    }

    /// Hands weight and lengths, and the product's factors and input, on the device, to `use_them`.
    fn with_lengths(
        &self,
        Lengthened { product, weight, magnitude }: Lengthened<'_>,
        use_them: impl FnOnce(Dora<'_>, Pair<'_>, Input<'_>) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let (weight, magnitude) = (self.weight(weight, &[], product.columns.stride)?, self.put32(magnitude)?);
        self.with(product, |pair, input| {
            let lengths = Lengths::measure(self.0, &weight, product.columns, pair, &magnitude.as_view())?;
            use_them(Dora { weight: &weight, lengths: &lengths }, pair, input)
        })
    }

    /// Hands the product's factors and input, on the device, to `use_them`.
    fn with(
        &self,
        product: Product<'_>,
        use_them: impl FnOnce(Pair<'_>, Input<'_>) -> Result<(), GpuError>,
    ) -> Result<(), GpuError> {
        let (a, b, x) = (self.put(product.a)?, self.put(product.b)?, self.put(product.x)?);
        let draw =
            || RowMasks::upload(self.0, product.masks)?.draw(self.0, product.module, product.a.len() / product.rank);
        let kept = if product.masks.is_empty() { None } else { Some(draw()?) };
        let (a, b, x) = (a.as_view(), b.as_view(), x.as_view());
        let pair = Pair { a: &a, b: &b, rank: product.rank, scale: product.scale };
        use_them(pair, Input { x: &x, kept: kept.as_ref() })
    }
}
