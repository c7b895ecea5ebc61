//! A machine burns in the middle of a job: the other one goes on from the uploaded checkpoint, and nobody could tell afterwards.

use lorikeet_tests::{Lab, api::steps_of_directory, chance, lab::hash_of, seed};

#[test]
fn a_job_whose_machine_is_lost_ends_bit_for_bit_as_if_nothing_had_happened() {
    let mut seed = seed();
    let (steps, every) = (56, 8);
    let lab = Lab::start();
    let reference = lab.reference(steps, every);
    let mut agents = [lab.agent("first"), lab.agent("second")];
    let job = lab.submit(&lab.job_file("lost", steps, every));
    // Strictly between two checkpoints, and after the first.
    let kill_at = every * (1 + chance(&mut seed, 3)) + 1 + chance(&mut seed, every - 2);
    lab.api.until_step(&job, kill_at);
    let holder = agents.iter().position(|agent| !agent.workers().is_empty()).expect("one of them trains");
    agents[holder].destroy();
    let silent = lab.api.until_told_unreachable(&job);
    assert!(silent["secondsLeft"].is_null() && silent["tokensPerSecond"].is_null(), "nobody knows: {silent:#}");
    let done = lab.api.until_phase(&job, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert_eq!(lab.api.steps(&job), steps_of_directory(&reference), "every step's loss, once, to the last bit");
    assert_eq!(lab.adapter_hash(&job), hash_of(&reference.join("adapter")));
    assert!(done["attempt"].as_str().is_some_and(|attempt| attempt.ends_with(".2")), "{done:#}");
}
