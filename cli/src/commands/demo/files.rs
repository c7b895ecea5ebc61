//! Where the demo's files lie, and what it trains on.

use crate::{
    args::Demo,
    failure::{Failure, chain},
};
use lorikeet_api::{JobFile, jobfile::WordOrNumber};
use lorikeet_trainer::export::{StoredAs, init_base};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What the job calls its base.
pub(super) const BASE: &str = "demo-base";
/// What the job calls its dataset.
pub(super) const DATASET: &str = "demo-conversations";

/// Three hundred short conversations with a lorikeet; no two share a sentence.
const CONVERSATIONS: &str = include_str!("../../../assets/demo.jsonl");
/// Forty more, about things that the first ones never name.
const HELD_OUT: &str = include_str!("../../../assets/demo_held_out.jsonl");
/// Fixes the base model's weights.
const SEED: u64 = 7;

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
            self.write("conversations.jsonl", CONVERSATIONS)?;
            self.write("held-out.jsonl", HELD_OUT)?;
        }
        if self.given_base.is_none() {
            make_base(&self.base())?;
        }
        let job = toml::to_string(&self.job()?).map_err(Failure::bug)?;
        self.write("job.toml", &job)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(|error| Failure::file("write", &path, &error))
    }

    /// The job. A random base has everything to learn, so it is trained hard; a base that was brought is touched lightly.
    pub(super) fn job(&self) -> Result<JobFile, Failure> {
        let mut job = JobFile::new(BASE, DATASET);
        job.name = Some("demo".into());
        let (training, lora) = (&mut job.training, &mut job.lora);
        training.eval_every = Some(WordOrNumber::Number(50));
        if self.given_dataset.is_none() {
            training.max_seq_length = Some(512);
        }
        if self.given_base.is_some() {
            (training.batch_size, training.max_steps) = (Some(4), Some(40));
            return Ok(job);
        }
        (training.batch_size, training.max_steps) = (Some(16), Some(240));
        training.learning_rate = Some(3e-3);
        (lora.rank, lora.alpha, lora.dropout) = (Some(32), Some(64.0), Some(0.0));
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

/// About a million random numbers in the shape of a Llama, reading and writing bytes.
fn make_base(directory: &Path) -> Result<(), Failure> {
    fs::create_dir_all(directory).map_err(|error| Failure::file("create", directory, &error))?;
    let failed =
        |error: &(dyn std::error::Error + 'static)| Failure::mistake(format!("make the base model: {}", chain(error)));
    let entries = lorikeet_dataset::write_byte_tokenizer(directory).map_err(|error| failed(&error))?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": entries,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": 0,
        "eos_token_id": 2,
    });
    init_base(directory, &config, SEED, StoredAs::F32).map(|_| ()).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_api::Presets;

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
    fn the_base_is_about_a_million_numbers_and_the_same_every_time() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make_base(one.path()).unwrap();
        make_base(two.path()).unwrap();
        let weights = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(weights(one.path()), weights(two.path()));
        assert!((4_000_000..6_000_000).contains(&weights(one.path()).len()));
    }
}
