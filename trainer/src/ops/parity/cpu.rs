//! The CPU's forms, over the same slices.

use std::ops::Range;

use half::bf16;
use lorikeet_plan::Activation;

use super::{Answer, Begun, Forms, Lengthened, Norm, Product, Turned, Update, beside};
use crate::ops::adamw::{self, AdamW};
use crate::ops::attention::{self, Heads};
use crate::ops::buffer::Buffers;
use crate::ops::dora::{self, Dora, DoraGradient};
use crate::ops::dropout::Kept;
use crate::ops::head::{self, Head, Wanted};
use crate::ops::linear::{self, Weight};
use crate::ops::lora::{self, Columns, Input, Pair, PairGradient};
use crate::ops::machine::{Losses, Machine};
use crate::ops::qk_norm::{self, Gains};
use crate::ops::random::Masks;
use crate::ops::rope::{self, Turn};
use crate::ops::widen::Stored;
use crate::ops::{decode, glu, lookup, norm};
use crate::quant::{Int8, LEVELS, Nf4, Scales};

#[derive(Debug, Default)]
pub(super) struct Cpu {
    buffers: Buffers,
}

/// What a form has to overwrite.
fn poison(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

impl Forms for Cpu {
    fn norm_forward(&self, Norm { x, gain, eps }: Norm<'_>) -> Answer<Vec<f32>> {
        let mut y = poison(x.len());
        norm::forward(x, gain, eps, &mut y);
        Ok(y)
    }

    fn norm_forward_add(&self, Norm { x, gain, eps }: Norm<'_>, y: &[f32]) -> Answer<Vec<f32>> {
        let mut y = y.to_vec();
        norm::forward_add(x, gain, eps, &mut y);
        Ok(y)
    }

    fn norm_backward(&self, Norm { x, gain, eps }: Norm<'_>, dy: &[f32], dx: &[f32]) -> Answer<Vec<f32>> {
        let mut dx = dx.to_vec();
        norm::backward(x, gain, eps, dy, &mut dx);
        Ok(dx)
    }

    fn gain_backward(&self, Norm { x, eps, .. }: Norm<'_>, dy: &[f32], dgain: &[f32]) -> Answer<Vec<f32>> {
        let mut dgain = dgain.to_vec();
        norm::gain_backward(x, eps, dy, &mut dgain);
        Ok(dgain)
    }

    fn rope_forward(&self, Turned { heads, norm, rotations }: Turned<'_>, qkv: &[f32]) -> Answer<[Vec<f32>; 2]> {
        let (mut qkv, mut raw) = (qkv.to_vec(), Vec::new());
        if let Some(([queries, keys], eps)) = norm {
            raw = poison(qkv.len() / heads.stride() * heads.turned());
            qk_norm::forward(heads, Gains { queries, keys }, eps, &mut qkv, &mut raw);
        }
        rope::turn(heads, rotations, &mut qkv, Turn::Forth);
        Ok([qkv, raw])
    }

    fn rope_backward(&self, turned: Turned<'_>, raw: &[f32], dqkv: &[f32]) -> Answer<Vec<f32>> {
        let Turned { heads, norm, rotations } = turned;
        let mut dqkv = dqkv.to_vec();
        rope::turn(heads, rotations, &mut dqkv, Turn::Back);
        if let Some(([queries, keys], eps)) = norm {
            qk_norm::backward(heads, Gains { queries, keys }, eps, raw, &mut dqkv);
        }
        Ok(dqkv)
    }

    fn head_gains(
        &self,
        Turned { heads, norm, rotations }: Turned<'_>,
        raw: &[f32],
        dqkv: &[f32],
        dgains: [&[f32]; 2],
    ) -> Answer<[Vec<f32>; 2]> {
        let (_, eps) = norm.ok_or("there are gains")?;
        let (mut dqkv, [mut queries, mut keys]) = (dqkv.to_vec(), dgains.map(<[f32]>::to_vec));
        rope::turn(heads, rotations, &mut dqkv, Turn::Back);
        qk_norm::gains_backward(heads, eps, raw, &dqkv, [&mut queries, &mut keys]);
        Ok([queries, keys])
    }

    fn glu_forward(&self, activation: Activation, gate_up: &[f32], width: usize) -> Answer<Vec<f32>> {
        let mut y = poison(gate_up.len() / 2);
        glu::forward(activation, gate_up, width, &mut y);
        Ok(y)
    }

    fn glu_backward(&self, activation: Activation, gate_up: &[f32], width: usize, dy: &[f32]) -> Answer<Vec<f32>> {
        let mut gate_up = gate_up.to_vec();
        glu::backward(activation, &mut gate_up, width, dy);
        Ok(gate_up)
    }

    fn attention_forward(&self, heads: Heads, segments: &[Range<usize>], qkv: &[f32]) -> Answer<[Vec<f32>; 2]> {
        let rows = qkv.len() / heads.stride();
        let (mut out, mut lse) = (poison(rows * heads.out_stride()), poison(rows * heads.queries));
        attention::forward(heads, segments, qkv, &mut out, &mut lse);
        Ok([out, lse])
    }

    fn attention_backward(
        &self,
        heads: Heads,
        segments: &[Range<usize>],
        qkv: &[f32],
        [out, lse]: [&[f32]; 2],
        dout: &[f32],
    ) -> Answer<Vec<f32>> {
        let mut dqkv = poison(qkv.len());
        attention::backward(heads, segments, qkv, (out, lse), dout, &mut dqkv);
        Ok(dqkv)
    }

    fn decode(&self, heads: Heads, qkv: &[f32], new: usize) -> Answer<Vec<f32>> {
        let mut kept = decode::Kept::default();
        let (before, rows) = qkv.split_at(qkv.len() - new * heads.stride());
        [before, rows].into_iter().for_each(|rows| kept.push(heads, rows));
        let mut out = poison(new * heads.out_stride());
        decode::forward(heads, rows, &kept, &mut out);
        Ok(out)
    }

    fn gather(&self, table: &[f32], rows: &[u32], width: usize, scale: f32) -> Answer<Vec<f32>> {
        let row = |row: &u32| table[*row as usize * width..][..width].iter();
        Ok(rows.iter().flat_map(row).map(|x| x * scale).collect())
    }

    fn scatter(&self, x: &[f32], rows: &[u32], width: usize, y: &[f32]) -> Answer<Vec<f32>> {
        let mut y = y.to_vec();
        for (row, x) in rows.iter().zip(x.chunks(width)) {
            y[*row as usize * width..][..width].copy_from_slice(x);
        }
        Ok(y)
    }

    fn table_backward(
        &self,
        tokens: (&[u32], Option<u32>),
        dy: &[f32],
        scale: f32,
        width: usize,
        dtable: &[f32],
    ) -> Answer<Vec<f32>> {
        let mut dtable = dtable.to_vec();
        lookup::table_backward(tokens, dy, scale, width, &mut dtable);
        Ok(dtable)
    }

    fn dropout(&self, masks: &[(Masks, u32)], module: u32, width: usize) -> Answer<Vec<f32>> {
        let mut factors = poison(masks.len() * width);
        Kept::draw(masks, module, width).apply(&vec![1.0; factors.len()], &mut factors);
        Ok(factors)
    }

    fn linear_forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> Answer<Vec<f32>> {
        let inputs = weight.len() / bias.len();
        let weight = Weight::new(weight.to_vec(), bias.len(), inputs).with_bias(bias.to_vec());
        let mut y = poison(x.len() / inputs * bias.len());
        linear::forward(x, &weight, &mut y);
        Ok(y)
    }

    fn linear_onto(&self, x: &[f32], weight: &[f32], bias: &[f32], onto: &[f32]) -> Answer<Vec<f32>> {
        let weight = Weight::new(weight.to_vec(), bias.len(), weight.len() / bias.len()).with_bias(bias.to_vec());
        let mut y = onto.to_vec();
        linear::forward_add(x, &weight, &mut y);
        Ok(y)
    }

    fn linear_backward(&self, dy: &[f32], weight: &[f32], outputs: usize) -> Answer<Vec<f32>> {
        let inputs = weight.len() / outputs;
        let mut dx = poison(dy.len() / outputs * inputs);
        linear::backward(dy, &Weight::new(weight.to_vec(), outputs, inputs), &mut dx);
        Ok(dx)
    }

    fn weight_backward(&self, x: &[f32], dy: (&[f32], Columns), gradients: [&[f32]; 2]) -> Answer<[Vec<f32>; 2]> {
        let [mut dw, mut db] = gradients.map(<[f32]>::to_vec);
        linear::weight_backward(x, dw.len() / db.len(), dy, &mut dw);
        linear::bias_backward(dy, &mut db);
        Ok([dw, db])
    }

    fn lora_forward(&self, product: Product<'_>, y: &[f32]) -> Answer<[Vec<f32>; 2]> {
        let (mut u, mut y) = (poison(product.x.len() * product.rank * product.rank / product.a.len()), y.to_vec());
        let kept = kept(product);
        lora::forward(pair(product), input(product, kept.as_ref()), &mut u, &mut y, product.columns);
        Ok([u, y])
    }

    fn lora_backward(
        &self,
        product: Product<'_>,
        u: &[f32],
        dy: &[f32],
        gradients: [&[f32]; 3],
    ) -> Answer<[Vec<f32>; 3]> {
        let [mut a, mut b, mut dx] = gradients.map(<[f32]>::to_vec);
        let mut gradient = PairGradient { a: &mut a, b: &mut b };
        let (kept, passed) = (kept(product), (u, dy, product.columns));
        let input = input(product, kept.as_ref());
        lora::backward(pair(product), input, &self.buffers, passed, &mut gradient, Some(&mut dx));
        Ok([a, b, dx])
    }

    fn dora_lengths(&self, dora: Lengthened<'_>) -> Answer<[Vec<f32>; 2]> {
        let n = norms(dora);
        let g = dora.magnitude.iter().zip(&n).map(|(m, n)| m / n).collect();
        Ok([n, g])
    }

    fn dora_forward(&self, dora: Lengthened<'_>, y: &[f32]) -> Answer<[Vec<f32>; 3]> {
        let product = dora.product;
        let tokens = product.x.len() * product.rank / product.a.len();
        let (mut u, mut v) = (poison(tokens * product.rank), poison(tokens * product.columns.count));
        let (mut y, norms, kept) = (y.to_vec(), norms(dora), kept(product));
        let (pair, input) = (pair(product), input(product, kept.as_ref()));
        let (kept, to) = ((&mut u[..], &mut v[..]), (&mut y[..], product.columns));
        dora::forward(own(dora, &norms), pair, input, &self.buffers, kept, to);
        Ok([u, v, y])
    }

    fn dora_backward(
        &self,
        dora: Lengthened<'_>,
        [u, v]: [&[f32]; 2],
        dy: &[f32],
        gradients: [&[f32]; 4],
    ) -> Answer<[Vec<f32>; 4]> {
        let [mut a, mut b, mut magnitude, mut dx] = gradients.map(<[f32]>::to_vec);
        let (product, norms, kept) = (dora.product, norms(dora), kept(dora.product));
        let (pair, input) = (pair(product), input(product, kept.as_ref()));
        let mut gradient = DoraGradient { pair: PairGradient { a: &mut a, b: &mut b }, magnitude: &mut magnitude };
        let (passed, dy) = ((input, u, v), (dy, product.columns));
        dora::backward(own(dora, &norms), pair, passed, &self.buffers, dy, &mut gradient, Some(&mut dx));
        Ok([a, b, magnitude, dx])
    }

    fn lookup_forward(&self, pair: Pair<'_, f32>, tokens: &[u32], y: &[f32]) -> Answer<Vec<f32>> {
        let mut y = y.to_vec();
        lookup::forward(pair, tokens, &mut y);
        Ok(y)
    }

    fn lookup_backward(
        &self,
        pair: Pair<'_, f32>,
        tokens: (&[u32], Option<u32>),
        dy: &[f32],
        gradients: [&[f32]; 2],
    ) -> Answer<[Vec<f32>; 2]> {
        let [mut a, mut b] = gradients.map(<[f32]>::to_vec);
        lookup::backward(pair, tokens, dy, &mut PairGradient { a: &mut a, b: &mut b });
        Ok([a, b])
    }

    fn head(
        &self,
        x: &[f32],
        weight: &[f32],
        wanted: &[Wanted],
        softcap: Option<f32>,
        dw: &[f32],
    ) -> Answer<[Vec<f32>; 3]> {
        let width = x.len() / wanted.len();
        let weight = Weight::new(weight.to_vec(), weight.len() / width, width);
        let head = Head { weight: &weight, softcap };
        beside::own(&Machine::default(), (weight.rows(), width), dw, |own| {
            let mut dx = poison(x.len());
            let losses = head::loss_and_gradient(x, head, wanted, own, &self.buffers, &mut dx);
            Ok([losses.into_iter().map(|loss| loss as f32).collect(), dx])
        })
    }

    fn head_adapted(&self, x: &[f32], weight: &[f32], wanted: &[Wanted], pair: Pair<'_, f32>) -> Answer<[Vec<f32>; 4]> {
        let width = x.len() / wanted.len();
        let weight = Weight::new(weight.to_vec(), weight.len() / width, width);
        let head = Head { weight: &weight, softcap: None };
        beside::adapted(&Machine::default(), pair, weight.rows(), |beside| {
            let mut dx = poison(x.len());
            let losses = head::loss_and_gradient(x, head, wanted, beside, &self.buffers, &mut dx);
            Ok([losses.into_iter().map(|loss| loss as f32).collect(), dx])
        })
    }

    fn loss_sums(&self, losses: &[f32], adapters: &[u32], count: usize) -> Answer<Vec<f64>> {
        let machine = Machine::default();
        let (losses, adapters) = (losses.iter().map(|loss| f64::from(*loss)), adapters.iter().map(|a| *a as usize));
        let mut sums = machine.loss_sums(count);
        machine.add_losses(Losses::Host(losses.collect()), &adapters.collect::<Vec<_>>(), &mut sums);
        Ok(machine.read_sums(&sums))
    }

    fn adamw(&self, begun: Begun<'_>, settings: AdamW) -> Answer<Update> {
        let Begun { state, grads, loss, max_norm } = begun;
        let [mut p, mut m, mut v] = state.map(<[f32]>::to_vec);
        let norm = adamw::norm(grads);
        if norm.is_finite() && loss.is_finite() {
            adamw::adamw(&mut p, &mut m, &mut v, grads, settings, 3, adamw::clip_factor(norm, max_norm));
        }
        Ok(Update { state: [p, m, v], norm })
    }

    fn nf4(&self, codes: &[u8], factors: &[f32]) -> Answer<Vec<f32>> {
        let scales = Scales::Plain(factors.to_vec());
        let weight = Nf4 { codes: codes.to_vec(), scales, block: 64, levels: LEVELS, stored: Stored::F32 };
        let mut y = poison(2 * codes.len());
        weight.widen(0, &mut y);
        Ok(y)
    }

    fn int8(&self, codes: &[i8], factors: &[f32], _: usize) -> Answer<Vec<f32>> {
        // a row's scale is its largest number, a step of it the factor
        let scales = factors.iter().map(|factor| factor * 127.0).collect();
        let mut y = poison(codes.len());
        Int8 { codes: codes.to_vec(), scales }.widen(0, &mut y);
        Ok(y)
    }

    fn narrow(&self, x: &[f32]) -> Answer<Vec<f32>> {
        Ok(x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect())
    }

    fn shift(&self, x: &[f32], by: f32) -> Answer<Vec<f32>> {
        Ok(x.iter().map(|x| x + by).collect())
    }
}

fn pair(product: Product<'_>) -> Pair<'_, f32> {
    Pair { a: product.a, b: product.b, rank: product.rank, scale: product.scale }
}

/// The module's rows of the weight.
fn rows<'a>(Lengthened { product, weight, .. }: Lengthened<'a>) -> &'a [f32] {
    let (inputs, columns) = (product.a.len() / product.rank, product.columns);
    &weight[columns.first * inputs..][..columns.count * inputs]
}

fn norms(dora: Lengthened<'_>) -> Vec<f32> {
    let mut norms = poison(dora.magnitude.len());
    dora::norms(rows(dora), pair(dora.product), &mut norms);
    norms
}

fn own<'a>(dora: Lengthened<'a>, norms: &'a [f32]) -> Dora<'a, f32> {
    Dora { weight: rows(dora), magnitude: dora.magnitude, norms }
}

fn input<'a>(product: Product<'a>, kept: Option<&'a Kept>) -> Input<'a> {
    Input { x: product.x, kept }
}

fn kept(product: Product<'_>) -> Option<Kept> {
    let inputs = product.a.len() / product.rank;
    (!product.masks.is_empty()).then(|| Kept::draw(product.masks, product.module, inputs))
}
