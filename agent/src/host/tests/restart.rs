//! What an agent that starts again makes of what it finds.

use super::*;

#[test]
fn an_agent_that_restarts_takes_up_its_running_worker_and_says_nothing_twice() {
    let mut scene = Scene::running();
    scene.line(4, checkpoint_event(10, CheckpointKind::Periodic));
    scene.event(Event::CheckpointUploaded(id(1), 4, Box::new(checkpoint(10))));
    let out = scene.restart();
    assert!(matches!(out[..], [Action::Adopt(_)]), "{out:?}");
    assert_eq!(scene.host.known(), [KnownAttempt { id: id(1), phase: AttemptPhase::Running }]);
    assert!(bodies(&scene.news(1, News::Holds { pid: 42 })).is_empty());
    assert!(scene.line(4, checkpoint_event(10, CheckpointKind::Periodic)).is_empty());
    assert_eq!(scene.phase(1), AttemptPhase::Running);
    let out = scene.wait(3600);
    assert!(
        out.contains(&Action::Ask(id(1), Ask::Stop(StopHow::Save, StopCause::TimeLimit))),
        "the clock went on: {out:?}"
    );
}

#[test]
fn a_restart_between_order_and_signal_gives_the_order_again() {
    let mut scene = Scene::running();
    scene.heard(stop(StopHow::Discard, StopCause::Cancel));
    let out = scene.restart();
    assert!(out.contains(&Action::Ask(id(1), Ask::Stop(StopHow::Discard, StopCause::Cancel))), "{out:?}");
    scene.news(1, News::Holds { pid: 42 });
    assert_eq!(scene.wait(3), [Action::Kill(id(1))]);
}

#[test]
fn a_restart_while_files_are_fetched_fetches_the_rest() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    assert!(matches!(scene.restart()[..], [Action::Prepare(_)]));
}

#[test]
fn a_worker_that_ended_while_no_agent_was_there_is_reported() {
    let mut scene = Scene::running();
    scene.restart();
    scene.line(9, WorkerEvent::Finished { step: 30, files: vec![] });
    scene.gone(1);
    let out = scene.event(Event::AdapterUploaded(id(1), vec![], None));
    assert_eq!(ended(&out).outcome, Outcome::Ok);
}

#[test]
fn after_a_reboot_an_attempt_is_lost_and_its_time_counted_to_the_last_event() {
    let mut scene = Scene::running();
    scene.rules.boot = BootId(uuid::Uuid::from_u128(99));
    scene.now.mono = Duration::from_secs(3);
    scene.restart();
    scene.line(1, step(7));
    let out = scene.gone(1);
    assert_eq!(ended(&out).outcome, Outcome::Lost);
    assert_eq!(ended(&out).held, Duration::ZERO, "events carry the time of the acceptance in this scene");
}

#[test]
fn an_agent_that_was_held_up_hears_its_workers_before_it_judges_them() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    scene.event(Event::Prepared(id(1)));
    // Its disk took a minute for one write; a word of the coordinator comes first.
    scene.now.mono += Duration::from_secs(60);
    assert_eq!(scene.heard(ToAgent::Acknowledged { through: 0 }), []);
    scene.news(1, News::Holds { pid: 42 });
    assert_eq!(scene.phase(1), AttemptPhase::Running);
}

#[test]
fn a_worker_that_says_nothing_after_that_either_is_given_up() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    scene.event(Event::Prepared(id(1)));
    assert_eq!(scene.wait(60), []);
    assert_eq!(scene.wait(5), [Action::Kill(id(1))]);
    assert_eq!(ended(&scene.gone(1)).outcome, Outcome::PrepareFailed);
}

#[test]
fn an_attempt_that_was_being_prepared_when_the_machine_started_anew_is_of_the_boot_in_which_it_runs() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    scene.rules.boot = BootId(uuid::Uuid::from_u128(99));
    (scene.now.mono, scene.now.wall) = (Duration::from_secs(3), UnixMillis(9_000_000));
    let out = scene.restart();
    let [Action::Keep(record), Action::Prepare(_)] = &out[..] else { panic!("{out:?}") };
    scene.records.insert(id(1), (**record).clone());
    scene.event(Event::Prepared(id(1)));
    scene.news(1, News::Holds { pid: 42 });
    // A restart of the agent alone: the time goes on.
    scene.now.mono += Duration::from_secs(600);
    assert!(matches!(scene.restart()[..], [Action::Adopt(_)]));
    scene.news(1, News::Holds { pid: 42 });
    let out = scene.wait(3_000);
    assert!(out.contains(&Action::Ask(id(1), Ask::Stop(StopHow::Save, StopCause::TimeLimit))), "{out:?}");
    assert_eq!(ended(&scene.gone(1)).held, Duration::from_secs(3_600));
}
