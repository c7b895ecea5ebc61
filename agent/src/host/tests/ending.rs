//! How attempts end: by themselves, by a fault, by the clock.

use super::*;
use crate::upload::UploadError;
use lorikeet_protocol::blob::Refusal;

#[test]
fn a_finished_worker_is_over_once_its_adapter_is_uploaded_and_its_process_gone() {
    let mut scene = Scene::running();
    let out = scene.line(9, WorkerEvent::Finished { step: 30, files: vec![] });
    assert_eq!(bodies(&out), [&ReportBody::Finalizing]);
    assert!(out.contains(&Action::UploadAdapter(id(1), vec![])));

    let uploaded = Event::AdapterUploaded(id(1), vec![file("adapter_model.safetensors")], Some("{}".into()));
    assert!(bodies(&scene.event(uploaded)).is_empty(), "the process still holds its devices");
    let out = scene.gone(1);
    let ended = ended(&out);
    assert_eq!((ended.outcome, ended.step, ended.files.len()), (Outcome::Ok, 30, 1));
    assert_eq!(ended.summary.as_deref(), Some("{}"));
    assert_eq!(scene.phase(1), AttemptPhase::Done);
}

#[test]
fn a_process_that_vanishes_is_lost_and_its_device_free() {
    let mut scene = Scene::running();
    scene.line(1, step(7));
    let out = scene.gone(1);
    let ended = ended(&out);
    assert_eq!((ended.outcome, ended.step), (Outcome::Lost, 7));
    assert!(ended.message.as_deref().unwrap().starts_with("process: "));
    assert!(scene.heard(offer(2)).contains(&Action::Tell(FromAgent::Accepted(id(2)))));
}

#[test]
fn an_end_of_many_words_is_told_with_the_first_of_them() {
    let mut scene = Scene::running();
    let message = format!("the template is wrong: {}", "ä".repeat(2 << 20));
    scene.line(1, WorkerEvent::Failed { class: FailureClass::Hardware, message, hint: None });
    let out = scene.gone(1);
    let said = ended(&out).message.clone().unwrap();
    assert!(said.len() < 9 << 10 && said.starts_with("the template is wrong: ää"), "{} bytes", said.len());
    assert!(said.ends_with("ä… [4194327 bytes in all]"), "{}", &said[said.len() - 60..]);
    let kept = |action: &Action| matches!(action, Action::KeepQuarantine(reasons) if reasons[&DeviceId::cpu()].len() < 9 << 10);
    assert!(out.iter().any(kept), "a hello says why it is out");
}

#[test]
fn a_worker_that_could_not_write_its_last_word_ends_by_its_exit_code() {
    for (exit, outcome) in [
        (Exit::DiskFull, Outcome::DiskFull),
        (Exit::OutOfMemory, Outcome::Oom),
        (Exit::Hardware, Outcome::Hardware),
        (Exit::Internal, Outcome::Lost),
    ] {
        let mut scene = Scene::running();
        assert!(scene.news(1, News::Exited(exit)).is_empty());
        let out = scene.gone(1);
        assert_eq!(ended(&out).outcome, outcome, "{exit:?}");
    }
    // One that was killed has another reason.
    let mut scene = Scene::running();
    scene.news(1, News::TooLarge { resident: 9, limit: 8 });
    scene.news(1, News::Exited(Exit::DiskFull));
    assert_eq!(ended(&scene.gone(1)).outcome, Outcome::Oom);
}

#[test]
fn a_failure_keeps_the_workers_own_class() {
    for (class, outcome) in [
        (FailureClass::OutOfMemory, Outcome::Oom),
        (FailureClass::DiskFull, Outcome::DiskFull),
        (FailureClass::Dataset, Outcome::UserError),
    ] {
        let mut scene = Scene::running();
        let out = scene.line(3, WorkerEvent::Failed { class, message: "no".into(), hint: Some("less".into()) });
        assert!(!out.contains(&Action::UploadAdapter(id(1), vec![])));
        let mut out = scene.gone(1);
        out.extend(scene.event(Event::InputsRead(id(1), vec![])));
        let ended = ended(&out);
        assert_eq!((ended.outcome, ended.class, ended.message.as_deref()), (outcome, Some(class), Some("no (less)")));
    }
}

#[test]
fn a_result_that_is_too_large_is_the_settings_doing() {
    let mut scene = Scene::running();
    scene.line(9, WorkerEvent::Finished { step: 30, files: vec![] });
    scene.gone(1);
    let refused = UploadError::Refused { path: "adapter_model.safetensors".into(), refusal: Refusal::TooLarge };
    let out = scene.event(Event::AdapterGivenUp(id(1), refused.fault()));
    assert_eq!((ended(&out).outcome, ended(&out).class), (Outcome::UserError, Some(FailureClass::Settings)));
}

#[test]
fn files_that_cannot_be_fetched_end_the_attempt_with_their_reason() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    let fault = Fault::new(Outcome::DiskFull, "write /cache: no space");
    let out = scene.event(Event::PrepareFailed(id(1), fault));
    assert_eq!(ended(&out).outcome, Outcome::DiskFull);
}

#[test]
fn files_that_the_coordinator_does_not_have_are_charged_to_nobody() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    scene.now.mono += Duration::from_secs(9);
    let fault = Fault::new(Outcome::PrepareFailed, "the coordinator refused: Corrupt");
    let out = scene.event(Event::Unprovided(id(1), fault, FailureClass::Base));
    let ended = ended(&out);
    assert_eq!((ended.outcome, ended.class), (Outcome::PrepareFailed, Some(FailureClass::Base)));
    assert_eq!(ended.held, Duration::ZERO);
}

#[test]
fn a_worker_that_never_takes_its_lock_is_killed() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    scene.event(Event::Prepared(id(1)));
    assert_eq!(scene.wait(30), [Action::Kill(id(1))]);
    let out = scene.gone(1);
    assert_eq!(ended(&out).outcome, Outcome::PrepareFailed);
}

#[test]
fn a_worker_that_grows_too_large_is_killed_and_called_out_of_memory() {
    let mut scene = Scene::running();
    let out = scene.news(1, News::TooLarge { resident: 9, limit: 8 });
    assert_eq!(out, [Action::Kill(id(1))]);
    assert!(scene.news(1, News::TooLarge { resident: 10, limit: 8 }).is_empty());
    let out = scene.gone(1);
    assert_eq!(ended(&out).outcome, Outcome::Oom);
}

#[test]
fn a_worker_that_hangs_is_killed_and_called_lost() {
    let mut scene = Scene::running();
    let quiet = Duration::from_secs(1900);
    assert_eq!(scene.news(1, News::Stalled { quiet }), [Action::Kill(id(1))]);
    assert!(scene.news(1, News::Stalled { quiet }).is_empty());
    let out = scene.gone(1);
    let ended = ended(&out);
    assert_eq!((ended.outcome, ended.message.as_deref()), (Outcome::Lost, Some("process hung: no event for 1900 s")));
}

#[test]
fn the_time_limit_asks_for_a_save_and_is_named_as_the_end() {
    let mut scene = Scene::running();
    assert!(scene.wait(3599).is_empty());
    let out = scene.wait(1);
    assert!(out.contains(&Action::Ask(id(1), Ask::Stop(StopHow::Save, StopCause::TimeLimit))), "{out:?}");
    let out = scene.gone(1);
    assert_eq!(ended(&out).outcome, Outcome::TimedOut);
}

#[test]
fn a_worker_that_said_its_last_word_and_stays_is_killed() {
    let mut scene = Scene::running();
    scene.line(9, WorkerEvent::Failed { class: FailureClass::Internal, message: "bug".into(), hint: None });
    assert!(scene.wait(29).is_empty());
    assert_eq!(scene.wait(1), [Action::Kill(id(1))]);
}

#[test]
fn a_worker_that_cannot_be_killed_gives_its_job_away_and_keeps_its_device() {
    let mut scene = Scene::running();
    assert_eq!(scene.news(1, News::TooLarge { resident: 9, limit: 8 }), [Action::Kill(id(1))]);
    scene.kills_in_vain();
    let out = scene.wait(5);
    let ended = ended(&out);
    assert_eq!((ended.outcome, ended.message.as_deref()), (Outcome::Hardware, Some("process 42 cannot be killed")));
    let out = scene.heard(offer(2));
    assert!(
        matches!(&out[..], [Action::Tell(FromAgent::Declined { reason, .. })] if reason.contains("cannot be killed")),
        "{out:?}"
    );
    // Nobody wants it any more, and its process is still there.
    scene.event(Event::Looked(seen(&[])));
    assert!(scene.heard(ToAgent::Forget(id(1))).is_empty());
    assert!(scene.wait(48 * 3_600).is_empty());
    assert!(scene.line(9, step(3)).is_empty());
    assert_eq!(scene.phase(1), AttemptPhase::Done);
    assert_eq!(scene.gone(1), [Action::Forget(id(1))]);
    let out = scene.event(Event::Looked(seen(&[])));
    assert!(out.contains(&Action::Test(DeviceId::cpu())), "{out:?}");
    scene.event(Event::Tested(DeviceId::cpu(), Ok(())));
    scene.event(Event::Looked(seen(&[])));
    assert!(scene.heard(offer(2)).contains(&Action::Tell(FromAgent::Accepted(id(2)))));
}

#[test]
fn what_a_worker_that_cannot_be_killed_has_finished_counts() {
    let mut scene = Scene::running();
    scene.line(9, WorkerEvent::Finished { step: 30, files: vec![] });
    scene.event(Event::AdapterUploaded(id(1), vec![], None));
    assert_eq!(scene.wait(30), [Action::Kill(id(1))]);
    scene.kills_in_vain();
    let out = scene.wait(5);
    assert_eq!(ended(&out).outcome, Outcome::Ok);
    let reason = out.iter().find_map(|action| match action {
        Action::KeepQuarantine(reasons) => reasons.get(&DeviceId::cpu()),
        _ => None,
    });
    assert!(reason.is_some_and(|reason| reason.contains("process 42")), "{out:?}");
}

#[test]
fn a_process_that_a_worker_left_behind_and_nobody_can_kill_ends_the_attempt_too() {
    let mut scene = Scene::running();
    let out = scene.news(1, News::Stuck { pid: 43 });
    assert_eq!(ended(&out).message.as_deref(), Some("process 43 cannot be killed"));
    assert!(scene.news(1, News::Stuck { pid: 43 }).is_empty());
    assert!(scene.heard(ToAgent::Forget(id(1))).is_empty());
    assert_eq!(scene.gone(1), [Action::Forget(id(1))]);
}

#[test]
fn progress_is_reported_at_most_once_a_second_and_never_lost() {
    let mut scene = Scene::running();
    scene.line(1, WorkerEvent::Plan(plan(100)));
    assert_eq!(progress_steps(&scene.line(2, step(1))), [1]);
    assert!(progress_steps(&scene.line(3, step(2))).is_empty());
    assert!(progress_steps(&scene.line(4, step(3))).is_empty());
    assert_eq!(scene.host.next_deadline(), Some(scene.now.mono + Duration::from_secs(1)));
    assert_eq!(progress_steps(&scene.wait(1)), [3]);
    scene.line(5, step(4));
    assert_eq!(progress_steps(&scene.line(6, WorkerEvent::Finished { step: 4, files: vec![] })), [4]);
}

impl Scene {
    /// For not quite a minute after the first kill.
    fn kills_in_vain(&mut self) {
        for _ in 0..11 {
            assert!(self.wait(4).is_empty());
            assert_eq!(self.wait(1), [Action::Kill(id(1))]);
        }
    }
}

#[test]
fn a_worker_that_writes_too_much_is_stopped_and_no_device_or_disk_is_blamed_for_it() {
    let mut scene = Scene::running();
    let out = scene.news(1, News::Overgrown { what: "it wrote more than 1073741824 bytes of events".into() });
    assert_eq!(out, [Action::Kill(id(1))]);
    let out = scene.gone(1);
    let end = ended(&out);
    assert_eq!((end.outcome, end.class), (Outcome::UserError, Some(FailureClass::Internal)));
    assert!(end.message.as_deref().is_some_and(|why| why.contains("1073741824 bytes of events")), "{end:?}");
}

#[test]
fn a_failure_on_a_file_that_rotted_here_is_nobodys_and_one_on_whole_files_stays_what_it_was() {
    for (rotten, outcome) in
        [(vec!["model.safetensors".to_owned()], Outcome::PrepareFailed), (vec![], Outcome::UserError)]
    {
        let mut scene = Scene::running();
        scene.now.mono += Duration::from_secs(60);
        let failed = WorkerEvent::Failed { class: FailureClass::Base, message: "no header".into(), hint: None };
        let out = scene.line(1, failed);
        assert!(matches!(&out[..], [.., Action::ReadInputs(_, FailureClass::Base)]), "{out:?}");
        assert!(bodies(&scene.gone(1)).is_empty(), "the end waits for what is read");
        let out = scene.event(Event::InputsRead(id(1), rotten.clone()));
        let end = ended(&out);
        assert_eq!((end.outcome, end.held == Duration::ZERO), (outcome, !rotten.is_empty()));
        let message = end.message.as_deref().unwrap();
        assert!(message.contains("no header") && message.contains("rotted") != rotten.is_empty(), "{message}");
    }
}

#[test]
fn a_failure_that_no_file_brings_about_reads_none() {
    let mut scene = Scene::running();
    let failed = WorkerEvent::Failed { class: FailureClass::OutOfMemory, message: "no".into(), hint: None };
    assert!(!scene.line(1, failed).iter().any(|action| matches!(action, Action::ReadInputs(..))));
    assert_eq!(ended(&scene.gone(1)).outcome, Outcome::Oom);
}

#[test]
fn a_disk_that_loses_a_third_file_within_a_day_is_suspected() {
    let mut scene = Scene::new();
    for number in 1..=3 {
        scene.heard(offer(number));
        scene.event(Event::Prepared(id(number)));
        scene.news(number, News::Holds { pid: 42 });
        scene.now.mono += Duration::from_secs(60);
        let event = WorkerEvent::Failed { class: FailureClass::Base, message: "no header".into(), hint: None };
        scene.news(number, News::Event(Box::new(EventLine { seq: 1, time: scene.now.wall, event })));
        scene.gone(number);
        let out = scene.event(Event::InputsRead(id(number), vec!["model.safetensors".into()]));
        assert_eq!(ended(&out).held.is_zero(), number < 3, "end {number}");
    }
}
