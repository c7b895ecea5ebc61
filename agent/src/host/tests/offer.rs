//! What is accepted, and what is declined with which reason.

use super::*;

#[test]
fn an_offer_is_accepted_prepared_started_and_runs() {
    let mut scene = Scene::new();
    let out = scene.heard(offer(1));
    assert_eq!(out[0], Action::Tell(FromAgent::Accepted(id(1))));
    assert_eq!(bodies(&out), [&ReportBody::Preparing]);
    assert!(matches!(out.last(), Some(Action::Prepare(_))));

    let out = scene.event(Event::Prepared(id(1)));
    assert!(matches!(out[..], [Action::Keep(_), Action::Start(_)]), "{out:?}");

    let out = scene.news(1, News::Holds { pid: 42 });
    assert_eq!(bodies(&out), [&ReportBody::Running { from_step: 0 }]);
    assert_eq!(scene.phase(1), AttemptPhase::Running);
}

#[test]
fn the_same_offer_twice_is_one_attempt() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    assert_eq!(scene.heard(offer(1)), [Action::Tell(FromAgent::Accepted(id(1)))]);
}

#[test]
fn an_offer_is_declined_with_its_reason() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    for (offer, reason) in [
        (offer_on(other_job(1), "cpu"), "held by"),
        (offer_on(other_job(1), "GPU-9"), "not here"),
        (offer_on(other_job(1), "broken"), "fell off the bus"),
        (Offer { devices: vec![], ..offer_on(other_job(1), "cpu") }, "no device"),
        (Offer { dataset: file("../up"), ..offer_on(other_job(1), "spare") }, "no name for a file"),
    ] {
        let out = scene.heard(ToAgent::Offer(Box::new(offer)));
        let [Action::Tell(FromAgent::Declined { reason: found, .. })] = &out[..] else { panic!("{reason}: {out:?}") };
        assert!(found.contains(reason), "{reason}: {found}");
    }
}

#[test]
fn an_older_token_of_the_same_job_is_declined() {
    let mut scene = Scene::new();
    scene.heard(offer(5));
    let out = scene.heard(ToAgent::Offer(Box::new(offer_on(id(4), "spare"))));
    assert!(
        matches!(&out[..], [Action::Tell(FromAgent::Declined { reason, .. })] if reason.contains("newer")),
        "{out:?}"
    );
}
