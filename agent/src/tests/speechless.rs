//! An agent that cannot keep what it has to say.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn devices_beside_a_data_directory_that_is_gone_are_unusable_until_it_is_back() {
    let mut scene = Scene::new(&Script::new(3, 1)).await;
    scene.config.devices.probe = Duration::from_millis(20);
    let mut talk = scene.start().await;
    let (outbox, aside) = (scene.places().outbox(), scene.folder.path().join("aside"));
    std::fs::rename(&outbox, &aside).unwrap();
    talk.until_device("cpu", |usable| usable.as_ref().is_err_and(|why| why.contains("directory is gone"))).await;
    std::fs::rename(&aside, &outbox).unwrap();
    talk.until_device("cpu", Result::is_ok).await;
    talk.offer(&scene, 1, None).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Ok);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_can_report_nothing_falls_silent_and_comes_back_with_all_of_it() {
    let mut scene = Scene::new(&Script::new(100_000, 1)).await;
    scene.config.link.report_retry = Duration::from_millis(200);
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    let (records, aside) = (scene.places().records(), scene.folder.path().join("aside"));
    std::fs::rename(&records, &aside).unwrap();
    scene.kill(1);
    talk.peer.until_closed().await;
    std::fs::rename(&aside, &records).unwrap();
    let heard = talk.reports.last().unwrap().number;
    let mut talk =
        Talk::new(scene.coordinator.welcomed(|hello| Welcome { last_report: heard, ..welcome(hello) }).await);
    assert_eq!(talk.until_ended().await.outcome, Outcome::Lost);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_nothing_to_do_for_hours_is_not_taken_for_one_that_hangs() {
    let mut scene = Scene::new(&Script::new(1, 600_000)).await;
    scene.config.devices.probe = Duration::from_secs(3600);
    scene.config.link.report_retry = Duration::from_millis(200);
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    while talk.lines.is_empty() {
        talk.hear().await;
    }
    // From now on it waits for the end of the attempt's time alone.
    talk.say(ToAgent::EventsAcknowledged { attempt: attempt(1), through: 1 }).await;
    for _ in 0..15 {
        talk.peer.hear().await;
    }
    scene.shutdown().await;
}
