//! One session: dial, hello, welcome, then both directions until one of them ends.

use super::{
    Backoff, Link, LinkError, LinkState, News, OUTGOING, Session, Words, frame,
    identity::{Identity, IdentityError},
    judge,
};
use lorikeet_protocol::{
    ALPN_CONTROL, ALPN_CONTROL_EXPEL, ALPN_CONTROL_METER, ALPN_CONTROL_TRUST,
    agent::{FromAgent, ToAgent},
};
use quinn::{Connection, RecvStream, SendStream};
use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// The newest that the coordinator knows is spoken.
const CONVERSATIONS: [&[u8]; 4] = [ALPN_CONTROL_METER, ALPN_CONTROL_EXPEL, ALPN_CONTROL_TRUST, ALPN_CONTROL];

/// CAs that the coordinator wants trusted and the disk did not keep, and when they are tried again.
type Unkept = Option<(Vec<Vec<u8>>, Instant)>;

impl Link {
    /// Lives one session; answers why it ended.
    pub(super) async fn session(&self, backoff: &mut Backoff, cancel: &CancellationToken) -> LinkError {
        let connection = match self.caller.dial(&CONVERSATIONS).await {
            Ok(connection) => connection,
            Err(error) => return error,
        };
        let ended = self.converse(&connection, backoff, cancel).await;
        let Err(error) = ended;
        let error = self.better(&connection, error).await;
        connection.close(0u32.into(), b"");
        error
    }

    /// A broken stream says less than the reason for which its connection was closed.
    async fn better(&self, connection: &Connection, error: LinkError) -> LinkError {
        if !matches!(error, LinkError::Frame(_) | LinkError::Connection(_)) {
            return error;
        }
        match timeout(Duration::from_millis(200), connection.closed()).await {
            Ok(reason) => judge(reason),
            Err(_) => error,
        }
    }

    async fn converse(
        &self,
        connection: &Connection,
        backoff: &mut Backoff,
        cancel: &CancellationToken,
    ) -> Result<Infallible, LinkError> {
        let (mut send, mut receive) = connection.open_bi().await?;
        if self.is_expired() {
            return self.renew_first(&mut send, &mut receive).await;
        }
        let limit = self.caller.timers.connect_timeout;
        let (answer, hello) = oneshot::channel();
        self.news.send(News::Dialled(answer)).await.map_err(|_| LinkError::Stopping)?;
        let hello = hello.await.map_err(|_| LinkError::Stopping)?;
        frame::write(&mut send, &FromAgent::Hello(Box::new(hello))).await?;
        let first = timeout(limit, frame::read(&mut receive)).await.map_err(|_| LinkError::Silence(limit))??;
        let welcome = match first {
            ToAgent::Welcome(welcome) => welcome,
            ToAgent::Goodbye(farewell) => return Err(LinkError::Farewell(farewell)),
            ToAgent::Offer(_)
            | ToAgent::Stop { .. }
            | ToAgent::SaveNow(_)
            | ToAgent::Acknowledged { .. }
            | ToAgent::EventsAcknowledged { .. }
            | ToAgent::Forget(_)
            | ToAgent::Renewed(_)
            | ToAgent::Trust(_)
            | ToAgent::Expelled(_) => return Err(LinkError::Misbehaved("answered a hello with something else")),
        };
        backoff.reset();
        tracing::info!(node = %welcome.node, session = welcome.session, "connected to the coordinator");
        let heartbeat = welcome.heartbeat.max(Duration::from_millis(10));
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        let words = Words::of(connection);
        let session = Session { outgoing, connection: connection.clone(), words };
        self.state.send_replace(LinkState::Up { node: welcome.node, session: welcome.session });
        self.news.send(News::Welcomed(welcome, session)).await.map_err(|_| LinkError::Stopping)?;
        // Each lives until the session ends, so none is cut in the middle of a frame and begun again.
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                let _ = send.finish();
                Err(LinkError::Stopping)
            }
            ended = self.listen(&mut receive) => ended,
            ended = self.speak(&mut send, messages, heartbeat, words) => ended,
        }
    }

    async fn listen(&self, receive: &mut RecvStream) -> Result<Infallible, LinkError> {
        let mut unkept = None;
        loop {
            match self.hear(receive, &mut unkept).await? {
                ToAgent::Goodbye(farewell) => return Err(LinkError::Farewell(farewell)),
                ToAgent::Welcome(_) => return Err(LinkError::Misbehaved("said welcome twice")),
                ToAgent::Renewed(certificate) => self.renewed(certificate).await,
                ToAgent::Expelled(node) => self.caller.expel(node).await,
                ToAgent::Trust(authorities) => unkept = self.trust(authorities).await,
                message @ (ToAgent::Offer(_)
                | ToAgent::Stop { .. }
                | ToAgent::SaveNow(_)
                | ToAgent::Acknowledged { .. }
                | ToAgent::EventsAcknowledged { .. }
                | ToAgent::Forget(_)) => {
                    self.news.send(News::Heard(message)).await.map_err(|_| LinkError::Stopping)?;
                }
            }
        }
    }

    async fn speak(
        &self,
        send: &mut SendStream,
        mut messages: mpsc::Receiver<FromAgent>,
        heartbeat: Duration,
        words: Words,
    ) -> Result<Infallible, LinkError> {
        let (mut asked, mut driver) = (None::<Instant>, self.pulse.listen(Instant::now()));
        let mut told = None::<Arc<Identity>>;
        loop {
            let identity = self.caller.identity();
            let untold = told.as_ref().is_none_or(|told| !Arc::ptr_eq(told, &identity));
            let outdated = words.trust && identity.is_of_an_older_authority();
            let due = (outdated || self.renewal_is_due())
                && asked.is_none_or(|asked| asked.elapsed() >= self.caller.timers.ask_again);
            let message = if words.trust && untold {
                FromAgent::Trusts(told.insert(identity).trusts())
            } else if due {
                asked = Some(Instant::now());
                FromAgent::Renew(self.caller.identity().signing_request()?)
            } else {
                match timeout(heartbeat, messages.recv()).await {
                    Ok(Some(message)) => message,
                    Ok(None) if self.news.is_closed() => return Err(LinkError::Stopping),
                    Ok(None) => return Err(LinkError::Speechless),
                    // Who can report nothing must not look alive: its silence is counted, and its jobs go to others in time.
                    Err(_) if driver.silence(Instant::now()) >= self.caller.timers.report_retry => {
                        return Err(LinkError::Speechless);
                    }
                    Err(_) => FromAgent::Heartbeat,
                }
            };
            frame::write(send, &words.sayable(message)).await?;
        }
    }

    /// With a certificate that has run out, renewing is the only thing a node may ask for.
    async fn renew_first(&self, send: &mut SendStream, receive: &mut RecvStream) -> Result<Infallible, LinkError> {
        let limit = self.caller.timers.connect_timeout;
        frame::write(send, &FromAgent::Renew(self.caller.identity().signing_request()?)).await?;
        match timeout(limit, frame::read(receive)).await.map_err(|_| LinkError::Silence(limit))?? {
            ToAgent::Renewed(certificate) => {
                self.renewed(certificate).await;
                Err(LinkError::Misbehaved("renewed the certificate, which had run out; dialling again"))
            }
            ToAgent::Goodbye(farewell) => Err(LinkError::Farewell(farewell)),
            ToAgent::Welcome(_)
            | ToAgent::Offer(_)
            | ToAgent::Stop { .. }
            | ToAgent::SaveNow(_)
            | ToAgent::Acknowledged { .. }
            | ToAgent::EventsAcknowledged { .. }
            | ToAgent::Forget(_)
            | ToAgent::Trust(_)
            | ToAgent::Expelled(_) => Err(LinkError::Misbehaved("answered a renewal with something else")),
        }
    }

    /// The next word; meanwhile what the disk did not keep is tried again: the coordinator waits for it, and says it only once.
    async fn hear(&self, receive: &mut RecvStream, unkept: &mut Unkept) -> Result<ToAgent, LinkError> {
        // Read on, whatever happens meanwhile: it may be in the middle of a frame.
        let reading = frame::read(receive);
        tokio::pin!(reading);
        while let Some((authorities, at)) = unkept.take() {
            tokio::select! {
                biased;
                () = sleep_until(at.into()) => *unkept = self.trust(authorities).await,
                heard = &mut reading => {
                    *unkept = Some((authorities, at));
                    return Ok(heard?);
                }
            }
        }
        Ok(reading.await?)
    }

    /// Trusts what the coordinator names; what was kept is told in `speak`. What was not is answered.
    async fn trust(&self, authorities: Vec<Vec<u8>>) -> Unkept {
        let identity = self.caller.identity();
        if identity.authorities.iter().map(|ca| ca.as_ref()).eq(authorities.iter().map(Vec::as_slice)) {
            return None;
        }
        let wanted = authorities.clone();
        let trusted = tokio::task::spawn_blocking(move || identity.trust(&wanted)).await;
        match trusted {
            Ok(Ok(identity)) => {
                tracing::info!(trusts = ?identity.trusts().authorities, "the coordinator's certificate authority is rotated");
                self.caller.replace_identity(identity);
                return None;
            }
            // These will never be trusted.
            Ok(Err(error @ IdentityError::Authority { .. })) => {
                tracing::error!("could not {}", super::chain(&error));
                return None;
            }
            Ok(Err(error)) => tracing::error!("could not {}; it is tried again", super::chain(&error)),
            Err(error) => tracing::error!(%error, "keeping the coordinator's certificate authorities failed"),
        }
        Some((authorities, Instant::now() + self.caller.timers.ask_again))
    }

    async fn renewed(&self, certificate: Vec<u8>) {
        let identity = self.caller.identity();
        let renewed = tokio::task::spawn_blocking(move || identity.renew(certificate)).await;
        match renewed {
            Ok(Ok(identity)) => {
                tracing::info!(node = %identity.node, "the node's certificate was renewed");
                if let Some(off) = identity.clock_off(wall()) {
                    tracing::error!("{off}");
                }
                self.caller.replace_identity(identity);
            }
            Ok(Err(error)) => tracing::error!("could not keep the renewed certificate: {}", super::chain(&error)),
            Err(error) => tracing::error!(%error, "keeping the renewed certificate failed"),
        }
    }

    fn renewal_is_due(&self) -> bool {
        let identity = self.caller.identity();
        !identity.is_fresh() && identity.half_life().is_ok_and(|half| half <= wall())
    }

    fn is_expired(&self) -> bool {
        let identity = self.caller.identity();
        !identity.is_fresh() && identity.end_of_life().is_ok_and(|end| end <= wall())
    }
}

fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
