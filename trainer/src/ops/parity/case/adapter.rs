//! Adapters: on a module's product, with DoRA's lengths, on the embedding, on the head.

use super::{CUT, EXACT, MODULE, ONCE, SEVERAL, TWICE, factors, masks, output, wide};
use crate::ops::dora::{self, Dora, DoraGradient};
use crate::ops::head::{self, Wanted};
use crate::ops::lora::{self, Columns, Pair, PairGradient};
use crate::ops::parity::{Answer, Forms, Fresh, Lengthened, Output, Product};
use crate::ops::{linear, lookup};

/// One adapter's product, and the first of its columns in a row of output.
#[derive(Clone, Copy)]
pub(super) struct Adapter {
    pub(super) tokens: usize,
    pub(super) inputs: usize,
    pub(super) rank: usize,
    pub(super) first: usize,
}

pub(super) const SMALL: Adapter = Adapter { tokens: 21, inputs: 72, rank: 8, first: 16 };

/// An adapter's own columns of rows.
fn cut(rows: &[f32], columns: Columns) -> Vec<f64> {
    let own = rows.chunks(columns.stride).flat_map(|row| &row[columns.first..][..columns.count]);
    own.map(|x| f64::from(*x)).collect()
}

/// Rows with others in an adapter's own columns.
fn with(rows: &[f32], columns: Columns, own: &[f64]) -> Vec<f64> {
    let mut all = wide(rows);
    for (row, own) in all.chunks_mut(columns.stride).zip(own.chunks(columns.count)) {
        row[columns.first..][..columns.count].copy_from_slice(own);
    }
    all
}

pub(super) fn lora_both(forms: &dyn Forms, fresh: &mut Fresh, adapter: Adapter, p: f64) -> Answer<Vec<Output>> {
    let Adapter { tokens, inputs, rank, first } = adapter;
    let scale = 0.5;
    let columns = Columns { first, count: 24, stride: 56 };
    let (x, a, b) =
        (fresh.numbers(tokens * inputs, 1.0), fresh.numbers(rank * inputs, 0.2), fresh.numbers(24 * rank, 0.5));
    let (y, dy) = (fresh.numbers(tokens * 56, 1.0), fresh.numbers(tokens * 56, 1.0));
    let before = [fresh.numbers(a.len(), 1.0), fresh.numbers(b.len(), 1.0), fresh.numbers(x.len(), 1.0)];
    let masks = if p > 0.0 { masks(tokens, p) } else { Vec::new() };
    let mask = if p > 0.0 { wide(&factors(&masks, inputs)) } else { vec![1.0; x.len()] };
    let product = Product { a: &a, b: &b, rank, scale, x: &x, masks: &masks, module: MODULE, columns };
    let [u, sum] = forms.lora_forward(product, &y)?;
    let kept = u.clone();
    let [da, db, dx] = forms.lora_backward(product, &kept, &dy, before.each_ref().map(|x| &x[..]))?;

    let (a, b, x) = (wide(&a), wide(&b), wide(&x));
    let pair = Pair { a: &a, b: &b, rank, scale: f64::from(scale) };
    let (mut u_plain, mut part) = (vec![0.0; tokens * rank], cut(&y, columns));
    lora::forward_plain(pair, &x, &mask, &mut u_plain, &mut part);
    let [mut da_plain, mut db_plain, mut dx_plain] = before.each_ref().map(|x| wide(x));
    let mut gradient = PairGradient { a: &mut da_plain, b: &mut db_plain };
    lora::backward_plain(pair, (&x, &mask, &wide(&kept)), &cut(&dy, columns), &mut gradient, &mut dx_plain);
    Ok(vec![
        output("u", u, u_plain, TWICE),
        output("y", sum, with(&y, columns, &part), TWICE),
        output("dA", da, da_plain, SEVERAL),
        output("dB", db, db_plain, TWICE),
        output("dx", dx, dx_plain, SEVERAL),
    ])
}

/// What DoRA has beside A and B: a weight, and lengths for a module's rows of it that are about what they have.
fn beside(fresh: &mut Fresh, columns: Columns, inputs: usize) -> [Vec<f32>; 2] {
    let root = (inputs as f32).sqrt();
    let magnitude = fresh.numbers(columns.count, 0.1).iter().map(|m| (m + 0.4) * root).collect();
    [fresh.numbers(columns.stride * inputs, 0.5), magnitude]
}

/// n and m / n, plainly.
fn lengths_plain(dora: Lengthened<'_>) -> [Vec<f64>; 2] {
    let (product, inputs) = (dora.product, dora.product.a.len() / dora.product.rank);
    let (a, b) = (wide(product.a), wide(product.b));
    let own = wide(&dora.weight[product.columns.first * inputs..][..product.columns.count * inputs]);
    let mut n = vec![0.0; product.columns.count];
    dora::norms_plain(&own, Pair { a: &a, b: &b, rank: product.rank, scale: f64::from(product.scale) }, &mut n);
    let g = wide(dora.magnitude).iter().zip(&n).map(|(m, n)| m / n).collect();
    [n, g]
}

/// More ranks than a block holds at once, and more columns than its threads take in one turn.
pub(super) fn dora_lengths(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    let (inputs, rank) = (2312, 264);
    let columns = Columns { first: 17, count: 21, stride: 56 };
    let (a, b) = (fresh.numbers(rank * inputs, 0.2), fresh.numbers(columns.count * rank, 0.5));
    let [weight, magnitude] = beside(fresh, columns, inputs);
    let product = Product { a: &a, b: &b, rank, scale: 0.5, x: &[], masks: &[], module: MODULE, columns };
    let dora = Lengthened { product, weight: &weight, magnitude: &magnitude };
    let ([n, g], [n_plain, g_plain]) = (forms.dora_lengths(dora)?, lengths_plain(dora));
    Ok(vec![output("n", n, n_plain, EXACT), output("m / n", g, g_plain, EXACT)])
}

pub(super) fn dora_both(
    forms: &dyn Forms,
    fresh: &mut Fresh,
    Adapter { tokens, inputs, rank, first }: Adapter,
    (count, stride): (usize, usize),
    p: f64,
) -> Answer<Vec<Output>> {
    let columns = Columns { first, count, stride };
    let (x, a, b) =
        (fresh.numbers(tokens * inputs, 1.0), fresh.numbers(rank * inputs, 0.2), fresh.numbers(count * rank, 0.5));
    let [weight, magnitude] = beside(fresh, columns, inputs);
    let (y, dy) = (fresh.numbers(tokens * stride, 1.0), fresh.numbers(tokens * stride, 1.0));
    let masks = if p > 0.0 { masks(tokens, p) } else { Vec::new() };
    let mask = if p > 0.0 { wide(&factors(&masks, inputs)) } else { vec![1.0; x.len()] };
    let product = Product { a: &a, b: &b, rank, scale: 0.5, x: &x, masks: &masks, module: MODULE, columns };
    let dora = Lengthened { product, weight: &weight, magnitude: &magnitude };
    let ([n, g], [norms, factors]) = (forms.dora_lengths(dora)?, lengths_plain(dora));
    let [u, v, sum] = forms.dora_forward(dora, &y)?;
    let kept = [u.clone(), v.clone()];
    let before = [a.len(), b.len(), count, x.len()].map(|n| fresh.numbers(n, 1.0));
    let gradients = before.each_ref().map(|x| &x[..]);
    let [da, db, dm, dx] = forms.dora_backward(dora, kept.each_ref().map(|x| &x[..]), &dy, gradients)?;

    let (a, b, x, magnitude) = (wide(&a), wide(&b), wide(&x), wide(&magnitude));
    let own = wide(&weight[first * inputs..][..count * inputs]);
    let pair = Pair { a: &a, b: &b, rank, scale: 0.5 };
    let plain = Dora { weight: &own, magnitude: &magnitude, norms: &norms };
    let (mut u_plain, mut v_plain, mut part) = (vec![0.0; u.len()], vec![0.0; v.len()], cut(&y, columns));
    dora::forward_plain(plain, pair, (&x, &mask), (&mut u_plain, &mut v_plain), &mut part);
    let [mut da_plain, mut db_plain, mut dm_plain, mut dx_plain] = before.each_ref().map(|x| wide(x));
    let mut gradient =
        DoraGradient { pair: PairGradient { a: &mut da_plain, b: &mut db_plain }, magnitude: &mut dm_plain };
    let [u_kept, v_kept] = kept.each_ref().map(|x| wide(x));
    let kept = (&x[..], &mask[..], &u_kept[..], &v_kept[..]);
    dora::backward_plain(plain, pair, kept, &cut(&dy, columns), &mut gradient, &mut dx_plain);
    Ok(vec![
        output("n", n, norms.clone(), EXACT),
        output("m / n", g, factors, EXACT),
        output("u", u, u_plain, TWICE),
        output("v", v, v_plain, TWICE),
        output("y", sum, with(&y, columns, &part), TWICE),
        output("dA", da, da_plain, SEVERAL),
        output("dB", db, db_plain, SEVERAL),
        output("dm", dm, dm_plain, EXACT),
        output("dx", dx, dx_plain, SEVERAL),
    ])
}

pub(super) fn lookup_both(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    // few tokens, most of them in many places; and more ranks than a warp has lanes
    let (tokens, vocabulary, width, rank, scale) = (75, 23, 72, 40, 0.5);
    let (a, b) = (fresh.numbers(rank * vocabulary, 0.5), fresh.numbers(width * rank, 0.5));
    let (y, dy) = (fresh.numbers(tokens * width, 1.0), fresh.numbers(tokens * width, 1.0));
    let before = [fresh.numbers(a.len(), 1.0), fresh.numbers(b.len(), 1.0)];
    let tokens = fresh.below(tokens, vocabulary as u32);
    let (pair, padding) = (Pair { a: &a, b: &b, rank, scale }, Some(tokens[3]));
    let sum = forms.lookup_forward(pair, &tokens, &y)?;
    let [da, db] = forms.lookup_backward(pair, (&tokens, padding), &dy, before.each_ref().map(|x| &x[..]))?;

    let (a, b) = (wide(&a), wide(&b));
    let pair = Pair { a: &a, b: &b, rank, scale: f64::from(scale) };
    let [mut sum_plain, mut da_plain, mut db_plain] = [&y, &before[0], &before[1]].map(|x| wide(x));
    lookup::forward_plain(pair, &tokens, &mut sum_plain);
    let mut gradient = PairGradient { a: &mut da_plain, b: &mut db_plain };
    lookup::backward_plain(pair, (&tokens, padding), &wide(&dy), &mut gradient);
    Ok(vec![output("y", sum, sum_plain, ONCE), output("dA", da, da_plain, CUT), output("dB", db, db_plain, CUT)])
}

pub(super) fn head_adapted(forms: &dyn Forms, fresh: &mut Fresh) -> Answer<Vec<Output>> {
    // more rows than a chunk has, on either machine
    let (rows, width, vocabulary, rank, scale) = (300, 64, 104, 4, 0.5);
    let (x, w) = (fresh.numbers(rows * width, 1.0), fresh.numbers(vocabulary * width, 0.3));
    let (a, b) = (fresh.numbers(rank * width, 0.2), fresh.numbers(vocabulary * rank, 0.5));
    let wanted = |(row, target): (usize, u32)| Wanted { target, weight: (row % 4) as f32 / 4.0 };
    let wanted: Vec<Wanted> = fresh.below(rows, vocabulary as u32).into_iter().enumerate().map(wanted).collect();
    let [losses, dx, da, db] = forms.head_adapted(&x, &w, &wanted, Pair { a: &a, b: &b, rank, scale })?;

    let (x, w, a, b) = (wide(&x), wide(&w), wide(&a), wide(&b));
    let (pair, mask) = (Pair { a: &a, b: &b, rank, scale: f64::from(scale) }, vec![1.0; width]);
    let (mut losses_plain, mut dx_plain) = (Vec::new(), vec![0.0; x.len()]);
    let (mut da_plain, mut db_plain) = (vec![0.0; a.len()], vec![0.0; b.len()]);
    for ((x, dx), wanted) in x.chunks(width).zip(dx_plain.chunks_mut(width)).zip(&wanted) {
        let (mut u, mut logits) = (vec![0.0; rank], vec![0.0; vocabulary]);
        linear::forward_plain(x, &w, width, &mut logits);
        lora::forward_plain(pair, x, &mask, &mut u, &mut logits);
        losses_plain.push(head::loss_plain(&mut logits, wanted.target as usize, f64::from(wanted.weight)));
        linear::backward_plain(&logits, &w, width, dx);
        let mut gradient = PairGradient { a: &mut da_plain, b: &mut db_plain };
        lora::backward_plain(pair, (x, &mask, &u), &logits, &mut gradient, dx);
    }
    Ok(vec![
        output("losses", losses, losses_plain, TWICE),
        output("dx", dx, dx_plain, SEVERAL),
        output("dA", da, da_plain, SEVERAL),
        output("dB", db, db_plain, SEVERAL),
    ])
}
