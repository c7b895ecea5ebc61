//! Where a card's time goes: with recording on, a timed event before and one behind whatever is put on the stream, and nobody waits before
//! the whole is read. Off, it costs one relaxed load for each.
//!
//! The card marks an event when it comes to it. While the host is ahead that is when the work before has ended, and times are the
//! kernels' own; where the card waits for the host, a launch is given the microseconds as well that its own call takes.
//! [`Gpu::time_of_nothing`] says how many.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags;

use super::{Gpu, GpuError};

/// What is put on the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// A kernel of ours, a copy or a fill.
    Named(&'static str),
    /// A matrix product.
    Product {
        /// Of the result.
        rows: usize,
        /// Of the result.
        cols: usize,
        /// What is summed over.
        inner: usize,
    },
}

impl Work {
    /// Multiplications and additions of all products of that shape together; nobody counts those of others.
    fn flops(self) -> f64 {
        match self {
            Work::Named(_) => 0.0,
            Work::Product { rows, cols, inner } => 2.0 * rows as f64 * cols as f64 * inner as f64,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Named(name) => f.pad(name),
            Work::Product { rows, cols, inner } => f.pad(&format!("product {rows} × {cols} × {inner}")),
        }
    }
}

/// What one kind of work took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spent {
    /// Which.
    pub work: Work,
    /// All of it.
    pub milliseconds: f64,
    /// How often.
    pub launches: usize,
}

impl Spent {
    /// Of a product; 0 of anything else.
    pub fn teraflops(&self) -> f64 {
        self.work.flops() * self.launches as f64 / self.milliseconds.max(1e-6) / 1e9
    }
}

/// What a card did between two moments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recorded {
    /// Every kind of work, the longest first.
    pub spent: Vec<Spent>,
    /// From the first event to the last.
    pub milliseconds: f64,
    /// Of these, with nothing to do.
    pub idle: f64,
}

impl Recorded {
    /// Of everything.
    pub fn launches(&self) -> usize {
        self.spent.iter().map(|spent| spent.launches).sum()
    }

    fn new(spans: impl Iterator<Item = (Work, f64)>, milliseconds: f64) -> Recorded {
        let mut kinds = BTreeMap::<Work, Spent>::new();
        for (work, took) in spans {
            let spent = kinds.entry(work).or_insert(Spent { work, milliseconds: 0.0, launches: 0 });
            spent.milliseconds += took;
            spent.launches += 1;
        }
        let mut spent: Vec<Spent> = kinds.into_values().collect();
        spent.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
        let busy: f64 = spent.iter().map(|spent| spent.milliseconds).sum();
        Recorded { spent, milliseconds, idle: (milliseconds - busy).max(0.0) }
    }
}

/// Events around what is on the stream.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    is_on: AtomicBool,
    marks: Mutex<Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    spans: Vec<(Work, [CudaEvent; 2])>,
    /// Made already: to make one takes as long as to start a kernel.
    spare: Vec<CudaEvent>,
}

impl Timeline {
    fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const DOING: &str = "measure time";

impl Gpu {
    /// Puts work on the stream by calling `start`.
    pub(super) fn timed<T>(&self, work: Work, start: impl FnOnce() -> Result<T, GpuError>) -> Result<T, GpuError> {
        // on or off between steps, by whoever takes them: nothing depends on when another thread sees it
        if self.timeline.is_on.load(Ordering::Relaxed) { self.between_events(work, start) } else { start() }
    }

    fn between_events<T>(&self, work: Work, start: impl FnOnce() -> Result<T, GpuError>) -> Result<T, GpuError> {
        let [before, after] = [self.event()?, self.event()?];
        before.record(&self.stream).map_err(GpuError::driver(DOING))?;
        let started = start()?;
        after.record(&self.stream).map_err(GpuError::driver(DOING))?;
        self.timeline.marks().spans.push((work, [before, after]));
        Ok(started)
    }

    fn event(&self) -> Result<CudaEvent, GpuError> {
        if let Some(event) = self.timeline.marks().spare.pop() {
            return Ok(event);
        }
        self.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(GpuError::driver(DOING))
    }

    /// Begins to record.
    pub fn record(&self) {
        self.timeline.is_on.store(true, Ordering::Relaxed);
    }

    /// Ends it; waits for all that was recorded.
    pub fn recorded(&self) -> Result<Recorded, GpuError> {
        self.timeline.is_on.store(false, Ordering::Relaxed);
        let spans = std::mem::take(&mut self.timeline.marks().spans);
        let between = |from: &CudaEvent, to: &CudaEvent| {
            from.elapsed_ms(to).map(|milliseconds| f64::from(milliseconds).max(0.0)).map_err(GpuError::driver(DOING))
        };
        let (Some((_, [first, _])), Some((_, [_, last]))) = (spans.first(), spans.last()) else {
            return Ok(Recorded::default());
        };
        let whole = between(first, last)?;
        let each = spans.iter().map(|(work, [from, to])| between(from, to).map(|took| (*work, took)));
        let recorded = Recorded::new(each.collect::<Result<Vec<_>, _>>()?.into_iter(), whole);
        self.timeline.marks().spare.extend(spans.into_iter().flat_map(|(_, events)| events));
        Ok(recorded)
    }

    /// Milliseconds that work on next to nothing takes by this measure while the card waits for the host.
    pub fn time_of_nothing(&self) -> Result<f64, GpuError> {
        const TIMES: usize = 200;
        let mut one = self.zeros::<f32>(1)?;
        let mut took = 0.0;
        // the first time makes the events
        for _ in 0..2 {
            self.wait()?;
            self.record();
            (0..TIMES).try_for_each(|_| self.clear(&mut one.as_view_mut()))?;
            let recorded = self.recorded()?;
            took = (recorded.milliseconds - recorded.idle) / TIMES as f64;
        }
        Ok(took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_summed_by_kind_and_the_rest_is_idle() {
        let product = Work::Product { rows: 2, cols: 3, inner: 4 };
        let spans = [(Work::Named("glu"), 1.0), (product, 2.0), (Work::Named("glu"), 4.0)];
        let recorded = Recorded::new(spans.into_iter(), 10.0);
        assert_eq!(recorded.spent[0], Spent { work: Work::Named("glu"), milliseconds: 5.0, launches: 2 });
        assert_eq!(recorded.spent[1], Spent { work: product, milliseconds: 2.0, launches: 1 });
        assert_eq!((recorded.idle, recorded.launches()), (3.0, 3));
        assert!((recorded.spent[1].teraflops() - 48.0 / 2e-3 / 1e12).abs() < 1e-18);
        assert_eq!(product.to_string(), "product 2 × 3 × 4");
    }
}
