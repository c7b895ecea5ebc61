//! What a run writes down of itself in its directory, besides what its caller does with the events: `metrics.jsonl`, a line per
//! step, evaluation and sample, and `tensorboard/`, the same for TensorBoard.
//!
//! Whoever goes on from a checkpoint does steps again that were written down before: their lines are cut off first, so that every
//! step has one. The lines of `metrics.jsonl` are on the disk before a checkpoint that counts them ([`sync`]): whoever goes on from
//! there does not write them again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::TrainError;
use crate::event::{Event, Plan};
use crate::tensorboard::EventFile;

/// Name of the metrics file.
const METRICS: &str = "metrics.jsonl";
/// Name of TensorBoard's folder.
const TENSORBOARD: &str = "tensorboard";

/// The records of one run; they begin with its plan.
#[derive(Debug)]
pub(crate) struct Record {
    dir: PathBuf,
    open: Option<(File, EventFile)>,
}

impl Record {
    /// Of the run in `dir`.
    pub(crate) fn new(dir: &Path) -> Record {
        Record { dir: dir.to_owned(), open: None }
    }

    /// Writes down what is worth it.
    pub(crate) fn keep(&mut self, event: &Event) -> io::Result<()> {
        if let Event::Plan(Plan { from_step, .. }) = event {
            fs::create_dir_all(&self.dir)?;
            let metrics = metrics_up_to(&self.dir.join(METRICS), *from_step)?;
            self.open = Some((metrics, EventFile::create(&self.dir.join(TENSORBOARD), from_step + 1)?));
        }
        let Some((metrics, events)) = &mut self.open else { return Ok(()) };
        let Some(line) = line(event) else { return Ok(()) };
        metrics.write_all(format!("{line}\n").as_bytes())?;
        match event {
            Event::Step(step) => events.scalars(
                step.step,
                &[
                    ("train/loss", step.loss),
                    ("train/learning_rate", step.lr),
                    ("train/grad_norm", step.grad_norm),
                    ("train/tokens_per_second", step.tokens as f64 / step.seconds.max(1e-9)),
                    ("train/epoch", step.epoch),
                ],
            ),
            Event::Eval(eval) => {
                events.scalars(eval.step, &[("eval/loss", eval.loss), ("eval/perplexity", eval.perplexity)])
            }
            Event::GradNorms { step, norms } => {
                let named: Vec<(String, f64)> =
                    norms.iter().map(|(module, norm)| (format!("grad_norm/{module}"), *norm)).collect();
                let scalars: Vec<(&str, f64)> = named.iter().map(|(tag, norm)| (tag.as_str(), *norm)).collect();
                events.scalars(*step, &scalars)
            }
            Event::Sample(sample) => events.text(sample.step, &format!("sample/{}", sample.prompt), &sample.text),
            Event::Stage(_) | Event::Plan(_) | Event::Log { .. } | Event::Checkpoint(_) => Ok(()),
        }
    }
}

/// Puts every line of the metrics written so far on the disk. Whoever took the file away has none to miss.
pub(crate) fn sync(dir: &Path) -> Result<(), TrainError> {
    let path = dir.join(METRICS);
    match File::open(&path).and_then(|metrics| metrics.sync_data()) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(TrainError::io("sync", &path)(error)),
        _ => Ok(()),
    }
}

/// A line of the metrics; none for what is no measurement.
fn line(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Step(step) => json!({
            "type": "step", "step": step.step, "epoch": step.epoch, "loss": step.loss, "lr": step.lr,
            "grad_norm": step.grad_norm, "tokens": step.tokens, "supervised_tokens": step.supervised_tokens,
            "seconds": step.seconds,
        }),
        Event::Eval(eval) => json!({
            "type": "eval", "step": eval.step, "epoch": eval.epoch, "loss": eval.loss, "perplexity": eval.perplexity,
            "base_loss": eval.base_loss, "tokens": eval.tokens, "seconds": eval.seconds,
        }),
        Event::GradNorms { step, norms } => json!({"type": "grad_norms", "step": step, "norms": norms}),
        Event::Sample(sample) => {
            json!({"type": "sample", "step": sample.step, "prompt": sample.prompt, "text": sample.text})
        }
        Event::Stage(_) | Event::Plan(_) | Event::Log { .. } | Event::Checkpoint(_) => return None,
    })
}

/// The file, open for more behind its last line that still counts.
fn metrics_up_to(path: &Path, step: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    let (mut kept, mut line) = (0, Vec::new());
    let mut lines = BufReader::new(&file);
    while lines.read_until(b'\n', &mut line)? > 0 {
        let whole: Option<Value> = line.strip_suffix(b"\n").and_then(|text| serde_json::from_slice(text).ok());
        // what was told at the step it goes on from is in the checkpoint, and is not told again; at the start there is none
        if step == 0 || whole.and_then(|value| value["step"].as_u64()).is_none_or(|at| at > step) {
            break;
        }
        kept += line.len() as u64;
        line.clear();
    }
    file.set_len(kept)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_are_done_again_have_one_line_each() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join(METRICS);
        let line = |step: u64| json!({"step": step}).to_string() + "\n";
        fs::write(&path, (1..=5).map(line).collect::<String>() + "{\"step\": 6").expect("written");
        let mut file = metrics_up_to(&path, 3).expect("opened");
        file.write_all(line(4).as_bytes()).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("read"), (1..=4).map(line).collect::<String>());
        metrics_up_to(&path, 0).expect("opened");
        assert_eq!(fs::read_to_string(&path).expect("read"), "");
    }
}
