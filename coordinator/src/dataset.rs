//! Datasets: uploading, validating, ready or not. The bytes are `blob`'s; the judging is `lorikeet inspect`'s.

use crate::{
    access::{Actor, Refusal},
    cluster::{Action, Cluster, Inspect, Now, put},
    record::{Dataset, DatasetState, Receipt, Record},
};
use lorikeet_protocol::{
    file::FileManifest,
    id::{DatasetId, UserId},
    inspect::{DatasetFormat, Fault, Inspection},
};

impl Dataset {
    /// Whether it is of no use as it is: no upload that goes on by itself, no judgement that is awaited.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self.state, DatasetState::Error | DatasetState::Uploading)
    }

    /// What is wrong with a job that is to be trained on it.
    pub(crate) fn fault(&self) -> Option<Fault> {
        let message = "the dataset cannot be trained on".into();
        (self.state == DatasetState::Error).then(|| Fault { line: None, path: self.name.clone(), message })
    }

    /// A dataset whose bytes are still to come.
    pub fn new(
        id: DatasetId,
        name: String,
        description: Option<String>,
        file_name: String,
        size: u64,
        declared_format: Option<DatasetFormat>,
        now: Now,
    ) -> Self {
        Self {
            id,
            owner: UserId(uuid::Uuid::nil()),
            name,
            description,
            file_name,
            size,
            declared_format,
            state: DatasetState::Uploading,
            manifest: None,
            findings: None,
            faults: vec![],
            created: now.wall,
            uploaded_at: None,
            validated_at: None,
            deleted_at: None,
        }
    }

    /// The name its file has on a node: ours, never the uploader's; the ending tells a line file from a full one.
    pub fn stored_name(&self) -> String {
        let ending = if self.file_name.to_lowercase().ends_with(".json") { "json" } else { "jsonl" };
        format!("{}.{ending}", self.id)
    }

    pub(crate) fn inspection(&self) -> Option<Inspect> {
        let manifest = self.manifest.as_ref()?;
        (self.state == DatasetState::Validating).then_some(Inspect::Dataset {
            id: self.id,
            owner: self.owner,
            file: manifest.hash,
            format: self.declared_format,
        })
    }
}

impl Cluster {
    pub(crate) fn create_dataset(
        &mut self,
        actor: Actor,
        mut dataset: Dataset,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        dataset.owner = actor.owner()?;
        out.push(put(Record::Dataset(dataset.clone())));
        let receipt = Receipt::Dataset(dataset.id);
        self.datasets.insert(dataset.id, dataset);
        Ok(receipt)
    }

    pub(crate) fn confirm_dataset(
        &mut self,
        actor: Actor,
        id: DatasetId,
        manifest: FileManifest,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let dataset = self.own_dataset(actor, id)?;
        if let Some(known) = &dataset.manifest {
            return if *known == manifest {
                Ok(Receipt::Dataset(id))
            } else {
                Err(Refusal::conflict("the dataset's bytes are here already, and are others"))
            };
        }
        if dataset.size != manifest.size {
            return Err(Refusal::invalid(
                "sizeBytes",
                format!("{} bytes were declared, {} came", dataset.size, manifest.size),
            ));
        }
        dataset.manifest = Some(manifest);
        dataset.uploaded_at = Some(now.wall);
        self.judge_dataset(id, out);
        Ok(Receipt::Dataset(id))
    }

    pub(crate) fn validate_dataset(
        &mut self,
        actor: Actor,
        id: DatasetId,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        match self.own_dataset(actor, id)?.state {
            DatasetState::Uploading => Err(Refusal::conflict("the dataset's bytes are not here yet")),
            DatasetState::Validating => Ok(Receipt::Dataset(id)),
            DatasetState::Ready | DatasetState::Error => {
                self.judge_dataset(id, out);
                Ok(Receipt::Dataset(id))
            }
        }
    }

    fn judge_dataset(&mut self, id: DatasetId, out: &mut Vec<Action>) {
        let dataset = self.datasets.get_mut(&id).expect("the caller has found it");
        dataset.state = DatasetState::Validating;
        out.push(put(Record::Dataset(dataset.clone())));
        out.extend(dataset.inspection().map(Action::Inspect));
    }

    pub(crate) fn delete_dataset(
        &mut self,
        actor: Actor,
        id: DatasetId,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        self.own_dataset(actor, id)?;
        if let Some(job) = self.jobs.values().find(|job| job.record.names_dataset(id)) {
            let job = if actor.sees(job.record.owner) { format!("job {}", job.record.id) } else { "a job".into() };
            return Err(Refusal::conflict(format!("{job} needs the dataset")));
        }
        let mut dataset = self.datasets.remove(&id).expect("it was there a line ago");
        dataset.deleted_at = Some(now.wall);
        out.push(put(Record::Dataset(dataset)));
        Ok(Receipt::Dataset(id))
    }

    fn own_dataset(&mut self, actor: Actor, id: DatasetId) -> Result<&mut Dataset, Refusal> {
        actor.find(self.datasets.get_mut(&id), |dataset: &&mut Dataset| dataset.owner, "dataset")
    }

    pub(crate) fn dataset_inspected(
        &mut self,
        id: DatasetId,
        result: Result<Inspection, String>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let Some(dataset) = self.datasets.get_mut(&id).filter(|dataset| dataset.state == DatasetState::Validating)
        else {
            return;
        };
        dataset.faults = vec![];
        dataset.validated_at = Some(now.wall);
        match result {
            Ok(Inspection::Dataset(findings)) => {
                let fit = findings.error_count == 0 && findings.trainable_pairs > 0;
                dataset.state = if fit { DatasetState::Ready } else { DatasetState::Error };
                dataset.findings = Some(findings);
            }
            Ok(Inspection::Refused { faults }) => (dataset.state, dataset.faults) = (DatasetState::Error, faults),
            Ok(Inspection::Base(_) | Inspection::Job(_)) => {
                (dataset.state, dataset.faults) =
                    (DatasetState::Error, vec![Fault::whole("the inspection answered another question")])
            }
            Err(message) => (dataset.state, dataset.faults) = (DatasetState::Error, vec![Fault::whole(message)]),
        }
        out.push(put(Record::Dataset(dataset.clone())));
        let broken = dataset.fault();
        self.wake_submitted(|job| job.names_dataset(id), broken, now, out);
    }
}
