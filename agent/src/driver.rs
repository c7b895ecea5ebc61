//! The task that owns the [`Host`] and carries out what it decides.
//!
//! A turn is: wait for something, give it and whatever else waits to the host, make reports and records last, and only then do
//! the rest. It has a thread of its own, so that a slow disk under its commits slows nobody else: heartbeats are the
//! link's, for as long as turns are taken ([`Pulse`]), and workers need no agent. When the disk cannot take a commit, the turn
//! waits and tries again, and a full one gets files of the cache back; what it would have done next is not done before.
//!
//! It ends when told to: workers are left alone, or, where the config says so, asked to save and waited for.

mod conversation;
mod effects;

use crate::{
    cache::Pin,
    clock,
    config::Config,
    disk::DiskError,
    gpu::{self, Look},
    host::{Action, Event, Host},
    link::{self, chain},
    outbox::Outbox,
    places::Places,
    prepare::{PrepareError, Preparer},
    pulse::Pulse,
    records::Records,
    room,
    supervisor::{Supervisor, spool::Spool},
    upload::{Errand, Uploader},
};
use conversation::Conversation;
use lorikeet_protocol::{
    agent::{FromAgent, Hello, ReportBody, ToAgent, Verdict, Welcome},
    id::{AttemptId, BootId},
    job::{AttemptPhase, Device, Outcome},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events taken into one turn, and so into one sync of the disk.
const TURN_EVENTS: usize = 256;
/// Between two tries of a commit that failed.
const COMMIT_AGAIN: Duration = Duration::from_secs(1);
/// A hello names at most this many files of the cache.
const HELLO_FILES: usize = 4096;

/// Everything that outlives a turn.
pub(crate) struct Driver {
    pub(crate) config: Config,
    pub(crate) name: String,
    pub(crate) boot: BootId,
    pub(crate) instance: BootId,
    pub(crate) pulse: Pulse,
    pub(crate) places: Places,
    pub(crate) host: Host,
    pub(crate) outbox: Outbox,
    pub(crate) records: Records,
    pub(crate) preparer: Preparer<link::blob::Blobs>,
    pub(crate) uploader: Uploader,
    pub(crate) supervisor: Supervisor,
    /// Where each attempt's events go on from.
    pub(crate) spools: BTreeMap<AttemptId, Spool>,
    /// What keeps each attempt's inputs in the cache.
    pub(crate) pins: BTreeMap<AttemptId, Vec<Pin>>,
    /// Preparations and uploads, by attempt.
    pub(crate) work: BTreeMap<AttemptId, CancellationToken>,
    pub(crate) tasks: TaskTracker,
    pub(crate) inbox: Inbox,
    /// To `inbox`, for the tasks.
    pub(crate) events: mpsc::Sender<Event>,
    /// To `inbox`, for the tasks.
    pub(crate) notes: mpsc::Sender<Note>,
    /// Main memory of this machine.
    pub(crate) machine_bytes: u64,
    /// Ends what belongs to no attempt.
    pub(crate) cancel: CancellationToken,
    /// Tells it to leave.
    pub(crate) told: CancellationToken,
    /// While there is a session.
    pub(crate) conversation: Option<Conversation>,
    /// Uploads that this turn heard the end of.
    pub(crate) uploaded: Vec<(AttemptId, Errand)>,
    /// What the disk is to have free since work found it full; no more than ever once work has gone well.
    pub(crate) wanted_free: room::Wanted,
}

/// Everything that comes in.
pub(crate) struct Inbox {
    pub(crate) link: mpsc::Receiver<link::News>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) notes: mpsc::Receiver<Note>,
    pub(crate) looks: mpsc::Receiver<Look>,
}

/// What the driver's own tasks tell it.
#[derive(Debug)]
pub(crate) enum Note {
    /// A preparation ended.
    Prepared(AttemptId, Result<Vec<Pin>, PrepareError>),
    /// The files of this report are with the coordinator, as far as that can be; asked in this session.
    Cleared {
        session: u64,
        number: u64,
        /// They are nowhere, and why: the report goes without them.
        lost: Option<String>,
    },
}

/// What a turn begins with.
enum Input {
    Stop,
    Link(link::News),
    Event(Event),
    Note(Note),
    Look(Look),
    /// The wire takes a message.
    Room(mpsc::OwnedPermit<FromAgent>),
    Tick,
}

/// It was told to leave, and the disk does not take what has to last before anything else happens. The next agent finds all as it was.
#[derive(Debug)]
struct ToldToLeave;

impl Driver {
    /// Until told to leave; then in order: workers as the config says, tasks, watchers.
    pub(crate) async fn run(mut self, first: Vec<Action>) {
        for known in self.host.known() {
            self.follow_events(known.id);
        }
        // Where it was told to leave meanwhile the first turn says so as well.
        let _ = self.commit_and_act(first).await;
        self.turns().await;
        self.cancel.cancel();
        self.work.values().for_each(CancellationToken::cancel);
        self.tasks.close();
        self.tasks.wait().await;
        // The watchers' channel must not block them while they are waited for.
        drop(self.inbox);
        self.supervisor.leave().await;
    }

    async fn turns(&mut self) {
        let mut leaving = false;
        loop {
            self.pulse.beat();
            let input = self.next(leaving).await;
            if matches!(input, Input::Stop) {
                if !self.config.stop_workers_on_exit {
                    if let going_on @ 1.. = self.host.workers() {
                        tracing::warn!(workers = going_on, "workers go on; an agent started here again takes them up");
                    }
                    break;
                }
                leaving = true;
            }
            let taken = self.turn(input).await;
            if taken.is_err() || (leaving && self.host.workers() == 0) {
                break;
            }
        }
    }

    async fn next(&mut self, leaving: bool) -> Input {
        let deadline = self.deadline();
        let room = self.conversation.as_ref().filter(|talk| talk.has_words(&self.outbox)).map(Conversation::outgoing);
        let wants_room = room.is_some();
        tokio::select! {
            biased;
            () = self.told.cancelled(), if !leaving => Input::Stop,
            Some(news) = self.inbox.link.recv() => Input::Link(news),
            Some(note) = self.inbox.notes.recv() => Input::Note(note),
            Some(event) = self.inbox.events.recv() => Input::Event(event),
            Some(look) = self.inbox.looks.recv() => Input::Look(look),
            Some(permit) = reserve(room), if wants_room => Input::Room(permit),
            () = tokio::time::sleep_until(deadline.into()) => Input::Tick,
        }
    }

    fn deadline(&self) -> Instant {
        // An idle driver takes a turn now and then all the same, so that it is not taken for one that hangs.
        let far = Instant::now() + self.config.link.report_retry / 4;
        let host = self.host.next_deadline().map(clock::instant);
        [host, self.retry_at()].into_iter().flatten().fold(far, Instant::min)
    }

    async fn turn(&mut self, input: Input) -> Result<(), ToldToLeave> {
        let actions = match input {
            Input::Stop => self.ask(Event::Leave),
            Input::Link(news) => self.link(news).await?,
            Input::Event(event) => self.batch(event),
            Input::Note(note) => self.note(note),
            Input::Look(look) => self.look(look),
            Input::Room(permit) => {
                self.speak(permit);
                Vec::new()
            }
            Input::Tick => {
                self.retry_reports();
                self.retry_lines();
                self.ask(Event::Tick)
            }
        };
        self.commit_and_act(actions).await
    }

    fn ask(&mut self, event: Event) -> Vec<Action> {
        self.uploaded.extend(errand(&event));
        if let (Event::Worker(id, _), Some(talk)) = (&event, &mut self.conversation) {
            talk.has_events(*id);
        }
        self.host.handle(event, clock::now())
    }

    /// An event and those that wait behind it.
    fn batch(&mut self, first: Event) -> Vec<Action> {
        let mut actions = self.ask(first);
        for _ in 1..TURN_EVENTS {
            let Ok(event) = self.inbox.events.try_recv() else { break };
            actions.extend(self.ask(event));
        }
        actions
    }

    async fn link(&mut self, news: link::News) -> Result<Vec<Action>, ToldToLeave> {
        Ok(match news {
            link::News::Dialled(answer) => {
                // A link that gave up meanwhile dials again and asks again.
                let _ = answer.send(self.hello());
                Vec::new()
            }
            link::News::Welcomed(welcome, session) => self.welcomed(*welcome, session).await?,
            link::News::Heard(ToAgent::Acknowledged { through }) => self.acknowledged(through),
            link::News::Heard(ToAgent::EventsAcknowledged { attempt, through }) => {
                if let Some(spool) = self.spools.get_mut(&attempt) {
                    spool.acknowledge(through);
                }
                if let Some(talk) = &mut self.conversation {
                    // What waited for this word may leave now.
                    talk.has_events(attempt);
                }
                self.ask(Event::Heard(ToAgent::EventsAcknowledged { attempt, through }))
            }
            link::News::Heard(message) => self.ask(Event::Heard(message)),
            link::News::Lost => {
                self.conversation = None;
                Vec::new()
            }
        })
    }

    fn hello(&self) -> Hello {
        Hello {
            boot: self.boot,
            instance: self.instance,
            version: env!("CARGO_PKG_VERSION").into(),
            name: self.name.clone(),
            labels: self.config.labels.clone(),
            devices: self.host.devices().to_vec(),
            attempts: self.host.known(),
            cached: self.preparer.cache.hashes(HELLO_FILES),
            acknowledged: self.outbox.acknowledged(),
        }
    }

    async fn welcomed(&mut self, welcome: Welcome, session: link::Session) -> Result<Vec<Action>, ToldToLeave> {
        // First, so that it is let go if the disk does not take what follows.
        self.conversation = Some(Conversation::new(welcome.session, session, self.spools.keys().copied()));
        let mut delivered = self.until_done(|driver| driver.outbox.resume(welcome.last_report)).await?;
        for (id, through) in &welcome.events {
            if let Some(spool) = self.spools.get_mut(id) {
                spool.rewind(*through);
            }
        }
        let silent = self.spools.iter_mut().filter(|(id, _)| !welcome.events.iter().any(|(known, _)| known == *id));
        silent.for_each(|(_, spool)| spool.rewind_to_acknowledged());
        let missing = self.missing_ends(&welcome);
        let mut actions = self.ask(Event::Heard(ToAgent::Welcome(Box::new(welcome))));
        let waiting: BTreeSet<_> = self.outbox.waiting().map(|report| report.attempt).chain(missing.clone()).collect();
        let over = self.host.known().into_iter().filter(|known| known.phase == AttemptPhase::Done);
        delivered.extend(over.map(|known| known.id));
        delivered.retain(|id| !waiting.contains(id));
        for id in missing {
            actions.extend(self.ask(Event::EndMissing(id)));
        }
        for id in delivered {
            actions.extend(self.ask(Event::Delivered(id)));
        }
        Ok(actions)
    }

    /// Attempts of which the coordinator wants to hear the end, and no report that waits says it.
    fn missing_ends(&self, welcome: &Welcome) -> Vec<AttemptId> {
        let ends = self.outbox.waiting().filter(|report| report.body.end().is_some());
        let said: BTreeSet<_> = ends.map(|report| report.attempt).collect();
        let wanted = welcome.verdicts.iter().filter(|(_, verdict)| *verdict == Verdict::Report);
        wanted.map(|(id, _)| *id).filter(|id| !said.contains(id)).collect()
    }

    fn acknowledged(&mut self, through: u64) -> Vec<Action> {
        let gone = self.outbox.waiting().take_while(|report| report.number <= through);
        let with_files = gone.filter(|report| !report.body.files().is_empty());
        let over: BTreeSet<_> = with_files.map(|report| report.attempt).collect();
        let before = self.outbox.acknowledged();
        let delivered = self.outbox.acknowledge(through);
        if let Some(talk) = self.conversation.as_mut().filter(|_| self.outbox.acknowledged() > before) {
            talk.acknowledged(&self.outbox);
        }
        over.into_iter().for_each(|id| self.sweep(id));
        delivered.into_iter().flat_map(|id| self.ask(Event::Delivered(id))).collect()
    }

    /// Of what is staged of an attempt only that stays which somebody still names.
    fn sweep(&self, id: AttemptId) {
        let waiting = self.outbox.waiting().filter(|report| report.attempt == id);
        let named = waiting.flat_map(|report| report.body.files()).map(|file| file.manifest.hash).collect();
        self.uploader.sweep(id, &named);
    }

    fn note(&mut self, note: Note) -> Vec<Action> {
        match note {
            Note::Prepared(id, Ok(pins)) => {
                self.pins.insert(id, pins);
                self.ask(Event::Prepared(id))
            }
            Note::Prepared(id, Err(error)) => match error.unprovided() {
                Some(class) => self.ask(Event::Unprovided(id, error.fault(), class)),
                None => self.ask(Event::PrepareFailed(id, error.fault())),
            },
            Note::Cleared { session, number, lost } => {
                if let Some(talk) = self.conversation.as_mut().filter(|talk| talk.session == session) {
                    talk.cleared(number);
                    talk.lost(number, lost);
                }
                Vec::new()
            }
        }
    }

    fn look(&mut self, look: Look) -> Vec<Action> {
        let Look { mut seen, mut telemetry } = look;
        self.wanted_free.looked();
        self.make_room();
        room::judge(&mut seen.devices, &self.places);
        let before = self.devices().to_vec();
        let actions = self.ask(Event::Looked(seen));
        let changed = gpu::changed(&before, self.host.devices());
        telemetry.retain(|telemetry| self.devices().iter().any(|device| device.id == telemetry.device));
        telemetry.iter_mut().for_each(|said| said.foreign = self.host.foreign(&said.device));
        if let Some(talk) = &mut self.conversation {
            talk.looked(&telemetry, self.host.devices(), changed, self.config.devices.report);
        }
        actions
    }

    /// A disk that is nearly full, or was too full for some work, gets files of the cache back: those can be fetched again, attempts cannot.
    /// Whether that gave any.
    fn make_room(&self) -> bool {
        let short = room::short(&self.places, self.wanted_free.bytes);
        short > 0 && self.preparer.cache.shed(short) > 0
    }

    /// Reports and records first; nothing else happens before they are on the disk.
    async fn commit_and_act(&mut self, actions: Vec<Action>) -> Result<(), ToldToLeave> {
        let (mut records, mut quarantine) = (BTreeMap::new(), None);
        let time = clock::now().wall;
        let is_durable =
            |action: &Action| matches!(action, Action::Report(..) | Action::Keep(_) | Action::KeepQuarantine(_));
        let (durable, effects): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_durable);
        for action in durable {
            if let Action::Report(id, body) = action {
                self.report(id, time, body);
            } else if let Action::Keep(record) = action {
                records.insert(record.id(), record);
            } else if let Action::KeepQuarantine(reasons) = action {
                quarantine = Some(reasons);
            }
        }
        self.until_done(|driver| {
            driver.outbox.commit()?;
            records.values().try_for_each(|record| driver.records.keep(record))?;
            quarantine.iter().try_for_each(|reasons| driver.records.keep_quarantine(reasons))
        })
        .await?;
        // Their reports are queued, where there are any.
        for (id, errand) in std::mem::take(&mut self.uploaded) {
            self.uploader.over(id, errand);
            self.sweep(id);
        }
        for effect in effects {
            self.act(effect);
        }
        Ok(())
    }

    fn report(&mut self, id: AttemptId, time: lorikeet_protocol::id::UnixMillis, body: ReportBody) {
        let has_files = !body.files().is_empty();
        if let Some(ended) = body.end() {
            if let Some(talk) = &mut self.conversation {
                talk.device_was_left();
            }
            // What went wrong without a word may have been the bytes: they are read before the next attempt gets them.
            let went_wrong = matches!(ended.outcome, Outcome::Lost | Outcome::UserError | Outcome::Hardware);
            let pins = self.pins.get(&id).filter(|_| went_wrong);
            pins.into_iter().flatten().for_each(|pin| self.preparer.cache.distrust(pin.hash()));
            if ended.outcome == Outcome::DiskFull {
                self.wanted_free.found_full(&self.places);
                self.make_room();
            } else if ended.outcome == Outcome::Ok {
                self.wanted_free = room::Wanted::default();
            }
        }
        self.outbox.push(id, time, body);
        if let Some(talk) = self.conversation.as_mut().filter(|_| has_files) {
            // Its files were uploaded a moment ago.
            talk.cleared(self.outbox.last());
        }
    }

    /// Tries again for as long as the disk does not take it, unless it is told to leave. Who can report nothing for long must not look
    /// alive either: the session is let go, so that the coordinator counts the silence and gives the jobs to others when their time is over.
    async fn until_done<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Self) -> Result<T, DiskError>,
    ) -> Result<T, ToldToLeave> {
        let (began, again) = (Instant::now(), COMMIT_AGAIN.min(self.config.link.report_retry));
        loop {
            let error = match attempt(self) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            tracing::error!("nothing is reported or started: could not {}", chain(&error));
            // No look comes before this is done.
            if error.is_full() && self.make_room() {
                continue;
            }
            if began.elapsed() >= self.config.link.report_retry && self.conversation.take().is_some() {
                tracing::error!("the session is let go until something can be reported again");
            }
            tokio::select! {
                biased;
                () = self.told.cancelled() => return Err(ToldToLeave),
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    fn devices(&self) -> &[Device] {
        self.host.devices()
    }
}

/// The upload of which this is the end. The report of a result waits for the worker's process to go: it is over when its attempt is.
fn errand(event: &Event) -> Option<(AttemptId, Errand)> {
    match event {
        Event::CheckpointUploaded(id, seq, _) | Event::CheckpointGivenUp(id, seq, _) => {
            Some((*id, Errand::Checkpoint(*seq)))
        }
        Event::AdapterGivenUp(id, _) => Some((*id, Errand::Adapter)),
        Event::AdapterUploaded(..)
        | Event::Heard(_)
        | Event::Delivered(_)
        | Event::EndMissing(_)
        | Event::Prepared(_)
        | Event::PrepareFailed(..)
        | Event::Unprovided(..)
        | Event::Worker(..)
        | Event::InputsRead(..)
        | Event::Looked(_)
        | Event::Tested(..)
        | Event::Leave
        | Event::Tick => None,
    }
}

async fn reserve(room: Option<mpsc::Sender<FromAgent>>) -> Option<mpsc::OwnedPermit<FromAgent>> {
    // A session that just ended takes no more; the link's own news of it is on its way.
    match room {
        Some(room) => room.reserve_owned().await.ok(),
        None => None,
    }
}
