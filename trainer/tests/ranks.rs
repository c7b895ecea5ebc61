//! One run on several devices: the same steps as on one, the same bits again with as many, and nobody left waiting.

mod place;
mod told;

use std::os::unix::net::UnixStream;
use std::thread;

use lorikeet_trainer::config::{BaseDtype, Method};
use lorikeet_trainer::event::{Event, Outcome, Stage};
use lorikeet_trainer::{Config, FailureClass, Stop, TrainError, Wish, checkpoint, follow, lead};
use place::Place;
use told::{Told, assert_close, run, run_on};

fn on(ranks: usize, config: &Config) -> Told {
    run_on(ranks, config, u64::MAX, Wish::Run).expect("trains")
}

#[test]
fn several_ranks_take_the_steps_of_one() {
    let place = Place::new(14);
    let alone = run(&place.config("alone")).expect("trains");
    for ranks in [2, 3] {
        let told = on(ranks, &place.config(&format!("of {ranks}")));
        assert_close(&alone.steps, &told.steps);
        assert_eq!(alone.checkpoints, told.checkpoints);
        let again = on(ranks, &place.config(&format!("again of {ranks}")));
        assert_eq!(told.adapter_hash(), again.adapter_hash(), "as many ranks make the same bits");
    }
}

#[test]
fn more_ranks_than_examples_change_nothing_but_the_order_of_sums() {
    let place = Place::new(14);
    // the last step of an epoch is smaller than the batch: some have nothing to do in it
    let alone = run(&place.config("alone")).expect("trains");
    assert_close(&alone.steps, &on(5, &place.config("five")).steps);
}

#[test]
fn a_whole_model_is_trained_by_several_as_by_one() {
    let place = Place::new(8);
    let config = |name: &str| {
        let mut config = place.config(name);
        config.settings.method = Method::Full;
        config.settings.base_dtype = BaseDtype::F32;
        config.settings.learning_rate = 1e-3;
        config.settings.lora.dropout = 0.0;
        config
    };
    let alone = run(&config("alone")).expect("trains");
    assert_close(&alone.steps, &on(2, &config("two")).steps);
}

#[test]
fn several_that_were_stopped_go_on_to_the_same_bits() {
    let place = Place::new(14);
    let whole = on(2, &place.config("whole"));
    let config = place.config("stopped");
    for at in [3, 5] {
        let stopped = run_on(2, &config, at, Wish::SaveAndStop).expect("stops");
        assert_eq!(stopped.outcome, Outcome::Stopped { step: at, checkpoint: Some(checkpoint::name(at)) });
    }
    let rest = on(2, &config);
    assert_eq!(rest.plan().from_step, 5);
    assert_eq!(rest.adapter_hash(), whole.adapter_hash());
}

#[test]
fn a_rank_that_leaves_without_a_word_ends_the_run_by_name_and_no_step_is_lost() {
    let place = Place::new(14);
    let whole = on(2, &place.config("whole"));
    let config = place.config("a");
    let (leader, follower) = UnixStream::pair().expect("a pair");
    let leaves = Stop::new();
    let error = thread::scope(|scope| {
        scope.spawn(|| follow(&config, follower, &leaves).expect("leaves in order"));
        lead(&config, vec![leader], &Stop::new(), &mut |event| {
            if matches!(event, Event::Step(step) if step.step == 3) {
                leaves.ask(Wish::Discard);
            }
            Ok(())
        })
    });
    let error = error.expect_err("its part is missing");
    assert!(matches!(error, TrainError::RankLost { rank: 1, .. }), "{error}");
    assert_eq!(error.class(), FailureClass::RankLost);
    // no checkpoint was due before step 4; by then the follower may have been gone or not
    let rest = on(2, &config);
    assert!([3, 4].contains(&rest.plan().from_step), "{}", rest.plan().from_step);
    assert_eq!(rest.adapter_hash(), whole.adapter_hash());
}

#[test]
fn a_rank_that_cannot_begin_says_why_and_whose_fault_it_is() {
    let place = Place::new(14);
    let config = place.config("a");
    let other = Config { base: place.path("nowhere"), ..place.config("a") };
    let (leader, follower) = UnixStream::pair().expect("a pair");
    let follower = thread::spawn(move || follow(&other, follower, &Stop::new()));
    let error = lead(&config, vec![leader], &Stop::new(), &mut |_| Ok(())).expect_err("it has no base");
    let said = error.to_string();
    assert!(said.contains("rank 1: base model") && said.contains("nowhere"), "{said}");
    assert_eq!(error.class(), FailureClass::Base);
    assert!(follower.join().expect("no panic").is_err());
}

#[test]
fn a_leader_whose_followers_are_silent_can_be_stopped() {
    let place = Place::new(3);
    let (leader, _silent) = UnixStream::pair().expect("a pair");
    let stop = Stop::new();
    let outcome = lead(&place.config("a"), vec![leader], &stop, &mut |event| {
        if matches!(event, Event::Stage(Stage::Training)) {
            stop.ask(Wish::SaveAndStop);
        }
        Ok(())
    });
    assert_eq!(outcome.expect("stops"), Outcome::Stopped { step: 0, checkpoint: None });
}

#[test]
fn a_follower_whose_leader_never_begins_leaves() {
    let place = Place::new(3);
    let (leader, follower) = UnixStream::pair().expect("a pair");
    drop(leader);
    follow(&place.config("a"), follower, &Stop::new()).expect("leaves");
}
