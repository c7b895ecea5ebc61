//! One file per command; here only who is called, and on what kind of runtime.

mod adapter;
mod agent;
mod backup;
mod base;
mod ca;
mod coordinator;
mod dataset;
mod demo;
mod dev;
mod doctor;
mod eval;
mod exact;
mod follow;
mod generate;
mod gpu;
mod inspect;
mod job;
mod jobs;
mod local;
mod login;
mod named;
mod nodes;
mod plan;
mod quantise;
mod restore;
mod service;
mod submit;
mod sweep;
mod token;
mod train;
mod worker;

use crate::{
    args::{Cli, Command, Global},
    client::Client,
    failure::Failure,
    output::Output,
    profile::{self, Connection},
};
use std::process::ExitCode;
use tokio::runtime::{Builder, Runtime};

/// Does what was asked.
pub(crate) fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let output = Output::new(cli.global.output);
    let context = Context { global: profile::with_environment(cli.global), output };
    match cli.command {
        Command::Worker(args) => return Ok(worker::run(&args)),
        Command::Demo(args) => return demo::run(output, &args),
        Command::Train(args) => return train::run(output, &args),
        Command::Backup(args) => return backup::run(&context, &args),
        Command::Generate(args) => generate::run(output, &args),
        Command::Eval(args) => eval::run(output, &args),
        Command::Plan(args) => plan::run(output, &args),
        Command::Coordinator(args) => coordinator::run(output, args),
        Command::Restore(args) => restore::run(&context, &args),
        Command::Quantise(args) => quantise::run(output, &args),
        Command::Submit(args) => context.ask(async |client| submit::run(&client, output, args).await),
        Command::Jobs(args) => context.ask(async |client| jobs::run(&client, output, args).await),
        Command::Job(args) => context.ask(async |client| job::run(&client, output, args).await),
        Command::Sweep(args) => context.ask(async |client| sweep::run(&client, output, args).await),
        Command::Dataset(args) => dataset::run(&context, args),
        Command::Base(args) => context.ask(async |client| base::run(&client, output, args).await),
        Command::Adapter(args) => adapter::run(&context, args),
        Command::Nodes => context.ask(async |client| nodes::list(&client, output).await),
        Command::Node(args) => context.ask(async |client| nodes::run(&client, output, args).await),
        Command::Token(args) => context.ask(async |client| token::run(&client, output, args).await),
        Command::Login(args) => runtime()?.block_on(login::run(&context, args)),
        Command::Ca(args) => ca::run(&context, args),
        Command::Inspect(args) => inspect::run(output, &args),
        Command::Agent(args) => agent::run(output, args),
        Command::Dev(args) => dev::run(output, &args),
        Command::Doctor(args) => doctor::run(&context, &args),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// What every command knows.
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) output: Output,
}

impl Context {
    /// Runs a command that talks to a coordinator.
    fn ask(&self, command: impl AsyncFnOnce(Client) -> Result<(), Failure>) -> Result<(), Failure> {
        let connection = Connection::find(&self.global)?;
        let client = Client::new(&connection)?;
        runtime()?.block_on(async {
            command(client.clone()).await?;
            ca::follow(self, &connection, &client).await;
            Ok(())
        })
    }
}

/// What a person types to start this very program: its name where `PATH` leads here, else where it lies.
fn program() -> String {
    let ours = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join("lorikeet")).find(|file| file.is_file());
    match ours {
        Some(ours) if found.and_then(|file| file.canonicalize().ok()).as_ref() != Some(&ours) => {
            ours.display().to_string()
        }
        _ => "lorikeet".to_owned(),
    }
}

/// A client waits for one thing at a time: one thread will do.
fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::bug(format!("start the runtime: {error}")))
}
