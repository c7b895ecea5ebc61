//! Carrying out the host's actions, once what they rest on is on the disk.

use super::{Driver, Note};
use crate::{
    burn_in, disk, gpu,
    host::{Action, CheckpointMade, Event, Unfit},
    link::chain,
    supervisor::{spawn::Launch, spool::Spool},
    upload::{Errand, UploadError},
};
use lorikeet_protocol::{
    agent::{Checkpoint, Offer},
    id::{AttemptId, DeviceId},
    job::FailureClass,
    worker::WrittenFile,
};
use std::sync::Arc;

/// Beside the planned tensors: the program, its threads, buffers of files.
const PROGRAM_BYTES: u64 = 1 << 30;

impl Driver {
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::Tell(message) => {
                if let Some(talk) = &mut self.conversation {
                    talk.tell(message);
                }
            }
            Action::Prepare(offer) => self.prepare(offer),
            Action::Abandon(id) => self.abandon(id),
            Action::Start(offer) => self.start(&offer),
            Action::Adopt(offer) => self.adopt(&offer),
            Action::Ask(id, ask) => self.supervisor.ask(id, ask),
            Action::Kill(id) => self.supervisor.kill(id),
            Action::UploadCheckpoint(id, made) => self.upload_checkpoint(id, made),
            Action::UploadAdapter(id, files) => self.upload_adapter(id, files),
            Action::ReadInputs(offer, class) => self.read_inputs(offer, class),
            Action::Forget(id) => self.forget(id),
            Action::Test(device) => self.test(device),
            // Taken out before: they are what the others wait for.
            Action::Report(..) | Action::Keep(_) | Action::KeepQuarantine(_) => {
                unreachable!("reports and records are committed, not carried out")
            }
        }
    }

    /// Runs until done or until the attempt's work is abandoned.
    fn spawn(&mut self, id: AttemptId, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.work.entry(id).or_default().clone();
        self.tasks.spawn(async move {
            cancel.run_until_cancelled(work).await;
        });
    }

    fn test(&mut self, device: DeviceId) {
        let (events, cancel) = (self.events.clone(), self.cancel.clone());
        let (command, worker) = (burn_in::command(&self.config, &device), self.config.worker.clone());
        self.tasks.spawn(async move {
            let test = burn_in::test(command, &worker);
            let Some(result) = cancel.run_until_cancelled(test).await else { return };
            match &result {
                Ok(()) => {}
                Err(Unfit::Failed(why)) => tracing::error!(%device, why, "the device failed its test and stays out"),
                Err(Unfit::Untested) => {
                    tracing::warn!(%device, "there is no test for the device; it stays out for a while")
                }
            }
            let _ = events.send(Event::Tested(device, result)).await;
        });
    }

    fn prepare(&mut self, offer: Arc<Offer>) {
        let (preparer, notes) = (self.preparer.clone(), self.notes.clone());
        self.spawn(offer.attempt, async move {
            let prepared = preparer.prepare(&offer).await;
            let _ = notes.send(Note::Prepared(offer.attempt, prepared)).await;
        });
    }

    fn read_inputs(&mut self, offer: Arc<Offer>, class: FailureClass) {
        let (preparer, events) = (self.preparer.clone(), self.events.clone());
        self.spawn(offer.attempt, async move {
            let rotten = preparer.rotten(&offer, class).await;
            let _ = events.send(Event::InputsRead(offer.attempt, rotten)).await;
        });
    }

    fn abandon(&mut self, id: AttemptId) {
        if let Some(work) = self.work.remove(&id) {
            work.cancel();
        }
        self.uploader.abandon(id);
    }

    fn start(&mut self, offer: &Offer) {
        let (tied, memory_limit) = (self.config.stop_workers_on_exit, self.memory_limit(offer));
        let visible = gpu::visible(&offer.devices);
        // a device that is only declared is the processor by another name
        let gpu = self.config.devices.fake.is_empty() && !visible.is_empty();
        let launch = Launch {
            command: Launch::command(&self.config.worker, tied, gpu, memory_limit),
            tied,
            directory: self.places.attempt(offer.attempt),
            visible,
            memory_limit,
        };
        self.follow_events(offer.attempt);
        self.supervisor.start(offer.attempt, launch);
    }

    fn adopt(&mut self, offer: &Offer) {
        let id = offer.attempt;
        self.pins.insert(id, self.preparer.pin_again(offer));
        self.follow_events(id);
        let limit = self.memory_limit(offer);
        self.supervisor.adopt(id, self.places.attempt(id), limit);
    }

    pub(super) fn follow_events(&mut self, id: AttemptId) {
        let directory = self.places.attempt(id);
        self.spools.entry(id).or_insert_with(|| Spool::new(id, &directory));
    }

    /// Resident bytes that the worker's group may have.
    fn memory_limit(&self, offer: &Offer) -> u64 {
        if let Some(limit) = self.config.worker.memory_limit {
            return limit;
        }
        let on_gpu = self.config.devices.fake.is_empty() && offer.devices.iter().any(|id| *id != DeviceId::cpu());
        let most = self.machine_bytes / 10 * 9;
        let one = (offer.planned_bytes as f64 * self.config.worker.memory_slack) as u64 + PROGRAM_BYTES;
        // a process for every device
        let planned = one.saturating_mul(offer.devices.len() as u64);
        if on_gpu { most } else { planned.min(most) }
    }

    fn upload_checkpoint(&mut self, id: AttemptId, made: CheckpointMade) {
        let (uploader, events) = (self.uploader.clone(), self.events.clone());
        uploader.begin(id, Errand::Checkpoint(made.seq));
        self.spawn(id, async move {
            let CheckpointMade { seq, step, loss, kind, path } = made;
            let event = match uploader.checkpoint(id, seq, path).await {
                Ok(files) => Event::CheckpointUploaded(id, seq, Box::new(Checkpoint { step, loss, kind, files })),
                Err(UploadError::Removed(_)) => Event::CheckpointGivenUp(id, seq, None),
                Err(error) => Event::CheckpointGivenUp(id, seq, Some(chain(&error))),
            };
            let _ = events.send(event).await;
        });
    }

    fn upload_adapter(&mut self, id: AttemptId, files: Vec<WrittenFile>) {
        let (uploader, events) = (self.uploader.clone(), self.events.clone());
        uploader.begin(id, Errand::Adapter);
        self.spawn(id, async move {
            let event = match uploader.adapter(id, files).await {
                Ok((files, summary)) => Event::AdapterUploaded(id, files, summary),
                Err(error) => Event::AdapterGivenUp(id, error.fault()),
            };
            let _ = events.send(event).await;
        });
    }

    /// The record goes last: as long as it is there, a crash in between is made good by the next welcome.
    fn forget(&mut self, id: AttemptId) {
        self.abandon(id);
        self.supervisor.forget(id);
        self.spools.remove(&id);
        self.pins.remove(&id);
        let folders = [self.places.attempt(id), self.places.inputs(id), self.places.uploads(id)];
        let removed = folders.iter().try_for_each(|folder| disk::remove_folder(folder));
        if let Err(error) = removed.and_then(|()| self.records.remove(id)) {
            tracing::warn!(attempt = %id, "could not {}", chain(&error));
        }
    }
}
