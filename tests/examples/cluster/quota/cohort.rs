//! A cohort: one node with one device that holds all its quota, on which every attempt runs for as long as its kind does.

use super::{Board, Kind, QUEUES, QUOTA, order};
use lorikeet_coordinator::{
    access::Actor,
    cluster::{Shown, command::Command},
    driver::{Handle, Session},
};
use lorikeet_protocol::{
    agent::{Ended, FromAgent, Hello, Offer, Report, ReportBody, ToAgent},
    id::{AttemptId, BootId, DeviceId, Hash, NodeId, UnixMillis},
    job::{Device, DeviceKind, Outcome},
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::sleep_until;
use uuid::Uuid;

/// Makes the node and lets it work until the driver ends.
pub(super) async fn join(handle: &Handle, admin: Actor, number: usize, board: &Arc<Board>) {
    let (node, serial, secret) = (NodeId(Uuid::now_v7()), number.to_string(), Hash([number as u8; 32]));
    order(handle, admin, Command::CreateJoinSecret { hash: secret, expires: UnixMillis(u64::MAX) }).await;
    let key = Hash([7; 32]);
    order(handle, Actor::System, Command::Join { secret, key, name: "n".into(), node }).await;
    order(handle, Actor::System, Command::RecordCertificate { node, serial: serial.clone(), joined: None }).await;
    let shown = Shown { serial, key, is_newest: true };
    let session = handle.open_session(node, shown, hello(number)).await.expect("it is let in");
    let works = Node {
        handle: handle.clone(),
        board: Arc::clone(board),
        node,
        session,
        running: BTreeMap::new(),
        units: 0,
        reports: 0,
    };
    tokio::spawn(works.work());
}

fn hello(number: usize) -> Hello {
    let memory_bytes = (QUEUES as u64 * QUOTA) << 30;
    let device = Device {
        id: DeviceId("GPU-0".into()),
        name: "simulated".into(),
        kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
        memory_bytes,
        free_bytes: memory_bytes,
        usable: Ok(()),
    };
    let boot = BootId(Uuid::now_v7());
    Hello {
        boot,
        instance: boot,
        version: "bench".into(),
        name: "n".into(),
        labels: [("cohort".to_owned(), number.to_string())].into(),
        devices: vec![device],
        attempts: vec![],
        cached: vec![],
        acknowledged: 0,
    }
}

struct Node {
    handle: Handle,
    board: Arc<Board>,
    node: NodeId,
    session: Session,
    /// By the moment at which they end.
    running: BTreeMap<(Instant, AttemptId), Kind>,
    units: u64,
    reports: u64,
}

impl Node {
    async fn work(mut self) {
        let mut heartbeat = tokio::time::interval(Duration::from_secs(5));
        loop {
            let far = Instant::now() + Duration::from_secs(60);
            let next = self.running.first_key_value().map_or(far, |((ends, _), _)| *ends);
            tokio::select! {
                message = self.session.outbox.recv() => match message {
                    Some(ToAgent::Offer(offer)) => self.offered(&offer).await,
                    Some(_) => {}
                    None => return,
                },
                () = sleep_until(next.into()) => self.end_those_due().await,
                _ = heartbeat.tick() => self.say(FromAgent::Heartbeat).await,
            }
        }
    }

    async fn offered(&mut self, offer: &Offer) {
        let (kind, now, id) = (Kind::of(&offer.job), Instant::now(), offer.attempt);
        self.units += kind.units;
        assert!(self.units <= QUEUES as u64 * QUOTA, "{} units on a device of {}", self.units, QUEUES as u64 * QUOTA);
        self.board.offered(id, kind, now);
        self.running.insert((now + Duration::from_millis(kind.lasts), id), kind);
        self.say(FromAgent::Accepted(id)).await;
        self.report(id, ReportBody::Running { from_step: 0 }).await;
    }

    async fn end_those_due(&mut self) {
        while let Some(entry) = self.running.first_entry().filter(|entry| entry.key().0 <= Instant::now()) {
            let ((_, id), kind) = entry.remove_entry();
            self.units -= kind.units;
            let held = Duration::from_millis(kind.lasts);
            let (files, outcome) = (vec![], Outcome::Ok);
            let (class, message, summary) = (None, None, None);
            let ended = Ended { outcome, class, message, step: 10, held, files, summary, last_event: 0 };
            self.report(id, ReportBody::Ended(ended)).await;
            self.board.read().ended += 1;
        }
    }

    async fn report(&mut self, attempt: AttemptId, body: ReportBody) {
        self.reports += 1;
        let report = Report { number: self.reports, attempt, time: UnixMillis(0), body };
        self.say(FromAgent::Report(report)).await;
    }

    async fn say(&self, message: FromAgent) {
        self.handle.heard(self.node, self.session.number, message).await;
    }
}
