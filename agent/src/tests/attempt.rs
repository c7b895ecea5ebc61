//! An attempt from its offer to its end, whichever that is.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_becomes_an_adapter_at_the_coordinator() {
    let mut scene = Scene::new(&Script::new(12, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    let ended = talk.until_ended().await;
    assert_eq!((ended.outcome, ended.step), (Outcome::Ok, 12));
    assert_eq!(ended.summary.as_deref(), Some("{\"steps\":1}"));
    // A checkpoint may still be on its way when the worker says its last word.
    let mut phases = talk.phases();
    phases.retain(|phase| phase != "finalizing");
    assert_eq!(phases, ["preparing", "running", "checkpoint 5", "checkpoint 10", "ended"]);
    assert!(talk.numbers_have_no_gaps());
    assert!(talk.reports.iter().any(|report| matches!(report.body, ReportBody::Progress(_))));
    scene.holds_every_file(&talk.reports);

    let lines = talk.until_lines(1).await;
    assert!(matches!(lines.last().unwrap().event, WorkerEvent::Finished { .. }));
    assert!(lines.iter().map(|line| line.seq).eq(1..=lines.len() as u64));
    talk.say(ToAgent::EventsAcknowledged { attempt: attempt(1), through: lines.len() as u64 }).await;
    talk.say(ToAgent::Forget(attempt(1))).await;
    scene.until_gone(1).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_were_not_kept_are_sent_again_in_the_same_session() {
    let mut scene = Scene::new(&Script::new(12, 5)).await;
    scene.config.link.report_retry = Duration::from_millis(100);
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    let lines = talk.until_lines(1).await;
    talk.lines.clear();
    // Not one of them was acknowledged, and nothing but time passes.
    let again = talk.until_lines(1).await;
    assert!(again.ends_with(&lines[lines.iter().rposition(|line| line.seq == 1).unwrap()..]), "{again:?}");
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_has_free_is_told_when_an_attempt_has_left_it() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    scene.config.devices.probe = Duration::from_millis(20);
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    talk.say(ToAgent::Stop { attempt: attempt(1), how: StopHow::Discard, cause: StopCause::Cancel }).await;
    talk.until_device("cpu", Result::is_ok).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_goes_on_from_a_checkpoint_made_elsewhere() {
    let mut scene = Scene::new(&Script::new(12, 1)).await;
    let mut talk = scene.start().await;
    let files = vec![scene.coordinator.shelve("manifest.json", b"{}"), scene.coordinator.shelve("state.json", b"s")];
    let resume = Checkpoint { step: 10, loss: 1.0, kind: CheckpointKind::Periodic, files };
    talk.offer(&scene, 1, Some(resume)).await;
    talk.until_ended().await;
    assert!(talk.reports.iter().any(|report| report.body == ReportBody::Running { from_step: 10 }));
    let steps = talk.until_lines(1).await;
    let first =
        steps.iter().find_map(|line| if let WorkerEvent::Step(step) = &line.event { Some(step.step) } else { None });
    assert_eq!(first, Some(11));
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_worker_is_gone_and_its_device_free_for_the_next() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    talk.say(ToAgent::Stop { attempt: attempt(1), how: StopHow::Discard, cause: StopCause::Cancel }).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Cancelled);
    talk.offer(&scene, 2, None).await;
    talk.until(|report| report.attempt == attempt(2) && matches!(report.body, ReportBody::Running { .. })).await;
    talk.say(ToAgent::Stop { attempt: attempt(2), how: StopHow::Discard, cause: StopCause::Cancel }).await;
    talk.until_ended().await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_mid_step_is_lost_with_its_last_checkpoint_counted() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Checkpoint(_))).await;
    scene.kill(1);
    let ended = talk.until_ended().await;
    assert_eq!(ended.outcome, Outcome::Lost);
    assert!(ended.message.unwrap().contains("signal: 9"));
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_own_failure_and_a_silent_end_are_told_apart() {
    for (end, outcome, class) in
        [(End::Fail, Outcome::UserError, Some(FailureClass::Dataset)), (End::Vanish, Outcome::Lost, None)]
    {
        let mut scene = Scene::new(&Script { end, ..Script::new(2, 1) }).await;
        let mut talk = scene.start().await;
        talk.offer(&scene, 1, None).await;
        let ended = talk.until_ended().await;
        assert_eq!((ended.outcome, ended.class), (outcome, class));
        scene.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_grows_too_large_is_killed_and_the_agent_lives() {
    let mut scene = Scene::new(&Script { grow_bytes: 200 << 20, ..Script::new(100_000, 5) }).await;
    scene.config.worker.memory_limit = Some(100 << 20);
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Oom);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_limit_saves_and_ends_an_attempt() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    let mut offer = scene.offer(1, None);
    offer.time_left = Duration::from_millis(300);
    talk.say(ToAgent::Offer(Box::new(offer))).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::TimedOut);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_ours_end_an_attempt_before_it_begins() {
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    let mut talk = scene.start().await;
    let offer = scene.offer(1, None);
    scene.coordinator.shelf.lock().unwrap().files.remove(&offer.dataset.manifest.hash);
    talk.say(ToAgent::Offer(Box::new(offer))).await;
    let ended = talk.until_ended().await;
    assert_eq!(ended.outcome, Outcome::Superseded);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_device_and_an_unusable_one_are_declined() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    let other = AttemptId { job: lorikeet_protocol::id::JobId(uuid::Uuid::from_u128(8)), ..attempt(1) };
    for (device, reason) in [("cpu", "held by"), ("broken", "no driver")] {
        let mut offer = scene.offer(1, None);
        offer.attempt = other;
        offer.devices = vec![lorikeet_protocol::id::DeviceId(device.into())];
        talk.say(ToAgent::Offer(Box::new(offer))).await;
        assert!(talk.until_declined().await.contains(reason));
    }
    talk.say(ToAgent::Stop { attempt: attempt(1), how: StopHow::Discard, cause: StopCause::Cancel }).await;
    talk.until_ended().await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_memory_a_dead_worker_holds_is_out_until_it_lets_go() {
    let (mut scene, mut talk, held) = a_dead_worker_holds_its_device().await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Lost);
    let quarantined = |why: &String| why.contains("quarantined: its memory is still held by process");
    talk.until_device("cpu", |usable| usable.as_ref().is_err_and(quarantined)).await;
    talk.offer(&scene, 2, None).await;
    assert!(quarantined(&talk.until_declined().await));
    std::fs::remove_file(&held).unwrap();
    talk.until_device("cpu", Result::is_ok).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_out_when_an_agent_starts_is_tested_and_comes_back() {
    let (mut scene, mut talk, held) = a_dead_worker_holds_its_device().await;
    talk.until_device("cpu", |usable| usable.as_ref().is_err_and(|why| why.contains("quarantined"))).await;
    scene.shutdown().await;
    std::fs::remove_file(&held).unwrap();
    // its test follows from the very first look
    let mut talk = scene.start().await;
    talk.until_device("cpu", Result::is_ok).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_refused_for_good_ends_the_attempt_with_its_reason() {
    let mut scene = Scene::new(&Script { waits_at: vec![1], ..Script::new(4, 1) }).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    scene.coordinator.shelf.lock().unwrap().refuse = vec![Refusal::TooLarge; 8];
    scene.lets_go(1, 1);
    let ended = talk.until_ended().await;
    assert_eq!(ended.outcome, Outcome::UserError);
    assert!(ended.message.unwrap().contains("TooLarge"));
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_checkpoint_that_was_given_up_nothing_stays_staged() {
    let mut scene = Scene::new(&Script { waits_at: vec![1, 6], ..Script::new(7, 1) }).await;
    // What it would announce is no upload.
    scene.config.share.fetch = false;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    scene.coordinator.shelf.lock().unwrap().refuse = vec![Refusal::TooLarge];
    scene.lets_go(1, 1);
    until(|| scene.coordinator.shelf.lock().unwrap().refuse.is_empty()).await;
    scene.lets_go(1, 6);
    assert_eq!(talk.until_ended().await.outcome, Outcome::Ok);
    assert!(!talk.phases().contains(&"checkpoint 5".to_owned()), "{:?}", talk.phases());
    let staged = scene.places().uploads(attempt(1));
    until(|| std::fs::read_dir(&staged).unwrap().count() == 0).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_stays_staged_until_the_report_that_names_it_is_acknowledged() {
    let mut scene = Scene::new(&Script { end: End::Linger, ..Script::new(2, 1) }).await;
    let mut talk = scene.start().await;
    talk.mute = true;
    talk.offer(&scene, 1, None).await;
    let staged = scene.places().uploads(attempt(1));
    let has_come = |text: &str| {
        let hash = lorikeet_protocol::id::Hash(*blake3::hash(text.as_bytes()).as_bytes());
        scene.coordinator.shelf.lock().unwrap().files.contains_key(&hash)
    };
    until(|| has_come("weights") && has_come("{\"steps\":1}")).await;
    scene.kill(1);
    let report = talk.until(|report| report.body.end().is_some()).await;
    assert_eq!(report.body.files().len(), 2);
    for file in report.body.files() {
        assert!(staged.join(file.manifest.hash.to_string()).exists(), "{} is no longer staged", file.path);
    }
    talk.say(ToAgent::Acknowledged { through: report.number }).await;
    until(|| std::fs::read_dir(&staged).unwrap().count() == 0).await;
    scene.shutdown().await;
}

/// A worker was killed, and a process of its number still holds memory of its device, as the file says.
async fn a_dead_worker_holds_its_device() -> (Scene, Talk, PathBuf) {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let held = scene.folder.path().join("held");
    let devices = &mut scene.config.devices;
    devices.fake[0].held_by = Some(held.clone());
    devices.probe = Duration::from_millis(20);
    devices.release_grace = Duration::from_millis(100);
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    std::fs::write(&held, scene.holder(1).pid.to_string()).unwrap();
    scene.kill(1);
    (scene, talk, held)
}
