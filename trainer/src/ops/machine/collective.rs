//! Sums over the ranks of a run, made where the numbers lie. GPUs have NCCL for that; the processor has nothing, and the ranks' wires do it.

use serde::{Deserialize, Serialize};

use super::{Exact, LossSums, Machine};
use crate::TrainError;
#[cfg(feature = "cuda")]
use crate::ops::cuda::{GpuError, nccl};

/// Where the ranks of a run find each other: made by one of them, told to all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meeting(Vec<u8>);

/// One rank's end of what makes the sums. Dropped, it ends whatever it is at, and what was to be summed is no number any more.
#[derive(Debug)]
pub struct Collective(End);

#[derive(Debug)]
enum End {
    #[cfg(feature = "cuda")]
    Nccl(nccl::Communicator),
}

impl Machine {
    /// A new place to meet at. None where numbers are summed on the host anyway; an error says what is missing.
    pub fn meeting(&self) -> Result<Option<Meeting>, TrainError> {
        match self {
            Machine::Cpu(_) => Ok(None),
            #[cfg(feature = "cuda")]
            Machine::Gpu(_) => nccl::meeting().map(|id| Some(Meeting(id.to_vec()))).map_err(trouble),
        }
    }

    /// Whether this rank has what it takes to meet others.
    pub fn can_meet(&self) -> Result<(), TrainError> {
        match self {
            Machine::Cpu(_) => Err(on_a_processor()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(_) => nccl::there().map_err(trouble),
        }
    }

    /// Begins to meet the others, as one of so many; nobody waits for it.
    pub fn meet(&self, meeting: &Meeting, (rank, ranks): (usize, usize)) -> Result<Collective, TrainError> {
        let _ = (meeting, rank, ranks);
        match self {
            Machine::Cpu(_) => Err(on_a_processor()),
            #[cfg(feature = "cuda")]
            Machine::Gpu(gpu) => {
                let id = meeting.0.as_slice().try_into();
                let id = id.map_err(|_| TrainError::Internal("ranks meet at no such place".into()))?;
                let end = nccl::Communicator::open(gpu, (rank, ranks), id).map_err(trouble)?;
                Ok(Collective(End::Nccl(end)))
            }
        }
    }
}

impl Collective {
    /// Whether all that it was asked for is done, to meet at first. It goes on only when somebody looks.
    pub fn look(&mut self) -> Result<bool, TrainError> {
        match self.0 {
            #[cfg(feature = "cuda")]
            End::Nccl(ref mut communicator) => communicator.look().map_err(trouble),
        }
    }

    /// Begins to put the sums of all ranks in the place of these. Nobody may use, change or give them back until it is done or dropped.
    pub fn sum(&mut self, grads: &mut [&mut Exact], losses: &mut LossSums) -> Result<(), TrainError> {
        let _ = (&grads, &losses);
        match self.0 {
            #[cfg(feature = "cuda")]
            End::Nccl(ref mut communicator) => {
                let LossSums::Device(losses) = losses else { super::elsewhere() };
                let mut grads: Vec<_> = grads.iter_mut().map(|grads| grads.device_mut()).collect();
                communicator.sum(&mut grads, &mut losses.as_view_mut()).map_err(trouble)
            }
        }
    }
}

fn on_a_processor() -> TrainError {
    TrainError::Device { reason: "meet other ranks: this one trains on a processor".into() }
}

/// Want of memory among it: the other ranks are at it by then, and smaller passes of this one help nobody.
#[cfg(feature = "cuda")]
fn trouble(error: GpuError) -> TrainError {
    TrainError::Device { reason: error.to_string() }
}
