//! Who still wants an attempt, and when it goes.

use super::*;

#[test]
fn an_attempt_that_is_not_current_is_stopped_told_and_dropped_once_delivered() {
    let mut scene = Scene::running();
    let out = scene.welcome(vec![(id(1), Verdict::Stop)]);
    assert!(out.contains(&Action::Ask(id(1), Ask::Stop(StopHow::Discard, StopCause::Superseded))));
    let out = scene.gone(1);
    assert_eq!(ended(&out).outcome, Outcome::Superseded);
    assert_eq!(scene.event(Event::Delivered(id(1))), [Action::Forget(id(1))]);
    assert!(scene.host.known().is_empty());
}

#[test]
fn an_adopted_attempt_goes_on() {
    let mut scene = Scene::running();
    assert!(scene.welcome(vec![(id(1), Verdict::Adopt)]).is_empty());
    assert_eq!(scene.phase(1), AttemptPhase::Running);
}

#[test]
fn an_attempt_nobody_wants_is_stopped_and_dropped() {
    let mut scene = Scene::running();
    scene.welcome(vec![(id(1), Verdict::Forget)]);
    assert!(scene.gone(1).contains(&Action::Forget(id(1))));
    assert!(scene.host.known().is_empty());
}

#[test]
fn a_forgotten_attempt_stays_until_its_last_events_are_kept() {
    let mut scene = Scene::running();
    scene.line(8, step(1));
    scene.gone(1);
    assert!(scene.heard(ToAgent::Forget(id(1))).is_empty());
    let out = scene.heard(ToAgent::EventsAcknowledged { attempt: id(1), through: 8 });
    assert_eq!(out, [Action::Forget(id(1))]);
}

#[test]
fn a_forgotten_attempt_goes_in_the_end_even_if_its_events_are_never_kept() {
    let mut scene = Scene::running();
    scene.line(8, step(1));
    scene.gone(1);
    scene.heard(ToAgent::Forget(id(1)));
    assert!(scene.wait(3_600).is_empty(), "a coordinator that is away may still want them");
    assert_eq!(scene.wait(24 * 3_600), [Action::Forget(id(1))]);
}

#[test]
fn an_attempt_that_is_alive_is_never_forgotten() {
    let mut scene = Scene::running();
    assert!(scene.heard(ToAgent::Forget(id(1))).is_empty());
    assert_eq!(scene.phase(1), AttemptPhase::Running);
}

#[test]
fn an_end_that_was_lost_is_said_and_charged_to_nobody() {
    let mut scene = Scene::running();
    assert!(scene.event(Event::EndMissing(id(1))).is_empty(), "it is alive");
    scene.line(9, WorkerEvent::Finished { step: 30, files: vec![] });
    scene.event(Event::AdapterUploaded(id(1), vec![file("adapter_model.safetensors")], None));
    scene.now.mono += Duration::from_secs(9);
    assert_eq!(ended(&scene.gone(1)).outcome, Outcome::Ok);
    scene.welcome(vec![(id(1), Verdict::Report)]);
    let out = scene.event(Event::EndMissing(id(1)));
    let ended = ended(&out);
    assert_eq!((ended.outcome, ended.held, ended.files.len()), (Outcome::Lost, Duration::ZERO, 0));
    assert_eq!(ended.message.as_deref(), Some("its end was lost"));
    assert_eq!(ended.last_event, 9);
}

#[test]
fn news_of_strangers_change_nothing() {
    let mut scene = Scene::running();
    assert!(scene.event(Event::Prepared(id(77))).is_empty());
    assert!(scene.news(77, News::Holds { pid: 42 }).is_empty());
    assert!(scene.heard(ToAgent::Forget(id(77))).is_empty());
}
