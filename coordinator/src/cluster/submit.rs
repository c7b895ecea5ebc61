//! From submit to queue: names are resolved, files awaited, and `lorikeet inspect job` says what the job comes to.

use super::{
    Action, Cause, Cluster, Inspect, Now, Rows,
    command::{Named, VALIDATION, put_job},
    job::{JobState, LiveJob},
};
use crate::{
    access::{Actor, Refusal},
    record::{Base, BaseState, Dataset, DatasetState, Dependency, Job, Model, Receipt},
};
use lorikeet_api::jobfile::start::Start;
use lorikeet_protocol::{
    file::NamedFile,
    id::{BaseId, DatasetId, JobId, SweepId, UserId},
    inspect::{Fault, Inspection, JobFindings},
    job::{Intent, JobSpec, Phase},
};
use std::time::Duration;

/// A job that is to be.
pub(super) struct Wanted {
    pub(super) spec: JobSpec,
    pub(super) start: Start,
    /// What of that are jobs that are not over.
    pub(super) waits_for: Vec<Dependency>,
    /// The job it is another try of.
    pub(super) parent: Option<JobId>,
    /// The sweep it belongs to.
    pub(super) sweep: Option<SweepId>,
}

/// What a job is made of.
pub(super) struct Inputs {
    base: BaseId,
    dataset: DatasetId,
    validation: Option<DatasetId>,
    init_adapter: Vec<NamedFile>,
}

impl Cluster {
    #[expect(clippy::too_many_arguments, reason = "what a job is, when it may start, and the turn it comes in")]
    pub(super) fn submit(
        &mut self,
        actor: Actor,
        id: JobId,
        spec: JobSpec,
        start: Start,
        rows: &Rows,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let (owner, inputs) = (actor.owner()?, self.made_of(actor, &spec, rows)?);
        let waits_for = self.dependencies(actor, &start, &rows.named)?;
        self.admit(owner, id, Wanted { spec, start, waits_for, parent: None, sweep: None }, inputs, now, out);
        Ok(Receipt::Job(id))
    }

    /// What stands behind a job's names, or why it cannot be made.
    pub(super) fn made_of(&self, actor: Actor, spec: &JobSpec, rows: &Rows) -> Result<Inputs, Refusal> {
        let named = self.resolve(actor, spec)?;
        let inputs = usable(named)?;
        let init_adapter = adapter_files(actor, spec, named.base, &rows.adapters)?;
        Ok(Inputs { init_adapter, ..inputs })
    }

    /// The same but for the adapter to begin with, of which memory knows nothing.
    pub(crate) fn can_make(&self, actor: Actor, spec: &JobSpec) -> bool {
        self.resolve(actor, spec).and_then(usable).is_ok()
    }

    /// Nothing speaks against the job any more.
    pub(super) fn admit(
        &mut self,
        owner: UserId,
        id: JobId,
        wanted: Wanted,
        inputs: Inputs,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Wanted { spec, start, waits_for, parent, sweep } = wanted;
        let Inputs { base, dataset, validation, init_adapter } = inputs;
        let record = Job {
            id,
            owner,
            base,
            dataset,
            validation,
            init_adapter,
            spec,
            start,
            released: false,
            waits_for,
            parent,
            sweep,
            intent: Intent::Run,
            state: JobState::Submitted,
            attempts: 0,
            infrastructure_failures: 0,
            user_failures: 0,
            blamed: Default::default(),
            findings: None,
            progress: None,
            checkpoint: None,
            base_files: vec![],
            held: Duration::ZERO,
            energy_joules: None,
            created: now.wall,
            queued_at: None,
            started_at: None,
            completed_at: None,
            cancel_reason: None,
        };
        self.dependents.add(&record);
        self.jobs.insert(id, LiveJob::new(record, None, vec![], now));
        self.validate_when_ready(id, now, out);
        put_job(&self.jobs[&id].record, out);
    }

    pub(super) fn retry(
        &mut self,
        actor: Actor,
        old: JobId,
        new: JobId,
        mut rows: Rows,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        if self.visible(actor, old).is_ok() {
            return Err(Refusal::conflict("the job is not over yet; cancel it first"));
        }
        let job = actor.find(rows.job.take().filter(|row| row.id == old), |job| job.owner, "job")?;
        let (owner, inputs) = (actor.owner()?, self.same_inputs(&job, &rows.adapters)?);
        let mut spec = job.spec;
        spec.name = next_name(&spec.name);
        // Its first start's conditions are no conditions of another try, which somebody wants now.
        let (start, waits_for) = (Start::default(), vec![]);
        self.admit(owner, new, Wanted { spec, start, waits_for, parent: Some(old), sweep: None }, inputs, now, out);
        Ok(Receipt::Job(new))
    }

    /// What an earlier job was made of, whatever its names mean by now.
    fn same_inputs(&self, job: &Job, adapters: &[Model]) -> Result<Inputs, Refusal> {
        let gone = |what: &str, name: &str| {
            Refusal::conflict(format!("{what} `{name}` of this job was deleted; submit it anew with another"))
        };
        let base = self.bases.get(&job.base).ok_or_else(|| gone("base model", &job.spec.base))?;
        let dataset = self.datasets.get(&job.dataset).ok_or_else(|| gone("dataset", &job.spec.dataset))?;
        let validation = job.validation.map(|id| {
            let name = job.spec.validation_dataset.as_deref().unwrap_or_default();
            self.datasets.get(&id).ok_or_else(|| gone("the dataset to evaluate on,", name))
        });
        let named = Named { base, dataset, validation: validation.transpose()? };
        if !job.init_adapter.is_empty() && !adapters.iter().any(|model| model.holds(&job.init_adapter)) {
            return Err(gone("the adapter to begin with,", job.spec.init_adapter.as_deref().unwrap_or_default()));
        }
        Ok(Inputs { init_adapter: job.init_adapter.clone(), ..usable(named)? })
    }

    /// A submitted job is validated once both its files are ready.
    pub(super) fn validate_when_ready(&mut self, id: JobId, now: Now, out: &mut Vec<Action>) {
        let ready = self.jobs.get(&id).is_some_and(|job| {
            job.record.state == JobState::Submitted
                && self.named(&job.record).is_some_and(|named| {
                    let mut datasets = [named.dataset].into_iter().chain(named.validation);
                    named.base.state == BaseState::Ready && datasets.all(|dataset| dataset.state == DatasetState::Ready)
                })
        });
        if let (true, Some(job)) = (ready, self.jobs.get_mut(&id)) {
            job.record.state = JobState::Validating;
            job.record.base_files = self.bases.get(&job.record.base).map(Base::hashes).unwrap_or_default();
            put_job(&job.record, out);
            let inspection = self.job_inspection(&self.jobs[&id].record);
            out.extend(inspection.map(Action::Inspect));
            self.audit_phase(id, (Phase::Submitted, Phase::Validating), &Cause::default(), now, out);
        }
    }

    /// Jobs that waited for a dataset or base that has been judged now.
    pub(crate) fn wake_submitted(
        &mut self,
        waits_for: impl Fn(&Job) -> bool,
        broken: Option<Fault>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let waiting =
            self.jobs.values().filter(|job| job.record.state == JobState::Submitted && waits_for(&job.record));
        for id in waiting.map(|job| job.record.id).collect::<Vec<_>>() {
            match &broken {
                // One that waits for another of them has gone with it.
                Some(_) if !self.jobs.contains_key(&id) => {}
                Some(fault) => {
                    self.settle(id, JobState::Rejected { faults: vec![fault.clone()] }, &Cause::default(), now, out)
                }
                None => self.validate_when_ready(id, now, out),
            }
        }
    }

    pub(super) fn job_inspection(&self, job: &Job) -> Option<Inspect> {
        let Named { base, dataset, validation } = self.named(job)?;
        let bytes = |dataset: &Dataset| dataset.manifest.clone().expect("a ready dataset has its bytes");
        (job.state == JobState::Validating).then(|| Inspect::Job {
            id: job.id,
            owner: job.owner,
            spec: Box::new(job.spec.clone()),
            base: base.path.clone(),
            dataset: bytes(dataset),
            validation: validation.map(bytes),
        })
    }

    pub(super) fn job_inspected(
        &mut self,
        id: JobId,
        result: Result<Inspection, String>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.record.state == JobState::Validating) else { return };
        let state = match result {
            Ok(Inspection::Job(findings)) => {
                job.record.findings = Some(JobFindings { rendered: vec![], ..findings });
                if job.record.intent == Intent::Pause { JobState::Paused } else { JobState::Queued }
            }
            Ok(Inspection::Refused { faults }) => JobState::Rejected { faults },
            Ok(Inspection::Dataset(_) | Inspection::Base(_)) => {
                JobState::Rejected { faults: vec![Fault::whole("the inspection answered another question")] }
            }
            Err(message) => JobState::Rejected { faults: vec![Fault::whole(message)] },
        };
        self.settle(id, state, &Cause::default(), now, out);
    }
}

/// What stands behind the names, without an adapter, unless it cannot be trained on.
fn usable(named: Named<'_>) -> Result<Inputs, Refusal> {
    let Named { base, dataset, validation } = named;
    if matches!(base.state, BaseState::Error | BaseState::Changed) {
        let words = format!("base model `{}` cannot be used; `lorikeet base list` says why", base.name);
        return Err(Refusal::invalid("base", words));
    }
    for (field, dataset) in [("dataset", Some(dataset)), (VALIDATION, validation)] {
        if let Some(Dataset { name, id, .. }) = dataset.filter(|dataset| dataset.is_broken()) {
            let words = format!("dataset `{name}` is not ready; `lorikeet dataset show {id}` says why");
            return Err(Refusal::invalid(field, words));
        }
    }
    let validation = validation.map(|dataset| dataset.id);
    Ok(Inputs { base: base.id, dataset: dataset.id, validation, init_adapter: vec![] })
}

/// Which of several datasets of one name is meant nobody guesses: that it was the wrong one shows when a training is spent. Those of the
/// same bytes, read alike, are one and the same.
pub(super) fn refuse_to_guess(field: &str, name: &str, oldest_first: &[&Dataset]) -> Result<(), Refusal> {
    const TOLD: usize = 8;
    let alike = |pair: &[&Dataset]| {
        pair[0].manifest.is_some()
            && pair[0].manifest == pair[1].manifest
            && pair[0].declared_format == pair[1].declared_format
    };
    if oldest_first.windows(2).all(alike) {
        return Ok(());
    }
    let ids: Vec<_> = oldest_first.iter().rev().take(TOLD).map(|dataset| dataset.id.to_string()).collect();
    let more = if oldest_first.len() > TOLD { ", …" } else { "" };
    let words = format!(
        "more than one dataset is named `{name}`: {}{more}; name the one that is meant by its id",
        ids.join(", ")
    );
    Err(Refusal::invalid(field, words))
}

/// The files of the adapter that a job begins with: of the model of that id or name. Models are named after their dataset, so that many
/// have one name: one's own go before another's, those of this base before others, and of them the newest.
pub(super) fn adapter_files(
    actor: Actor,
    spec: &JobSpec,
    base: &Base,
    adapters: &[Model],
) -> Result<Vec<NamedFile>, Refusal> {
    const FIELD: &str = "init_adapter";
    let Some(name) = &spec.init_adapter else { return Ok(Vec::new()) };
    let named = |model: &&Model| model.deleted_at.is_none() && (model.id.to_string() == *name || model.name == *name);
    let found = adapters.iter().filter(|model| actor.sees(model.owner)).filter(named);
    let model = found.max_by_key(|model| (Some(model.owner) == actor.user(), model.base == base.id));
    let model = model
        .ok_or_else(|| Refusal::invalid(FIELD, format!("no model `{name}`; `lorikeet adapter list` names them")))?;
    if model.base != base.id {
        return Err(Refusal::invalid(
            FIELD,
            format!("`{name}` was trained on another base model than `{}`", base.name),
        ));
    }
    let file = |wanted: &str| model.files.iter().find(|file| file.path == wanted).cloned();
    let files: Option<Vec<NamedFile>> = ADAPTER_FILES.into_iter().map(file).collect();
    files.ok_or_else(|| Refusal::invalid(FIELD, format!("`{name}` is no adapter: its every weight was trained")))
}

/// What an adapter is made of.
const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// The most characters of a job's name.
const NAME: usize = 200;

/// "tone" → "tone (retry 2)" → "tone (retry 3)", shortened where it would grow too long.
fn next_name(name: &str) -> String {
    let counted = name.strip_suffix(')').and_then(|rest| rest.rsplit_once(" (retry "));
    let (stem, number) = counted
        .and_then(|(stem, number)| Some((stem, number.parse::<u32>().ok()?.saturating_add(1))))
        .unwrap_or((name, 2));
    let suffix = format!(" (retry {number})");
    let stem: String = stem.chars().take(NAME - suffix.len()).collect();
    stem + &suffix
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_retry_says_which_one_it_is() {
        assert_eq!(super::next_name("tone"), "tone (retry 2)");
        assert_eq!(super::next_name("tone (retry 2)"), "tone (retry 3)");
        assert_eq!(super::next_name(&"ä".repeat(200)).chars().count(), 200);
    }
}
