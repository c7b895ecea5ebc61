//! The control conversation with one agent: hello, session, then both ways until either ends.
//!
//! The session's number comes from the driver, which closes an older session of the same node through its outbox. Lines of
//! events go to `series` and are acknowledged from here once they are synced; everything else goes to the driver, which
//! acknowledges after its commit. A report of a current attempt that names files is handed on only when every one of them is here
//! whole and the attempt has brought it: otherwise nothing is answered, and the agent uploads them again before it repeats the report. Of an attempt whose word
//! no longer counts nothing is uploaded any more; its report goes on without its files, so that it is acknowledged and those
//! behind it are heard. Words that are out of bounds end the session (`link/check.rs`).

use super::{
    CloseCode, LinkError, PATIENCE, Shared,
    ask::Standing,
    check,
    complaints::Complaints,
    rate::Rate,
    tls::{self, NodeCertificate},
    wire,
};
use crate::{clock::now, felt::Felt};
use lorikeet_protocol::{
    ALPN_CONTROL, ALPN_CONTROL_EXPEL, ALPN_CONTROL_METER,
    agent::{EventLines, Farewell, FromAgent, Hello, Report, ReportBody, Telemetry, ToAgent, Trusts, Welcome, former},
    codec::{self, CodecError},
    id::{AttemptId, DeviceId, Hash, NodeId},
};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

/// Acknowledgements and certificates that wait for the wire; the reader waits beyond that.
const OWN_MESSAGES: usize = 16;

/// A session that is over – revoked, superseded – has this long for its last words; then its connections are cut.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(2);

/// How often a session looks whether its certificate has run out.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(10);

/// What can be spoken of in a conversation, by its name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words {
    /// Which CAs are trusted.
    trust: bool,
    /// Which nodes were sent away.
    expelled: bool,
    /// All that devices say of themselves, and what they drew.
    meter: bool,
}

impl Words {
    pub(super) fn of(conversation: &[u8]) -> Self {
        Self {
            trust: conversation != ALPN_CONTROL,
            expelled: [ALPN_CONTROL_EXPEL, ALPN_CONTROL_METER].contains(&conversation),
            meter: conversation == ALPN_CONTROL_METER,
        }
    }
}

pub(super) async fn serve(
    shared: &Shared,
    connection: &Connection,
    certificate: NodeCertificate,
    words: Words,
) -> Result<(), LinkError> {
    let hearing = async {
        let (send, mut receive) = connection.accept_bi().await?;
        let first = wire::read::<FromAgent>(&mut receive).await?;
        Ok((send, receive, first))
    };
    let (mut send, receive, first) = shared.first(hearing).await?;
    match first {
        Some(FromAgent::Renew(_)) if !shared.guests.may_renew(&certificate) => {
            let reason = b"this node renews its certificate too often; come back later";
            connection.close(VarInt::from_u32(CloseCode::TooMany as u32), reason);
            Ok(())
        }
        Some(FromAgent::Renew(request)) => {
            let renewed = renew(shared, &certificate, &request).await.map(|(renewed, _)| renewed);
            say_goodbye(&mut send, renewed.unwrap_or(ToAgent::Goodbye(Farewell::Misbehaved))).await
        }
        Some(FromAgent::Hello(_)) if certificate.expired => {
            Err(LinkError::Misbehaved("its certificate has run out: it may renew it and nothing else"))
        }
        Some(FromAgent::Hello(_)) if !shared.guests.may_say_hello(&certificate) => {
            let reason = b"this node says hello too often; come back later";
            connection.close(VarInt::from_u32(CloseCode::TooMany as u32), reason);
            Ok(())
        }
        Some(FromAgent::Hello(mut hello)) => match check::hello(&mut hello) {
            Ok(()) => {
                let streams = (send, receive);
                session(shared, connection, certificate, *hello, streams, words).await
            }
            Err(why) => misbehaved(&mut send, &certificate, why).await,
        },
        _ => Err(LinkError::Misbehaved("it did not say hello first")),
    }
}

async fn session(
    shared: &Shared,
    connection: &Connection,
    certificate: NodeCertificate,
    hello: Hello,
    (mut send, receive): (SendStream, RecvStream),
    words: Words,
) -> Result<(), LinkError> {
    let node = certificate.node;
    let driver = &shared.services.driver;
    let opened = match driver.open_session(node, certificate.shown.clone(), hello).await {
        Ok(opened) => opened,
        Err(farewell) => return say_goodbye(&mut send, ToAgent::Goodbye(farewell)).await,
    };
    let number = opened.number;
    shared.admitted.enter(&certificate, number);
    tracing::info!(%node, session = number, "an agent is here");
    let (own, own_messages) = mpsc::channel(OWN_MESSAGES);
    let (renewed, certificates) = watch::channel(certificate.ends);
    let announcing = announce(shared, connection, own.clone(), words);
    let own_attempts = OwnAttempts::default();
    let mut peer = Peer {
        shared,
        certificate: certificate.clone(),
        words,
        session: number,
        own,
        own_attempts: &own_attempts,
        refused: HashSet::new(),
        complaints: Complaints::default(),
        renewed,
    };
    if !words.trust {
        // It has no words for it: it trusts what it joined with, whatever another agent of this node said before.
        peer.hand_on(FromAgent::Trusts(Trusts { authorities: vec![], issuer: None })).await;
    }
    // Each of the three lives until the session ends, so none is ever cut in the middle of a frame and begun again.
    let ended = tokio::select! {
        biased;
        () = shared.cancel.cancelled() => Ok(Ending::ShuttingDown),
        ended = write(shared, &mut send, (opened.outbox, own_messages), words, &own_attempts) => ended,
        // An agent that takes nothing does not keep its session by that.
        () = async { opened.ended.cancelled().await; sleep(LAST_WORDS).await } => Ok(Ending::Cut),
        ended = peer.read(receive) => ended,
        ended = listen(shared, connection, node, words) => ended,
        () = announcing => Ok(Ending::Cut),
        () = run_out(certificates) => Ok(Ending::Cut),
    };
    for (what, unsaid) in peer.complaints.unsaid() {
        tracing::warn!(%node, session = number, unsaid, "{what}");
    }
    if shared.admitted.leave(node, number) {
        shared.services.telemetry.forget(node);
    }
    driver.close_session(node, number, nonsense(&ended)).await;
    tracing::info!(%node, session = number, "an agent is gone");
    match ended? {
        Ending::Misbehaved(why) => misbehaved(&mut send, &certificate, why).await,
        Ending::ShuttingDown => say_goodbye(&mut send, ToAgent::Goodbye(Farewell::ShuttingDown)).await,
        // What was said last must arrive before the connection closes.
        Ending::Dismissed => {
            let _ = timeout(LAST_WORDS, finish(&mut send)).await;
            Ok(())
        }
        Ending::Left | Ending::Cut => Ok(()),
    }
}

/// Until the newest certificate of the session has run out: then it may be renewed and nothing else, on a connection of its own.
async fn run_out(mut newest: watch::Receiver<Duration>) {
    loop {
        let ends = *newest.borrow_and_update();
        let left = ends.saturating_sub(Duration::from_millis(now().0));
        if left.is_zero() {
            return;
        }
        tokio::select! {
            // In short steps: the wall clock may be set while this waits.
            () = sleep(left.min(LOOK_AT_CLOCK)) => {}
            changed = newest.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

/// Says which CAs to trust, whenever that changes, to who understands it; until the one that lets this connection in is forgotten, be it
/// between its handshake and its session. An agent that has followed is back at once.
async fn announce(shared: &Shared, connection: &Connection, own: mpsc::Sender<ToAgent>, words: Words) {
    let shown = super::chain(connection);
    let mut changes = shared.services.trust.changes();
    loop {
        let authorities = Arc::clone(&changes.borrow_and_update());
        if !shown.first().is_some_and(|certificate| authorities.let_in(certificate)) {
            return;
        }
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        if words.trust {
            let trust = ToAgent::Trust(changes.borrow().certificates());
            // The writer ends only with the session.
            let _ = own.send(trust).await;
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The agent ended its stream.
    Left,
    /// The driver dropped the session, having said why.
    Dismissed,
    /// The driver dropped the session, and the agent does not take the news.
    Cut,
    /// The coordinator leaves.
    ShuttingDown,
    /// The agent said what no agent says.
    Misbehaved(&'static str),
}

/// What no agent says, if a session ended by that.
fn nonsense(ended: &Result<Ending, LinkError>) -> Option<&'static str> {
    match ended {
        Ok(Ending::Misbehaved(why)) | Err(LinkError::Misbehaved(why)) => Some(why),
        Err(LinkError::Codec(_)) => Some("bytes that are no message"),
        Ok(_) | Err(_) => None,
    }
}

/// Puts what the driver and this file have to say on the wire.
async fn write(
    shared: &Shared,
    send: &mut SendStream,
    (mut outbox, mut own): (mpsc::Receiver<ToAgent>, mpsc::Receiver<ToAgent>),
    words: Words,
    own_attempts: &OwnAttempts,
) -> Result<Ending, LinkError> {
    let mut welcomed = false;
    loop {
        let message = tokio::select! {
            message = outbox.recv() => message,
            // Nothing stands before the welcome.
            Some(message) = own.recv(), if welcomed => Some(message),
        };
        match message {
            Some(ToAgent::Welcome(welcome)) => {
                wire::write(send, &with_events(shared, welcome).await).await?;
                welcomed = true;
            }
            Some(ToAgent::Expelled(_)) if !words.expelled => {}
            Some(ToAgent::Offer(offer)) => {
                // It was placed there, durably, before this was said: no report of it need be looked up.
                own_attempts.add(offer.attempt, offer.devices.clone());
                wire::write(send, &ToAgent::Offer(offer)).await?;
            }
            Some(message) => wire::write(send, &message).await?,
            None => return Ok(Ending::Dismissed),
        }
    }
}

/// Only `series` knows up to where each attempt's lines are here.
async fn with_events(shared: &Shared, mut welcome: Box<Welcome>) -> ToAgent {
    welcome.events.clear();
    for (attempt, _) in &welcome.verdicts {
        match shared.services.series.through(*attempt).await {
            Ok(through) => welcome.events.push((*attempt, through)),
            // Without a word about it the agent sends from the start, and what is here already is skipped.
            Err(error) => tracing::error!(%attempt, %error, "the lines of an attempt cannot be read"),
        }
    }
    ToAgent::Welcome(welcome)
}

/// Telemetry: a sign of life, and the newest word of a device. One that is no telemetry is lost, as any datagram may be.
async fn listen(shared: &Shared, connection: &Connection, node: NodeId, words: Words) -> Result<Ending, LinkError> {
    let mut rate = Rate::default();
    loop {
        let datagram = connection.read_datagram().await?;
        if !rate.datagram() {
            continue;
        }
        if let Ok(mut said) = telemetry(&datagram, words)
            && check::telemetry(&mut said).is_ok()
        {
            shared.services.telemetry.hear(node, said);
        }
        shared.beat(node).await;
    }
}

fn telemetry(datagram: &[u8], words: Words) -> Result<Telemetry, CodecError> {
    if words.meter { codec::decode(datagram) } else { codec::decode::<former::Telemetry>(datagram).map(Into::into) }
}

/// Attempts of which this session knows that they were placed on its node.
#[derive(Default)]
struct OwnAttempts(Mutex<HashMap<AttemptId, Vec<DeviceId>>>);

impl OwnAttempts {
    fn add(&self, attempt: AttemptId, devices: Vec<DeviceId>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt, devices);
    }

    fn has(&self, attempt: AttemptId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&attempt)
    }

    fn devices(&self, attempt: AttemptId) -> Vec<DeviceId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&attempt).cloned().unwrap_or_default()
    }
}

/// What the reading half needs.
struct Peer<'a> {
    shared: &'a Shared,
    certificate: NodeCertificate,
    words: Words,
    session: u64,
    own: mpsc::Sender<ToAgent>,
    /// Until when the newest certificate of this session is valid, since 1970.
    renewed: watch::Sender<Duration>,
    own_attempts: &'a OwnAttempts,
    /// Attempts whose lines were refused last time: it is said once.
    refused: HashSet<AttemptId>,
    complaints: Complaints,
}

impl Peer<'_> {
    async fn read(&mut self, mut receive: RecvStream) -> Result<Ending, LinkError> {
        let mut rate = Rate::default();
        while let Some(mut message) = wire::read::<FromAgent>(&mut receive).await? {
            let wait = rate.message(&message);
            if let Err(why) = check::message(&mut message) {
                return Ok(Ending::Misbehaved(why));
            }
            self.hear(message).await?;
            if !wait.is_zero() {
                sleep(wait).await;
            }
        }
        Ok(Ending::Left)
    }

    async fn hear(&mut self, message: FromAgent) -> Result<(), LinkError> {
        match message {
            FromAgent::Hello(_) => return Err(LinkError::Misbehaved("it said hello twice")),
            FromAgent::Events(lines) => self.keep(lines).await,
            FromAgent::Renew(request) => {
                if self.shared.guests.may_renew(&self.certificate)
                    && let Some((renewed, ends)) = renew(self.shared, &self.certificate, &request).await
                {
                    self.renewed.send_replace(ends);
                    self.say(renewed).await;
                }
            }
            FromAgent::Trusts(_) if !self.words.trust => {
                return Err(LinkError::Misbehaved("it spoke of trust in a conversation without it"));
            }
            FromAgent::Trusts(said) => {
                let authorities = self.shared.services.trust.now();
                let differs = !authorities.are(&said.authorities);
                self.hand_on(FromAgent::Trusts(said)).await;
                if differs {
                    self.say(ToAgent::Trust(authorities.certificates())).await;
                }
            }
            FromAgent::Report(Report { body: ReportBody::Metered(_), .. }) if !self.words.meter => {
                return Err(LinkError::Misbehaved("it spoke of energy in a conversation without it"));
            }
            FromAgent::Report(report) => self.report(report).await,
            message @ (FromAgent::Heartbeat
            | FromAgent::Devices(_)
            | FromAgent::Accepted(_)
            | FromAgent::Declined { .. }) => self.hand_on(message).await,
        }
        Ok(())
    }

    async fn hand_on(&self, message: FromAgent) {
        self.shared.services.heard(self.certificate.node, self.session, message).await;
    }

    async fn say(&self, message: ToAgent) {
        // The writer ends only with the session.
        let _ = self.own.send(message).await;
    }

    async fn report(&mut self, mut report: Report) {
        // Anybody can name a job that is not here: nothing is kept of it, unless it is of before a restore.
        let is_stray = match self.standing(report.attempt).await {
            Standing::Own | Standing::Late => false,
            Standing::Foreign | Standing::Forgotten => true,
            // Not answered: it is said again.
            Standing::Unknown => return,
        };
        if !report.body.files().is_empty() {
            let is_current = self.shared.services.may_upload(self.certificate.node, report.attempt).await;
            match (self.files_are_here(&report, is_current).await, is_current) {
                (true, true) => self.shared.services.blobs.reported(report.attempt, &hashes(&report.body)),
                (true, false) => {}
                (false, true) => {
                    return self.complain(report.attempt, "a report names files that are not here; it is not taken");
                }
                (false, false) => {
                    self.complain(report.attempt, "files of an attempt that is no longer current are not here");
                    forget_files(&mut report.body);
                }
            }
        }
        if is_stray {
            let (node, driver) = (self.certificate.node, &self.shared.services.driver);
            return driver.stray(node, self.session, report).await;
        }
        self.hand_on(FromAgent::Report(report)).await;
    }

    async fn keep(&mut self, mut lines: EventLines) {
        let attempt = lines.attempt;
        self.shared.beat(self.certificate.node).await;
        match self.standing(attempt).await {
            Standing::Own => {}
            Standing::Unknown => return self.lines_wait(attempt, "the store cannot be read"),
            Standing::Late | Standing::Forgotten => {
                let through = (lines.first + lines.lines.len() as u64).saturating_sub(1);
                return self.say(ToAgent::EventsAcknowledged { attempt, through }).await;
            }
            Standing::Foreign => return self.complain(attempt, "lines of an attempt of another node"),
        }
        let (mut newest, devices) =
            (self.shared.services.telemetry.of(self.certificate.node), self.own_attempts.devices(attempt));
        let said: Option<Vec<_>> = devices.iter().map(|device| newest.remove(device)).collect();
        Felt::join(&mut lines.lines, &said.unwrap_or_default());
        match self.shared.services.series.append(lines).await {
            Ok(through) => {
                self.refused.remove(&attempt);
                self.say(ToAgent::EventsAcknowledged { attempt, through }).await;
            }
            Err(error) => self.lines_wait(attempt, &error.to_string()),
        }
    }

    /// What an agent does as often as it pleases is not logged as often.
    fn complain(&mut self, attempt: AttemptId, what: &'static str) {
        if let Some(unsaid) = self.complaints.note(what, Instant::now()) {
            tracing::warn!(node = %self.certificate.node, %attempt, unsaid, "{what}");
        }
    }

    /// What is not acknowledged the agent sends again.
    fn lines_wait(&mut self, attempt: AttemptId, why: &str) {
        if self.refused.insert(attempt) {
            tracing::error!(%attempt, why, "lines were not kept; the agent will send them again");
        }
    }

    /// Asked once per attempt and session: a placement is never taken back.
    async fn standing(&mut self, attempt: AttemptId) -> Standing {
        if self.own_attempts.has(attempt) {
            return Standing::Own;
        }
        let (standing, devices) = self.shared.services.standing(self.certificate.node, attempt).await;
        if standing == Standing::Own {
            self.own_attempts.add(attempt, devices);
        }
        standing
    }

    /// Of a current attempt those count that it has brought itself; of another nobody comes to read what it names.
    async fn files_are_here(&self, report: &Report, is_current: bool) -> bool {
        let blobs = &self.shared.services.blobs;
        let manifests = report.body.files().iter().map(|file| file.manifest.clone()).collect();
        let here = match is_current {
            true => blobs.has_brought(report.attempt, manifests).await,
            false => blobs.have_all(manifests).await,
        };
        here.unwrap_or_else(|error| {
            tracing::error!(%error, "the files of a report cannot be looked at");
            false
        })
    }
}

fn hashes(body: &ReportBody) -> Vec<Hash> {
    body.files().iter().map(|file| file.manifest.hash).collect()
}

fn forget_files(body: &mut ReportBody) {
    if let ReportBody::Checkpoint(checkpoint) = body {
        checkpoint.files.clear();
    }
    body.end_mut().into_iter().for_each(|ended| ended.files.clear());
}

/// A certificate for the next days and for the same key, and until when it is valid; `None`: the request is none, and the old one stays.
async fn renew(shared: &Shared, certificate: &NodeCertificate, request: &[u8]) -> Option<(ToAgent, Duration)> {
    let (node, services) = (certificate.node, &shared.services);
    let is_ours = tls::key_of_request(request).is_ok_and(|key| key == certificate.shown.key);
    if !is_ours || !services.knows_certificate(certificate).await {
        tracing::warn!(%node, "a certificate was not renewed: what asks for it is not this node");
        return None;
    }
    let issued = services.trust.now().certify(node, request, services.certificate_ttl);
    let issued = issued.inspect_err(|error| tracing::warn!(%node, %error, "a certificate was not renewed")).ok()?;
    services.record_certificate(node, issued.serial.clone(), None).await.ok()?;
    shared.admitted.renewed(node, issued.serial);
    let ends = Duration::from_millis(now().0) + services.certificate_ttl;
    Some((ToAgent::Renewed(issued.certificate), ends))
}

async fn say_goodbye(send: &mut SendStream, message: ToAgent) -> Result<(), LinkError> {
    wire::write(send, &message).await?;
    finish(send).await
}

async fn misbehaved(send: &mut SendStream, certificate: &NodeCertificate, why: &'static str) -> Result<(), LinkError> {
    tracing::warn!(node = %certificate.node, why, "an agent said what no agent says");
    say_goodbye(send, ToAgent::Goodbye(Farewell::Misbehaved)).await?;
    Err(LinkError::Misbehaved(why))
}

async fn finish(send: &mut SendStream) -> Result<(), LinkError> {
    let _ = send.finish();
    // Acknowledged by the peer, or it is gone.
    let _ = timeout(PATIENCE, send.stopped()).await;
    Ok(())
}
