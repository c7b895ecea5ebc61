//! Arguments of the commands about one job, and about many jobs of one file.

use super::{Jobs, Page};
use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// List them, newest first; the same as `lorikeet jobs`
    #[command(after_help = "Example:\n  lorikeet job list --status running")]
    List(Jobs),
    /// Everything about one job
    #[command(after_help = "Example:\n  lorikeet job show job_0192…")]
    Show(OneJob),
    /// End a job
    #[command(after_help = "Example:\n  lorikeet job cancel job_0192… --reason wrong-config")]
    Cancel {
        #[command(flatten)]
        job: OneJob,
        /// For the record
        #[arg(long, value_enum, default_value_t = CancelReason::Other)]
        reason: CancelReason,
    },
    /// It saves its state, gives its device back and waits
    #[command(after_help = "Example:\n  lorikeet job pause job_0192…")]
    Pause(OneJob),
    /// A paused job goes on
    #[command(after_help = "Example:\n  lorikeet job resume job_0192…")]
    Resume(OneJob),
    /// A job that was submitted with `hold = true` goes on its way
    #[command(after_help = "Example:\n  lorikeet job release job_0192…")]
    Release(OneJob),
    /// Another place in line, as long as it waits
    #[command(after_help = "Example:\n  lorikeet job priority job_0192… 80")]
    Priority {
        #[command(flatten)]
        job: OneJob,
        /// 0–100; higher goes first
        #[arg(value_name = "PRIORITY", value_parser = clap::value_parser!(u8).range(0..=100))]
        priority: u8,
    },
    /// It saves a checkpoint now and goes on
    #[command(after_help = "Example:\n  lorikeet job checkpoint job_0192…")]
    Checkpoint(OneJob),
    /// The same again, as a new job
    #[command(after_help = "Example:\n  lorikeet job retry job_0192… --follow")]
    Retry {
        #[command(flatten)]
        job: OneJob,
        /// Stay and watch the new one
        #[arg(long)]
        follow: bool,
    },
    /// Why it is where it is
    #[command(after_help = "Example:\n  lorikeet job why job_0192…")]
    Why(OneJob),
    /// What the worker said
    #[command(after_help = "Example:\n  lorikeet job logs job_0192… -f")]
    Logs {
        #[command(flatten)]
        job: OneJob,
        /// Stay and print what comes, until the job ends
        #[arg(short = 'f', long)]
        follow: bool,
    },
    /// Loss, learning rate and speed, step by step
    #[command(after_help = "Example:\n  lorikeet job metrics job_0192… --output json")]
    Metrics(OneJob),
    /// What it could go on from
    #[command(after_help = "Example:\n  lorikeet job checkpoints job_0192…")]
    Checkpoints(OneJob),
    /// Watch it until it ends; exit with 5 if it fails
    #[command(after_help = "Example:\n  lorikeet job follow job_0192…")]
    Follow(OneJob),
}

/// Which job.
#[derive(Debug, Clone, Args)]
pub(crate) struct OneJob {
    /// Its id, or its name: of several the one that is not over, else the newest
    pub(crate) job: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sweep {
    /// List them, newest first, with the best job of each
    #[command(after_help = "Example:\n  lorikeet sweep list")]
    List(Page),
    /// One sweep: every job, its values and its losses
    #[command(after_help = "Example:\n  lorikeet sweep show sweep_0192…")]
    Show(OneSweep),
    /// End every job of it
    #[command(after_help = "Example:\n  lorikeet sweep cancel sweep_0192… --reason wrong-config")]
    Cancel {
        #[command(flatten)]
        sweep: OneSweep,
        /// For the record
        #[arg(long, value_enum, default_value_t = CancelReason::Other)]
        reason: CancelReason,
    },
}

/// Which sweep.
#[derive(Debug, Clone, Args)]
pub(crate) struct OneSweep {
    /// Its id, or its name: of several the one that is not over, else the newest
    pub(crate) sweep: String,
}

/// Why a job is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CancelReason {
    CostConcern,
    PoorPerformance,
    WrongConfig,
    NoLongerNeeded,
    Other,
}
