//! `lorikeet-gpu`: one file that is carried to a machine with a GPU and says there whether every kernel is right, whether two runs
//! give the same bits, and how fast each is beside what the card can do. `cargo xtask gpu build` makes it.
//!
//! ```text
//! lorikeet-gpu                  all of it, on GPU 0
//! lorikeet-gpu check|bench      one half;  --seed N, --device N, --tiny
//! lorikeet-gpu step DIR …       whole steps on the base in DIR, beside PEFT's (step.rs)
//! ```
//! Exit code: 0 when everything held, 1 when a case did not, 2 for a mistake on the command line, 3 when there is no GPU that
//! can be used.

mod step;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lorikeet_trainer::ops::cuda::bench::{self, Rate};
use lorikeet_trainer::ops::cuda::{Gpu, nccl, survey};
use lorikeet_trainer::ops::parity::{self, Verdict, gpu::OnGpu};

const USAGE: &str = "usage: lorikeet-gpu [check|bench] [--seed N] [--device N] [--tiny]\n\
    \x20      lorikeet-gpu step DIR [--length N] [--sequences N] [--together N,…] [--recompute N] [--nf4] [--profile] [--seconds N] [--tiny]\n\
    example: CUDA_LIB_DIR=/opt/cuda/lib lorikeet-gpu check --seed 7";

struct Wish {
    check: bool,
    bench: bool,
    seed: u64,
    device: usize,
    shape: bench::Shape,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|word| word == "--help" || word == "-h") {
        return said(USAGE, 0);
    }
    if let Some(("step", rest)) = arguments.split_first().map(|(word, rest)| (word.as_str(), rest)) {
        return match step::Wish::parse(rest).map(|wish| step::measure(&wish, &mut std::io::stdout())) {
            Ok(Ok(true)) => ExitCode::SUCCESS,
            Ok(Ok(false)) => ExitCode::FAILURE,
            Ok(Err(error)) => said(&format!("error: failed to train: {error}"), 1),
            Err(fault) => said(&format!("error: {fault}\n{USAGE}"), 2),
        };
    }
    let wish = match parse(&arguments) {
        Ok(wish) => wish,
        Err(fault) => return said(&format!("error: {fault}\n{USAGE}"), 2),
    };
    let began = Instant::now();
    let gpu = match Gpu::open(wish.device) {
        Ok(gpu) => Arc::new(gpu),
        Err(error) => return said(&format!("error: failed to {error}"), 3),
    };
    match run(&gpu, &wish, began) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => said(&format!("error: failed to {error}"), 1),
    }
}

fn said(text: &str, code: u8) -> ExitCode {
    // who is told has gone away: there is nobody left to tell that to
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(code)
}

fn parse(arguments: &[String]) -> Result<Wish, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let mut wish = Wish { check: true, bench: true, seed: now, device: 0, shape: bench::LLAMA_8B };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || -> Result<u64, String> {
            let text = words.next().ok_or(format!("{word} wants a number"))?;
            text.parse().map_err(|_| format!("{word} {text}: not a whole number"))
        };
        match word.as_str() {
            "check" => wish.bench = false,
            "bench" => wish.check = false,
            "--tiny" => wish.shape = bench::TINY,
            "--seed" => wish.seed = value()?,
            "--device" => wish.device = value()? as usize,
            other => return Err(format!("{other} is not known")),
        }
    }
    Ok(wish)
}

/// Whether every case held.
fn run(gpu: &Arc<Gpu>, wish: &Wish, began: Instant) -> Result<bool, Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let (free, total) = gpu.memory()?;
    let (major, minor) = gpu.compute();
    let driver = survey::survey().driver.unwrap_or_default();
    writeln!(
        out,
        "{}, compute capability {major}.{minor}, {:.1} of {:.1} GiB free, driver speaks CUDA {driver}; kernels compiled in {:.1} s",
        gpu.name(),
        free as f64 / (1u64 << 30) as f64,
        total as f64 / (1u64 << 30) as f64,
        began.elapsed().as_secs_f64()
    )?;
    let mut held = true;
    if wish.check {
        writeln!(out, "\nagainst the plain form in f64, seed {}", wish.seed)?;
        writeln!(
            out,
            "{:<28} {:<14} {:>10} {:>10}  {:<9} result",
            "operation", "worst output", "error", "allowed", "same bits"
        )?;
        for case in parity::cases() {
            let verdict = parity::judge(&case, &OnGpu(gpu), wish.seed)?;
            held &= verdict.holds();
            row(&mut out, case.name, &verdict)?;
        }
        held &= over_ranks(&mut out, gpu, wish.seed)?;
    }
    if wish.bench {
        let mut all = Vec::new();
        bench::measure(gpu, wish.shape, |rates| match rates {
            Ok(rates) => all.extend(rates),
            Err(_) => held = false,
        });
        rates(&mut out, &all)?;
    }
    writeln!(
        out,
        "\n{} in {:.1} s",
        if held { "all holds" } else { "SOMETHING FAILS" },
        began.elapsed().as_secs_f64()
    )?;
    Ok(held)
}

/// NCCL with one rank. What it does with several a machine with several GPUs has to show; without it everything else holds.
fn over_ranks(out: &mut impl Write, gpu: &Arc<Gpu>, seed: u64) -> Result<bool, Box<dyn Error>> {
    const NAME: &str = "sum over ranks, alone";
    if let Err(missing) = nccl::there() {
        writeln!(out, "{NAME:<28} {missing}")?;
        return Ok(true);
    }
    let verdict = nccl::alone(gpu, seed)?;
    row(out, NAME, &verdict)?;
    Ok(verdict.holds())
}

fn row(out: &mut impl Write, name: &str, verdict: &Verdict) -> std::io::Result<()> {
    let Verdict { output, error, tolerance, identical } = verdict;
    let (bits, result) = (if *identical { "yes" } else { "NO" }, if verdict.holds() { "holds" } else { "FAILS" });
    writeln!(out, "{name:<28} {output:<14} {error:>10.2e} {tolerance:>10.2e}  {bits:<9} {result}")
}

fn rates(out: &mut impl Write, rates: &[Rate]) -> std::io::Result<()> {
    writeln!(out, "\n{:<28} {:>10} {:>14}  of the ceiling", "operation", "ms", "rate")?;
    let of = |by_bytes: bool| rates.iter().find(|rate| (rate.bytes > 0.0) == by_bytes).map_or(1.0, Rate::value);
    for rate in rates {
        let unit = if rate.bytes > 0.0 { "GB/s" } else { "TFLOP/s" };
        let share = 100.0 * rate.value() / of(rate.bytes > 0.0);
        writeln!(out, "{:<28} {:>10.3} {:>9.1} {unit:<7} {share:>5.1} %", rate.name, rate.milliseconds, rate.value())?;
    }
    Ok(())
}
