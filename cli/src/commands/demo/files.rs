//! Where the demo's files lie, and what it trains on.

use crate::{args::Demo, failure::Failure};
use lorikeet_api::{JobFile, jobfile::WordOrNumber};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What the job calls its base.
pub(super) const BASE: &str = "demo-base";
/// What the job calls its dataset.
pub(super) const DATASET: &str = "demo-conversations";

/// Pig Latin to learn from. `cargo xtask demo-base` writes it, as it does what follows.
const CONVERSATIONS: &str = include_str!("../../../assets/demo.jsonl");
/// A hundred questions about words that stand in nothing that was trained on.
const HELD_OUT: &str = include_str!("../../../assets/demo_held_out.jsonl");
/// A small instruction model, in bf16.
const BASE_FILES: [(&str, &[u8]); 5] = [
    ("README.md", include_bytes!("../../../assets/base/README.md")),
    ("config.json", include_bytes!("../../../assets/base/config.json")),
    ("model.safetensors", include_bytes!("../../../assets/base/model.safetensors")),
    ("tokenizer.json", include_bytes!("../../../assets/base/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../assets/base/tokenizer_config.json")),
];

/// How a demo ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With an adapter.
    Succeeded,
    /// The person had seen enough.
    Interrupted,
    /// Without one.
    Failed,
}

/// The folder and what was brought along.
#[derive(Debug, Clone)]
pub(super) struct Files {
    folder: PathBuf,
    /// Whether it was made for this demo; else it was there, and empty.
    made: bool,
    /// Our own when not given.
    given_base: Option<PathBuf>,
    /// Our own when not given.
    given_dataset: Option<PathBuf>,
}

impl Files {
    /// A new folder, or an empty one.
    pub(super) fn make(args: &Demo) -> Result<Self, Failure> {
        let given = |path: &Option<PathBuf>| match path {
            Some(path) => path.canonicalize().map(Some).map_err(|error| Failure::file("open", path, &error)),
            None => Ok(None),
        };
        let (given_base, given_dataset) = (given(&args.base)?, given(&args.dataset)?);
        let made = args.dir.as_ref().is_none_or(|dir| !dir.exists());
        Ok(Self { given_base, given_dataset, folder: folder(args.dir.as_deref())?, made })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn adapter(&self) -> PathBuf {
        self.folder.join("adapter")
    }

    pub(super) fn base(&self) -> PathBuf {
        self.given_base.clone().unwrap_or_else(|| self.folder.join("base"))
    }

    pub(super) fn dataset(&self) -> PathBuf {
        self.given_dataset.clone().unwrap_or_else(|| self.folder.join("conversations.jsonl"))
    }

    /// Whether base and conversations are those of this program.
    pub(super) fn is_ours(&self) -> bool {
        self.given_base.is_none() && self.given_dataset.is_none()
    }

    pub(super) fn job_file(&self) -> PathBuf {
        self.folder.join("job.toml")
    }

    /// Conversations that nothing was trained on, for the sample: ours, or those that were brought.
    pub(super) fn held_out(&self) -> PathBuf {
        self.given_dataset.clone().unwrap_or_else(|| self.folder.join("held-out.jsonl"))
    }

    /// Writes what was not brought along.
    pub(super) fn prepare(&self) -> Result<(), Failure> {
        if self.given_dataset.is_none() {
            self.write("conversations.jsonl", CONVERSATIONS.as_bytes())?;
            self.write("held-out.jsonl", HELD_OUT.as_bytes())?;
        }
        if self.given_base.is_none() {
            let base = self.base();
            fs::create_dir_all(&base).map_err(|error| Failure::file("create", &base, &error))?;
            BASE_FILES.iter().try_for_each(|(name, bytes)| self.write(&format!("base/{name}"), bytes))?;
        }
        let job = toml::to_string(&self.job()?).map_err(Failure::bug)?;
        self.write("job.toml", job.as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.folder.join(name);
        fs::write(&path, bytes).map_err(|error| Failure::file("write", &path, &error))
    }

    /// The job. Our small base takes a new task in a minute, trained hard; a base that was brought is touched lightly.
    pub(super) fn job(&self) -> Result<JobFile, Failure> {
        let mut job = JobFile::new(BASE, DATASET);
        job.name = Some("demo".into());
        let (training, lora) = (&mut job.training, &mut job.lora);
        training.eval_every = Some(WordOrNumber::Number(80));
        if self.given_dataset.is_none() {
            training.max_seq_length = Some(512);
        }
        if self.given_base.is_some() {
            (training.batch_size, training.max_steps) = (Some(4), Some(40));
            return Ok(job);
        }
        (training.batch_size, training.max_steps) = (Some(16), Some(240));
        training.learning_rate = Some(5e-3);
        (lora.rank, lora.alpha, lora.dropout) = (Some(16), Some(32.0), Some(0.0));
        Ok(job)
    }

    /// At the end: what the cluster kept for itself, keys and tokens among it, goes unless it is wanted. After a failure the logs stay
    /// for a look; an interrupted demo leaves nothing. Answers what there is to say about it.
    pub(super) fn tidy(&self, keep: bool, end: End) -> Option<String> {
        let folder = self.folder.display();
        match (keep, end) {
            (true, End::Succeeded) => None,
            (true, End::Interrupted | End::Failed) => {
                Some(format!("everything of it is left in {folder}; `rm -r {folder}` removes it"))
            }
            (false, End::Interrupted) if self.clear() => Some("nothing of it is left".to_owned()),
            (false, _) => {
                for name in ["coordinator", "agent"] {
                    // What cannot be removed is only in the way.
                    drop(fs::remove_dir_all(self.folder.join(name)));
                }
                let left =
                    format!("logs and configs are left in {folder}; `rm -r {folder}` removes them, --keep keeps more");
                (end != End::Succeeded).then_some(left)
            }
        }
    }

    /// Removes everything that the demo made; whether that was possible. The folder was empty before it.
    fn clear(&self) -> bool {
        if self.made {
            return fs::remove_dir_all(&self.folder).is_ok();
        }
        let remove = |entry: std::io::Result<fs::DirEntry>| {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
        };
        fs::read_dir(&self.folder).is_ok_and(|mut entries| entries.all(|entry| remove(entry).is_ok()))
    }
}

fn folder(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let Some(path) = given else {
        let made = tempfile::Builder::new().prefix("lorikeet-demo-").tempdir();
        return made
            .map(tempfile::TempDir::keep)
            .map_err(|error| Failure::mistake(format!("make a temporary folder: {error}")));
    };
    fs::create_dir_all(path).map_err(|error| Failure::file("create", path, &error))?;
    let path = path.canonicalize().map_err(|error| Failure::file("open", path, &error))?;
    let mut entries = fs::read_dir(&path).map_err(|error| Failure::file("read", &path, &error))?;
    match entries.next() {
        Some(_) => {
            Err(Failure::mistake(format!("{} is not empty", path.display()))
                .hint("name a folder that does not exist yet"))
        }
        None => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_api::Presets;
    use lorikeet_plan::{ModelConfig, tensors};
    use safetensors::{Dtype, SafeTensors};

    #[test]
    fn the_demos_job_is_a_job_that_can_be_submitted_again() {
        let folder = tempfile::tempdir().unwrap();
        for (base, dataset) in [(None, None), (Some("/b".into()), None), (None, Some("/d".into()))] {
            let files =
                Files { folder: folder.path().to_owned(), made: false, given_base: base, given_dataset: dataset };
            let job = files.job().unwrap();
            let spec = job.resolve(&Presets::embedded()).unwrap();
            let text = toml::to_string(&job).unwrap();
            assert_eq!(JobFile::from_toml(&text).unwrap().resolve(&Presets::embedded()).unwrap(), spec);
        }
    }

    #[test]
    fn the_kept_base_is_what_its_config_says_in_bf16_and_small() {
        let file = |wanted: &str| BASE_FILES.iter().find(|(name, _)| *name == wanted).expect("it is kept").1;
        let config = ModelConfig::parse(std::str::from_utf8(file("config.json")).unwrap()).unwrap();
        let weights = file("model.safetensors");
        assert!(weights.len() <= 3_000_000, "{} bytes", weights.len());
        let kept = SafeTensors::deserialize(weights).unwrap();
        let expected = tensors(&config);
        assert_eq!(kept.len(), expected.len());
        for tensor in expected {
            let found = kept.tensor(&tensor.name).unwrap();
            assert_eq!((found.dtype(), found.shape()), (Dtype::BF16, &tensor.shape[..]), "{}", tensor.name);
        }
    }
}
