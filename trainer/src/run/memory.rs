//! How large a micro-batch may be while a run lasts: less memory means a smaller one, never another step.
//!
//! ```text
//! before loading      the largest micro-batch that fits, else blocks computed twice, else refused with what would help
//! before every step   planned bytes > allowed bytes, or close to the limit ─► half
//! in a pass           the system refuses a buffer ─► the pass is undone ─► half, and again
//! no smaller one      (an example is never cut) ─► every block computed twice ─► out of memory, by name
//! ```
//! Half the micro-batch is the same mathematics, with sums in another order: another plan, written into the checkpoints from
//! there on. What cannot be caught here: the kernel ending the process because it promised more than there is, and the
//! agent ending it above its limit.

use std::cmp::Reverse;
use std::fs;

use lorikeet_dataset::Prepared;
use lorikeet_plan::{
    AdapterShape, BaseDtype, Fitted, ModelConfig, Processor, Quantisation, Settings, Shortfall, Wish, fit,
};

use super::Session;
use crate::TrainError;
use crate::config::{Config, Device};
use crate::event::{Event, Level};
use crate::ops::machine::Machine;

impl Session<'_, '_> {
    /// Makes the micro-batch as small as memory wants it before the next step.
    pub(super) fn fit(&mut self) -> Result<(), TrainError> {
        if self.config.device != Device::Cpu {
            // what lies in the driver's pool is ours and looks taken: a pass that is refused memory says so itself
            return Ok(());
        }
        let limit = self.config.memory_limit;
        let Some(allowed) = allowed_bytes(limit) else { return Ok(()) };
        let resident = resident_bytes();
        while let Some(thrift) = self.thriftier() {
            let needed = self.needs.plan(self.thrift).memory.total;
            // A tenth of air: the agent does not look at the moment before.
            let crowded = limit.is_some_and(|limit| resident > limit / 10 * 9);
            if needed <= allowed && !crowded {
                break;
            }
            self.save_memory(thrift, &format!("{needed} bytes planned, {resident} resident, {allowed} allowed"))?;
            if crowded {
                // Only a step shows whether that was enough.
                break;
            }
        }
        Ok(())
    }

    /// Does a pass; again with half the micro-batch for as long as it is refused memory. A pass leaves nothing half done.
    pub(super) fn in_memory<T>(&mut self, pass: impl Fn(&mut Self) -> Result<T, TrainError>) -> Result<T, TrainError> {
        loop {
            let (what, bytes) = match pass(self) {
                Err(TrainError::Refused { what, bytes }) => (what, bytes),
                done => return done,
            };
            let Some(thrift) = self.thriftier() else {
                return Err(self.exhausted(TrainError::Refused { what, bytes }));
            };
            self.save_memory(thrift, &format!("{bytes} bytes were refused"))?;
        }
    }

    /// What takes less: half the micro-batch, and where that cannot be, every block computed again.
    fn thriftier(&self) -> Option<Thrift> {
        let Thrift { micro_tokens, recompute } = self.thrift;
        let blocks = self.needs.blocks();
        match fewer(micro_tokens, self.longest()) {
            Some(micro_tokens) => Some(Thrift { micro_tokens, recompute }),
            None => (recompute < blocks).then_some(Thrift { micro_tokens, recompute: blocks }),
        }
    }

    /// The refusal that nothing helped against; with what would, where the plan as well says that there is not enough.
    fn exhausted(&self, refused: TrainError) -> TrainError {
        let Thrift { micro_tokens, recompute } = self.thrift;
        let available = available(self.model.machine(), self.config.memory_limit).ok().flatten();
        let wish = self.needs.wish(Some(micro_tokens), Some(recompute), available);
        fit(&self.needs.shape, &wish).map_or_else(|shortfall| TrainError::from(*shortfall), |_| refused)
    }

    fn save_memory(&mut self, thrift: Thrift, why: &str) -> Result<(), TrainError> {
        let from = self.run.state.step + 1;
        let message = if thrift.micro_tokens == self.thrift.micro_tokens {
            format!(
                "memory is short ({why}): every block is computed twice from step {from} on; the steps stay the same"
            )
        } else {
            format!(
                "memory is short ({why}): micro-batches of {} tokens instead of {} from step {from} on; the steps stay the same but \
                 for rounding",
                thrift.micro_tokens, self.thrift.micro_tokens,
            )
        };
        self.thrift = thrift;
        self.model.set_recompute(thrift.recompute);
        self.tell(Event::Log { level: Level::Warning, message })
    }

    fn longest(&self) -> usize {
        self.needs.longest
    }
}

/// How a run trades time for memory: its micro-batch plan, which is stored in its checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Thrift {
    /// Tokens per micro-batch.
    pub(super) micro_tokens: usize,
    /// Blocks that keep only their input.
    pub(super) recompute: usize,
}

/// What a run's memory depends on, but for its thrift.
#[derive(Debug)]
pub(super) struct Needs {
    shape: ModelConfig,
    trained: AdapterShape,
    /// How the frozen weights are held.
    base_dtype: BaseDtype,
    processor: Processor,
    /// Whether the device is this run's alone.
    alone: bool,
    /// Tokens of the longest example.
    longest: usize,
    /// Tokens of the largest step there may be.
    step_tokens: usize,
}

impl Needs {
    pub(super) fn new(shape: &ModelConfig, trained: AdapterShape, data: &Prepared, config: &Config) -> Needs {
        let settings = &config.settings;
        let mut lengths: Vec<usize> = (0..data.train.len()).map(|index| data.train.tokens_in(index)).collect();
        lengths.sort_unstable_by_key(|length| Reverse(*length));
        let step_tokens = lengths.iter().take(settings.batch_size as usize).sum();
        Needs {
            shape: shape.clone(),
            trained,
            base_dtype: held(shape, settings.base_dtype),
            alone: !config.shares_device,
            processor: match config.device {
                Device::Cpu => Processor::Cpu,
                Device::Gpu(_) => Processor::Cuda,
            },
            longest: data.report.longest_example as usize,
            step_tokens,
        }
    }

    /// Chooses what is not settled, within what there is.
    pub(super) fn fit(&self, micro_tokens: Option<usize>, available: Option<u64>) -> Result<Fitted, Box<Shortfall>> {
        fit(&self.shape, &self.wish(micro_tokens, None, available))
    }

    /// What a choice takes.
    pub(super) fn plan(&self, thrift: Thrift) -> Fitted {
        let wish = self.wish(Some(thrift.micro_tokens), Some(thrift.recompute), None);
        fit(&self.shape, &wish).expect("without a limit everything fits")
    }

    fn wish(&self, micro_tokens: Option<usize>, recompute: Option<usize>, available: Option<u64>) -> Wish {
        let settings = Settings {
            adapters: vec![self.trained],
            base_dtype: self.base_dtype,
            processor: self.processor,
            tokens_per_micro: 0,
            longest_segment: self.longest,
            supervised_rows: 0,
            recompute: 0,
        };
        let (step_tokens, alone) = (self.step_tokens, self.alone);
        Wish { settings, step_tokens, micro_tokens, recompute, available, alone }
    }

    /// Blocks with a backward.
    fn blocks(&self) -> usize {
        self.shape.num_hidden_layers.saturating_sub(self.trained.lowest)
    }
}

/// How the projections of a base lie in memory: as its files hold them, where that is in fewer bits already.
fn held(shape: &ModelConfig, asked: BaseDtype) -> BaseDtype {
    shape.quantisation.map_or(asked, Quantisation::dtype)
}

impl From<Shortfall> for TrainError {
    fn from(Shortfall { least, available, remedies }: Shortfall) -> TrainError {
        let Fitted { micro_tokens, recompute, memory } = least;
        let again = if recompute > 0 { ", every block computed twice" } else { "" };
        TrainError::OutOfMemory {
            what: format!("{micro_tokens} tokens or one example at a time{again}"),
            needed_bytes: memory.total,
            available_bytes: available,
            remedies,
        }
    }
}

/// Half as many tokens, if that makes any micro-batch smaller: one that holds a single example cannot be.
fn fewer(tokens: usize, longest: usize) -> Option<usize> {
    (tokens > longest).then(|| (tokens / 2).max(longest))
}

/// What a run may hold of the memory that its passes take.
pub(super) fn available(machine: &Machine, limit: Option<u64>) -> Result<Option<u64>, TrainError> {
    Ok(match machine.available_bytes()? {
        None => allowed_bytes(limit),
        free => free,
    })
}

/// What this process may hold: what it has and what could be had without swapping, and no more than its limit. `None` where the
/// system does not say.
pub(super) fn allowed_bytes(limit: Option<u64>) -> Option<u64> {
    let available = field("/proc/meminfo", "MemAvailable:").map(|bytes| bytes + resident_bytes());
    available.into_iter().chain(limit).min()
}

/// Main memory that only this process holds.
fn resident_bytes() -> u64 {
    field("/proc/self/status", "RssAnon:").unwrap_or_default()
}

/// A number of kB in a file of `/proc`, in bytes.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_micro_batch_is_halved_down_to_the_longest_example_and_no_further() {
        let mut tokens = 2048;
        let mut seen = vec![tokens];
        while let Some(less) = fewer(tokens, 300) {
            tokens = less;
            seen.push(tokens);
        }
        assert_eq!(seen, [2048, 1024, 512, 300]);
        assert_eq!(fewer(100, 300), None, "an example is longer than that anyway");
    }

    #[test]
    fn a_limit_is_never_exceeded_by_what_the_machine_has() {
        assert_eq!(allowed_bytes(Some(1)), Some(1));
        assert!(allowed_bytes(None).is_some_and(|bytes| bytes > 1 << 20));
    }
}
