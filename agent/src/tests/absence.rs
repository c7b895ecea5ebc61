//! The agent or the coordinator is away for a while.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_finds_its_running_worker_and_goes_on() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Checkpoint(_))).await;
    let worker = scene.holder(1);
    let heard = talk.reports.last().unwrap().number;
    scene.shutdown().await;
    assert_eq!(scene.holder(1), worker);

    let mut talk = scene.start_with(|hello| Welcome { last_report: heard, ..welcome(hello) }).await;
    assert_eq!(talk.known, [(attempt(1), AttemptPhase::Running)]);
    talk.until(|report| matches!(report.body, ReportBody::Progress(_))).await;
    talk.say(ToAgent::Stop { attempt: attempt(1), how: StopHow::Save, cause: StopCause::Pause }).await;
    let ended = talk.until_ended().await;
    assert_eq!(ended.outcome, Outcome::Preempted);
    assert_eq!(scene.holder(1), worker, "the same process to the end");
    let emergency =
        |report: &Report| matches!(&report.body, ReportBody::Checkpoint(one) if one.kind == CheckpointKind::Emergency);
    assert!(talk.reports.iter().any(emergency));
    assert!(!talk.phases().contains(&"running".to_owned()), "it was said before");
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hours_without_a_coordinator_cost_nothing() {
    let mut scene = Scene::new(&Script::new(40, 10)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    let heard = talk.reports.last().unwrap().number;
    drop(talk);
    scene.crash_coordinator().await;
    scene.until_outcome(1).await;

    let mut talk = scene.restart_coordinator(heard).await;
    let ended = talk.until_ended().await;
    assert_eq!((ended.outcome, ended.step), (Outcome::Ok, 40));
    assert!(talk.reports[0].number == heard + 1 && talk.numbers_have_no_gaps());
    let lines = talk.until_lines(1).await;
    assert!(lines.iter().map(|line| line.seq).eq(1..=lines.len() as u64));
    scene.holds_every_file(&talk.reports);
    scene.shutdown().await;
}

/// An attempt whose reports nobody acknowledges, and a coordinator that comes back without the files that they name.
async fn ends_unheard_and_the_shelf_is_lost(scene: &mut Scene) {
    let mut talk = scene.start().await;
    talk.mute = true;
    talk.offer(scene, 1, None).await;
    talk.until_ended().await;
    drop(talk);
    scene.crash_coordinator().await;
    scene.shelf_is_lost();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_the_coordinator_lost_are_uploaded_again_before_their_report() {
    let mut scene = Scene::new(&Script::new(12, 5)).await;
    ends_unheard_and_the_shelf_is_lost(&mut scene).await;
    let mut talk = scene.restart_coordinator(0).await;
    talk.until_ended().await;
    scene.holds_every_file(&talk.reports);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_whose_files_are_nowhere_goes_without_them_and_holds_no_other_up() {
    let mut scene = Scene::new(&Script::new(12, 5)).await;
    ends_unheard_and_the_shelf_is_lost(&mut scene).await;
    let (uploads, directory) = (scene.places().uploads(attempt(1)), scene.places().attempt(attempt(1)));
    for gone in [uploads, directory.join("adapter"), directory.join("checkpoints/step-00000005")] {
        std::fs::remove_dir_all(gone).unwrap();
    }
    let mut talk = scene.restart_coordinator(0).await;
    let ended = talk.until_ended().await;
    assert_eq!((ended.outcome, ended.files.len()), (Outcome::Lost, 0));
    assert!(ended.message.unwrap().starts_with("its result was lost: could not"));
    let mut phases = talk.phases();
    phases.retain(|phase| phase.starts_with("checkpoint"));
    assert_eq!(phases, ["checkpoint 10"], "its worker has it still");
    scene.holds_every_file(&talk.reports);
    assert!(talk.numbers_have_no_gaps());
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_whose_staged_files_were_changed_or_cut_goes_without_them_and_holds_no_other_up() {
    let mut scene = Scene::new(&Script::new(12, 5)).await;
    ends_unheard_and_the_shelf_is_lost(&mut scene).await;
    let directory = scene.places().attempt(attempt(1));
    // What is staged are the same files by other names.
    for (file, bytes) in
        [("adapter/adapter_model.safetensors", "wEIGHTS"), ("checkpoints/step-00000005/state.json", "s")]
    {
        std::fs::write(directory.join(file), bytes).unwrap();
    }
    let mut talk = scene.restart_coordinator(0).await;
    let ended = talk.until_ended().await;
    assert_eq!((ended.outcome, ended.files.len()), (Outcome::Lost, 0));
    let mut phases = talk.phases();
    phases.retain(|phase| phase.starts_with("checkpoint"));
    assert_eq!(phases, ["checkpoint 10"]);
    scene.holds_every_file(&talk.reports);
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_whose_files_are_there_again_when_it_is_said_again_goes_with_them() {
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    scene.config.link.report_retry = Duration::from_millis(200);
    ends_unheard_and_the_shelf_is_lost(&mut scene).await;
    let adapter = scene.places().attempt(attempt(1)).join("adapter");
    let aside = adapter.with_added_extension("aside");
    std::fs::rename(&adapter, &aside).unwrap();
    std::fs::remove_dir_all(scene.places().uploads(attempt(1))).unwrap();
    let mut talk = scene.restart_coordinator(0).await;
    talk.mute = true;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Lost);
    std::fs::rename(&aside, &adapter).unwrap();
    let has_files = |report: &Report| report.body.end().is_some_and(|ended| ended.files.len() == 2);
    let report = within(talk.until(has_files)).await;
    assert_eq!(report.body.end().unwrap().outcome, Outcome::Ok);
    talk.say(ToAgent::Acknowledged { through: report.number }).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_not_acknowledged_is_said_again() {
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    scene.config.link.report_retry = Duration::from_millis(200);
    let mut talk = scene.start().await;
    talk.mute = true;
    talk.offer(&scene, 1, None).await;
    talk.until_ended().await;
    talk.until_ended().await;
    let firsts = talk.reports.iter().filter(|report| report.number == 1).count();
    assert!(firsts >= 2, "{:?}", talk.reports);
    talk.say(ToAgent::Acknowledged { through: talk.reports.last().unwrap().number }).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_of_an_earlier_report_keeps_no_later_one_from_being_said_again() {
    let mut scene = Scene::new(&Script::new(1, 1)).await;
    scene.config.link.report_retry = Duration::from_secs(1);
    let mut talk = scene.start().await;
    talk.mute = true;
    talk.offer(&scene, 1, None).await;
    talk.until_ended().await;
    // All have left, and the end was lost on its way.
    talk.say(ToAgent::Acknowledged { through: 1 }).await;
    within(talk.until_ended()).await;
    talk.say(ToAgent::Acknowledged { through: talk.reports.last().unwrap().number }).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_not_current_is_stopped_and_forgotten() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    let heard = talk.reports.last().unwrap().number;
    scene.shutdown().await;
    let mut talk = scene
        .start_with(|hello| Welcome {
            last_report: heard,
            verdicts: hello.attempts.iter().map(|known| (known.id, Verdict::Stop)).collect(),
            ..welcome(hello)
        })
        .await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Superseded);
    let through = talk.until_lines(1).await.len() as u64;
    talk.say(ToAgent::EventsAcknowledged { attempt: attempt(1), through }).await;
    scene.until_gone(1).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_told_to_leave_no_work_behind_saves_it_first() {
    let mut scene = Scene::new(&Script::new(100_000, 5)).await;
    scene.config.stop_workers_on_exit = true;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
    scene.shutdown().await;
    let holder = scene.holder(1);
    assert!(procfs::process::Process::new(holder.pid as i32).is_err(), "the worker is still there");
    let events = std::fs::read_to_string(scene.places().attempt(attempt(1)).join("events.jsonl")).unwrap();
    assert!(events.lines().last().unwrap().contains("stopped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_nobody_has_any_more_is_said_to_be_lost() {
    let mut scene = Scene::new(&Script::new(3, 1)).await;
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    assert_eq!(talk.until_ended().await.outcome, Outcome::Ok);
    let through = talk.until_lines(1).await.len() as u64;
    let heard = talk.reports.last().unwrap().number;
    scene.shutdown().await;
    // A coordinator of the day before, to which the end is news, and which does not wait for reports that are gone.
    let report = |hello: &Hello| hello.attempts.iter().map(|known| (known.id, Verdict::Report)).collect();
    let mut talk =
        scene.start_with(|hello| Welcome { last_report: heard, verdicts: report(hello), ..welcome(hello) }).await;
    let ended = talk.until_ended().await;
    assert_eq!((ended.outcome, ended.message.as_deref()), (Outcome::Lost, Some("its end was lost")));
    talk.say(ToAgent::EventsAcknowledged { attempt: attempt(1), through }).await;
    scene.until_gone(1).await;
    scene.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_record_is_damaged_is_gone_before_its_device_is_offered() {
    for deaf in [false, true] {
        let mut scene = Scene::new(&Script { deaf, ..Script::new(100_000, 5) }).await;
        scene.config.worker.discard_grace = Duration::from_millis(300);
        let mut talk = scene.start().await;
        talk.offer(&scene, 1, None).await;
        talk.until(|report| matches!(report.body, ReportBody::Running { .. })).await;
        scene.shutdown().await;
        let record = scene.places().records().join(format!("{}.json", attempt(1)));
        std::fs::write(&record, &std::fs::read(&record).unwrap()[1..]).unwrap();

        let talk = scene.start().await;
        assert_eq!(talk.known, [], "nobody knows of it");
        let Holder { pid, start_ticks, .. } = scene.holder(1);
        let name = supervisor::group::Name { pid, start_ticks };
        assert!(
            supervisor::group::Group::led_by(name).members().unwrap().is_empty(),
            "two of them would be on one device"
        );
        scene.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stays_behind_its_end_keeps_its_device_out_over_a_restart_too() {
    let mut scene = Scene::new(&Script::new(12, 5)).await;
    scene.config.worker.discard_grace = Duration::from_millis(1);
    let mut talk = scene.start().await;
    talk.offer(&scene, 1, None).await;
    talk.until_ended().await;
    scene.shutdown().await;
    // As a process that cannot be killed does.
    let lock = std::fs::File::open(scene.places().attempt(attempt(1)).join(LOCK)).unwrap();
    lock.lock().unwrap();
    let mut talk = scene.start().await;
    assert_eq!(talk.known, [(attempt(1), AttemptPhase::Done)]);
    talk.offer(&scene, 2, None).await;
    assert!(talk.until_declined().await.contains("lslocks"));
    drop(lock);
    talk.until_device("cpu", Result::is_ok).await;
    scene.shutdown().await;
}
