//! `lorikeet-gpu`: one file that is carried to a machine with a GPU and says there whether every kernel is right, at small sizes and at those of a
//! real model, whether the decoder and whole runs are, whether two runs give the same bits, and how fast each operation is beside what the
//! card can do. `cargo xtask gpu build` makes it.
//!
//! ```text
//! lorikeet-gpu                              all of it, on GPU 0
//! lorikeet-gpu check|large|goldens|bench …  some parts;  --seed N, --device N, --tiny
//! lorikeet-gpu step DIR …                   whole steps on the base in DIR, on GPU 0, beside PEFT's (step.rs)
//! lorikeet-gpu kernels                      every kernel through NVRTC for every architecture; needs no GPU
//! ```
//! Several parts are a process each (parts.rs): an error sticks to the context that it came in, and one part must not take the
//! others with it. Exit code: 0 when everything held, 1 when something did not, 2 for a mistake on the command line, 3 when there is no GPU
//! that can be used.

mod check;
mod goldens;
mod parts;
mod step;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use lorikeet_trainer::ops::cuda::bench::{self, Rate};
use lorikeet_trainer::ops::cuda::{Gpu, every_kernel, survey};
use lorikeet_trainer::ops::parity::large;

use parts::Part;

const USAGE: &str = "usage: lorikeet-gpu [check] [large] [goldens] [bench] [--seed N] [--device N] [--tiny]\n\
    \x20      lorikeet-gpu step DIR [--length N] [--sequences N] [--together N,…] [--recompute N] [--nf4] [--profile] [--seconds N] [--tiny]\n\
    \x20      lorikeet-gpu kernels\n\
    example: CUDA_LIB_DIR=/opt/cuda/lib lorikeet-gpu check large --seed 7";

struct Wish {
    parts: Vec<Part>,
    seed: u64,
    device: usize,
    is_tiny: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|word| word == "--help" || word == "-h") {
        return said(USAGE, 0);
    }
    match arguments.first().map(String::as_str) {
        Some("step") => return steps(&arguments[1..]),
        Some("kernels") => return kernels(),
        _ => {}
    }
    let wish = match parse(&arguments) {
        Ok(wish) => wish,
        Err(fault) => return said(&format!("error: {fault}\n{USAGE}"), 2),
    };
    match wish.parts[..] {
        [part] => alone(part, &wish),
        _ => parts::run(&wish.parts, &options(&arguments)),
    }
}

fn said(text: &str, code: u8) -> ExitCode {
    // who is told has gone away: there is nobody left to tell that to
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(code)
}

fn parse(arguments: &[String]) -> Result<Wish, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_secs());
    let mut wish = Wish { parts: Vec::new(), seed: now, device: 0, is_tiny: false };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let mut value = || -> Result<u64, String> {
            let text = words.next().ok_or(format!("{word} wants a number"))?;
            text.parse().map_err(|_| format!("{word} {text}: not a whole number"))
        };
        match word.as_str() {
            "--tiny" => wish.is_tiny = true,
            "--seed" => wish.seed = value()?,
            "--device" => wish.device = value()? as usize,
            other => wish.parts.push(Part::named(other).ok_or(format!("{other} is not known"))?),
        }
    }
    if wish.parts.is_empty() {
        wish.parts.extend(Part::ALL);
    }
    Ok(wish)
}

/// What is not the name of a part, for each of them.
fn options(arguments: &[String]) -> Vec<String> {
    arguments.iter().filter(|word| Part::named(word).is_none()).cloned().collect()
}

fn steps(words: &[String]) -> ExitCode {
    match step::Wish::parse(words).map(|wish| step::measure(&wish, &mut std::io::stdout())) {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => ExitCode::FAILURE,
        Ok(Err(error)) => said(&format!("error: failed to train: {error}"), 1),
        Err(fault) => said(&format!("error: {fault}\n{USAGE}"), 2),
    }
}

fn kernels() -> ExitCode {
    match every_kernel() {
        Ok(count) => said(&format!("NVRTC: {count} compilations"), 0),
        Err(error) => said(&format!("error: failed to {error}"), 1),
    }
}

/// One part, in this process.
fn alone(part: Part, wish: &Wish) -> ExitCode {
    let began = Instant::now();
    let mut out = std::io::stdout().lock();
    if part == Part::Goldens {
        return said(&format!("error: {}", goldens::run(wish.device)), 1);
    }
    let gpu = match Gpu::open(wish.device) {
        Ok(gpu) => Arc::new(gpu),
        Err(error) => return said(&format!("error: failed to {error}"), 3),
    };
    let held = on_gpu(part, &gpu, wish, began, &mut out);
    match held {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => said(&format!("error: {error}"), 1),
    }
}

/// Whether all of it held; the last line says so to people.
fn on_gpu(part: Part, gpu: &Arc<Gpu>, wish: &Wish, began: Instant, out: &mut impl Write) -> std::io::Result<bool> {
    head(gpu, began, out)?;
    let (of_large, of_bench) =
        if wish.is_tiny { (large::TINY, bench::TINY) } else { (large::LLAMA_8B, bench::LLAMA_8B) };
    let (held, of_it) = match part {
        Part::Check => check::small(gpu, wish.seed, out)?,
        Part::Large => check::large(gpu, of_large, wish.seed, out)?,
        Part::Bench => rates(gpu, of_bench, out)?,
        Part::Goldens => unreachable!("this process has become them"),
    };
    writeln!(out, "{of_it}, in {:.1} s", began.elapsed().as_secs_f64())?;
    Ok(held)
}

fn head(gpu: &Gpu, began: Instant, out: &mut impl Write) -> std::io::Result<()> {
    let (free, total) = gpu.memory().unwrap_or_default();
    let (major, minor) = gpu.compute();
    writeln!(
        out,
        "{}, compute capability {major}.{minor}, {:.1} of {:.1} GiB free, driver speaks CUDA {}; kernels compiled in {:.1} s",
        gpu.name(),
        free as f64 / (1u64 << 30) as f64,
        total as f64 / (1u64 << 30) as f64,
        survey::survey().driver.unwrap_or_default(),
        began.elapsed().as_secs_f64()
    )
}

fn rates(gpu: &Gpu, shape: bench::Shape, out: &mut impl Write) -> std::io::Result<(bool, String)> {
    writeln!(out, "{:<28} {:>10} {:>14}  of the ceiling", "operation", "ms", "rate")?;
    let mut all: Vec<Rate> = Vec::new();
    let (mut written, mut faults) = (Ok(()), 0);
    bench::measure(gpu, shape, |rates| match rates {
        Ok(rates) => {
            all.extend(&rates);
            for rate in rates {
                written = std::mem::replace(&mut written, Ok(())).and_then(|()| writeln!(out, "{}", row(&all, rate)));
            }
        }
        Err(error) => {
            faults += 1;
            written = std::mem::replace(&mut written, Ok(())).and_then(|()| writeln!(out, "FAILS: {error}"));
        }
    });
    written?;
    Ok((faults == 0, format!("{} operations measured, {faults} groups of them failed", all.len())))
}

fn row(all: &[Rate], rate: Rate) -> String {
    let ceiling = all.iter().find(|other| (other.bytes > 0.0) == (rate.bytes > 0.0)).map_or(1.0, Rate::value);
    let unit = if rate.bytes > 0.0 { "GB/s" } else { "TFLOP/s" };
    let share = 100.0 * rate.value() / ceiling;
    format!("{:<28} {:>10.3} {:>9.1} {unit:<7} {share:>5.1} %", rate.name, rate.milliseconds, rate.value())
}
