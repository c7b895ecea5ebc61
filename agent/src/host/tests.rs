//! The core, event by event. [`Scene`] holds a host and a clock, checks the invariants after every event and loops records and
//! reports back the way the driver does.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test names what it looks for")]

use super::*;
use lorikeet_protocol::{
    agent::{CheckpointKind, Ended},
    file::FileManifest,
    id::{AttemptToken, DeviceId, Hash, JobId, NodeId},
    job::{
        AttemptPhase, BaseDtype, DataFilter, DeviceKind, Every, FailureClass, GpuRequest, JobSpec, Lora, MicroTokens,
        OnLost, Policy, Resources, Schedule, Supervise, TargetModules, Task, Train, Training, TrainingLength,
    },
    worker::{Plan, Step, WorkerEvent},
};

#[test]
fn an_offer_is_accepted_prepared_started_and_runs() {
    let mut scene = Scene::new();
    let out = scene.heard(offer(1));
    assert_eq!(out[0], Action::Tell(FromAgent::Accepted(id(1))));
    assert_eq!(bodies(&out), [&ReportBody::Preparing]);
    assert!(matches!(out.last(), Some(Action::Prepare(_))));

    let out = scene.event(Event::Prepared(id(1)));
    assert!(matches!(out[..], [Action::Keep(_), Action::Start(_)]), "{out:?}");

    let out = scene.news(1, News::Holds);
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
fn a_failure_keeps_the_workers_own_class() {
    for (class, outcome) in [
        (FailureClass::OutOfMemory, Outcome::Oom),
        (FailureClass::DiskFull, Outcome::DiskFull),
        (FailureClass::Dataset, Outcome::UserError),
    ] {
        let mut scene = Scene::running();
        let out = scene.line(3, WorkerEvent::Failed { class, message: "no".into(), hint: Some("less".into()) });
        assert!(!out.contains(&Action::UploadAdapter(id(1), vec![])));
        let out = scene.gone(1);
        let ended = ended(&out);
        assert_eq!((ended.outcome, ended.class, ended.message.as_deref()), (outcome, Some(class), Some("no (less)")));
    }
}

#[test]
fn a_checkpoint_is_reported_once_it_is_uploaded_and_never_before() {
    let mut scene = Scene::running();
    let out = scene.line(4, checkpoint_event(10, CheckpointKind::Periodic));
    assert!(bodies(&out).is_empty());
    assert!(matches!(&out[..], [Action::UploadCheckpoint(_, made)] if made.step == 10 && made.seq == 4), "{out:?}");
    let out = scene.event(Event::CheckpointUploaded(id(1), 4, Box::new(checkpoint(10))));
    assert_eq!(bodies(&out), [&ReportBody::Checkpoint(checkpoint(10))]);
}

#[test]
fn a_newer_checkpoint_makes_a_waiting_one_needless_and_a_best_one_stays() {
    let mut scene = Scene::running();
    scene.line(1, checkpoint_event(10, CheckpointKind::Periodic));
    for (seq, step, kind) in
        [(2, 20, CheckpointKind::Periodic), (3, 20, CheckpointKind::Best), (4, 30, CheckpointKind::Periodic)]
    {
        assert!(scene.line(seq, checkpoint_event(step, kind)).is_empty());
    }
    let mut uploaded = vec![];
    let mut seq = 1;
    loop {
        let out = scene.event(Event::CheckpointUploaded(id(1), seq, Box::new(checkpoint(0))));
        let next = out.iter().find_map(|action| match action {
            Action::UploadCheckpoint(_, made) => Some(made.seq),
            _ => None,
        });
        let Some(next) = next else { break };
        uploaded.push(next);
        seq = next;
    }
    assert_eq!(uploaded, [3, 4]);
}

#[test]
fn the_end_waits_for_a_checkpoint_that_is_on_its_way() {
    let mut scene = Scene::running();
    scene.heard(stop(StopHow::Save, StopCause::Preempt));
    scene.line(4, checkpoint_event(12, CheckpointKind::Emergency));
    scene.line(
        5,
        WorkerEvent::Stopped {
            step: 12,
            checkpoint: Some("checkpoints/step-00000012".into()),
            cause: StopCause::Signal,
        },
    );
    assert!(bodies(&scene.gone(1)).is_empty());
    let out = scene.event(Event::CheckpointUploaded(id(1), 4, Box::new(checkpoint(12))));
    let bodies = bodies(&out);
    assert!(matches!(bodies[..], [ReportBody::Checkpoint(_), ReportBody::Ended(_)]), "{bodies:?}");
    assert_eq!(ended(&out).outcome, Outcome::Preempted);
}

#[test]
fn a_worker_that_vanishes_in_mid_upload_still_leaves_its_checkpoint() {
    let mut scene = Scene::running();
    scene.line(4, checkpoint_event(12, CheckpointKind::Periodic));
    assert_eq!(bodies(&scene.gone(1)), [&ReportBody::Finalizing]);
    let out = scene.event(Event::CheckpointGivenUp(id(1), 4, "its files are gone".into()));
    assert_eq!(ended(&out).outcome, Outcome::Lost);
}

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
fn files_that_cannot_be_fetched_end_the_attempt_with_their_reason() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    let fault = Fault { outcome: Outcome::DiskFull, message: "write /cache: no space".into() };
    let out = scene.event(Event::PrepareFailed(id(1), fault));
    assert_eq!(ended(&out).outcome, Outcome::DiskFull);
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

#[test]
fn an_agent_that_restarts_takes_up_its_running_worker_and_says_nothing_twice() {
    let mut scene = Scene::running();
    scene.line(4, checkpoint_event(10, CheckpointKind::Periodic));
    scene.event(Event::CheckpointUploaded(id(1), 4, Box::new(checkpoint(10))));
    let out = scene.restart();
    assert!(matches!(out[..], [Action::Adopt(_)]), "{out:?}");
    assert_eq!(scene.host.known(), [KnownAttempt { id: id(1), phase: AttemptPhase::Running }]);
    assert!(bodies(&scene.news(1, News::Holds)).is_empty());
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
    scene.news(1, News::Holds);
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
    assert_eq!(scene.wait(30), [Action::Forget(id(1))]);
}

#[test]
fn an_attempt_that_is_alive_is_never_forgotten() {
    let mut scene = Scene::running();
    assert!(scene.heard(ToAgent::Forget(id(1))).is_empty());
    assert_eq!(scene.phase(1), AttemptPhase::Running);
}

#[test]
fn an_agent_that_leaves_asks_its_workers_to_save_and_takes_nothing_new() {
    let mut scene = Scene::running();
    let out = scene.event(Event::Leave);
    assert!(out.contains(&Action::Ask(id(1), Ask::Stop(StopHow::Save, StopCause::Drain))));
    assert!(scene.host.has_workers());
    let out = scene.gone(1);
    assert_eq!(ended(&out).outcome, Outcome::Preempted);
    assert!(!scene.host.has_workers());
    assert!(matches!(&scene.heard(offer(2))[..], [Action::Tell(FromAgent::Declined { .. })]));
}

#[test]
fn save_now_reaches_a_worker_that_trains_and_no_other() {
    let mut scene = Scene::running();
    assert_eq!(scene.heard(ToAgent::SaveNow(id(1))), [Action::Ask(id(1), Ask::SaveNow)]);
    scene.heard(stop(StopHow::Save, StopCause::Pause));
    assert!(scene.heard(ToAgent::SaveNow(id(1))).is_empty());
}

#[test]
fn news_of_strangers_change_nothing() {
    let mut scene = Scene::running();
    assert!(scene.event(Event::Prepared(id(77))).is_empty());
    assert!(scene.news(77, News::Holds).is_empty());
    assert!(scene.heard(ToAgent::Forget(id(77))).is_empty());
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(256))]

    #[test]
    fn no_order_of_events_breaks_the_invariants(events in proptest::collection::vec((0u8..16, 1u64..9), 1..60)) {
        let mut scene = Scene::new();
        let (mut ends, mut seq) = (0, 0);
        for (kind, number) in events {
            seq += 1;
            let out = scene.any_event(kind, number, seq);
            ends += bodies(&out).iter().filter(|body| matches!(body, ReportBody::Ended(_))).count();
        }
        proptest::prop_assert!(ends <= scene.accepted, "{} attempts ended {ends} times", scene.accepted);
    }
}

struct Scene {
    host: Host,
    rules: Rules,
    now: Now,
    records: BTreeMap<AttemptId, Record>,
    accepted: usize,
}

impl Scene {
    fn new() -> Self {
        let rules = Rules::new(BootId(uuid::Uuid::from_u128(1)), &Worker::default());
        let now = Now { mono: Duration::from_secs(1000), wall: UnixMillis(1_000_000) };
        let (host, _) = Host::restore(rules.clone(), vec![], now);
        let mut scene = Self { host, rules, now, records: BTreeMap::new(), accepted: 0 };
        scene.event(Event::Devices(devices()));
        scene
    }

    fn running() -> Self {
        let mut scene = Self::new();
        scene.heard(offer(1));
        scene.event(Event::Prepared(id(1)));
        scene.news(1, News::Holds);
        scene
    }

    fn event(&mut self, event: Event) -> Vec<Action> {
        let out = self.host.handle(event, self.now);
        for action in &out {
            match action {
                Action::Keep(record) => drop(self.records.insert(record.id(), (**record).clone())),
                Action::Forget(id) => drop(self.records.remove(id)),
                Action::Prepare(_) => self.accepted += 1,
                _ => {}
            }
        }
        self.host.check_invariants();
        out
    }

    fn restart(&mut self) -> Vec<Action> {
        let records = self.records.values().map(|record| serde_json::to_vec(record).unwrap());
        let records = records.map(|bytes| serde_json::from_slice(&bytes).unwrap()).collect();
        let (host, out) = Host::restore(self.rules.clone(), records, self.now);
        self.host = host;
        self.host.check_invariants();
        out
    }

    fn heard(&mut self, message: ToAgent) -> Vec<Action> {
        self.event(Event::Heard(message))
    }

    fn news(&mut self, number: u32, news: News) -> Vec<Action> {
        self.event(Event::Worker(id(number), news))
    }

    fn line(&mut self, seq: u64, event: WorkerEvent) -> Vec<Action> {
        self.news(1, News::Event(Box::new(EventLine { seq, time: self.now.wall, event })))
    }

    fn gone(&mut self, number: u32) -> Vec<Action> {
        self.news(number, News::Gone { how: "signal: 9 (SIGKILL)".into() })
    }

    fn wait(&mut self, seconds: u64) -> Vec<Action> {
        self.now.mono += Duration::from_secs(seconds);
        self.event(Event::Tick)
    }

    fn welcome(&mut self, verdicts: Vec<(AttemptId, Verdict)>) -> Vec<Action> {
        self.heard(ToAgent::Welcome(Box::new(Welcome {
            node: NodeId(uuid::Uuid::from_u128(3)),
            session: 1,
            heartbeat: Duration::from_secs(5),
            last_report: 0,
            verdicts,
            events: vec![],
        })))
    }

    fn phase(&self, number: u32) -> AttemptPhase {
        self.host.known().iter().find(|known| known.id == id(number)).unwrap().phase
    }

    fn any_event(&mut self, kind: u8, number: u64, seq: u64) -> Vec<Action> {
        let attempt = id(number as u32 % 3);
        let event = match kind {
            0 | 1 => return self.heard(offer(number as u32 % 3)),
            2 => Event::Prepared(attempt),
            3 => Event::Worker(attempt, News::Holds),
            4 => return self.line(seq, checkpoint_event(number, CheckpointKind::Periodic)),
            5 => Event::CheckpointUploaded(attempt, seq.saturating_sub(number), Box::new(checkpoint(number))),
            6 => return self.line(seq, WorkerEvent::Finished { step: number, files: vec![] }),
            7 => Event::AdapterUploaded(attempt, vec![], None),
            8 => return self.gone(number as u32 % 3),
            9 => return self.heard(ToAgent::Stop { attempt, how: StopHow::Discard, cause: StopCause::Cancel }),
            10 => return self.heard(ToAgent::Stop { attempt, how: StopHow::Save, cause: StopCause::Pause }),
            11 => return self.heard(ToAgent::Forget(attempt)),
            12 => Event::Delivered(attempt),
            13 => return self.wait(number * 20),
            14 => {
                return self
                    .welcome(vec![(attempt, [Verdict::Stop, Verdict::Adopt, Verdict::Report][number as usize % 3])]);
            }
            _ => return self.line(seq, checkpoint_event(number, CheckpointKind::Best)),
        };
        self.event(event)
    }
}

fn job(number: u128) -> JobId {
    JobId(uuid::Uuid::from_u128(number))
}

fn id(number: u32) -> AttemptId {
    AttemptId { job: job(7), token: AttemptToken { generation: 1, number } }
}

fn other_job(number: u32) -> AttemptId {
    AttemptId { job: job(8), ..id(number) }
}

fn offer(number: u32) -> ToAgent {
    ToAgent::Offer(Box::new(offer_on(id(number), "cpu")))
}

fn stop(how: StopHow, cause: StopCause) -> ToAgent {
    ToAgent::Stop { attempt: id(1), how, cause }
}

fn devices() -> Vec<Device> {
    let device = |id: &str, usable| Device {
        id: DeviceId(id.into()),
        name: id.into(),
        kind: DeviceKind::Cpu,
        memory_bytes: 1 << 34,
        free_bytes: 1 << 34,
        usable,
    };
    vec![device("cpu", Ok(())), device("spare", Ok(())), device("broken", Err("fell off the bus".into()))]
}

fn file(path: &str) -> NamedFile {
    NamedFile { path: path.into(), manifest: FileManifest { size: 0, hash: Hash([0; 32]), chunks: vec![] } }
}

fn step(step: u64) -> WorkerEvent {
    WorkerEvent::Step(Step {
        step,
        epoch: 0.5,
        loss: 1.0,
        lr: 1e-4,
        grad_norm: 1.0,
        tokens: 100,
        supervised_tokens: 50,
        seconds: 0.5,
    })
}

fn plan(total_steps: u64) -> Plan {
    Plan {
        examples: 1,
        validation_examples: 0,
        conversations: 1,
        total_steps,
        epoch_tokens: 1,
        supervised_tokens: 1,
        longest_tokens: 1,
        cut_examples: 0,
        cut_tokens: 0,
        trainable_parameters: 1,
        base_parameters: 1,
        micro_tokens: 1,
        memory_bytes: 1,
        from_step: 0,
    }
}

fn checkpoint_event(step: u64, kind: CheckpointKind) -> WorkerEvent {
    WorkerEvent::Checkpoint { step, loss: 1.0, kind, path: format!("checkpoints/step-{step:08}") }
}

fn checkpoint(step: u64) -> Checkpoint {
    Checkpoint { step, loss: 1.0, kind: CheckpointKind::Periodic, files: vec![file("manifest.json")] }
}

fn bodies(out: &[Action]) -> Vec<&ReportBody> {
    let reports = out.iter().filter_map(|action| if let Action::Report(_, body) = action { Some(body) } else { None });
    reports.filter(|body| !matches!(body, ReportBody::Progress(_))).collect()
}

fn progress_steps(out: &[Action]) -> Vec<u64> {
    let step = |action: &Action| match action {
        Action::Report(_, ReportBody::Progress(progress)) => Some(progress.step),
        _ => None,
    };
    out.iter().filter_map(step).collect()
}

fn ended(out: &[Action]) -> &Ended {
    let ended = out.iter().find_map(|action| match action {
        Action::Report(_, ReportBody::Ended(ended)) => Some(ended),
        _ => None,
    });
    ended.unwrap_or_else(|| panic!("expected an end, found {out:?}"))
}

/// A job of which this layer reads nothing.
pub(crate) fn offer_on(attempt: AttemptId, device: &str) -> Offer {
    Offer {
        attempt,
        job: spec(),
        devices: vec![DeviceId(device.into())],
        planned_bytes: 1 << 30,
        base: vec![],
        dataset: file("dataset.jsonl"),
        resume: None,
        time_left: Duration::from_secs(3600),
    }
}

fn spec() -> JobSpec {
    let training = Training {
        learning_rate: 1e-4,
        batch_size: 1,
        micro_tokens: MicroTokens::Auto,
        length: TrainingLength::Steps(10),
        max_seq_length: 64,
        schedule: Schedule::Constant,
        adam_beta1: 0.9,
        adam_beta2: 0.999,
        adam_epsilon: 1e-8,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        shuffle: false,
        seed: 1,
        validation_fraction: 0.0,
        supervise: Supervise::All,
        eval_every: Every::Epoch,
        checkpoint_every: Every::Steps(5),
        base_dtype: BaseDtype::Auto,
    };
    let lora = Lora { rank: 4, alpha: 8.0, dropout: 0.0, target_modules: TargetModules::AllLinear, rslora: false };
    JobSpec {
        name: "test".into(),
        base: "base".into(),
        dataset: "data".into(),
        preset: "standard".into(),
        priority: 50,
        task: Task::Train(Train { training, data: DataFilter::default(), lora }),
        resources: Resources {
            gpus: 1,
            gpu: GpuRequest::Any,
            labels: BTreeMap::new(),
            max_runtime: Duration::from_secs(3600),
        },
        policy: Policy {
            retries: 0,
            lost_after: Duration::from_secs(300),
            on_lost: OnLost::Requeue,
            max_cost_micros: None,
        },
    }
}
