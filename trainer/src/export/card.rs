//! `README.md`: the model card, as the Hugging Face hub reads it.

use lorikeet_dataset::PrepareReport;
use serde_json::Value;

use crate::Trained;
use crate::config::Config;
use crate::run::Run;

/// The loss by step, beside the card.
pub(super) const CURVE_FILE: &str = "loss.svg";

/// The base is named by what the job called it, which is no path and no name on any hub: whoever loads it says where it is.
const USE_ADAPTER: &str = r#"
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/to/the/base/model")
model = PeftModel.from_pretrained(base, "path/to/this/directory")
```
"#;

const USE_MODEL: &str = r#"
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/directory")
```
"#;

/// The model card, with the header the Hugging Face hub reads.
pub(super) fn card(config: &Config, run: &Run, report: &PrepareReport) -> String {
    let (settings, state) = (&config.settings, &run.state);
    let base = &config.base_name;
    let (library, tag, what, how) = match run.trained {
        Trained::Adapter(_) => ("peft", "lora", "LoRA adapter for", USE_ADAPTER),
        Trained::Model(_) => ("transformers", "full", "Fine-tuned", USE_MODEL),
    };
    let mut text = format!(
        "---\nbase_model: {}\nlibrary_name: {library}\npipeline_tag: text-generation\ntags:\n- {tag}\n- lorikeet\n---\n\n\
         # {what} {base}\n\n\
         Trained with lorikeet {} on {} examples from {} conversations ({}), {} of them held out.\n\n",
        Value::from(base.as_str()),
        env!("CARGO_PKG_VERSION"),
        run.numbers.examples,
        report.conversations,
        report.format,
        report.validation_conversations,
    );
    let lora = &settings.lora;
    let shape = format!("{}, {}, {}", lora.rank, lora.alpha, lora.dropout);
    let shape = matches!(run.trained, Trained::Adapter(_)).then_some(("rank, alpha, dropout", shape));
    let rows = [
        ("trainable parameters", run.trained.trained().to_string()),
        ("steps", state.step.to_string()),
        ("examples per step", settings.batch_size.to_string()),
        ("peak learning rate", settings.learning_rate.to_string()),
        ("training loss, first and last step", pair(state.first_loss, state.last_loss)),
        (
            "held-out loss, before and after",
            pair(state.evals.first().map(|e| e.loss), run.result_eval().map(|e| e.loss)),
        ),
        ("tokens trained on", state.tokens.to_string()),
        ("seed", settings.seed.to_string()),
        ("dataset, BLAKE3", format!("`{}`", report.file_hash)),
    ];
    text.push_str("| | |\n|---|---|\n");
    text.extend(shape.iter().chain(&rows).map(|(name, value)| format!("| {name} | {value} |\n")));
    if !state.course.points().is_empty() {
        text.push_str(&format!("\n![Loss by step]({CURVE_FILE})\n"));
    }
    text.push_str(how);
    text.push_str("\n<details><summary>Every setting</summary>\n\n```json\n");
    text.push_str(&serde_json::to_string_pretty(settings).expect("plain data is JSON"));
    text.push_str("\n```\n\n</details>\n");
    text
}

fn pair(before: Option<f64>, after: Option<f64>) -> String {
    match (before, after) {
        (Some(before), Some(after)) => format!("{before:.4}, {after:.4}"),
        (Some(_), None) | (None, Some(_)) | (None, None) => "none".into(),
    }
}
