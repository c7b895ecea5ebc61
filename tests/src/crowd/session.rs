//! One simulated agent's connection: dialled, lived, lost, and dialled again with the product's own patience.

use super::{
    Board, Member,
    script::{Script, Stage, wall},
};
use lorikeet_protocol::{
    COORDINATOR_NAME,
    agent::{FromAgent, Hello, ToAgent, former},
    backoff::Backoff,
    codec,
    id::{BootId, DeviceId},
};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Messages that were read and not yet heard.
const INBOX: usize = 1_024;
/// Asked for each socket: 64 agents, 8 devices each, an offer of 1 KB with its packet's overhead in the kernel, eight times.
const SOCKET_BYTES: usize = 8 << 20;
/// A handshake and a welcome take no longer; a crowd dials at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket that holds what all of its agents are sent at once; with the system's 200 KiB it loses offers that come faster than
/// one process on a busy machine reads, and repeating them is then what is measured.
pub(super) fn socket() -> Endpoint {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("this machine gives UDP sockets");
    // The system may give less (`net.core.rmem_max`).
    socket2::SockRef::from(&socket).set_recv_buffer_size(SOCKET_BYTES).expect("a socket takes a size");
    let runtime = quinn::default_runtime().expect("it is called inside tokio");
    Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime).expect("quinn takes a UDP socket")
}

pub(super) struct Agent {
    address: SocketAddr,
    socket: Endpoint,
    member: Member,
    script: Script,
    stage: Stage,
    board: Arc<Board>,
    boot: BootId,
}

impl Agent {
    pub(super) fn new(
        address: SocketAddr,
        socket: Endpoint,
        member: Member,
        script: Script,
        board: Arc<Board>,
    ) -> Self {
        let (stage, boot) = (Stage::new(script.clone()), BootId(Uuid::now_v7()));
        Self { address, socket, member, script, stage, board, boot }
    }

    /// Until told to leave.
    pub(super) async fn live(mut self, stop: CancellationToken, mut drops: watch::Receiver<u64>) {
        let (first, longest) = self.script.patience;
        let mut backoff = Backoff::new(first, longest);
        loop {
            drops.mark_unchanged();
            tokio::select! {
                () = stop.cancelled() => return,
                _ = drops.changed() => {}
                _ = self.session(&mut backoff) => {}
            }
            // The connection went with the session; what happens meanwhile is told later.
            let wait = backoff.wait(Uuid::now_v7().as_u64_pair().1.rotate_left(17));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn session(&mut self, backoff: &mut Backoff) -> Result<(), String> {
        let connection = tokio::time::timeout(PATIENCE, self.dial()).await.map_err(|error| error.to_string())??;
        let (mut send, receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
        write(&mut send, &FromAgent::Hello(Box::new(self.hello()))).await?;
        let (inbox, mut heard) = mpsc::channel(INBOX);
        let _reading = Reading(tokio::spawn(listen(receive, inbox)));
        let first = tokio::time::timeout(PATIENCE, heard.recv()).await.map_err(|error| error.to_string())?;
        let Some(ToAgent::Welcome(welcome)) = first else { return Err("no welcome".into()) };
        backoff.reset();
        self.welcomed(&welcome);
        let mut heartbeat = tokio::time::interval(welcome.heartbeat);
        let every = if self.script.telemetry.is_zero() { Duration::from_secs(86_400) } else { self.script.telemetry };
        let mut telemetry = tokio::time::interval(every);
        loop {
            for message in self.stage.says() {
                write(&mut send, &message).await?;
            }
            let due = self.stage.due().unwrap_or_else(|| Instant::now() + Duration::from_secs(3_600));
            tokio::select! {
                biased;
                message = heard.recv() => self.hear(message.ok_or("the stream ended")?, &mut heard),
                () = tokio::time::sleep_until(due.into()) => self.stage.tick(Instant::now(), &mut self.board.read()),
                _ = heartbeat.tick() => write(&mut send, &FromAgent::Heartbeat).await?,
                _ = telemetry.tick() => self.tell_telemetry(&connection),
            }
        }
    }

    async fn dial(&self) -> Result<Connection, String> {
        let connecting = self.socket.connect_with(self.member.config.clone(), self.address, COORDINATOR_NAME);
        connecting.map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())
    }

    fn hello(&self) -> Hello {
        Hello {
            boot: self.boot,
            instance: self.boot,
            version: "crowd".into(),
            name: self.member.node.to_string(),
            labels: Default::default(),
            devices: self.stage.devices(),
            attempts: self.stage.known(),
            cached: vec![],
            acknowledged: self.stage.acknowledged(),
        }
    }

    fn welcomed(&mut self, welcome: &lorikeet_protocol::agent::Welcome) {
        let (now, mut seen) = (Instant::now(), self.board.read());
        let entry = seen.welcomed.entry(welcome.node).or_insert((now, 0));
        *entry = (now, entry.1 + 1);
        self.stage.welcomed(welcome, now, &mut seen);
    }

    /// This one, and whatever came with it: one answer for all.
    fn hear(&mut self, message: ToAgent, more: &mut mpsc::Receiver<ToAgent>) {
        let (now, mut seen) = (Instant::now(), self.board.read());
        self.stage.hear(message, now, &mut seen);
        while let Ok(message) = more.try_recv() {
            self.stage.hear(message, now, &mut seen);
        }
    }

    fn tell_telemetry(&self, connection: &Connection) {
        if self.script.telemetry.is_zero() {
            return;
        }
        for index in 0..self.script.gpus {
            let said = former::Telemetry {
                device: DeviceId(format!("GPU-{index}")),
                time: wall(),
                utilization_percent: 50.0,
                used_bytes: 1 << 30,
                memory_bytes: 80 << 30,
                temperature_celsius: Some(50.0),
                power_watts: Some(300.0),
            };
            // A frame's body without its length, as the product sends it; losing one is fine.
            if let Ok(frame) = codec::encode(&said) {
                let _ = connection.send_datagram(frame[codec::HEADER_BYTES..].to_vec().into());
            }
        }
    }
}

/// The reading half, ended with its session.
struct Reading(tokio::task::JoinHandle<()>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn listen(mut receive: RecvStream, inbox: mpsc::Sender<ToAgent>) {
    while let Ok(message) = read::<ToAgent>(&mut receive).await {
        if inbox.send(message).await.is_err() {
            return;
        }
    }
}

pub(super) async fn read<T: DeserializeOwned>(stream: &mut RecvStream) -> Result<T, String> {
    let mut header = [0; codec::HEADER_BYTES];
    stream.read_exact(&mut header).await.map_err(|error| error.to_string())?;
    let mut body = vec![0; codec::body_length(header).map_err(|error| error.to_string())?];
    stream.read_exact(&mut body).await.map_err(|error| error.to_string())?;
    codec::decode(&body).map_err(|error| error.to_string())
}

pub(super) async fn write<T: Serialize>(stream: &mut SendStream, message: &T) -> Result<(), String> {
    let frame = codec::encode(message).map_err(|error| error.to_string())?;
    stream.write_all(&frame).await.map_err(|error| error.to_string())
}
