//! The command line: clap types and nothing else. Every command says what it does and shows one example.

mod job;
mod local;
mod operate;
mod plan;
mod quantise;

use clap::{Args, Parser, Subcommand, ValueEnum};
pub(crate) use job::{CancelReason, Job, OneJob, OneSweep, Sweep};
use lorikeet_api::{
    node::DRAIN_WITHIN,
    token::{JOIN_TTL, TOKEN_TTL},
};
use lorikeet_protocol::id::Hash;
pub(crate) use operate::{Agent, AgentCommand, Backup, Ca, Coordinator, CoordinatorCommand, Dev, Doctor, Restore};
pub(crate) use plan::Plan;
pub(crate) use quantise::{Bits, Quantise};
use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

pub(crate) use local::{Eval, Export, Generate, LocalModel, Merge, Stored, Supervised};

/// Fine-tune LoRA adapters on your own GPUs.
#[derive(Debug, Parser)]
#[command(name = "lorikeet", version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Start here:\n  lorikeet demo                     a whole training on this machine, in a minute or two\n  lorikeet train --help             one training without a cluster\n  lorikeet dev                      a coordinator and an agent on this machine"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    // The environment is read by `profile`: what clap had read from there it would repeat in the usage of every complaint.
    /// The coordinator, `https://host:7170`; else LORIKEET_SERVER, else the profile's
    #[arg(long, global = true, value_name = "URL", help_heading = "Connection")]
    pub(crate) server: Option<String>,
    /// The bearer token; else LORIKEET_TOKEN, else the profile's
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Connection")]
    pub(crate) token: Option<String>,
    /// The profile that `lorikeet login` writes; else LORIKEET_PROFILE [default: ~/.config/lorikeet/profile.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Connection")]
    pub(crate) profile: Option<PathBuf>,
    /// Tables for people or JSON for programs
    #[arg(long, global = true, value_enum, default_value_t = Form::Table, value_name = "FORM", help_heading = "Output")]
    pub(crate) output: Form,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train once on a small model of our own making, start to adapter
    #[command(after_help = "Example:\n  lorikeet demo --dir /tmp/demo --keep")]
    Demo(Demo),
    /// Train one adapter on this machine, without a cluster
    #[command(
        after_help = "Example:\n  lorikeet train --base models/smollm2 --dataset chats.jsonl --out run1 --set training.epochs=3\n\nCtrl-C saves the state and leaves; run the same command again to go on where it stopped."
    )]
    Train(Train),
    /// Let a base model, with an adapter or without, say something
    #[command(
        after_help = "Example:\n  lorikeet generate --base models/smollm2 --adapter run1/adapter --chat \"Where is my parcel?\""
    )]
    Generate(Generate),
    /// Loss and perplexity of a model on a file, beside the base's own
    #[command(
        after_help = "Example:\n  lorikeet eval --base models/smollm2 --adapter run1/adapter --dataset held-out.jsonl"
    )]
    Eval(Eval),
    /// Say what a training would take of this machine's memory, and what its adapter would sit on; trains nothing
    #[command(
        after_help = "Example:\n  lorikeet plan --base models/smollm2 --memory 2GiB --set training.max_seq_length=1024"
    )]
    Plan(Plan),
    /// Write a base model again in 4 or 8 bits a number, as bitsandbytes and transformers read it
    #[command(after_help = "Example:\n  lorikeet quantise --base models/smollm2 --out models/smollm2-nf4 --to nf4")]
    Quantise(Quantise),
    /// Submit a job file, or a sweep of many
    #[command(
        after_help = "Example:\n  lorikeet submit job.toml --set lora.rank=8 --follow\n  lorikeet submit job.toml --preset conservative --dry-run\n  lorikeet submit job.toml --set 'sweep.training.seed=[1,2,3]'    # an array: one job for each\n  lorikeet submit job.toml --set 'after=[\"support tone:ok\"]'      # once that job has its adapter\n\nWhat a job waits for stands in its file, or behind --set:\n  after = [\"job_0192…:ok\", \"support tone:any\"]   until these jobs have ended so: ok, fail or any\n  hold = true                                    until `lorikeet job release`\n  not_before = 2026-12-01T08:00:00Z              until that moment\n\nOther jobs are named by id or, while they are not over, by name; without a word ok is meant.\nok: with an adapter; fail: failed, rejected or out of time; any: however they like."
    )]
    Submit(Submit),
    /// List jobs, newest first
    #[command(after_help = "Example:\n  lorikeet jobs --status running")]
    Jobs(Jobs),
    /// One job: how it is, why it waits, what it said
    #[command(
        subcommand,
        after_help = "Example:\n  lorikeet job why job_0192…\n\nA job may wait for other jobs (`after`), a hand (`hold`) or a moment: `lorikeet submit --help`."
    )]
    Job(Job),
    /// Many jobs of one file, and the best of them
    #[command(subcommand, after_help = "Example:\n  lorikeet submit sweep.toml\n  lorikeet sweep show sweep_0192…")]
    Sweep(Sweep),
    /// Training files: check, upload, list
    #[command(
        subcommand,
        after_help = "Example:\n  lorikeet dataset check chats.jsonl\n  lorikeet dataset add chats.jsonl --name support-chats"
    )]
    Dataset(Dataset),
    /// Base models
    #[command(subcommand, after_help = "Example:\n  lorikeet base add smollm2-135m /srv/models/smollm2-135m")]
    Base(Base),
    /// What came out of the jobs, and what becomes of it
    #[command(
        subcommand,
        after_help = "Example:\n  lorikeet adapter pull job_0192… --out adapter\n  lorikeet adapter merge --base models/smollm2 --adapter adapter --out merged"
    )]
    Adapter(Adapter),
    /// List machines and their devices
    #[command(after_help = "Example:\n  lorikeet nodes --output json")]
    Nodes,
    /// Machines
    #[command(subcommand, after_help = "Example:\n  lorikeet node token\n  lorikeet node drain node_0192…")]
    Node(Node),
    /// Your bearer tokens
    #[command(subcommand, after_help = "Example:\n  lorikeet token add laptop --ttl 30d")]
    Token(Token),
    /// Remember a server, its certificate authority and a token
    #[command(
        after_help = "Example:\n  lorikeet login https://coordinator:7170 --ca-hash 5f0c… --token-file admin.token\n\n`lorikeet ca show` on the coordinator's machine prints the hash."
    )]
    Login(Login),
    /// The certificate authority of a coordinator
    #[command(
        subcommand,
        after_help = "Example:\n  lorikeet ca show --data /var/lib/lorikeet/coordinator\n  lorikeet ca rotate"
    )]
    Ca(Ca),
    /// Coordinator and one agent on this machine, for trying things out
    #[command(after_help = "Example:\n  lorikeet dev --dir ~/lorikeet-dev")]
    Dev(Dev),
    /// Run the coordinator, or tend its data directory while it does not run
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Example:\n  lorikeet coordinator --config /etc/lorikeet/coordinator.toml\n  lorikeet coordinator compact --data /var/lib/lorikeet/coordinator"
    )]
    Coordinator(Coordinator),
    /// Everything that a coordinator cannot make again, as one file
    #[command(
        after_help = "Example:\n  lorikeet backup --out monday.tar\n\nThe file holds the coordinator's keys: it is readable by you alone, and should stay so."
    )]
    Backup(Backup),
    /// Make a coordinator's data directory from a backup
    #[command(
        after_help = "Example:\n  lorikeet restore --from monday.tar --data /var/lib/lorikeet/coordinator --verify\n\nAgents of today are met as they are: what the backup knows goes on, what it does not know is stopped and kept."
    )]
    Restore(Restore),
    /// What this machine has for training, or what is wrong with a service on it, and what would help
    #[command(
        after_help = "Example:\n  lorikeet doctor --output json\n  lorikeet doctor --coordinator /etc/lorikeet/coordinator.toml\n  lorikeet doctor --agent /etc/lorikeet/agent.toml\n\nOf a service: exit code 0 when nothing is wrong, 2 when something is."
    )]
    Doctor(Doctor),
    /// Run the agent of a GPU machine, or make the machine a node
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Example:\n  lorikeet agent join LK1.… --config /etc/lorikeet/agent.toml\n  lorikeet agent --config /etc/lorikeet/agent.toml"
    )]
    Agent(Agent),
    /// Train what attempt directories ask for; started by the agent
    #[command(after_help = "Example:\n  lorikeet worker /var/lib/lorikeet/agent/attempts/job_…-1.1")]
    Worker(Worker),
    /// Judge a user's file as one JSON object; started by the coordinator
    #[command(after_help = "Example:\n  lorikeet inspect dataset chats.jsonl")]
    Inspect(Inspection),
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Where everything goes; a temporary folder when not given
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Keep the coordinator's and the agent's files too, not only the adapter
    #[arg(long)]
    pub(crate) keep: bool,
    /// Train on this file instead of the conversations that come with the program
    #[arg(long, value_name = "FILE")]
    pub(crate) dataset: Option<PathBuf>,
    /// Train this base model instead of the small one that comes with the program
    #[arg(long, value_name = "DIR")]
    pub(crate) base: Option<PathBuf>,
    /// Train on this machine's GPU, not on its CPU
    #[arg(long)]
    pub(crate) gpu: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Train {
    /// The base model's directory, as Hugging Face lays it out
    #[arg(long, value_name = "DIR")]
    pub(crate) base: PathBuf,
    /// The training file
    #[arg(long, value_name = "FILE")]
    pub(crate) dataset: PathBuf,
    /// The attempt directory to write: events, checkpoints, adapter
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Evaluate on this file instead of a part of the training file
    #[arg(long, value_name = "FILE")]
    pub(crate) validation_dataset: Option<PathBuf>,
    /// Start from this adapter instead of a fresh one
    #[arg(long, value_name = "DIR")]
    pub(crate) init_adapter: Option<PathBuf>,
    /// conservative, balanced or aggressive
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// A key of the job file, like lora.rank=8; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
    /// CPU threads; all cores when not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// Train on the first GPU of this machine, not on its CPU
    #[arg(long)]
    pub(crate) gpu: bool,
    /// Main memory it may take, like 6GiB; what is free when not given
    #[arg(long, value_name = "SIZE", value_parser = plan::size)]
    pub(crate) memory: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// The job file, TOML
    #[arg(value_name = "JOB.toml")]
    pub(crate) file: PathBuf,
    /// conservative, balanced or aggressive, whatever the file says
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Override a key of the file, like lora.rank=8; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) set: Vec<(String, String)>,
    /// Only say what it would come to and whether it would be placed; exit with 2 if it would be rejected, with 3 if it could never start
    #[arg(long, conflicts_with = "follow")]
    pub(crate) dry_run: bool,
    /// Stay and watch; exit with 5 if the job fails
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Jobs {
    /// Only these
    #[arg(long, value_enum, value_name = "STATUS")]
    pub(crate) status: Option<Status>,
    /// Only those with this in their name, whatever its case
    #[arg(long, value_name = "TEXT")]
    pub(crate) search: Option<String>,
    #[command(flatten)]
    pub(crate) page: Page,
}

/// What a job looks like from afar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Status {
    Queued,
    Initializing,
    Running,
    Completed,
    Failed,
    Cancelled,
}

/// Which part of a list.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Page {
    /// Which page, from 1
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) page: u32,
    /// Rows of a page
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) page_size: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dataset {
    /// Say what a file on this machine holds and what is wrong with it; needs no server
    #[command(after_help = "Example:\n  lorikeet dataset check chats.jsonl --output json")]
    Check {
        /// The training file
        file: PathBuf,
        /// Count tokens with this base model's tokenizer
        #[arg(long, value_name = "DIR")]
        base: Option<PathBuf>,
    },
    /// Show the first three examples as the model will see them, with what it learns marked; needs no server
    #[command(
        after_help = "Example:\n  lorikeet dataset preview chats.jsonl --base models/smollm2-135m\n\nWhat is learnt is coloured on a terminal and stands in ⟦ ⟧ elsewhere; --output json gives the text with spans."
    )]
    Preview {
        /// The training file
        file: PathBuf,
        /// The base model's directory, whose chat template and tokenizer are used
        #[arg(long, value_name = "DIR")]
        base: PathBuf,
        /// What is learnt: assistant, last, completion or all
        #[arg(long, value_name = "WHAT", default_value = "assistant", hide_possible_values = true)]
        supervise: Supervised,
        /// Cut examples to this many tokens, as training.max_seq_length does
        #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(64..=131_072))]
        max_seq_length: u32,
    },
    /// Upload a file; an upload that broke off goes on where it stopped
    #[command(after_help = "Example:\n  lorikeet dataset add chats.jsonl --name support-chats")]
    Add {
        /// The training file
        file: PathBuf,
        /// What jobs will call it; the file's name when not given
        #[arg(long)]
        name: Option<String>,
        /// For people
        #[arg(long)]
        description: Option<String>,
        /// Do not wait for the validation
        #[arg(long)]
        no_wait: bool,
    },
    /// List uploaded files
    #[command(after_help = "Example:\n  lorikeet dataset list")]
    List(Page),
    /// One dataset: counts, faults, samples
    #[command(after_help = "Example:\n  lorikeet dataset show support-chats")]
    Show {
        /// Its name or id
        dataset: String,
    },
    /// Delete one
    #[command(after_help = "Example:\n  lorikeet dataset delete support-chats")]
    Delete {
        /// Its name or id
        dataset: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Base {
    /// Register a directory of the coordinator's machine, under one of its base_roots
    #[command(after_help = "Example:\n  lorikeet base add smollm2-135m /srv/models/smollm2-135m")]
    Add {
        /// What jobs will call it
        name: String,
        /// The directory
        path: String,
        /// Do not wait until it is read and hashed
        #[arg(long)]
        no_wait: bool,
    },
    /// List base models
    #[command(after_help = "Example:\n  lorikeet base list")]
    List(Page),
    /// One base model: directory, size, faults
    #[command(after_help = "Example:\n  lorikeet base show smollm2-135m")]
    Show {
        /// Its name or id
        base: String,
    },
    /// Forget one that no job needs any more; its files stay
    #[command(after_help = "Example:\n  lorikeet base delete smollm2-135m")]
    Delete {
        /// Its name or id
        base: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Adapter {
    /// List them, newest first
    #[command(after_help = "Example:\n  lorikeet adapter list")]
    List(Page),
    /// One of them: files, summary, configuration
    #[command(after_help = "Example:\n  lorikeet adapter show mdl_0192…")]
    Show {
        /// Its id, or the name or id of the job that made it
        adapter: String,
    },
    /// Fetch its files
    #[command(after_help = "Example:\n  lorikeet adapter pull mdl_0192… --out adapter")]
    Pull {
        /// Its id, or the name or id of the job that made it
        adapter: String,
        /// The folder to write; must not exist or be empty
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Put an adapter into the weights of its base; needs no server
    #[command(
        after_help = "Example:\n  lorikeet adapter merge --base models/smollm2 --adapter run1/adapter --out merged\n\nArithmetic in f32; each tensor is stored in the type it has in the base."
    )]
    Merge(Merge),
    /// Write an adapter, or base and adapter merged, for llama.cpp; needs no server
    #[command(
        after_help = "Example:\n  lorikeet adapter export --gguf tone.gguf --base models/smollm2 --adapter run1/adapter\n  lorikeet adapter export --gguf model.gguf --merged --type f16 --base models/smollm2 --adapter run1/adapter"
    )]
    Export(Export),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// List them and their devices; the same as `lorikeet nodes`
    #[command(after_help = "Example:\n  lorikeet node list")]
    List,
    /// Make a join string, for one machine and one hour
    #[command(
        after_help = "Example:\n  lorikeet node token\n\nThen, on the GPU machine:\n  lorikeet agent join LK1.… --config /etc/lorikeet/agent.toml"
    )]
    Token {
        /// How long it works, like 30m; an hour when not given
        #[arg(long, value_name = "TIME", value_parser = time_in(JOIN_TTL))]
        ttl: Option<Duration>,
    },
    /// One machine: why it takes nothing, and every device
    #[command(after_help = "Example:\n  lorikeet node show node_0192…")]
    Show(OneNode),
    /// It takes nothing new; what is there goes on
    #[command(after_help = "Example:\n  lorikeet node cordon node_0192…")]
    Cordon(OneNode),
    /// What is there saves its state and goes elsewhere
    #[command(
        after_help = "Example:\n  lorikeet node drain node_0192… --within 10m --wait\n\nWhat became of each job stands in `lorikeet node show` until the node is opened again."
    )]
    Drain {
        #[command(flatten)]
        node: OneNode,
        /// Wait until nothing runs there any more, and report what became of it; what is stopped has half a minute more to say so, while its machine is heard
        #[arg(long)]
        wait: bool,
        /// What has not left by then is stopped
        #[arg(long, default_value = "10m", value_name = "TIME", value_parser = time_in(DRAIN_WITHIN))]
        within: Duration,
    },
    /// It takes work again; a quarantine ends as well
    #[command(after_help = "Example:\n  lorikeet node open node_0192…")]
    Open(OneNode),
    /// For ever: its certificates are worth nothing any more
    #[command(after_help = "Example:\n  lorikeet node retire node_0192…")]
    Retire(OneNode),
    /// For ever and at once: its connections close within seconds, what is placed on it goes elsewhere
    #[command(
        after_help = "Example:\n  lorikeet node revoke node_0192…\n\nFor a machine whose key may be in other hands; a good one is drained and retired."
    )]
    Revoke(OneNode),
}

/// Which node.
#[derive(Debug, Clone, Args)]
pub(crate) struct OneNode {
    /// Its name or id
    pub(crate) node: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make one; its secret is shown this once
    #[command(after_help = "Example:\n  lorikeet token add laptop --ttl 30d")]
    Add {
        /// What it is for
        name: String,
        /// How long it works, like 12h; ninety days when not given
        #[arg(long, value_name = "TIME", value_parser = time_in(TOKEN_TTL))]
        ttl: Option<Duration>,
    },
    /// List them, without their secrets
    #[command(after_help = "Example:\n  lorikeet token list")]
    List(Page),
    /// Withdraw one: it works no more, and what it opened ends
    #[command(after_help = "Example:\n  lorikeet token revoke tok_0192…")]
    Revoke {
        /// Its name or id
        #[arg(id = "which", value_name = "TOKEN")]
        token: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// The coordinator
    pub(crate) url: String,
    /// BLAKE3 of its certificate authority; needed with https unless a public authority signed it
    #[arg(long, value_name = "HASH")]
    pub(crate) ca_hash: Option<Hash>,
    /// Read the token from this file instead of --token
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// Attempt directories
    #[arg(required_unless_present = "burn_in", conflicts_with = "burn_in", value_name = "DIR")]
    pub(crate) directories: Vec<PathBuf>,
    /// Train nothing: test a device with a small computation
    #[arg(long, value_name = "DEVICE")]
    pub(crate) burn_in: Option<String>,
    /// Save and leave when standard input ends: whoever started this is gone
    #[arg(long)]
    pub(crate) until_eof: bool,
    /// Resident memory above which whoever started this ends it
    #[arg(long, value_name = "BYTES")]
    pub(crate) memory_limit: Option<u64>,
    /// Train on the first GPU that this process sees
    #[arg(long)]
    pub(crate) gpu: bool,
    /// Take part in the training of the worker at the other end of standard input, which has the directory
    #[arg(long, value_name = "RANK", hide = true, conflicts_with_all = ["burn_in", "until_eof"])]
    pub(crate) rank: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct Inspection {
    #[command(subcommand)]
    pub(crate) what: Inspect,
    /// Memory it may use
    #[arg(long, global = true, hide = true, value_name = "BYTES", default_value_t = 4 << 30)]
    pub(crate) memory_bytes: u64,
    /// Processor time it may use
    #[arg(long, global = true, hide = true, value_name = "SECONDS", default_value_t = 3_600)]
    pub(crate) seconds: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Inspect {
    /// What a training file holds
    #[command(after_help = "Example:\n  lorikeet inspect dataset chats.jsonl")]
    Dataset {
        /// The training file
        file: PathBuf,
    },
    /// What a base directory holds
    #[command(after_help = "Example:\n  lorikeet inspect base /srv/models/smollm2-135m")]
    Base {
        /// The directory
        directory: PathBuf,
    },
    /// What a job comes to; the settings come as JSON on standard input
    #[command(after_help = "Example:\n  lorikeet inspect job --base DIR --dataset FILE < question.json")]
    Job {
        /// The base model's directory
        #[arg(long, value_name = "DIR")]
        base: PathBuf,
        /// The training file
        #[arg(long, value_name = "FILE")]
        dataset: PathBuf,
        /// The file to evaluate on instead of a part of it
        #[arg(long, value_name = "FILE")]
        validation: Option<PathBuf>,
    },
}

/// A time, like 30m, of which the server is told the seconds; those that it takes.
fn time_in(seconds: RangeInclusive<u64>) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| {
        let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
        let fits = seconds.contains(&time.as_secs()).then_some(time);
        fits.ok_or_else(|| format!("expected {}s to {}d", seconds.start(), seconds.end() / 86_400))
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` has no `=`; expected KEY=VALUE"))?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_command_shows_an_example() {
        let command = Cli::command();
        command.clone().debug_assert();
        fn walk(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example:"), "{}", command.get_name());
            command.get_subcommands().for_each(walk);
        }
        command.get_subcommands().for_each(walk);
    }
}
