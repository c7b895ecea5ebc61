//! The commands of whoever runs a cluster: the two services, their data, their certificates, their health.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Ca {
    /// Print the authority's certificate and its hash
    #[command(after_help = "Example:\n  lorikeet ca show --data /var/lib/lorikeet/coordinator")]
    Show {
        /// Read it from a coordinator's data directory instead of asking the server
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
    },
    /// Where its rotation is: both authorities, what each node trusts, what it waits for
    #[command(after_help = "Example:\n  lorikeet ca status --output json")]
    Status,
    /// Make the next authority, which signs from now on; both are trusted until the rotation is finished
    #[command(
        after_help = "Example:\n  lorikeet ca rotate\n  lorikeet ca status\n\nNothing is restarted and no job is touched. Asked again it says where the rotation is.\nTake a backup afterwards: one of before knows only the older authority."
    )]
    Rotate,
    /// Forget the older authority now, not after its last certificates have run out
    #[command(
        after_help = "Example:\n  lorikeet ca finish\n\nRefused with the names of the nodes that would be cut off. With --force they are, and\nhave to join again; so do logins and join strings that pin the older authority."
    )]
    Finish {
        /// Also if nodes are cut off by it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// Where data lies; a temporary folder, removed at the end, when not given
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Coordinator {
    #[command(subcommand)]
    pub(crate) command: Option<CoordinatorCommand>,
    /// Its configuration
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) config: Option<PathBuf>,
    /// Leave in order when standard input, a pipe, ends: whoever started this is gone
    #[arg(long)]
    pub(crate) until_eof: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CoordinatorCommand {
    /// Give back the room that removed records left in the store; the coordinator must be stopped
    #[command(after_help = "Example:\n  lorikeet coordinator compact --data /var/lib/lorikeet/coordinator")]
    Compact {
        /// The coordinator's data directory
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// The file to write; must not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Also datasets, checkpoints, adapters, metrics and logs
    #[arg(long)]
    pub(crate) full: bool,
    /// The data directory of a coordinator that does not run; without it the running one is asked
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// What `lorikeet backup` wrote
    #[arg(long, value_name = "FILE")]
    pub(crate) from: PathBuf,
    /// The data directory to make; blobs and series that are there stay
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Also read every file that the records name; exit with 2 if one is missing or changed
    #[arg(long)]
    pub(crate) verify: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The configuration of the coordinator of this machine
    #[arg(long, value_name = "FILE")]
    pub(crate) coordinator: Option<PathBuf>,
    /// The configuration of the agent of this machine
    #[arg(long, value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Agent {
    #[command(subcommand)]
    pub(crate) command: Option<AgentCommand>,
    /// Its configuration
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) config: Option<PathBuf>,
    /// Leave in order when standard input, a pipe, ends: whoever started this is gone
    #[arg(long)]
    pub(crate) until_eof: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Make this machine a node, once
    #[command(
        after_help = "Example:\n  lorikeet agent join LK1.… --config /etc/lorikeet/agent.toml\n\n`lorikeet node token` makes the string. Join as the user, and with the\nconfig, that the agent runs with: its data_dir keeps who this machine is."
    )]
    Join {
        /// From `lorikeet node token`
        #[arg(value_name = "STRING")]
        ticket: String,
        /// The agent's configuration; its defaults when not given
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}
