//! `lorikeet submit`: a job file goes in.

use super::follow;
use crate::{args::Submit, client::Client, failure::Failure, file, output::Output};
use lorikeet_api::{
    JobFile, Presets,
    job::{DryRun, Job},
    jobfile::locate,
    route,
    sweep::{Sweep, SweepDryRun},
};
use std::path::Path;

/// What the server takes.
const MAX_JOB_FILE: u64 = 1 << 20;

/// Reads, checks what can be checked here, and submits.
pub(crate) async fn run(client: &Client, output: Output, args: Submit) -> Result<(), Failure> {
    let file = read(&args.file, args.preset.as_deref(), &args.set)?;
    if file.sweep.is_some() {
        return sweep(client, output, &args, &file).await;
    }
    if args.dry_run {
        let answer: DryRun = client.post(route::JOBS, &[("dry_run", "true".into())], &file).await?;
        output.answer(&answer)?;
        return judge(&answer);
    }
    let job: Job = client.post(route::JOBS, &[], &file).await?;
    show(client, output, job, args.follow).await
}

/// Many jobs at once; which of them to watch, the person says.
async fn sweep(client: &Client, output: Output, args: &Submit, file: &JobFile) -> Result<(), Failure> {
    if args.follow {
        return Err(Failure::mistake("a sweep is several jobs: submit it without --follow, then follow one of them"));
    }
    if args.dry_run {
        let answer: SweepDryRun = client.post(route::SWEEPS, &[("dry_run", "true".into())], file).await?;
        output.answer(&answer)?;
        return judge(&answer.first);
    }
    let made: Sweep = client.post(route::SWEEPS, &[], file).await?;
    output.answer(&made)?;
    output.note(&format!("look at it with `lorikeet sweep show {}`", made.summary.id));
    Ok(())
}

/// A dry run whose files do not fit together is a job that would be rejected; one that no machine or limit lets start would wait for ever.
fn judge(answer: &DryRun) -> Result<(), Failure> {
    let summary = &answer.why.summary;
    match (answer.faults.is_empty(), answer.why.never) {
        (false, _) => Err(Failure::mistake(format!("the job would be rejected: {summary}"))),
        (true, true) => Err(Failure::refused(format!("the job would not start: {summary}"))),
        (true, false) => Ok(()),
    }
}

/// The new job, or its course until it ends.
pub(super) async fn show(client: &Client, output: Output, job: Job, to_its_end: bool) -> Result<(), Failure> {
    if !to_its_end {
        output.answer(&job)?;
        output.note(&format!("follow it with `lorikeet job follow {}`", job.id));
        return Ok(());
    }
    output.note(&format!("submitted {} ({})", job.id, job.name));
    let done = follow::watch(client, job.id, output).await?;
    follow::tell(output, &done)
}

/// A job file with what the command line sets in it; every fault with its line.
fn read(path: &Path, preset: Option<&str>, set: &[(String, String)]) -> Result<JobFile, Failure> {
    let text = file::text("read the job file", path, MAX_JOB_FILE)?;
    let name = path.display().to_string();
    let mut file = JobFile::from_toml(&text).map_err(|faults| Failure::fields(&name, &locate(faults, &text)))?;
    if let Some(preset) = preset {
        file.preset = Some(preset.to_owned());
    }
    for (key, value) in set {
        file.set(key, value).map_err(|faults| Failure::fields("--set", &faults))?;
    }
    let presets = Presets::embedded();
    match file.resolve(&presets).and_then(|_| file.sweep(&presets)) {
        Ok(_) => Ok(file),
        Err(faults) => {
            // The coordinator may know other presets than this program.
            let ours = faults.into_iter().filter(|fault| fault.field != "preset");
            // a line of the file is no fault's that the command line brought
            let (of_set, of_file): (Vec<_>, Vec<_>) =
                ours.partition(|fault| set.iter().any(|(key, _)| *key == fault.field));
            let name = if of_set.is_empty() { name } else { format!("{name} with --set") };
            let all = [of_set, locate(of_file, &text)].concat();
            if all.is_empty() { Ok(file) } else { Err(Failure::fields(&name, &all)) }
        }
    }
}
