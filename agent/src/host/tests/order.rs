//! Orders from outside: cancel, pause, save, leave.

use super::*;

#[test]
fn a_cancelled_worker_is_asked_then_killed_after_its_grace() {
    let mut scene = Scene::running();
    let out = scene.heard(stop(StopHow::Discard, StopCause::Cancel));
    assert!(out.contains(&Action::Ask(id(1), Ask::Stop(StopHow::Discard, StopCause::Cancel))));
    assert!(scene.heard(stop(StopHow::Discard, StopCause::Cancel)).is_empty(), "a repeated order does nothing");
    assert!(scene.wait(2).is_empty());
    assert_eq!(scene.wait(1), [Action::Kill(id(1))]);
    let out = scene.gone(1);
    assert_eq!(ended(&out).outcome, Outcome::Cancelled);
}

#[test]
fn saving_gets_two_minutes_and_cancelling_cuts_them_short() {
    let mut scene = Scene::running();
    scene.heard(stop(StopHow::Save, StopCause::Pause));
    assert!(scene.wait(119).is_empty());
    let out = scene.heard(stop(StopHow::Discard, StopCause::Cancel));
    assert!(out.contains(&Action::Ask(id(1), Ask::Stop(StopHow::Discard, StopCause::Cancel))));
    assert!(scene.wait(2).is_empty());
    assert_eq!(scene.wait(1), [Action::Kill(id(1))]);
}

#[test]
fn a_cancel_while_files_are_fetched_ends_at_once() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    let out = scene.heard(stop(StopHow::Discard, StopCause::Cancel));
    assert!(out.contains(&Action::Abandon(id(1))));
    assert_eq!(ended(&out).outcome, Outcome::Cancelled);
    assert!(scene.event(Event::Prepared(id(1))).is_empty(), "a preparation that was quicker starts nothing");
}

#[test]
fn a_cancel_while_the_adapter_is_uploaded_keeps_it_from_counting() {
    let mut scene = Scene::running();
    scene.line(9, WorkerEvent::Finished { step: 30, files: vec![] });
    scene.gone(1);
    let out = scene.heard(stop(StopHow::Discard, StopCause::Cancel));
    assert_eq!(ended(&out).outcome, Outcome::Cancelled);
    assert!(scene.event(Event::AdapterUploaded(id(1), vec![], None)).is_empty());
}

#[test]
fn a_pause_while_the_adapter_is_uploaded_lets_it_through() {
    let mut scene = Scene::running();
    scene.line(9, WorkerEvent::Finished { step: 30, files: vec![] });
    scene.gone(1);
    assert!(scene.heard(stop(StopHow::Save, StopCause::Pause)).is_empty());
    let out = scene.event(Event::AdapterUploaded(id(1), vec![], None));
    assert_eq!(ended(&out).outcome, Outcome::Ok);
}

#[test]
fn an_agent_that_leaves_asks_its_workers_to_save_and_takes_nothing_new() {
    let mut scene = Scene::running();
    let out = scene.event(Event::Leave);
    assert!(out.contains(&Action::Ask(id(1), Ask::Stop(StopHow::Save, StopCause::Drain))));
    assert_eq!(scene.host.workers(), 1);
    let out = scene.gone(1);
    assert_eq!(ended(&out).outcome, Outcome::Preempted);
    assert_eq!(scene.host.workers(), 0);
    assert!(matches!(&scene.heard(offer(2))[..], [Action::Tell(FromAgent::Declined { .. })]));
}

#[test]
fn save_now_reaches_a_worker_that_trains_and_no_other() {
    let mut scene = Scene::running();
    assert_eq!(scene.heard(ToAgent::SaveNow(id(1))), [Action::Ask(id(1), Ask::SaveNow)]);
    scene.heard(stop(StopHow::Save, StopCause::Pause));
    assert!(scene.heard(ToAgent::SaveNow(id(1))).is_empty());
}
