//! `lorikeet-gpu check` and `lorikeet-gpu large`: every operation beside its plain form. A case that cannot be run is a line that says why.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use lorikeet_trainer::ops::cuda::{Gpu, nccl};
use lorikeet_trainer::ops::parity::gpu::OnGpu;
use lorikeet_trainer::ops::parity::{self, Answer, Verdict, large};

/// Whether all held, and that in words.
type Held = std::io::Result<(bool, String)>;

/// What is judged.
type Judged<'a> = (&'static str, Box<dyn FnOnce() -> Answer<Verdict> + 'a>);

/// Small shapes that nothing divides evenly, whole outputs; and NCCL with one rank, where it is there: what it does with several a machine
/// with several GPUs has to show.
pub(crate) fn small(gpu: &Arc<Gpu>, seed: u64, out: &mut impl Write) -> Held {
    writeln!(out, "\nagainst the plain form in f64, seed {seed}")?;
    let cases = parity::cases();
    let mut all: Vec<Judged<'_>> = Vec::new();
    for case in &cases {
        all.push((case.name, Box::new(|| parity::judge(case, &OnGpu(gpu), seed))));
    }
    match nccl::there() {
        Ok(()) => all.push(("sum over ranks, alone", Box::new(|| Ok(nccl::alone(gpu, seed)?)))),
        Err(missing) => writeln!(out, "no sum over ranks: {missing}")?,
    }
    judged(all.into_iter(), out)
}

/// The shapes of a model, some numbers of each output.
pub(crate) fn large(gpu: &Gpu, shape: large::Shape, seed: u64, out: &mut impl Write) -> Held {
    let large::Shape { tokens, hidden, intermediate, .. } = shape;
    writeln!(out, "\n{tokens} tokens of {hidden} and {intermediate} against the plain form in f64, seed {seed}")?;
    judged(large::CASES.iter().map(|case| (case.name, || large::judge(gpu, shape, case, seed))), out)
}

fn judged<J: FnOnce() -> Answer<Verdict>>(
    cases: impl Iterator<Item = (&'static str, J)>,
    out: &mut impl Write,
) -> Held {
    writeln!(
        out,
        "{:<28} {:<20} {:>10} {:>10}  {:<9} {:>7}  result",
        "operation", "worst output", "error", "allowed", "same bits", "s"
    )?;
    let (mut count, mut faults) = (0, Vec::new());
    for (name, judge) in cases {
        let start = Instant::now();
        let (columns, holds) = line(judge);
        count += 1;
        if !holds {
            faults.push(name);
        }
        let (seconds, result) = (start.elapsed().as_secs_f64(), if holds { "holds" } else { "FAILS" });
        writeln!(out, "{name:<28} {columns} {seconds:>7.2}  {result}")?;
        out.flush()?;
    }
    let held = faults.is_empty();
    Ok((held, if held { format!("all {count} cases hold") } else { format!("FAILS: {}", faults.join(", ")) }))
}

/// What stands between its name and its time, and whether it holds.
fn line(judge: impl FnOnce() -> Answer<Verdict>) -> (String, bool) {
    // an operation refuses wrong lengths by assertions, and a loss that is not what was put in is one too
    match catch_unwind(AssertUnwindSafe(judge)) {
        Ok(Ok(verdict)) => {
            let bits = if verdict.identical { "yes" } else { "NO" };
            let Verdict { output, error, tolerance, .. } = verdict;
            (format!("{output:<20} {error:>10.2e} {tolerance:>10.2e}  {bits:<9}"), verdict.holds())
        }
        Ok(Err(error)) => (format!("failed to {error};"), false),
        Err(panic) => {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it says nothing");
            (format!("a panic: {words};"), false)
        }
    }
}
