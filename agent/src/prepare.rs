//! Everything a worker needs, before it starts: its inputs as links into the cache, and its attempt directory.
//!
//! Until the first start of its worker an attempt directory belongs to the agent, so preparing again begins it anew; what was
//! fetched stays in the cache.

use crate::{
    beneath::{self, For},
    cache::{Cache, CacheError, Pin},
    disk::{self, Access, At, DiskError},
    host::Fault,
    link::{blob::Source, chain},
    places::Places,
};
use lorikeet_protocol::{
    agent::{Checkpoint, Offer},
    blob::Refusal,
    file::NamedFile,
    id::{AttemptId, Hash},
    job::{FailureClass, Outcome},
    worker::{CHECKPOINTS, SPEC, Spec},
};
use std::path::{Path, PathBuf};

/// Why an attempt cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A file cannot be had.
    #[error("fetch {path}")]
    Fetch {
        /// Its name in the offer.
        path: String,
        /// What fails for want of it.
        class: FailureClass,
        /// Why.
        #[source]
        cause: CacheError,
    },
}

impl PrepareError {
    /// In the words of a report.
    pub(crate) fn fault(&self) -> Fault {
        Fault::new(self.outcome(), chain(self))
    }

    /// What fails because the coordinator itself does not have a file whole: no node is to blame for that.
    pub(crate) fn unprovided(&self) -> Option<FailureClass> {
        match self {
            Self::Fetch {
                class,
                cause: CacheError::Refused { refusal: Refusal::Missing | Refusal::Corrupt, .. },
                ..
            } => Some(*class),
            Self::Fetch { .. } | Self::Disk(_) => None,
        }
    }

    fn outcome(&self) -> Outcome {
        let disk = |error: &DiskError| if error.is_full() { Outcome::DiskFull } else { Outcome::PrepareFailed };
        match self {
            Self::Disk(error) => disk(error),
            Self::Fetch { class, cause, .. } => match cause {
                CacheError::Disk(error) => disk(error),
                CacheError::NoRoom { .. } => Outcome::DiskFull,
                CacheError::Refused { refusal: Refusal::NotYours, .. } => Outcome::Superseded,
                // A base model that changed is closed by the coordinator, and its jobs wait; of other files there is no second copy.
                CacheError::Refused { refusal: Refusal::Missing | Refusal::Corrupt, .. }
                    if *class != FailureClass::Base =>
                {
                    Outcome::UserError
                }
                CacheError::Refused { .. } | CacheError::Corrupt(_) | CacheError::Thread(_) => Outcome::PrepareFailed,
            },
        }
    }
}

/// Fetches and writes.
#[derive(Debug, Clone)]
pub(crate) struct Preparer<S> {
    pub(crate) places: Places,
    pub(crate) cache: Cache,
    pub(crate) source: S,
    /// CPU threads of a worker.
    pub(crate) threads: Option<u32>,
}

impl<S: Source> Preparer<S> {
    /// Prepares the offer's attempt; the pins keep its inputs in the cache.
    pub(crate) async fn prepare(&self, offer: &Offer) -> Result<Vec<Pin>, PrepareError> {
        let id = offer.attempt;
        let (directory, inputs) = (self.places.attempt(id), self.places.inputs(id));
        for folder in [&directory, &inputs] {
            disk::remove_folder(folder)?;
            disk::create_folder(folder)?;
        }
        let base = inputs.join("base");
        disk::create_folder(&base)?;
        disk::create_folder(&self.places.tokens())?;
        let dataset = std::slice::from_ref(&offer.dataset);
        let mut pins = self.link_all(id, &offer.base, &base, FailureClass::Base).await?;
        pins.extend(self.link_all(id, dataset, &inputs.join("dataset"), FailureClass::Dataset).await?);
        let validation = offer.validation.as_slice();
        pins.extend(self.link_all(id, validation, &inputs.join("validation"), FailureClass::Dataset).await?);
        pins.extend(self.link_all(id, &offer.init_adapter, &inputs.join("adapter"), FailureClass::Settings).await?);
        if let Some(checkpoint) = &offer.resume {
            self.resume(id, checkpoint, &directory).await?;
        }
        let spec = Spec {
            attempt: Some(id),
            job: offer.job.clone(),
            base,
            dataset: inputs.join("dataset").join(&offer.dataset.path),
            validation: offer.validation.as_ref().map(|file| inputs.join("validation").join(&file.path)),
            init_adapter: (!offer.init_adapter.is_empty()).then(|| inputs.join("adapter")),
            cache: self.places.tokens(),
            devices: offer.devices.clone(),
            threads: self.threads,
        };
        let json = serde_json::to_vec_pretty(&spec).expect("a spec has string keys only");
        disk::replace(&directory.join(SPEC), &json, Access::Plain)?;
        disk::sync_parent(&directory)?;
        Ok(pins)
    }

    /// Pins again what a worker of an earlier agent uses.
    pub(crate) fn pin_again(&self, offer: &Offer) -> Vec<Pin> {
        offer.inputs().filter_map(|file| self.cache.pin(file.manifest.hash)).collect()
    }

    /// Of an attempt's inputs, those that a failure of this class may come from and that are not what they were when they came: read as
    /// the worker read them. A file that is missing, or that cannot be read, is not either; of what the worker itself may have changed only
    /// that counts which is still the cache's.
    pub(crate) async fn rotten(&self, offer: &Offer, class: FailureClass) -> Vec<String> {
        let (inputs, directory) = (self.places.inputs(offer.attempt), self.places.attempt(offer.attempt));
        let (of_model, of_data) = (class != FailureClass::Dataset, class != FailureClass::Base);
        let data = [&offer.dataset].into_iter().map(|file| ("dataset", file));
        let data = data.chain(offer.validation.iter().map(|file| ("validation", file))).filter(|_| of_data);
        let model = offer.base.iter().map(|file| ("base", file));
        let model = model.chain(offer.init_adapter.iter().map(|file| ("adapter", file))).filter(|_| of_model);
        let given = data.chain(model).map(|(folder, file)| (&inputs, Path::new(folder).join(&file.path), file));
        // The checkpoint that it did not go on from. Once it has trained it may have made another of that name, or none.
        let resume = offer.resume.iter().filter(|_| class == FailureClass::Settings);
        let resume =
            resume.flat_map(|from| from.files.iter().map(|file| (checkpoint_folder(from).join(&file.path), file)));
        let resume = resume.map(|(path, file)| (&directory, path, file));
        let (files, mut rotten) = (given.chain(resume).collect::<Vec<_>>(), Vec::new());
        for (folder, path, file) in files {
            let (cache, folder, hash) = (self.cache.clone(), folder.clone(), file.manifest.hash);
            let (is_workers, shown) = (folder == directory, folder.join(&path));
            let read = tokio::task::spawn_blocking(move || has_rotted(&cache, hash, &folder, &path, is_workers));
            if read.await.unwrap_or(true) {
                tracing::error!(attempt = %offer.attempt, path = %shown.display(), "an input of an attempt that failed has rotted on this disk");
                rotten.push(file.path.clone());
            }
        }
        rotten
    }

    /// The checkpoint to go on from. It appears under its name only when it is complete.
    async fn resume(&self, id: AttemptId, checkpoint: &Checkpoint, directory: &Path) -> Result<(), PrepareError> {
        let aside = directory.join("resume.aside");
        self.link_all(id, &checkpoint.files, &aside, FailureClass::Internal).await?;
        disk::create_folder(&directory.join(CHECKPOINTS))?;
        let path = directory.join(checkpoint_folder(checkpoint));
        std::fs::rename(&aside, &path).at("keep", &path)?;
        disk::sync_parent(&path)?;
        Ok(())
    }

    /// `class` is what fails if the coordinator does not have them.
    async fn link_all(
        &self,
        id: AttemptId,
        files: &[NamedFile],
        folder: &Path,
        class: FailureClass,
    ) -> Result<Vec<Pin>, PrepareError> {
        disk::create_folder(folder)?;
        let mut pins = Vec::with_capacity(files.len());
        for file in files {
            let fetched = self.cache.get(&self.source, id, &file.manifest).await;
            let pin = fetched.map_err(|cause| PrepareError::Fetch { path: file.path.clone(), class, cause })?;
            link(pin.path(), &folder.join(&file.path))?;
            pins.push(pin);
        }
        Ok(pins)
    }
}

/// In an attempt directory.
fn checkpoint_folder(checkpoint: &Checkpoint) -> PathBuf {
    Path::new(CHECKPOINTS).join(format!("step-{:08}", checkpoint.step))
}

/// Whether a link to what was in the cache no longer holds its bytes. In a folder that is a worker's own another file may have its name, or
/// something that has no end, or none: that is the worker's doing, and is not read.
fn has_rotted(cache: &Cache, hash: Hash, folder: &Path, path: &Path, is_workers: bool) -> bool {
    match beneath::open_file(folder, path, For::Reading) {
        Ok(file) if is_workers && !cache.has(hash, &file) => false,
        Ok(file) => !cache.is_still(hash, &file),
        Err(_) if is_workers => false,
        Err(_) => {
            cache.distrust(hash);
            true
        }
    }
}

/// A hard link: the bytes stay as long as the attempt does, even if the cache lets them go.
fn link(from: &Path, to: &PathBuf) -> Result<(), DiskError> {
    if let Some(parent) = to.parent() {
        disk::create_folder(parent)?;
    }
    std::fs::hard_link(from, to).at("link", to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config, host::tests::offer_on};
    use lorikeet_protocol::{
        agent::CheckpointKind,
        file::FileManifest,
        id::{AttemptToken, JobId},
    };

    #[tokio::test]
    async fn an_attempt_directory_holds_spec_inputs_and_the_checkpoint_to_go_on_from() {
        let (folder, preparer) = preparer();
        let offer = Offer {
            base: vec![file("config.json", b"{}"), file("onnx/model.bin", b"weights")],
            dataset: file("train.jsonl", b"[]"),
            validation: Some(file("held-out.jsonl", b"[]")),
            init_adapter: vec![file("adapter_config.json", b"{}")],
            resume: Some(Checkpoint {
                step: 40,
                loss: 1.0,
                kind: CheckpointKind::Periodic,
                files: vec![file("manifest.json", b"m")],
            }),
            ..offer_on(attempt(), "cpu")
        };
        let pins = preparer.prepare(&offer).await.unwrap();
        assert_eq!(pins.len(), 5);
        let directory = folder.path().join("attempts").join(attempt().to_string());
        let spec: Spec = serde_json::from_slice(&std::fs::read(directory.join(SPEC)).unwrap()).unwrap();
        assert_eq!(std::fs::read(spec.base.join("onnx/model.bin")).unwrap(), b"weights");
        assert_eq!(std::fs::read(&spec.dataset).unwrap(), b"[]");
        assert_eq!(std::fs::read(spec.validation.unwrap()).unwrap(), b"[]");
        assert_eq!(std::fs::read(spec.init_adapter.unwrap().join("adapter_config.json")).unwrap(), b"{}");
        assert_eq!(std::fs::read(directory.join("checkpoints/step-00000040/manifest.json")).unwrap(), b"m");
        preparer.prepare(&offer).await.unwrap();
    }

    #[tokio::test]
    async fn of_a_failed_attempts_inputs_those_that_rotted_are_named_and_only_those_it_may_come_from_are_read() {
        let (folder, preparer) = preparer();
        let base = vec![file("config.json", b"{}"), file("onnx/model.bin", b"weights")];
        let files = vec![file("manifest.json", b"m")];
        let resume = Some(Checkpoint { step: 40, loss: 1.0, kind: CheckpointKind::Periodic, files });
        let offer = Offer { base, dataset: file("train.jsonl", b"[]"), resume, ..offer_on(attempt(), "cpu") };
        let _pins = preparer.prepare(&offer).await.unwrap();
        assert!(preparer.rotten(&offer, FailureClass::Settings).await.is_empty());
        let checkpoint = preparer.places.attempt(attempt()).join("checkpoints/step-00000040");
        // The same file by two names.
        let cached =
            folder.path().join("cache/files").join(offer.resume.as_ref().unwrap().files[0].manifest.hash.to_string());
        std::fs::set_permissions(&cached, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        std::fs::write(&cached, b"n").unwrap();
        assert_eq!(preparer.rotten(&offer, FailureClass::Settings).await, ["manifest.json"]);
        assert!(preparer.rotten(&offer, FailureClass::NonFinite).await.is_empty(), "it had gone on from it");
        std::fs::remove_dir_all(checkpoint).unwrap();
        assert!(preparer.rotten(&offer, FailureClass::Settings).await.is_empty(), "its worker has newer ones");
        assert!(preparer.rotten(&offer, FailureClass::Internal).await.is_empty());
        let model = preparer.places.inputs(attempt()).join("base/onnx/model.bin");
        std::fs::remove_file(&model).unwrap();
        std::fs::write(&model, b"weighty").unwrap();
        assert_eq!(preparer.rotten(&offer, FailureClass::Base).await, ["onnx/model.bin"]);
        assert_eq!(preparer.rotten(&offer, FailureClass::NonFinite).await, ["onnx/model.bin"]);
        assert!(preparer.rotten(&offer, FailureClass::Dataset).await.is_empty());
    }

    #[tokio::test]
    async fn what_a_worker_put_in_the_place_of_the_checkpoint_that_it_was_given_is_not_read_and_has_not_rotted() {
        let (_folder, preparer) = preparer();
        let files = vec![file("manifest.json", b"m")];
        let resume = Some(Checkpoint { step: 40, loss: 1.0, kind: CheckpointKind::Periodic, files });
        let offer = Offer { dataset: file("train.jsonl", b"[]"), resume, ..offer_on(attempt(), "cpu") };
        let _pins = preparer.prepare(&offer).await.unwrap();
        let path = preparer.places.attempt(attempt()).join("checkpoints/step-00000040/manifest.json");
        let pipe = || assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let puts: [&dyn Fn(); 4] = [
            &|| std::fs::write(&path, b"n").unwrap(),
            &|| std::os::unix::fs::symlink("/dev/zero", &path).unwrap(),
            &pipe,
            &|| {},
        ];
        for put in puts {
            std::fs::remove_file(&path).unwrap_or_default();
            put();
            assert!(preparer.rotten(&offer, FailureClass::Settings).await.is_empty(), "{:?}", path.symlink_metadata());
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_ours_ends_the_attempt_as_superseded() {
        let (_folder, preparer) = preparer();
        let mut offer = offer_on(attempt(), "cpu");
        offer.dataset.manifest.chunks = vec![Hash([0; 32])];
        offer.dataset.manifest.size = 5;
        let fault = preparer.prepare(&offer).await.unwrap_err().fault();
        assert_eq!(fault.outcome, Outcome::Superseded);
        assert!(fault.message.contains("dataset.jsonl"), "{}", fault.message);
    }

    #[tokio::test]
    async fn a_file_that_the_coordinator_does_not_have_whole_is_no_nodes_fault() {
        let (_folder, preparer) = preparer();
        let (lost, rotten) = (file("lost", LOST), file("rotten", ROTTEN));
        let offer = Offer { dataset: file("train.jsonl", b"[]"), ..offer_on(attempt(), "cpu") };
        for (offer, class, outcome) in [
            (Offer { base: vec![rotten.clone()], ..offer.clone() }, FailureClass::Base, Outcome::PrepareFailed),
            (Offer { dataset: lost, ..offer.clone() }, FailureClass::Dataset, Outcome::UserError),
            (Offer { init_adapter: vec![rotten], ..offer.clone() }, FailureClass::Settings, Outcome::UserError),
        ] {
            let error = preparer.prepare(&offer).await.unwrap_err();
            assert_eq!((error.unprovided(), error.fault().outcome), (Some(class), outcome), "{error}");
        }
        preparer.prepare(&offer).await.unwrap();
        let mut offer = offer;
        offer.dataset = file("train.jsonl", b"not there");
        assert_eq!(preparer.prepare(&offer).await.unwrap_err().unprovided(), None, "it is not this attempt's");
    }

    #[tokio::test]
    async fn a_cache_without_room_ends_the_attempt_as_a_full_disk() {
        let (folder, mut preparer) = preparer();
        let config = config::Cache { budget: 1, ..config::Cache::default() };
        preparer.cache = Cache::open(&folder.path().join("small"), &config).unwrap();
        let offer = Offer { dataset: file("train.jsonl", b"[]"), ..offer_on(attempt(), "cpu") };
        let fault = preparer.prepare(&offer).await.unwrap_err().fault();
        assert_eq!(fault.outcome, Outcome::DiskFull);
        assert!(fault.message.contains("train.jsonl") && fault.message.contains("make room"), "{}", fault.message);
    }

    /// Gives what it holds by its hash, and refuses the rest.
    #[derive(Clone)]
    struct Shelf;

    const SHELF: [&[u8]; 4] = [b"{}", b"weights", b"[]", b"m"];
    const LOST: &[u8] = b"lost";
    const ROTTEN: &[u8] = b"rotten";

    impl Source for Shelf {
        async fn chunk(&self, _attempt: AttemptId, file: Hash, _index: u32) -> Result<Vec<u8>, Refusal> {
            let is = |bytes: &[u8]| *blake3::hash(bytes).as_bytes() == file.0;
            match SHELF.iter().find(|bytes| is(bytes)) {
                Some(bytes) => Ok(bytes.to_vec()),
                None if is(LOST) => Err(Refusal::Missing),
                None if is(ROTTEN) => Err(Refusal::Corrupt),
                None => Err(Refusal::NotYours),
            }
        }
    }

    fn preparer() -> (tempfile::TempDir, Preparer<Shelf>) {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::new(folder.path());
        let cache = Cache::open(&places.cache(), &config::Cache::default()).unwrap();
        (folder, Preparer { places, cache, source: Shelf, threads: None })
    }

    fn file(path: &str, bytes: &[u8]) -> NamedFile {
        let hash = Hash(*blake3::hash(bytes).as_bytes());
        NamedFile { path: path.into(), manifest: FileManifest { size: bytes.len() as u64, hash, chunks: vec![hash] } }
    }

    fn attempt() -> AttemptId {
        AttemptId { job: JobId(uuid::Uuid::from_u128(7)), token: AttemptToken { generation: 1, number: 1 } }
    }
}
