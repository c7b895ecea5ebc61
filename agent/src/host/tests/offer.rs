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
fn an_offer_that_does_not_fit_beside_what_is_on_the_device_is_declined() {
    let shared = |number: u32| {
        let mut offer = Offer { planned_bytes: 6 << 30, ..offer_on(other_job(number), "cpu") };
        (offer.attempt.job, offer.job.resources.exclusive) = (job(100 + u128::from(number)), false);
        offer
    };
    let mut scene = Scene::new();
    let answer = |scene: &mut Scene, offer: &Offer| match &scene.heard(ToAgent::Offer(Box::new(offer.clone())))[0] {
        Action::Tell(FromAgent::Accepted(_)) => None,
        Action::Tell(FromAgent::Declined { reason, .. }) => Some(reason.clone()),
        other => panic!("{other:?}"),
    };
    let free = |scene: &mut Scene, gib: u64, holders: Holders| {
        let mut seen = Seen { holders: [(DeviceId::cpu(), holders)].into(), ..seen(&[]) };
        seen.devices[0].free_bytes = gib << 30;
        scene.event(Event::Looked(seen));
    };
    let (first, second, third) = (shared(1), shared(2), shared(3));
    free(&mut scene, 13, Holders::new());
    assert_eq!(answer(&mut scene, &first), None);
    assert_eq!(answer(&mut scene, &second), None, "12 of 13 GiB");
    let why = answer(&mut scene, &third).unwrap();
    assert!(why.contains("device cpu is busy: it has 1024 MiB of memory free, 6144 MiB are planned"), "{why}");
    // The first one's worker holds 4 of its 6 GiB, and somebody else 3.
    scene.event(Event::Prepared(first.attempt));
    scene.event(Event::Worker(first.attempt, News::Holds { pid: 42 }));
    free(&mut scene, 9, [(42, Some(4 << 30)), (43, Some(3 << 30))].into());
    let why = answer(&mut scene, &third).unwrap();
    assert!(why.contains("1024 MiB of memory free"), "9 less 2 and 6: {why}");
    // It is gone: a look that may be older says nothing against an offer, the next one does.
    scene.event(Event::Worker(first.attempt, News::Gone { how: "signal: 9".into() }));
    assert_eq!(answer(&mut scene, &third), None);
    let fourth = shared(4);
    assert_eq!(answer(&mut scene, &fourth), None);
    scene.wait(3);
    free(&mut scene, 9, Holders::new());
    assert!(answer(&mut scene, &shared(5)).is_some());
}

#[test]
fn what_a_worker_holds_is_in_the_look_from_its_first_step_on_where_the_driver_says_no_number() {
    let mut scene = Scene::new();
    let mut mine = offer_on(id(1), "cpu");
    mine.job.resources.exclusive = false;
    scene.heard(ToAgent::Offer(Box::new(Offer { planned_bytes: 6 << 30, ..mine })));
    scene.event(Event::Prepared(id(1)));
    scene.news(1, News::Holds { pid: 42 });
    let mut seen = seen(&[42]);
    seen.devices[0].free_bytes = 8 << 30;
    scene.event(Event::Looked(seen));
    let mut next = Offer { planned_bytes: 3 << 30, ..offer_on(other_job(1), "cpu") };
    next.job.resources.exclusive = false;
    let is_taken = |scene: &mut Scene| {
        let out = scene.heard(ToAgent::Offer(Box::new(next.clone())));
        out.contains(&Action::Tell(FromAgent::Accepted(next.attempt)))
    };
    assert!(!is_taken(&mut scene), "6 of 8 GiB are still to be taken");
    scene.line(1, step(1));
    assert!(is_taken(&mut scene));
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
