//! Machines of a cluster with their files, and a coordinator that counts what it brings.

use super::*;

/// While the other is under way.
pub(super) async fn until_or(
    other: &mut (impl Future<Output = Result<Vec<u8>, TakeError>> + Unpin),
    holds: impl Fn() -> bool,
) {
    tokio::select! {
        came = other => panic!("it was to wait: {:?}", came.map(|bytes| bytes.len())),
        () = until(holds) => {}
    }
}

pub(super) async fn until(holds: impl Fn() -> bool) {
    within(async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The first chunk, over this connection.
pub(super) async fn ask(connection: &Connection, giver: &Giver) -> Result<Vec<u8>, TakeError> {
    within(exchange(connection, giver, 0)).await
}

pub(super) fn refusal(taken: Result<Vec<u8>, TakeError>) -> Refusal {
    match taken {
        Err(TakeError::Refused(refusal)) => refusal,
        other => panic!("expected a refusal, got {:?}", other.map(|bytes| bytes.len())),
    }
}

pub(super) fn seal(reader: NodeId, file: Hash, expires: UnixMillis, key: GrantKey) -> Grant {
    let seal = blake3::keyed_hash(&key.0, &Grant::words(reader, file, expires));
    Grant { reader, file, expires, seal: Hash(*seal.as_bytes()) }
}

/// A file of any bytes.
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) manifest: FileManifest,
}

impl File {
    pub(super) fn new(seed: u8, length: usize) -> Self {
        let bytes: Vec<u8> = (0..length).map(|at| seed ^ (at % 251) as u8 ^ (at >> 20) as u8).collect();
        let hash = |bytes: &[u8]| Hash(*blake3::hash(bytes).as_bytes());
        let chunks = bytes.chunks(CHUNK).map(hash).collect();
        let manifest = FileManifest { size: length as u64, hash: hash(&bytes), chunks };
        Self { bytes, manifest }
    }
}

/// A machine of a cluster, with its cache.
pub(super) struct Node {
    pub(super) folder: tempfile::TempDir,
    pub(super) id: NodeId,
    pub(super) caller: Caller,
    pub(super) lines: Lines,
    pub(super) cache: Cache,
    pub(super) desk: Desk,
}

impl Node {
    pub(super) fn new(cluster: &Authority, number: u128) -> Self {
        Self::with_life(cluster, number, (-60, 3_600))
    }

    pub(super) fn with_life(cluster: &Authority, number: u128, (from, to): (i64, i64)) -> Self {
        let (folder, id) = (tempfile::tempdir().unwrap(), NodeId(uuid::Uuid::from_u128(number)));
        let request = Key::load_or_create(folder.path()).unwrap().signing_request().unwrap();
        let certificate = cluster.certify_as(id, &request, from, to);
        let joined = lorikeet_protocol::join::Identity { node: id, certificate, ca: cluster.certificate.to_vec() };
        Identity::store(folder.path(), "127.0.0.1:9", &joined).unwrap();
        Self::open(folder, id)
    }

    pub(super) fn open(folder: tempfile::TempDir, id: NodeId) -> Self {
        let link = config::Link { connect_timeout: Duration::from_secs(5), ..config::Link::default() };
        let caller = Caller::new(Identity::load(folder.path()).unwrap(), None, Timers::new(&link)).unwrap();
        let cache = Cache::open(&folder.path().join("cache"), &config::Cache::default()).unwrap();
        let (lines, desk) = (caller.lines.clone(), caller.desk());
        Self { folder, id, caller, lines, cache, desk }
    }

    /// The same, but it trusts another's CA.
    pub(super) fn with_ca_of(self, other: &Self) -> Self {
        std::fs::copy(other.folder.path().join("ca.crt"), self.folder.path().join("ca.crt")).unwrap();
        Self::open(self.folder, self.id)
    }

    /// Under the file's name, whatever the bytes.
    pub(super) fn hold(&self, file: &File, bytes: &[u8]) {
        self.cache.hold(file.manifest.hash, bytes);
    }

    pub(super) fn bind(&self, listen: SocketAddr, bandwidth: u64) -> Result<Giving, GiveError> {
        Giving::bind(listen, self.caller.shared_identity(), self.cache.clone(), self.desk.clone(), bandwidth)
    }

    pub(super) fn start(&self) -> Running {
        self.start_at(1 << 30)
    }

    /// Gives so many bytes in a second.
    pub(super) fn start_at(&self, bandwidth: u64) -> Running {
        self.desk.told(KEY, NOW);
        self.run(bandwidth)
    }

    pub(super) fn start_untold(&self) -> Running {
        self.run(1 << 30)
    }

    pub(super) fn run(&self, bandwidth: u64) -> Running {
        let giving = self.bind("127.0.0.1:0".parse().unwrap(), bandwidth).unwrap();
        let (node, address, cancel) = (self.id, giving.address(), CancellationToken::new());
        let shared = Arc::clone(&giving.shared);
        let task = tokio::spawn(giving.run(cancel.clone()));
        Running { node, address, shared, cancel, task }
    }

    /// As the coordinator's word in a rotation does.
    pub(super) fn trust(&self, authorities: &[&Authority]) {
        let authorities: Vec<_> = authorities.iter().map(|authority| authority.certificate.to_vec()).collect();
        self.caller.replace_identity(self.caller.identity().trust(&authorities).unwrap());
    }

    pub(super) fn renew(&self, authority: &Authority) {
        let identity = self.caller.identity();
        let certificate = authority.certify_as(self.id, &identity.signing_request().unwrap(), -60, 3_600);
        self.caller.replace_identity(identity.renew(certificate).unwrap());
    }

    /// A connection of its own.
    pub(super) async fn dial(&self, giver: &Giver) -> Connection {
        within(self.caller.dial_giver(giver, Duration::from_secs(5))).await.unwrap()
    }

    pub(super) async fn take(&self, giver: &Giver, chunk: u32) -> Result<Vec<u8>, TakeError> {
        within(self.lines.take(&self.caller, giver, chunk)).await
    }

    pub(super) fn source<'a>(&'a self, file: &'a File, givers: Vec<Giver>) -> Mixed<'a> {
        Mixed { node: self, file, givers, coordinator: AtomicU64::new(0), held: AtomicU64::new(0), refusal: None }
    }
}

/// A node that gives.
pub(super) struct Running {
    pub(super) node: NodeId,
    pub(super) address: SocketAddr,
    pub(super) shared: Arc<Serving>,
    pub(super) cancel: CancellationToken,
    pub(super) task: tokio::task::JoinHandle<()>,
}

impl Running {
    pub(super) fn leave(&self, reader: &Node, file: &File) -> Giver {
        let grant = seal(reader.id, file.manifest.hash, SOON, KEY);
        Giver { node: self.node, address: self.address, grant }
    }

    pub(super) async fn stop(self) {
        self.cancel.cancel();
        within(self.task).await.unwrap();
    }
}

/// A coordinator that counts, beside real nodes.
pub(super) struct Mixed<'a> {
    pub(super) node: &'a Node,
    pub(super) file: &'a File,
    pub(super) givers: Vec<Giver>,
    pub(super) coordinator: AtomicU64,
    /// While this is not 0, the coordinator's chunks are on their way.
    pub(super) held: AtomicU64,
    pub(super) refusal: Option<Refusal>,
}

impl Source for Mixed<'_> {
    async fn chunk(&self, _attempt: AttemptId, _file: Hash, index: u32) -> Result<Vec<u8>, Refusal> {
        while self.held.load(Relaxed) != 0 {
            tokio::task::yield_now().await;
        }
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let bytes = self.file.bytes.chunks(CHUNK).nth(index as usize).unwrap_or(&[]).to_vec();
        self.coordinator.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes)
    }

    async fn givers(&self, _attempt: AttemptId, _file: Hash) -> Vec<Giver> {
        self.givers.clone()
    }

    async fn take(&self, giver: &Giver, index: u32) -> Result<Vec<u8>, TakeError> {
        self.node.lines.take(&self.node.caller, giver, index).await
    }
}
