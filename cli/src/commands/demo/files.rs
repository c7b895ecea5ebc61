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

/// The folder and what was brought along.
#[derive(Debug, Clone)]
pub(super) struct Files {
    folder: PathBuf,
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
        Ok(Self {
            given_base: given(&args.base)?,
            given_dataset: given(&args.dataset)?,
            folder: folder(args.dir.as_deref())?,
        })
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
        (training.batch_size, training.max_steps) = (Some(16), Some(300));
        training.learning_rate = Some(3e-3);
        (lora.rank, lora.alpha, lora.dropout) = (Some(32), Some(64.0), Some(0.0));
        Ok(job)
    }

    /// At the end: what the cluster kept for itself goes, unless it is wanted; after a failure everything stays for a look.
    pub(super) fn tidy(&self, keep: bool, succeeded: bool) {
        if keep || !succeeded {
            return;
        }
        for name in ["coordinator", "agent"] {
            // What cannot be removed is only in the way.
            drop(fs::remove_dir_all(self.folder.join(name)));
        }
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
            let files = Files { folder: folder.path().to_owned(), given_base: base, given_dataset: dataset };
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
