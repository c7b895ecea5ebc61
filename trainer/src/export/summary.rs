//! `training_summary.json` and `metadata.json`: how it went, and what was trained on what.

use lorikeet_dataset::PrepareReport;
use serde_json::{Value, json};

use crate::checkpoint::Identity;
use crate::config::Config;
use crate::run::Run;

/// Held-out loss above the training loss by which an adapter is called overfit.
const OVERFIT: f64 = 0.5;

/// How the training went.
pub(super) fn summary(run: &Run) -> Value {
    let state = &run.state;
    let first = state.evals.first().map(|point| point.loss);
    let result = run.result_eval();
    let after = result.map(|point| point.loss);
    json!({
        "steps": state.step,
        "planned_steps": run.numbers.total_steps,
        "result_of_step": if run.best.is_some() { result.map_or(state.step, |point| point.step) } else { state.step },
        "epochs": state.cursor.epochs(run.numbers.examples),
        "examples": run.numbers.examples,
        "tokens": state.tokens,
        "supervised_tokens": state.supervised_tokens,
        "seconds": state.seconds,
        "tokens_per_second": state.tokens as f64 / state.seconds.max(1e-9),
        "training_loss": {"first": state.first_loss, "last": state.last_loss},
        "validation": {
            "loss_before": first,
            "loss_after": after,
            "perplexity_before": first.map(f64::exp),
            "perplexity_after": after.map(f64::exp),
            "base_loss": state.base_loss,
            "base_perplexity": state.base_loss.map(f64::exp),
            "best": state.best(),
            "course": state.evals,
        },
        "quality": quality(state.first_loss, state.last_loss, after, state.base_loss),
    })
}

/// What the numbers come to, in words and stars.
fn quality(first: Option<f64>, last: Option<f64>, validation: Option<f64>, base: Option<f64>) -> Value {
    let (Some(first), Some(last)) = (first, last) else { return Value::Null };
    let (convergence, stars) = convergence(1.0 - last / first);
    let overfit = validation.is_some_and(|validation| validation - last > OVERFIT);
    let stars = if overfit { (stars - 1).max(2) } else { stars };
    json!({
        "training_loss": last,
        "validation_loss": validation,
        "perplexity": validation.map(f64::exp),
        "base_perplexity": base.map(f64::exp),
        "improvement": validation.zip(base).map(|(validation, base)| 1.0 - validation.exp() / base.exp()),
        "convergence": convergence,
        "overfit": overfit,
        "stars": stars,
    })
}

/// By the share of the loss that is gone.
fn convergence(fallen: f64) -> (&'static str, u8) {
    match fallen {
        _ if fallen > 0.50 => ("excellent", 5),
        _ if fallen > 0.30 => ("good", 4),
        _ if fallen > 0.15 => ("fair", 3),
        _ if fallen > 0.05 => ("poor", 2),
        _ => ("none", 1),
    }
}

/// What was trained on what.
pub(super) fn metadata(config: &Config, run: &Run, (report, identity): (&PrepareReport, &Identity)) -> Value {
    json!({
        "generator": concat!("lorikeet ", env!("CARGO_PKG_VERSION")),
        "base_model": config.base_name,
        "base_weights": identity.weights,
        "trainable_parameters": run.trained.trained(),
        "settings": config.settings,
        "dataset": report,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_follow_the_loss_and_one_goes_where_it_is_learnt_by_heart() {
        let stars = |last, validation| quality(Some(2.0), Some(last), validation, Some(3.0))["stars"].clone();
        assert_eq!([0.9, 1.3, 1.6, 1.85, 1.95].map(|last| stars(last, None)), [5, 4, 3, 2, 1].map(Value::from));
        assert_eq!([0.9, 1.85].map(|last| stars(last, Some(2.5))), [4, 2].map(Value::from));
        let found = quality(Some(2.0), Some(1.0), Some(1.2), Some(3.0));
        assert_eq!(found["overfit"], false);
        assert!((found["improvement"].as_f64().expect("a number") - (1.0 - (1.2f64 - 3.0).exp())).abs() < 1e-12);
    }
}
