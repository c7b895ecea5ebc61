//! The cases: shapes that do not divide evenly, segments of one token, windows and caps that bind.

mod adapter;

use std::ops::Range;

use half::bf16;
use lorikeet_plan::{Activation, Rope};

use adapter::{Adapter, SMALL, dora_both, dora_lengths, head_adapted, lookup_both, lora_both};

use super::{Answer, Begun, Case, Forms, Fresh, Norm, Output, Turned};
use crate::lora::Dropout;
use crate::ops::adamw::{self, AdamW};
use crate::ops::attention::{self, Heads};
use crate::ops::head::{self, Wanted};
use crate::ops::lora::Columns;
use crate::ops::random::Masks;
use crate::ops::rope::{self, Known, Rotations, Turn};
use crate::ops::{glu, linear, norm, qk_norm, softcap};
use crate::quant::LEVELS;

/// One rounding to bf16 is 2⁻⁸ of a number at most; two may meet where a result is added to what lay there.
const ONCE: f64 = 0.004;
const TWICE: f64 = 0.008;
/// A gradient through several rounded numbers.
const SEVERAL: f64 = 0.012;
/// `f32` results.
const EXACT: f64 = 2e-5;

/// The same of many products on tensor cores, which cut off where they add.
const CUT: f64 = 2e-4;

const EPS: f64 = 1e-5;

pub(super) fn all() -> Vec<Case> {
    vec![
        Case { name: "narrow", run: narrow },
        Case { name: "shift", run: shift },
        Case { name: "gather, scatter", run: rows },
        Case { name: "dropout", run: dropout },
        Case { name: "rms norm", run: norm_forward },
        Case { name: "rms norm backward", run: norm_backward },
        Case { name: "rms norm, gain", run: gain_backward },
        Case { name: "rope", run: |forms, fresh| rope_both(forms, fresh, None) },
        Case { name: "rope + qk-norm", run: |forms, fresh| rope_both(forms, fresh, Some(())) },
        Case { name: "qk-norm, gains", run: |forms, fresh| head_gains(forms, fresh, HEADS) },
        // several rows a part, heads as wide as there are, one pair of columns that turn
        Case {
            name: "qk-norm, gains, large",
            run: |forms, fresh| head_gains(forms, fresh, Normed { rows: 2600, width: 256, rotary: 2 }),
        },
        Case { name: "swiglu", run: |forms, fresh| glu_both(forms, fresh, Activation::Silu) },
        Case { name: "geglu", run: |forms, fresh| glu_both(forms, fresh, Activation::GeluTanh) },
        Case { name: "linear", run: linear_both },
        Case { name: "weight and bias", run: |forms, fresh| weight_backward(forms, fresh, 37) },
        Case { name: "weight and bias, large", run: |forms, fresh| weight_backward(forms, fresh, 300) },
        Case { name: "embedding", run: table_backward },
        Case { name: "lora", run: |forms, fresh| lora_both(forms, fresh, SMALL, 0.0) },
        Case {
            name: "lora, odd",
            run: |forms, fresh| lora_both(forms, fresh, Adapter { rank: 5, first: 17, ..SMALL }, 0.0),
        },
        Case { name: "lora + dropout", run: |forms, fresh| lora_both(forms, fresh, SMALL, 0.3) },
        Case {
            name: "lora + dropout, odd",
            run: |forms, fresh| lora_both(forms, fresh, Adapter { rank: 5, ..SMALL }, 0.3),
        },
        // several parts of rows, of channels and of ranks, none of them whole
        Case {
            name: "lora + dropout, large",
            run: |forms, fresh| lora_both(forms, fresh, Adapter { tokens: 600, inputs: 136, rank: 40, first: 16 }, 0.3),
        },
        Case { name: "dora", run: |forms, fresh| dora_both(forms, fresh, SMALL, (24, 56), 0.0) },
        Case {
            name: "dora, odd",
            run: |forms, fresh| dora_both(forms, fresh, Adapter { rank: 5, first: 17, ..SMALL }, (21, 56), 0.0),
        },
        // several parts of rows and of columns, none of them whole
        Case {
            name: "dora + dropout, large",
            run: |forms, fresh| {
                dora_both(forms, fresh, Adapter { tokens: 600, inputs: 136, rank: 40, first: 16 }, (280, 320), 0.3)
            },
        },
        Case { name: "dora, lengths of many ranks", run: dora_lengths },
        Case { name: "adapter on embedding", run: lookup_both },
        Case { name: "head + loss", run: |forms, fresh| head_both(forms, fresh, (520, None)) },
        Case { name: "head + loss, soft cap", run: |forms, fresh| head_both(forms, fresh, (517, Some(2.0))) },
        Case { name: "head + loss, adapter", run: head_adapted },
        Case { name: "losses by adapter", run: loss_sums },
        Case { name: "adamw", run: |forms, fresh| adamw_step(forms, fresh, (1.0, 0.25)) },
        Case {
            name: "adamw, gradient not finite",
            run: |forms, fresh| adamw_step(forms, fresh, (f32::INFINITY, 0.25)),
        },
        Case { name: "adamw, loss not finite", run: |forms, fresh| adamw_step(forms, fresh, (1.0, f64::INFINITY)) },
        Case { name: "nf4", run: nf4 },
        Case { name: "int8", run: int8 },
        Case { name: "attention", run: |forms, fresh| attention_both(forms, fresh, kind(64, None, None)) },
        Case { name: "attention, width 128", run: |forms, fresh| attention_both(forms, fresh, kind(128, None, None)) },
        Case {
            name: "attention, width 72, window",
            run: |forms, fresh| attention_both(forms, fresh, kind(72, None, Some(90))),
        },
        Case { name: "attention, width 144", run: |forms, fresh| attention_both(forms, fresh, kind(144, None, None)) },
        Case { name: "attention, window", run: |forms, fresh| attention_both(forms, fresh, kind(64, None, Some(37))) },
        Case {
            name: "attention, soft cap",
            run: |forms, fresh| attention_both(forms, fresh, kind(32, Some(1.5), None)),
        },
        Case {
            name: "attention, width 256, both",
            run: |forms, fresh| attention_both(forms, fresh, kind(256, Some(2.0), Some(5))),
        },
        Case { name: "over a cache", run: |forms, fresh| decode(forms, fresh, kind(128, None, None)) },
        Case { name: "over a cache, window", run: |forms, fresh| decode(forms, fresh, kind(72, None, Some(290))) },
        Case { name: "over a cache, soft cap", run: |forms, fresh| decode(forms, fresh, kind(64, Some(1.5), None)) },
        Case {
            name: "over a cache, 256, both",
            run: |forms, fresh| decode(forms, fresh, kind(256, Some(2.0), Some(5))),
        },
        // more heads than a block takes together, and the last one alone
        Case {
            name: "over a cache, 8, shared",
            run: |forms, fresh| decode(forms, fresh, Heads { queries: 10, ..kind(8, None, None) }),
        },
    ]
}

const fn kind(width: usize, softcap: Option<f64>, window: Option<usize>) -> Heads {
    Heads { queries: 4, keys: 2, width, scale: 0.2, softcap, window }
}

pub(super) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

pub(super) fn output(name: &'static str, ours: Vec<f32>, plain: Vec<f64>, tolerance: f64) -> Output {
    Output { name, ours, plain, tolerance }
}

fn narrow(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    // products of two bf16 numbers lie between bf16 numbers, some of them exactly halfway
    let (a, b) = (fresh.numbers(5000, 3.0), fresh.numbers(5000, 1.0));
    let mut x: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a * b).collect();
    x.extend([0.0, -0.0, 1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 3e38, -1e-40]);
    let plain = x.iter().map(|x| bf16::from_f32(*x).to_f64()).collect();
    Ok(vec![output("y", forms.narrow(&x)?, plain, 0.0)])
}

fn shift(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    let x = fresh.numbers(1_003, 0.3);
    let plain = |by: f32| x.iter().map(|x| f64::from(x + by)).collect();
    Ok(vec![
        output("by nothing", forms.shift(&x, 0.0)?, wide(&x), 0.0),
        output("by one", forms.shift(&x, 1.0)?, plain(1.0), 0.0),
    ])
}

fn rows(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    let (width, count) = (72, 40);
    let table = fresh.numbers(50 * width, 1.0);
    let rows = fresh.below(count, 50);
    let of_table = |scale: f64| -> Vec<f64> {
        let row = |row: &u32| wide(&table[*row as usize * width..][..width]);
        rows.iter().flat_map(row).map(|x| x * scale).collect()
    };
    let plain = forms.gather(&table, &rows, width, 1.0)?;
    let scaled = forms.gather(&table, &rows, width, 1.5)?;
    let places = [4u32, 0, 9, 2];
    let (x, y) = (fresh.numbers(4 * width, 1.0), fresh.numbers(10 * width, 1.0));
    let mut put = wide(&y);
    for (place, row) in places.iter().zip(x.chunks(width)) {
        put[*place as usize * width..][..width].copy_from_slice(&wide(row));
    }
    Ok(vec![
        output("rows", plain, of_table(1.0), 0.0),
        output("scaled rows", scaled, of_table(1.5), ONCE),
        output("scattered", forms.scatter(&x, &places, width, &y)?, put, 0.0),
    ])
}

/// Whose masks are drawn.
const MODULE: u32 = 5;

fn masks(rows: usize, p: f64) -> Vec<(Masks, u32)> {
    let of = |example| Masks::new(Dropout { p, seed: 11 }, 2, example);
    (0..rows as u32).map(|row| if row < 9 { (of(3), row) } else { (of(4), row - 9) }).collect()
}

fn factors(masks: &[(Masks, u32)], width: usize) -> Vec<f32> {
    let mut factors = vec![1.0; masks.len() * width];
    factors.chunks_mut(width).zip(masks).for_each(|(row, (masks, token))| masks.factors(MODULE, *token, row));
    factors
}

fn dropout(forms: &dyn Forms, _: &mut Fresh) -> Answer<Vec<Output>> {
    let of_width = |width: usize| -> Answer<Output> {
        let masks = masks(23, 0.25);
        Ok(output("m", forms.dropout(&masks, MODULE, width)?, wide(&factors(&masks, width)), 0.0))
    };
    [203, 64, 3].into_iter().map(of_width).collect()
}

fn norm_forward(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    let (rows, width) = (19, 328);
    let (x, gain, y) = (fresh.numbers(rows * width, 2.0), fresh.numbers(width, 1.5), fresh.numbers(rows * width, 1.0));
    let norm = Norm { x: &x, gain: &gain, eps: EPS };
    let mut plain = vec![0.0; x.len()];
    norm::forward_plain(&wide(&x), &wide(&gain), EPS, &mut plain);
    let added = plain.iter().zip(&y).map(|(normed, y)| normed + f64::from(*y)).collect();
    Ok(vec![
        output("y", forms.norm_forward(norm)?, plain, ONCE),
        output("y added to", forms.norm_forward_add(norm, &y)?, added, TWICE),
    ])
}

fn norm_backward(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    let (rows, width) = (5, 2312);
    let n = rows * width;
    let (x, gain) = (fresh.numbers(n, 2.0), fresh.numbers(width, 1.5));
    let (dy, dx) = (fresh.numbers(n, 1.0), fresh.numbers(n, 1.0));
    let mut plain = wide(&dx);
    norm::backward_plain(&wide(&x), &wide(&gain), EPS, &wide(&dy), &mut plain);
    let ours = forms.norm_backward(Norm { x: &x, gain: &gain, eps: EPS }, &dy, &dx)?;
    Ok(vec![output("dx", ours, plain, TWICE)])
}

fn gain_backward(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    // one row a part, and several with a rest; columns of more than one block
    let of = |rows: usize, width: usize, fresh: &mut Fresh| -> Answer<Output> {
        let (x, gain) = (fresh.numbers(rows * width, 2.0), fresh.numbers(width, 1.5));
        let (dy, dgain) = (fresh.numbers(rows * width, 1.0), fresh.numbers(width, 1.0));
        let mut plain = wide(&dgain);
        norm::gain_backward_plain(&wide(&x), EPS, &wide(&dy), &mut plain);
        let ours = forms.gain_backward(Norm { x: &x, gain: &gain, eps: EPS }, &dy, &dgain)?;
        Ok(output("dgain", ours, plain, EXACT))
    };
    Ok(vec![of(19, 328, fresh)?, of(333, 72, fresh)?, of(5, 1032, fresh)?])
}

/// Heads that are normed: their width, and how many columns of it turn.
#[derive(Clone, Copy)]
struct Normed {
    rows: usize,
    width: usize,
    rotary: usize,
}

const HEADS: Normed = Normed { rows: 20, width: 48, rotary: 40 };

fn head_gains(forms: &dyn Forms, fresh: &mut Fresh, normed: Normed) -> Answer<Vec<Output>> {
    let Normed { rows, width, rotary } = normed;
    let heads = Heads { queries: 3, keys: 1, width, scale: 1.0, softcap: None, window: None };
    let lengths = [7, 1, rows - 8];
    let rope = Rope { theta: 10_000.0, scaling: None };
    let rotations = Rotations::new(&rope, rotary, &lengths, &Known::default());
    let (raw, dqkv) = (fresh.numbers(rows * heads.turned(), 2.0), fresh.numbers(rows * heads.stride(), 1.0));
    let [gains, before] = [1.5, 1.0].map(|bound| [fresh.numbers(width, bound), fresh.numbers(width, bound)]);
    let norm = Some((gains.each_ref().map(|gain| &gain[..]), EPS));
    let turned = Turned { heads, norm, rotations: &rotations };
    let [queries, keys] = forms.head_gains(turned, &raw, &dqkv, before.each_ref().map(|gain| &gain[..]))?;
    let mut back = wide(&dqkv);
    turn_plainly(heads, &rotations, &mut back, Turn::Back);
    let [mut of_queries, mut of_keys] = before.each_ref().map(|gain| wide(gain));
    for (x, dy) in wide(&raw).chunks(heads.turned()).zip(back.chunks(heads.stride())) {
        let (to_keys, end) = (heads.queries * width, heads.turned());
        norm::gain_backward_plain(&x[..to_keys], EPS, &dy[..to_keys], &mut of_queries);
        norm::gain_backward_plain(&x[to_keys..], EPS, &dy[to_keys..end], &mut of_keys);
    }
    Ok(vec![output("of queries", queries, of_queries, EXACT), output("of keys", keys, of_keys, EXACT)])
}

fn rope_both(forms: &dyn Forms, fresh: &mut Fresh, normed: Option<()>) -> Answer<Vec<Output>> {
    // 40 of 48 columns turn; the longest segment begins anew at position 0
    let heads = Heads { queries: 3, keys: 1, width: 48, scale: 1.0, softcap: None, window: None };
    let rotations = Rotations::new(&Rope { theta: 10_000.0, scaling: None }, 40, &[7, 1, 12], &Known::default());
    let n = 20 * heads.stride();
    let (qkv, dqkv) = (fresh.numbers(n, 2.0), fresh.numbers(n, 1.0));
    let gains = [fresh.numbers(48, 1.5), fresh.numbers(48, 1.5)];
    let norm = normed.map(|()| ([&gains[0][..], &gains[1][..]], EPS));
    let turned = Turned { heads, norm, rotations: &rotations };
    let [y, raw] = forms.rope_forward(turned, &qkv)?;
    let before: Vec<f32> = qkv.chunks(heads.stride()).flat_map(|row| row[..heads.turned()].iter().copied()).collect();
    let dx = forms.rope_backward(turned, &before, &dqkv)?;

    let wide_gains = gains.each_ref().map(|gain| wide(gain));
    let wide_gains = qk_norm::Gains { queries: &wide_gains[0], keys: &wide_gains[1] };
    let mut plain = wide(&qkv);
    if norm.is_some() {
        qk_norm::forward_plain(heads, wide_gains, EPS, &mut plain);
    }
    turn_plainly(heads, &rotations, &mut plain, Turn::Forth);
    let mut gradient = wide(&dqkv);
    turn_plainly(heads, &rotations, &mut gradient, Turn::Back);
    if norm.is_some() {
        qk_norm::backward_plain(heads, wide_gains, EPS, &wide(&before), &mut gradient);
    }
    let kept = if norm.is_some() { wide(&before) } else { Vec::new() };
    Ok(vec![output("y", y, plain, ONCE), output("kept", raw, kept, 0.0), output("dx", dx, gradient, ONCE)])
}

pub(super) fn turn_plainly(heads: Heads, rotations: &Rotations, qkv: &mut [f64], turn: Turn) {
    let (tables, places) = rotations.tables();
    let (pairs, [cos, sin]) = (tables.pairs(), tables.numbers());
    for (row, place) in qkv.chunks_mut(heads.stride()).zip(places) {
        let of = |table: &[f32]| wide(&table[*place as usize * pairs..][..pairs]);
        for head in row[..heads.turned()].chunks_mut(heads.width) {
            rope::turn_plain(&mut head[..2 * pairs], &of(cos), &of(sin), turn);
        }
    }
}

fn glu_both(forms: &dyn Forms, fresh: &mut Fresh, activation: Activation) -> Answer<Vec<Output>> {
    let (rows, width) = (13, 304);
    let (gate_up, dy) = (fresh.numbers(rows * 2 * width, 6.0), fresh.numbers(rows * width, 1.0));
    let mut y = vec![0.0; rows * width];
    glu::forward_plain(activation, &wide(&gate_up), width, &mut y);
    let mut gradient = wide(&gate_up);
    glu::backward_plain(activation, &mut gradient, width, &wide(&dy));
    Ok(vec![
        output("y", forms.glu_forward(activation, &gate_up, width)?, y, ONCE),
        output("gradient", forms.glu_backward(activation, &gate_up, width, &dy)?, gradient, ONCE),
    ])
}

fn linear_both(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    let (tokens, inputs, outputs) = (37, 72, 56);
    let (x, weight) = (fresh.numbers(tokens * inputs, 1.0), fresh.numbers(outputs * inputs, 1.0));
    let (bias, dy) = (fresh.numbers(outputs, 1.0), fresh.numbers(tokens * outputs, 1.0));
    let onto = fresh.numbers(tokens * outputs, 4.0);
    let mut y: Vec<f64> = (0..tokens).flat_map(|_| wide(&bias)).collect();
    linear::forward_plain(&wide(&x), &wide(&weight), inputs, &mut y);
    let sum = y.iter().zip(&onto).map(|(y, onto)| y + f64::from(*onto)).collect();
    let mut dx = vec![0.0; x.len()];
    linear::backward_plain(&wide(&dy), &wide(&weight), inputs, &mut dx);
    Ok(vec![
        output("y", forms.linear_forward(&x, &weight, &bias)?, y, TWICE),
        output("sum", forms.linear_onto(&x, &weight, &bias, &onto)?, sum, TWICE),
        output("dx", forms.linear_backward(&dy, &weight, outputs)?, dx, ONCE),
    ])
}

fn weight_backward(forms: &dyn Forms, fresh: &mut Fresh, tokens: usize) -> Answer<Vec<Output>> {
    let (inputs, columns) = (72, Columns { first: 16, count: 24, stride: 56 });
    let (x, dy) = (fresh.numbers(tokens * inputs, 1.0), fresh.numbers(tokens * columns.stride, 1.0));
    let before = [fresh.numbers(columns.count * inputs, 1.0), fresh.numbers(columns.count, 1.0)];
    let [dw, db] = forms.weight_backward(&x, (&dy, columns), before.each_ref().map(|x| &x[..]))?;
    let own = |row: &[f32]| wide(&row[columns.first..][..columns.count]);
    let own: Vec<f64> = dy.chunks(columns.stride).flat_map(own).collect();
    let [mut dw_plain, mut db_plain] = before.each_ref().map(|x| wide(x));
    linear::weights_backward_plain(&wide(&x), &own, inputs, &mut dw_plain, &mut db_plain);
    Ok(vec![output("dW", dw, dw_plain, CUT), output("db", db, db_plain, EXACT)])
}

fn table_backward(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    // tokens that stand many times, once and nowhere; padding among them
    let (vocabulary, width, rows, scale) = (90, 2312, 150, 1.5);
    let mut tokens = fresh.below(rows, vocabulary as u32);
    tokens[10..70].fill(7);
    let padding = tokens[3];
    let (dy, before) = (fresh.numbers(rows * width, 1.0), fresh.numbers(vocabulary * width, 1.0));
    let ours = forms.table_backward((&tokens, Some(padding)), &dy, scale, width, &before)?;
    let mut plain = wide(&before);
    for (token, dy) in tokens.iter().zip(dy.chunks(width)).filter(|(token, _)| **token != padding) {
        let row = &mut plain[*token as usize * width..][..width];
        row.iter_mut().zip(dy).for_each(|(d, dy)| *d += f64::from(scale) * f64::from(*dy));
    }
    Ok(vec![output("dE", ours, plain, EXACT)])
}

fn head_both(forms: &dyn Forms, fresh: &mut Fresh, (vocabulary, cap): (usize, Option<f32>)) -> Answer<Vec<Output>> {
    let (rows, width) = (17, 64);
    let (x, w) = (fresh.numbers(rows * width, 1.0), fresh.numbers(vocabulary * width, 0.5));
    let targets = fresh.below(rows, vocabulary as u32);
    // some rows are only judged
    let weight = |row: usize| (row % 4) as f32 / 4.0;
    let wanted: Vec<Wanted> =
        targets.iter().enumerate().map(|(row, target)| Wanted { target: *target, weight: weight(row) }).collect();
    let before = fresh.numbers(w.len(), 1.0);
    let [losses, dx, dw] = forms.head(&x, &w, &wanted, cap, &before)?;
    let (x, w) = (wide(&x), wide(&w));
    let (mut losses_plain, mut dx_plain, mut dw_plain) = (Vec::new(), vec![0.0; rows * width], wide(&before));
    for (row, wanted) in wanted.iter().enumerate() {
        let place = row * width..(row + 1) * width;
        let mut logits = vec![0.0; vocabulary];
        linear::forward_plain(&x[place.clone()], &w, width, &mut logits);
        cap.into_iter().for_each(|cap| softcap::forward_plain(&mut logits, f64::from(cap)));
        let bent = logits.clone();
        losses_plain.push(head::loss_plain(&mut logits, wanted.target as usize, f64::from(wanted.weight)));
        cap.into_iter().for_each(|cap| softcap::backward_plain(&bent, f64::from(cap), &mut logits));
        linear::backward_plain(&logits, &w, width, &mut dx_plain[place.clone()]);
        linear::weights_backward_plain(&x[place], &logits, width, &mut dw_plain, &mut vec![0.0; vocabulary]);
    }
    // the logits are rounded once before the loss is taken of them
    Ok(vec![
        output("losses", losses, losses_plain, TWICE),
        output("dx", dx, dx_plain, SEVERAL),
        output("dW", dw, dw_plain, SEVERAL),
    ])
}

fn loss_sums(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    // more rows than a block has threads, and an adapter that has none
    let (rows, adapters) = (1_003, 4);
    let losses = fresh.numbers(rows, 5.0);
    let of_row: Vec<u32> = fresh.below(rows, adapters - 1);
    let sum = |adapter: u32| {
        let own = losses.iter().zip(&of_row).filter(|(_, of)| **of == adapter);
        own.map(|(loss, _)| f64::from(*loss)).sum::<f64>()
    };
    let by_adapter = forms.loss_sums(&losses, &of_row, adapters as usize)?;
    let of_one = forms.loss_sums(&losses, &vec![0; rows], 1)?;
    let whole = losses.iter().map(|loss| f64::from(*loss)).sum();
    let narrow = |sums: Vec<f64>| sums.into_iter().map(|sum| sum as f32).collect();
    Ok(vec![
        output("sums", narrow(by_adapter), (0..adapters).map(sum).collect(), 1e-6),
        output("sum", narrow(of_one), vec![whole], 1e-6),
    ])
}

fn adamw_step(forms: &dyn Forms, fresh: &mut Fresh, (one, loss): (f32, f64)) -> Answer<Vec<Output>> {
    const SETTINGS: AdamW = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
    let n = 50_021;
    let state = [fresh.numbers(n, 1.0), fresh.numbers(n, 0.1), fresh.numbers(n, 1.0).iter().map(|v| v * v).collect()];
    let mut grads = fresh.numbers(n, 1.0);
    grads[777] = one;
    let begun = Begun { state: state.each_ref().map(|x| &x[..]), grads: &grads, loss, max_norm: Some(3.0) };
    let update = forms.adamw(begun, SETTINGS)?;
    let [mut p, mut m, mut v] = state.each_ref().map(|x| wide(x));
    let grads = wide(&grads);
    let norm = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
    if norm.is_finite() && loss.is_finite() {
        let clip = adamw::clip_factor(norm, Some(3.0));
        adamw::adamw_plain(&mut p, &mut m, &mut v, &grads, SETTINGS, 3, clip);
    }
    let finite = |norm: f64| if norm.is_finite() { norm } else { -1.0 };
    let [ours_p, ours_m, ours_v] = update.state;
    Ok(vec![
        output("p", ours_p, p, EXACT),
        output("m", ours_m, m, EXACT),
        output("v", ours_v, v, EXACT),
        output("norm", vec![finite(update.norm) as f32], vec![finite(norm)], 1e-6),
    ])
}

fn nf4(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    let count = 64 * 41;
    let codes: Vec<u8> = fresh.below(count / 2, 256).iter().map(|code| *code as u8).collect();
    let factors = fresh.numbers(41, 2.0);
    let both = codes.iter().flat_map(|both| [both >> 4, both & 15]);
    let number = |(i, code): (usize, u8)| f64::from(LEVELS[usize::from(code)]) * f64::from(factors[i / 64]);
    let plain = both.enumerate().map(number).collect();
    Ok(vec![output("y", forms.nf4(&codes, &factors)?, plain, ONCE)])
}

fn int8(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    let (rows, width) = (31, 72);
    let codes: Vec<i8> = fresh.below(rows * width, 256).iter().map(|code| *code as u8 as i8).collect();
    let factors = fresh.numbers(rows, 0.1);
    let number = |(i, code): (usize, &i8)| f64::from(*code) * f64::from(factors[i / width]);
    let plain = codes.iter().enumerate().map(number).collect();
    Ok(vec![output("y", forms.int8(&codes, &factors, width)?, plain, ONCE)])
}

fn decode(forms: &dyn Forms, fresh: &mut Fresh, heads: Heads) -> Answer<Vec<Output>> {
    // a first row alone; one of many, in several parts; and some, for which what was kept has to grow
    let of = |(name, rows, new): (&'static str, usize, usize), fresh: &mut Fresh| -> Answer<Output> {
        let qkv: Vec<f32> = fresh.numbers(rows * heads.stride(), 2.0);
        let (mut whole, mut lse) = (vec![0.0; rows * heads.out_stride()], vec![0.0; rows * heads.queries]);
        attention::forward_plain(heads, &wide(&qkv), &mut whole, &mut lse);
        let last = whole.split_off((rows - new) * heads.out_stride());
        Ok(output(name, forms.decode(heads, &qkv, new)?, last, ONCE))
    };
    let shapes = [("the first row", 1, 1), ("one of 301", 301, 1), ("three of 258", 258, 3)];
    shapes.into_iter().map(|shape| of(shape, fresh)).collect()
}

fn attention_both(forms: &dyn Forms, fresh: &mut Fresh, heads: Heads) -> Answer<Vec<Output>> {
    // one token, less than a tile, a tile exactly, and several of either height with a rest
    let segments: [Range<usize>; 4] = [0..1, 1..30, 30..94, 94..300];
    let rows = 300;
    let (qkv, dout) = (fresh.numbers(rows * heads.stride(), 1.0), fresh.numbers(rows * heads.out_stride(), 1.0));
    let [out, lse] = forms.attention_forward(heads, &segments, &qkv)?;
    let (wide_qkv, wide_dout) = (wide(&qkv), wide(&dout));
    let (mut out_plain, mut lse_plain) = (vec![0.0; out.len()], vec![0.0; lse.len()]);
    let mut dqkv_plain = vec![0.0; qkv.len()];
    for segment in &segments {
        let of = |stride: usize| segment.start * stride..segment.end * stride;
        let (long, short, sums) = (of(heads.stride()), of(heads.out_stride()), of(heads.queries));
        let (qkv, out, lse) = (&wide_qkv[long.clone()], &mut out_plain[short.clone()], &mut lse_plain[sums]);
        attention::forward_plain(heads, qkv, out, lse);
        attention::backward_plain(heads, qkv, out, lse, &wide_dout[short], &mut dqkv_plain[long]);
    }
    // the backward takes what a forward of its own kept
    let kept: [Vec<f32>; 2] = [&out_plain, &lse_plain].map(|x| x.iter().map(|x| *x as f32).collect());
    let dqkv = forms.attention_backward(heads, &segments, &qkv, kept.each_ref().map(|x| &x[..]), &dout)?;
    Ok(vec![
        output("out", out, out_plain, ONCE),
        output("lse", lse, lse_plain, EXACT),
        output("dqkv", dqkv, dqkv_plain, SEVERAL),
    ])
}
