//! A wire with weather: a UDP relay between agents and the coordinator that cuts, loses, doubles, delays and reorders, each way apart.
//!
//! ```text
//!   agent ──► front ──► one upstream socket per agent ──► coordinator
//! ```
//! Chance comes from one seed. It ends when it is dropped.

use crate::chance;
use std::{
    collections::{HashMap, hash_map::Entry},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{net::UdpSocket, runtime::Runtime};

/// The largest datagram that QUIC sends over loopback.
const DATAGRAM: usize = 65_536;

/// What becomes of datagrams one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Nothing gets through.
    pub cut: bool,
    /// So many of a hundred are lost.
    pub loss: u64,
    /// So many of a hundred arrive twice.
    pub doubled: u64,
    /// Each is up to so late, so that later ones overtake it.
    pub jitter: Duration,
}

/// Both ways, and where chance is.
#[derive(Debug)]
struct Sky {
    to_coordinator: Weather,
    to_agents: Weather,
    seed: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Proxy {
    /// Where agents dial.
    pub address: SocketAddr,
    sky: Arc<Mutex<Sky>>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// In front of a coordinator's link; fine weather.
    ///
    /// # Panics
    /// When this machine gives no sockets or threads.
    pub fn start(coordinator: SocketAddr, seed: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let front = runtime.block_on(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).expect("loopback has free ports");
        let address = front.local_addr().expect("a bound socket has an address");
        let sky = Sky { to_coordinator: Weather::default(), to_agents: Weather::default(), seed };
        let sky = Arc::new(Mutex::new(sky));
        runtime.spawn(relay(Arc::new(front), coordinator, Arc::clone(&sky)));
        Self { address, sky, runtime: Some(runtime) }
    }

    /// From now on, each way.
    pub fn weather(&self, to_coordinator: Weather, to_agents: Weather) {
        let mut sky = lock(&self.sky);
        (sky.to_coordinator, sky.to_agents) = (to_coordinator, to_agents);
    }

    /// Nothing gets through, or everything does again.
    pub fn cut(&self, cut: bool) {
        let weather = Weather { cut, ..Weather::default() };
        self.weather(weather, weather);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock(sky: &Mutex<Sky>) -> MutexGuard<'_, Sky> {
    sky.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn relay(front: Arc<UdpSocket>, coordinator: SocketAddr, sky: Arc<Mutex<Sky>>) {
    let mut upstreams = HashMap::<SocketAddr, Arc<UdpSocket>>::new();
    let mut buffer = vec![0; DATAGRAM];
    // A peer that is gone answers with an error of its own; the next datagram is another matter.
    loop {
        let Ok((length, agent)) = front.recv_from(&mut buffer).await else { continue };
        if let Entry::Vacant(place) = upstreams.entry(agent) {
            let Ok(upstream) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
            let upstream = place.insert(Arc::new(upstream));
            tokio::spawn(back(Arc::clone(upstream), Arc::clone(&front), agent, Arc::clone(&sky)));
        }
        let fates = fates(&sky, |sky| sky.to_coordinator);
        for late in fates {
            send_later(Arc::clone(&upstreams[&agent]), coordinator, buffer[..length].to_vec(), late);
        }
    }
}

async fn back(upstream: Arc<UdpSocket>, front: Arc<UdpSocket>, agent: SocketAddr, sky: Arc<Mutex<Sky>>) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let Ok((length, _)) = upstream.recv_from(&mut buffer).await else { continue };
        for late in fates(&sky, |sky| sky.to_agents) {
            send_later(Arc::clone(&front), agent, buffer[..length].to_vec(), late);
        }
    }
}

/// How late each copy of one datagram is; none: it is lost.
fn fates(sky: &Mutex<Sky>, way: impl Fn(&Sky) -> Weather) -> Vec<Duration> {
    let mut sky = lock(sky);
    let weather = way(&sky);
    let mut percent = || chance(&mut sky.seed, 100);
    if weather.cut || percent() < weather.loss {
        return vec![];
    }
    let copies = if percent() < weather.doubled { 2 } else { 1 };
    (0..copies).map(|_| weather.jitter.mul_f64(percent() as f64 / 100.0)).collect()
}

fn send_later(socket: Arc<UdpSocket>, to: SocketAddr, datagram: Vec<u8>, late: Duration) {
    tokio::spawn(async move {
        if !late.is_zero() {
            tokio::time::sleep(late).await;
        }
        // As on a wire: who is not there does not hear it.
        let _ = socket.send_to(&datagram, to).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A coordinator that answers what it hears.
    async fn echo(socket: UdpSocket) {
        let mut buffer = vec![0; 64];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    }

    #[test]
    fn weather_is_each_way_apart() {
        let far = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        far.set_nonblocking(true).unwrap();
        let proxy = Proxy::start(far.local_addr().unwrap(), 7);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let far = UdpSocket::from_std(far).unwrap();
            tokio::spawn(echo(far));
            let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let mut heard = [0; 64];
            let within = Duration::from_millis(300);
            near.send_to(b"a", proxy.address).await.unwrap();
            assert!(tokio::time::timeout(within, near.recv_from(&mut heard)).await.is_ok());
            proxy.weather(Weather::default(), Weather { cut: true, ..Weather::default() });
            near.send_to(b"b", proxy.address).await.unwrap();
            assert!(tokio::time::timeout(within, near.recv_from(&mut heard)).await.is_err());
            proxy.weather(Weather { doubled: 100, ..Weather::default() }, Weather::default());
            near.send_to(b"c", proxy.address).await.unwrap();
            for _ in 0..2 {
                assert!(tokio::time::timeout(within, near.recv_from(&mut heard)).await.is_ok());
            }
        });
    }
}
