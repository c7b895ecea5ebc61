//! Real processes: the stand-in started, stopped, killed and found again.

use super::{
    stand_in::{End, Script},
    *,
};
use crate::{clock, host::News, supervisor::group::Name};
use lorikeet_protocol::{
    agent::StopHow,
    id::{AttemptToken, JobId},
    job::StopCause,
    worker::{EventLine, Exit, HOLDER, Holder, LOCK, LOG, WorkerEvent},
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_started_followed_and_reaped() {
    let mut scene = Scene::new(&Script::new(7, 1));
    scene.start();
    scene.until_holds().await;
    let (events, how) = scene.until_gone().await;
    assert!(matches!(events.last().unwrap().event, WorkerEvent::Finished { step: 7, .. }), "{events:?}");
    assert!(events.iter().map(|line| line.seq).eq(1..=events.len() as u64));
    assert_eq!(how, "exit status: 0");
    assert!(scene.folder.path().join(LOG).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_asked_to_save_leaves_a_checkpoint_and_the_reason() {
    let mut scene = Scene::new(&Script::new(100_000, 1));
    scene.start();
    scene.until_holds().await;
    scene.supervisor.ask(id(), Ask::Stop(StopHow::Save, StopCause::Preempt));
    let (events, _) = scene.until_gone().await;
    let last = &events.last().unwrap().event;
    assert!(matches!(last, WorkerEvent::Stopped { checkpoint: Some(_), cause: StopCause::Preempt, .. }), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_asked_to_leave_saves_nothing() {
    let mut scene = Scene::new(&Script::new(100_000, 1));
    scene.start();
    scene.until_holds().await;
    scene.supervisor.ask(id(), Ask::Stop(StopHow::Discard, StopCause::Cancel));
    let (events, _) = scene.until_gone().await;
    let last = &events.last().unwrap().event;
    assert!(matches!(last, WorkerEvent::Stopped { checkpoint: None, cause: StopCause::Cancel, .. }), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn save_now_brings_a_checkpoint_and_training_goes_on() {
    let mut scene = Scene::new(&Script::new(100_000, 300));
    scene.start();
    scene.until_holds().await;
    scene.supervisor.ask(id(), Ask::SaveNow);
    let saved = |event: &WorkerEvent| matches!(event, WorkerEvent::Checkpoint { step: 1 | 2, .. });
    scene.until_event(saved).await;
    scene.supervisor.kill(id());
    scene.until_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_worker_is_never_signalled_to_death_but_killed_when_ordered() {
    let mut scene = Scene::new(&Script { deaf: true, ..Script::new(100_000, 1) });
    scene.start();
    scene.until_holds().await;
    scene.supervisor.ask(id(), Ask::Stop(StopHow::Discard, StopCause::Cancel));
    scene.until_event(|event| matches!(event, WorkerEvent::Step(step) if step.step > 50)).await;
    scene.supervisor.kill(id());
    let (_, how) = scene.until_gone().await;
    assert!(how.contains("signal: 9"), "{how}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vanished_worker_left_behind_is_killed_with_it() {
    let mut scene = Scene::new(&Script { end: End::Orphan, ..Script::new(1, 1) });
    scene.start();
    scene.until_gone().await;
    let orphan: u32 = std::fs::read_to_string(scene.folder.path().join("orphan")).unwrap().parse().unwrap();
    assert!(scene.joined.contains(&orphan), "what it leaves on a device is found by its number");
    let state = procfs::process::Process::new(orphan as i32).and_then(|process| process.stat()).map(|stat| stat.state);
    assert!(state.is_err() || state.is_ok_and(|state| state == 'Z'), "the orphan is alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_say_its_last_word_says_it_by_its_exit_code() {
    let mut scene = Scene::new(&Script { end: End::DiskFull, ..Script::new(1, 1) });
    scene.start();
    scene.until(|news| *news == News::Exited(Exit::DiskFull)).await;
    scene.until_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_grows_too_large_is_told_of() {
    let mut scene = Scene::new(&Script { grow_bytes: 200 << 20, ..Script::new(100_000, 1) });
    scene.memory_limit = 100 << 20;
    scene.start();
    let News::TooLarge { resident, limit } = scene.until(|news| matches!(news, News::TooLarge { .. })).await else {
        panic!("expected the size")
    };
    assert!(resident > limit && limit == 100 << 20);
    scene.supervisor.kill(id());
    scene.until_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_writes_events_without_end_is_told_of_and_read_no_further() {
    for (end, words) in [(End::Babble, "more than 1048576 bytes of events"), (End::Drone, "a line of more than 16 MiB")]
    {
        let mut scene = Scene::new(&Script { end, ..Script::new(1, 1) });
        scene.setting.config.events_limit = 1 << 20;
        scene.restart().await;
        scene.start();
        let News::Overgrown { what } = scene.until(|news| matches!(news, News::Overgrown { .. })).await else {
            unreachable!()
        };
        assert!(what.contains(words), "{what}");
        let read = scene.seen.len();
        assert!(read < 400, "a megabyte holds fewer lines than {read}");
        scene.supervisor.kill(id());
        let (events, how) = scene.until_gone().await;
        assert!(how.contains("signal: 9") && events.len() == read, "{how}, {} of {read} lines", events.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_prints_is_cut_and_the_worker_goes_on() {
    let mut scene = Scene::new(&Script { end: End::Print, ..Script::new(1, 1) });
    scene.setting.config.log_limit = 64 << 10;
    scene.restart().await;
    scene.start();
    let (_, how) = scene.until_gone().await;
    assert_eq!(how, "exit status: 0");
    let log = std::fs::read_to_string(scene.folder.path().join(LOG)).unwrap();
    assert!(log.contains("bytes were cut here"), "{}", log.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_is_told_of() {
    let mut scene = Scene::new(&Script::new(100_000, 1));
    scene.setting.config.stall_after = Duration::from_millis(300);
    scene.restart().await;
    scene.start();
    scene.until_event(|event| matches!(event, WorkerEvent::Step(step) if step.step > 20)).await;
    let holder: Holder = serde_json::from_slice(&std::fs::read(scene.folder.path().join(HOLDER)).unwrap()).unwrap();
    let name = Name::of_holder(&holder, clock::boot_id()).unwrap();
    assert!(name.signal(rustix::process::Signal::STOP));
    let News::Stalled { quiet } = scene.until(|news| matches!(news, News::Stalled { .. })).await else {
        unreachable!()
    };
    assert!(quiet > Duration::from_millis(300), "{quiet:?}");
    scene.supervisor.kill(id());
    scene.until_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_named() {
    let mut scene = Scene::new(&Script::new(1, 1));
    scene.setting.config.command = vec!["/nowhere/lorikeet".into()];
    scene.start();
    let (_, how) = scene.until_gone().await;
    assert!(how.contains("/nowhere/lorikeet"), "{how}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_outlives_its_agent_and_is_found_again() {
    let mut scene = Scene::new(&Script::new(100_000, 1));
    scene.start();
    scene.until_holds().await;
    scene.until_event(|event| matches!(event, WorkerEvent::Step(_))).await;
    scene.restart().await;
    scene.adopt();
    scene.until_holds().await;
    scene.until_event(|event| matches!(event, WorkerEvent::Step(step) if step.step > 30)).await;
    scene.supervisor.ask(id(), Ask::Stop(StopHow::Save, StopCause::Pause));
    let (events, how) = scene.until_gone().await;
    assert!(matches!(events.last().unwrap().event, WorkerEvent::Stopped { cause: StopCause::Pause, .. }));
    assert_eq!(how, "its lock is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_died_while_no_agent_was_there_is_found_dead_with_all_it_said() {
    let mut scene = Scene::new(&Script::new(100_000, 1));
    scene.start();
    scene.until_holds().await;
    scene.restart().await;
    let holder: Holder = serde_json::from_slice(&std::fs::read(scene.folder.path().join(HOLDER)).unwrap()).unwrap();
    let name = Name::of_holder(&holder, clock::boot_id()).unwrap();
    assert!(name.signal(rustix::process::Signal::KILL));
    scene.adopt();
    let (events, how) = scene.until_gone().await;
    assert!(events.iter().map(|line| line.seq).eq(1..=events.len() as u64));
    assert_eq!(how, "its lock is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_put_something_else_in_its_locks_place_is_gone_when_nobody_of_its_group_is_there() {
    let mut scene = Scene::new(&Script::new(100_000, 1));
    scene.start();
    scene.until_holds().await;
    scene.restart().await;
    let (lock, holder) = (scene.folder.path().join(LOCK), std::fs::read(scene.folder.path().join(HOLDER)).unwrap());
    std::fs::remove_file(&lock).unwrap();
    std::fs::create_dir(&lock).unwrap();
    scene.adopt();
    scene.until_holds().await;
    scene.until_event(|event| matches!(event, WorkerEvent::Step(step) if step.step > 30)).await;
    let holder: Holder = serde_json::from_slice(&holder).unwrap();
    let name = Name::of_holder(&holder, clock::boot_id()).unwrap();
    assert!(name.signal(rustix::process::Signal::KILL), "it lives, whatever it did to its lock");
    assert_eq!(scene.until_gone().await.1, "nobody of its group is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_never_came_is_given_up_when_killed_and_its_lock_kept_from_stragglers() {
    let mut scene = Scene::new(&Script::new(1, 1));
    scene.adopt();
    scene.supervisor.kill(id());
    scene.until_gone().await;
    let lock = std::fs::File::open(scene.folder.path().join("lock")).unwrap();
    assert!(lock.try_lock().is_err(), "a straggler would find it free");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_the_place_of_a_lock_that_nobody_is_known_to_hold_is_in_the_way_until_it_is_removed() {
    let mut scene = Scene::new(&Script::new(1, 1));
    let lock = scene.folder.path().join(LOCK);
    std::fs::create_dir(&lock).unwrap();
    scene.adopt();
    scene.supervisor.kill(id());
    std::fs::remove_dir(&lock).unwrap();
    assert_eq!(scene.until_gone().await.1, "its lock is free");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_of_another_boot_is_nobody() {
    for locks_place in ["free", "taken by a folder"] {
        let mut scene = Scene::new(&Script::new(1, 1));
        let holder = Holder { pid: 1, start_ticks: 0, boot: BootId(uuid::Uuid::from_u128(5)) };
        std::fs::write(scene.folder.path().join(HOLDER), serde_json::to_vec(&holder).unwrap()).unwrap();
        if locks_place != "free" {
            std::fs::create_dir(scene.folder.path().join(LOCK)).unwrap();
        }
        scene.adopt();
        scene.until_gone().await;
    }
}

#[test]
fn a_pid_used_again_gets_no_signal() {
    let me = Name::of(std::process::id()).unwrap();
    let other = Name { start_ticks: me.start_ticks + 1, ..me };
    assert!(!other.signal(rustix::process::Signal::KILL), "this test would be over");
}

struct Scene {
    folder: tempfile::TempDir,
    setting: Setting,
    supervisor: Supervisor,
    events: mpsc::Receiver<Event>,
    memory_limit: u64,
    seen: Vec<EventLine>,
    joined: Vec<u32>,
}

impl Scene {
    fn new(script: &Script) -> Self {
        let (send, events) = mpsc::channel(16);
        let setting = Setting { config: script.config(), boot: clock::boot_id(), events: send };
        let supervisor = Supervisor::new(setting.clone());
        let folder = tempfile::tempdir().unwrap();
        Self { folder, setting, supervisor, events, memory_limit: u64::MAX, seen: Vec::new(), joined: Vec::new() }
    }

    fn start(&mut self) {
        let launch = Launch {
            command: Launch::command(&self.setting.config, false, false, self.memory_limit),
            directory: self.folder.path().to_owned(),
            visible: String::new(),
            memory_limit: self.memory_limit,
            tied: false,
        };
        self.supervisor.start(id(), launch);
    }

    fn adopt(&mut self) {
        self.supervisor.adopt(id(), self.folder.path().to_owned(), self.memory_limit);
    }

    /// The agent goes, and another comes.
    async fn restart(&mut self) {
        let (send, events) = mpsc::channel(16);
        self.setting.events = send;
        let old = std::mem::replace(&mut self.supervisor, Supervisor::new(self.setting.clone()));
        self.events = events;
        old.leave().await;
        self.seen.clear();
    }

    async fn until(&mut self, wanted: impl Fn(&News) -> bool) -> News {
        let search = async {
            loop {
                let Some(Event::Worker(_, news)) = self.events.recv().await else { panic!("no more news") };
                if let News::Event(line) = &news {
                    self.seen.push((**line).clone());
                }
                if let News::Joined { pids } = &news {
                    self.joined.extend(pids);
                }
                if wanted(&news) {
                    return news;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), search).await.expect("waited 20 s")
    }

    async fn until_holds(&mut self) {
        self.until(|news| matches!(news, News::Holds { .. })).await;
    }

    async fn until_event(&mut self, wanted: impl Fn(&WorkerEvent) -> bool) {
        self.until(|news| matches!(news, News::Event(line) if wanted(&line.event))).await;
    }

    async fn until_gone(&mut self) -> (Vec<EventLine>, String) {
        let News::Gone { how } = self.until(|news| matches!(news, News::Gone { .. })).await else { unreachable!() };
        (std::mem::take(&mut self.seen), how)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A test that failed leaves nobody behind.
        let holder = std::fs::read(self.folder.path().join(HOLDER)).ok();
        let holder: Option<Holder> = holder.and_then(|json| serde_json::from_slice(&json).ok());
        if let Some(name) = holder.and_then(|holder| Name::of_holder(&holder, clock::boot_id())) {
            name.signal(rustix::process::Signal::KILL);
        }
    }
}

fn id() -> AttemptId {
    AttemptId { job: JobId(uuid::Uuid::from_u128(7)), token: AttemptToken { generation: 1, number: 1 } }
}
