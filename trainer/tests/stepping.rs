//! Single steps over runs in hand: several adapters at once, and steps that must not be taken.

mod place;
#[path = "place/work.rs"]
mod work;

use lorikeet_trainer::config::Settings;
use lorikeet_trainer::lora;
use lorikeet_trainer::model::Model;
use lorikeet_trainer::{Run, Taken, TrainError, step};
use work::Work;

#[test]
fn two_adapters_in_one_step_learn_what_each_learns_alone() {
    let work = on_processor();
    let other = Settings { seed: 1, learning_rate: 1e-2, batch_size: 2, ..work.config.settings.clone() };
    let fresh = || vec![work.run(&work.config.settings), work.run(&other)];
    let mut together = fresh();
    let mut alone = fresh();
    for _ in 0..4 {
        let taken = step(&work.model, &mut together, 200, &|| false).expect("taken");
        for (run, taken) in alone.iter_mut().zip(taken) {
            let single = step(&work.model, std::slice::from_mut(run), 200, &|| false).expect("taken")[0];
            let (Taken::Done(a), Taken::Done(b)) = (taken, single) else { panic!("{taken:?} and {single:?}") };
            assert!((a.loss - b.loss).abs() <= 1e-5 * b.loss, "{a:?} and {b:?}");
            assert_eq!((a.step, a.tokens, a.supervised_tokens, a.lr), (b.step, b.tokens, b.supervised_tokens, b.lr));
        }
    }
}

#[test]
fn a_step_whose_numbers_are_not_finite_changes_nothing_and_spares_its_neighbour() {
    let work = on_processor();
    let settings = &work.config.settings;
    let layout = work.layout(settings);
    let ruined: Vec<f32> = lora::init(&layout, 1).iter().map(|_| 1e30).collect();
    let mut runs = vec![work.run_from(settings, layout, ruined.clone()), work.run(settings)];
    let taken = step(&work.model, &mut runs, 200, &|| false).expect("a pass");
    assert!(matches!(taken[0], Taken::NotFinite { .. }) && matches!(taken[1], Taken::Done(_)), "{taken:?}");
    assert!(params(&runs[0]) == ruined && runs[0].steps() == 0 && runs[1].steps() == 1);
}

#[test]
fn a_step_told_to_stop_inside_changes_nothing() {
    let work = on_processor();
    let mut runs = vec![work.run(&work.config.settings)];
    let before = params(&runs[0]);
    // one example per micro-batch: the sixth question comes inside the second
    let layers = std::cell::Cell::new(0);
    let stop = || {
        layers.set(layers.get() + 1);
        layers.get() == 6
    };
    assert!(matches!(step(&work.model, &mut runs, 1, &stop), Err(TrainError::Stopped)));
    assert!(params(&runs[0]) == before && runs[0].steps() == 0);
    let again = step(&work.model, &mut runs, 1, &|| false).expect("taken");
    let fresh = step(&work.model, &mut [work.run(&work.config.settings)], 1, &|| false).expect("taken");
    let loss = |taken: &[Taken]| match taken[0] {
        Taken::Done(step) => (step.loss.to_bits(), step.grad_norm.to_bits()),
        Taken::NotFinite { .. } => panic!("{taken:?}"),
    };
    assert_eq!(loss(&again), loss(&fresh), "nothing of the abandoned step is left");
}

fn params(run: &Run) -> Vec<f32> {
    run.params().expect("read back").into_owned()
}

fn on_processor() -> Work {
    Work::new(|base| Model::load(base).expect("a base"))
}
