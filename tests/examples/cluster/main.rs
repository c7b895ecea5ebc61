//! `cargo xtask bench cluster`: the coordinator under load – real QUIC on loopback, real fsync, both ends of the wire on one machine.
//!
//! ```text
//! place.rs    a coordinator in a folder, what it costs      report.rs   the table
//! submit.rs   B1             dispatch.rs  B2, B3             recover.rs  B5        returns.rs  B6, B12
//! idle.rs     B7             series.rs    B8, B9             history.rs  B10
//! quota.rs    B4             checkpoint.rs  B11              hyperqueue.rs  another's B2, if there is one
//! ```
//! Arguments name the benchmarks (`B1 B6`); without any, all of them run. `--quick` makes each small, to see that it works;
//! `--hyperqueue PYTHON` runs HyperQueue beside B2, from a Python that has its package.

#![expect(clippy::print_stdout, reason = "a benchmark is read from its output")]

mod checkpoint;
mod dispatch;
mod history;
mod hyperqueue;
mod idle;
mod place;
mod quota;
mod recover;
mod report;
mod returns;
mod series;
mod submit;

use report::Report;

/// How much of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Quick,
    Full,
}

impl Size {
    /// One number of two.
    pub(crate) fn of<T>(self, quick: T, full: T) -> T {
        if self == Self::Quick { quick } else { full }
    }
}

type Bench = (&'static str, fn(Size, &mut Report));

const ALL: [Bench; 12] = [
    ("B1", submit::durable_submit),
    ("B2", dispatch::overhead),
    ("B3", dispatch::placement_curve),
    ("B4", quota::generator),
    ("B5", recover::recovery),
    ("B6", returns::restart),
    ("B7", idle::cost_of_an_agent),
    ("B8", series::ingest),
    ("B9", series::follow),
    ("B10", history::cold_start),
    ("B11", checkpoint::path),
    ("B12", returns::storm),
];

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let hyperqueue = words.iter().position(|word| word == "--hyperqueue").map(|at| {
        assert!(at + 1 < words.len(), "--hyperqueue wants a Python that has the package hyperqueue");
        std::path::absolute(words.drain(at..=at + 1).next_back().expect("it was looked for"))
            .expect("this folder is there")
    });
    let size = if words.iter().any(|word| word == "--quick") { Size::Quick } else { Size::Full };
    let named: Vec<&str> = words.iter().map(String::as_str).filter(|word| word.starts_with('B')).collect();
    let mut report = Report::new();
    for (name, bench) in ALL.iter().filter(|(name, _)| named.is_empty() || named.contains(name)) {
        eprintln!("== {name}");
        bench(size, &mut report);
        if let Some(python) = hyperqueue.as_deref().filter(|_| *name == "B2") {
            hyperqueue::overhead(python, size, &mut report);
        }
        report.print_last();
    }
    println!("{report}");
}
