//! Judging users' files: every question goes to a child process, `lorikeet inspect …`, because the coordinator never opens such a
//! file itself.
//!
//! The child has an empty environment and no inherited handles. The limits on its memory and processor time are arguments; it sets
//! them, and those on files, on itself before it opens anything. It is killed when it takes too long, which grows with its file,
//! or says too much. What it prints is one JSON object, read as data. A bounded number run at once; the rest wait in line
//! (`inspector/line.rs`), but for jobs whose plan is known, and what nobody waits for any more is not asked. Dry runs have a line of their own, so that a curious person holds
//! up no dataset and no job.

mod answers;
mod line;
pub(crate) mod program;

use crate::{
    blob::{BlobError, Blobs},
    cluster::{self, Subject, Trouble},
    config,
    driver::Handle,
};
use answers::Answers;
use line::Lines;
use lorikeet_protocol::{
    file::NamedFile,
    id::{Hash, UserId},
    inspect::{DatasetFormat, Fault, Inspection, JobQuestion, NAMED_FAULTS},
    job::JobSpec,
};
use std::{
    collections::{BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// A job's findings with three long rendered examples are about 200 KiB.
const MAX_OUTPUT: u64 = 8 << 20;
/// What is kept of its complaints.
const MAX_COMPLAINT: u64 = 4 << 10;
/// Dry runs that wait or run: each is a request that is held open.
const DRY_RUNS: usize = 32;
/// What any inspection may take: texts and headers are read in milliseconds, and machines are busy.
const LEAST_TIME: Duration = Duration::from_secs(60);
/// A training file is counted at some 50 MiB/s, and tokenised at a tenth of that; slow disks are slower.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// Why there is no answer. A person reads it as a fault of the thing inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The program is not there, or the system has no room for it.
    #[error("start {program} inspect", program = program.display())]
    Start {
        /// Which program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("inspect the file: it took longer than {0:?} and was stopped")]
    TooSlow(Duration),
    /// It ended without an answer: killed by a limit, or a bug.
    #[error("inspect the file: the process ended with {status} and no answer{complaint}")]
    NoAnswer {
        /// How.
        status: String,
        /// What it complained of.
        complaint: String,
    },
    /// Too many ask at once, or this user does already.
    #[error(
        "inspect the job: a dry run of yours is under way already, or too many of others are; try again in a moment"
    )]
    Crowded,
    /// Its files are not here.
    #[error(transparent)]
    Blob(#[from] BlobError),
}

impl InspectError {
    /// Whose trouble it is, and what its owner may read: paths and causes on the coordinator's machine are for its log.
    fn trouble(&self) -> Trouble {
        match self {
            Self::Start { .. } => {
                Trouble::Ours("inspect the file: the coordinator could not start its inspection".into())
            }
            Self::Crowded => Trouble::Ours(self.to_string()),
            Self::Blob(BlobError::NoSpace { .. } | BlobError::Disk { .. }) => {
                Trouble::Ours("inspect the file: the coordinator could not read it".into())
            }
            Self::Blob(BlobError::Refused { why, .. }) => Trouble::Theirs(format!("inspect the file: {why}")),
            Self::Blob(_) => Trouble::Theirs("inspect the file: the coordinator could not read it".into()),
            Self::TooSlow(_) | Self::NoAnswer { .. } => Trouble::Theirs(self.to_string()),
        }
    }
}

/// Starts children, a bounded number at once.
#[derive(Debug, Clone)]
pub struct Inspector {
    program: Arc<PathBuf>,
    memory: u64,
    timeout: Duration,
    at_once: usize,
    dry_running: Arc<Semaphore>,
    curious: Curious,
    blobs: Blobs,
    answers: Answers,
}

/// Users who wait for a dry run or have one running.
#[derive(Debug, Clone, Default)]
struct Curious(Arc<Mutex<BTreeSet<UserId>>>);

/// A place among them; given back when dropped.
struct Place {
    among: Curious,
    user: UserId,
}

impl Curious {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<UserId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, user: UserId) -> Option<Place> {
        let mut users = self.lock();
        (users.len() < DRY_RUNS && users.insert(user)).then(|| Place { among: self.clone(), user })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.among.lock().remove(&self.user);
    }
}

/// A job's training file, and the file it is evaluated on if that is another.
type Data<'a> = (&'a Path, Option<&'a Path>);

impl Inspector {
    /// With the limits of the config.
    pub fn new(config: &config::Inspect, blobs: Blobs) -> Result<Self, InspectError> {
        let own = || std::env::current_exe();
        let program = config
            .program
            .clone()
            .map_or_else(own, Ok)
            .map_err(|source| InspectError::Start { program: PathBuf::from("lorikeet"), source })?;
        Ok(Self {
            program: Arc::new(program),
            memory: config.memory,
            timeout: config.timeout,
            at_once: config.at_once,
            dry_running: Arc::new(Semaphore::new(config.at_once)),
            curious: Curious::default(),
            blobs,
            answers: Answers::default(),
        })
    }

    /// Answers the cluster's questions until it stops asking; what still runs then is killed, and asked again at the next start.
    pub async fn serve(
        self,
        mut questions: mpsc::UnboundedReceiver<cluster::Inspect>,
        driver: Handle,
        cancel: CancellationToken,
    ) {
        let (mut children, mut running) = (JoinSet::new(), HashMap::new());
        let mut lines = Lines::new(self.at_once);
        loop {
            while let Some(question) = lines.next() {
                let (subject, inspector, driver) = (question.subject(), self.clone(), driver.clone());
                let child = children.spawn(async move { inspector.answer_if_judged(question, driver).await });
                running.insert(child.id(), subject);
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                question = questions.recv() => match question {
                    None => break,
                    Some(question) => {
                        let same = self.same(&question).await;
                        lines.join(question, same);
                        self.tell_known(same, &mut lines, &driver).await;
                    }
                },
                Some(ended) = children.join_next_with_id() => {
                    let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                    if let Some(subject) = running.remove(&id) {
                        let same = lines.done(subject);
                        self.tell_known(same, &mut lines, &driver).await;
                    }
                }
            }
        }
        children.shutdown().await;
    }

    /// What a job's question is, whosever it is; nothing else is asked twice.
    async fn same(&self, question: &cluster::Inspect) -> Option<Hash> {
        let cluster::Inspect::Job { spec, base, dataset, validation, .. } = question else { return None };
        let dataset = self.blobs.path(dataset.hash).await.ok()?;
        let validation = match validation {
            Some(file) => Some(self.blobs.path(file.hash).await.ok()?),
            None => None,
        };
        Some(answers::question(base, (&dataset, validation.as_deref()), spec))
    }

    /// Whoever waits for what is known need not wait behind what is not.
    async fn tell_known(&self, same: Option<Hash>, lines: &mut Lines, driver: &Handle) {
        let Some((same, plan)) = same.and_then(|same| Some((same, self.answers.known(same)?))) else { return };
        for question in lines.answered(same) {
            if driver.is_judged(question.subject()).await {
                driver.inspected(question.subject(), Ok(plan.clone()), Vec::new()).await;
            }
        }
    }

    /// A job that was cancelled while it stood in line, or a dataset that was deleted, is not looked at.
    async fn answer_if_judged(&self, question: cluster::Inspect, driver: Handle) {
        if driver.is_judged(question.subject()).await {
            self.answer(question, driver).await;
        }
    }

    async fn answer(&self, question: cluster::Inspect, driver: Handle) {
        let (subject, found) = match question {
            cluster::Inspect::Dataset { id, owner: _, file, format } => {
                let found = async { self.dataset(&self.blobs.path(file).await?, format).await };
                (Subject::Dataset(id), found.await.map(|found| (found, Vec::new())))
            }
            cluster::Inspect::Base { id, path } => (Subject::Base(id), self.base(&path).await),
            cluster::Inspect::Job { id, owner: _, spec, base, dataset, validation } => {
                let found = async {
                    let validation = match validation {
                        Some(file) => Some(self.blobs.path(file.hash).await?),
                        None => None,
                    };
                    let dataset = self.blobs.path(dataset.hash).await?;
                    self.job(&base, (dataset.as_path(), validation.as_deref()), *spec).await
                };
                (Subject::Job(id), found.await.map(|found| (found, Vec::new())))
            }
        };
        let (result, files) = match found {
            Ok((inspection, files)) => (Ok(inspection), files),
            Err(error) => {
                tracing::warn!(?subject, error = &error as &dyn std::error::Error, "an inspection gave no answer");
                (Err(error.trouble()), Vec::new())
            }
        };
        driver.inspected(subject, result, files).await;
    }

    /// What is in a training file.
    pub async fn dataset(&self, file: &Path, declared: Option<DatasetFormat>) -> Result<Inspection, InspectError> {
        let mut command = self.command("dataset");
        command.arg(file);
        let found = self.run(command, &[], self.time_for(file)).await?;
        Ok(match (declared, found) {
            (Some(declared), Inspection::Dataset(findings))
                if findings.format.is_some_and(|found| found != declared) =>
            {
                let message = format!("declared as {declared:?}, and looks like {:?}", findings.format);
                Inspection::Refused { faults: vec![Fault { line: None, path: "$".into(), message }] }
            }
            (_, found) => found,
        })
    }

    /// What a base model is; the files a worker needs become readable under their hashes.
    pub async fn base(&self, directory: &Path) -> Result<(Inspection, Vec<NamedFile>), InspectError> {
        let found = self.read_base(directory).await;
        self.answers.forget();
        found
    }

    async fn read_base(&self, directory: &Path) -> Result<(Inspection, Vec<NamedFile>), InspectError> {
        if let Some(refused) = self.strays(directory).await? {
            return Ok((refused, Vec::new()));
        }
        let mut command = self.command("base");
        command.arg(directory);
        let found = self.run(command, &[], self.timeout.min(LEAST_TIME)).await?;
        let mut files = Vec::new();
        if let Inspection::Base(findings) = &found {
            for name in &findings.files {
                if !lorikeet_protocol::file::is_plain_path(name) {
                    let message = "its name is no plain relative path".to_owned();
                    let faults = vec![Fault { line: None, path: name.clone(), message }];
                    return Ok((Inspection::Refused { faults }, Vec::new()));
                }
                match self.blobs.link(directory.join(name)).await {
                    Ok(manifest) => files.push(NamedFile { path: name.clone(), manifest }),
                    // It was another file a moment ago.
                    Err(BlobError::Refused { why, .. }) => return Ok((refused([(name.clone(), why)]), Vec::new())),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok((found, files))
    }

    /// What a job comes to.
    pub async fn job(&self, base: &Path, data: Data<'_>, job: JobSpec) -> Result<Inspection, InspectError> {
        let question = answers::question(base, data, &job);
        self.answers.get(question, self.judge(base, data, job)).await
    }

    /// The same for somebody who only wants to know. It has a line of its own, a short one, and each user one place in it, so that
    /// nobody's curiosity keeps others waiting; no job waits for its answer either.
    pub async fn dry_run(
        &self,
        user: UserId,
        base: &Path,
        data: Data<'_>,
        job: JobSpec,
    ) -> Result<Inspection, InspectError> {
        let _place = self.curious.enter(user).ok_or(InspectError::Crowded)?;
        if let Some(plan) = self.answers.known(answers::question(base, data, &job)) {
            return Ok(plan);
        }
        let _turn = self.dry_running.acquire().await.expect("the semaphore is never closed");
        self.judge(base, data, job).await
    }

    async fn judge(&self, base: &Path, data: Data<'_>, job: JobSpec) -> Result<Inspection, InspectError> {
        // Once more: what its owner is shown is made of these files.
        if let Some(refused) = self.strays(base).await? {
            return Ok(refused);
        }
        let input = serde_json::to_vec(&JobQuestion { job }).expect("a job spec is plain data");
        self.run(self.job_command(base, data), &input, self.time_for(data.0)).await
    }

    fn job_command(&self, base: &Path, (dataset, validation): Data<'_>) -> Command {
        let mut command = self.command("job");
        command.arg("--base").arg(base).arg("--dataset").arg(dataset);
        validation.into_iter().for_each(|file| _ = command.arg("--validation").arg(file));
        command
    }

    /// What of a base's directory must not be read, before anybody reads it.
    async fn strays(&self, directory: &Path) -> Result<Option<Inspection>, InspectError> {
        let strays = self.blobs.strays(directory).await?;
        Ok((!strays.is_empty()).then(|| refused(strays)))
    }

    /// By the size of the training file, and never more than the config allows.
    fn time_for(&self, file: &Path) -> Duration {
        let bytes = file.metadata().map_or(0, |file| file.len());
        self.timeout.min(LEAST_TIME + Duration::from_secs(bytes / BYTES_PER_SECOND))
    }

    fn command(&self, what: &str) -> Command {
        let mut command = program::command(&self.program);
        command.args(["inspect", what]).stdin(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn run(&self, mut command: Command, input: &[u8], within: Duration) -> Result<Inspection, InspectError> {
        command.arg("--memory-bytes").arg(self.memory.to_string());
        command.arg("--seconds").arg(within.as_secs().max(1).to_string());
        let start = |source| InspectError::Start { program: self.program.to_path_buf(), source };
        let mut child = command.spawn().map_err(start)?;
        match timeout(within, converse(&mut child, input)).await {
            Ok(answer) => answer.map_err(start)?,
            // Dropping it kills it; waiting here leaves no zombie behind.
            Err(_) => {
                let _ = child.kill().await;
                Err(InspectError::TooSlow(within))
            }
        }
    }
}

fn refused(files: impl IntoIterator<Item = (String, &'static str)>) -> Inspection {
    let fault = |(path, why): (String, &str)| Fault { line: None, path, message: why.to_owned() };
    Inspection::Refused { faults: files.into_iter().map(fault).take(NAMED_FAULTS).collect() }
}

/// Question in, answer and complaints out, all at once: a full pipe must not stop either side.
async fn converse(child: &mut Child, input: &[u8]) -> io::Result<Result<Inspection, InspectError>> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let ask = async {
        if let Some(mut stdin) = stdin {
            // A child that does not listen will say why, or end.
            let _ = stdin.write_all(input).await;
        }
    };
    let (mut answer, mut complaint) = (Vec::new(), Vec::new());
    let hear = async {
        match stdout {
            Some(stdout) => stdout.take(MAX_OUTPUT + 1).read_to_end(&mut answer).await.map(|_| ()),
            None => Ok(()),
        }
    };
    let grumble = async {
        if let Some(mut stderr) = stderr {
            let _ = (&mut stderr).take(MAX_COMPLAINT).read_to_end(&mut complaint).await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
    };
    let ((), heard, ()) = tokio::join!(ask, hear, grumble);
    heard?;
    if answer.len() as u64 > MAX_OUTPUT {
        child.kill().await?;
    }
    let status = child.wait().await?;
    Ok(serde_json::from_slice(&answer).map_err(|_| {
        let text = String::from_utf8_lossy(&complaint);
        let line = text.lines().last().map(|line| format!(": {line}")).unwrap_or_default();
        InspectError::NoAnswer { status: status.to_string(), complaint: line }
    }))
}

#[cfg(test)]
mod tests;
