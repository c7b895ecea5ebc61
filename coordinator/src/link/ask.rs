//! What the link asks the driver. A driver that is gone answers like one that refuses: the agent tries again.

use super::{Services, tls::NodeCertificate};
use crate::{
    access::{Actor, Refusal},
    clock::now,
    cluster::command::{Answer, Command, Query},
    driver::as_system,
    record::{Attempt, Job, Receipt},
};
use lorikeet_protocol::{
    agent::FromAgent,
    id::{AttemptId, DeviceId, Hash, NodeId, UnixMillis},
};
use std::net::SocketAddr;
use uuid::Uuid;

/// Lines of an attempt are taken for so long after its end; an agent that was away for longer may forget them.
const LINES_TAKEN_MILLIS: u64 = 30 * 86_400_000;

impl Services {
    /// Makes a machine a node.
    pub(super) async fn join(
        &self,
        secret: Hash,
        key: Hash,
        name: String,
        from: SocketAddr,
    ) -> Result<NodeId, Refusal> {
        let command = Command::Join { secret, key, name, node: NodeId(Uuid::now_v7()) };
        match self.driver.command(as_system(from.to_string()), command).await {
            Ok(Receipt::Node(node)) => Ok(node),
            Ok(receipt) => unreachable!("joining makes a node, not {receipt:?}"),
            Err(refusal) => Err(refusal),
        }
    }

    /// Lets a certificate in from now on; `joined` names the CA that a machine which joins is told with it.
    pub(super) async fn record_certificate(
        &self,
        node: NodeId,
        serial: String,
        joined: Option<Hash>,
    ) -> Result<(), Refusal> {
        let command = Command::RecordCertificate { node, serial, joined };
        self.driver.command(as_system(node.to_string()), command).await.map(|_| ())
    }

    /// Whether a certificate is one of those that are let in.
    pub(super) async fn knows_certificate(&self, certificate: &NodeCertificate) -> bool {
        let (node, shown) = (certificate.node, certificate.shown.clone());
        self.allowed(Query::KnowsCertificate { node, shown }).await
    }

    /// Hands on what an agent said.
    pub(super) async fn heard(&self, node: NodeId, session: u64, message: FromAgent) {
        self.driver.heard(node, session, message).await;
    }

    /// A file that was registered in place is no longer what it was.
    pub(super) async fn mark_changed(&self, file: Hash) {
        let command = Command::MarkChanged { file };
        if let Err(error) = self.driver.command(as_system("blob"), command).await {
            tracing::error!(%file, %error, "a base model that changed could not be closed");
        }
    }

    /// Whether the node's attempt, under its current token, names the file.
    pub(super) async fn may_fetch(&self, node: NodeId, attempt: AttemptId, file: Hash) -> bool {
        self.allowed(Query::MayFetch { node, attempt, file }).await
    }

    /// Which other nodes give the file; `None` where the node may not read it.
    pub(super) async fn givers(
        &self,
        node: NodeId,
        attempt: AttemptId,
        file: Hash,
    ) -> Option<Vec<(NodeId, SocketAddr)>> {
        match self.driver.query(Actor::System, Query::Givers { node, attempt, file }).await {
            Ok(Answer::Givers(givers)) => givers,
            // A driver that is gone names nobody.
            _ => Some(Vec::new()),
        }
    }

    /// Whether the attempt is current and the node's.
    pub(super) async fn may_upload(&self, node: NodeId, attempt: AttemptId) -> bool {
        self.allowed(Query::MayUpload { node, attempt }).await
    }

    /// Whose the attempt is that a node brings lines or a report of, and on which devices of the node it was placed.
    pub(super) async fn standing(&self, node: NodeId, id: AttemptId) -> (Standing, Vec<DeviceId>) {
        let placed =
            move |attempt: &Attempt| attempt.id == id && attempt.members.iter().any(|member| member.node == node);
        let found = self.driver.read(move |store| {
            let attempts = store.scan(&id.job.bytes(), placed)?;
            // An attempt of this generation whose job is not here was forgotten with it. Of an earlier one a restored backup may not know.
            let forgotten = id.token.generation == store.generation()? && store.get::<Job>(&id.job.bytes())?.is_none();
            Ok((attempts, forgotten))
        });
        let long_ago = UnixMillis(now().0.saturating_sub(LINES_TAKEN_MILLIS));
        let Ok((mut found, forgotten)) = found.await else { return (Standing::Unknown, Vec::new()) };
        match found.pop() {
            None if forgotten => (Standing::Forgotten, Vec::new()),
            None => (Standing::Foreign, Vec::new()),
            Some(attempt) if attempt.end.as_ref().is_some_and(|end| end.at < long_ago) => (Standing::Late, Vec::new()),
            Some(attempt) => {
                let here = attempt.members.into_iter().filter(|member| member.node == node);
                (Standing::Own, here.flat_map(|member| member.devices).collect())
            }
        }
    }

    async fn allowed(&self, query: Query) -> bool {
        matches!(self.driver.query(Actor::System, query).await, Ok(Answer::Allowed(true)))
    }
}

/// What an attempt is to the node that says something of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The store cannot be read now: nothing is answered, and the agent says it again.
    Unknown,
    /// It was placed on this node, now or before: its lines are kept even when its word no longer counts.
    Own,
    /// It has been over for so long that nobody asks for its lines: they may go.
    Late,
    /// Its job is not here, and nobody asks for anything of it: its lines may go.
    Forgotten,
    /// It was never this node's.
    Foreign,
}
