//! What the link asks the driver. A driver that is gone answers like one that refuses: the agent tries again.

use super::Services;
use crate::{
    access::{Actor, Refusal},
    cluster::command::{Answer, Command, Query},
    record::{Attempt, Node, Receipt},
    start::system,
};
use lorikeet_protocol::{
    agent::FromAgent,
    id::{AttemptId, Hash, NodeId},
};
use std::net::SocketAddr;
use uuid::Uuid;

impl Services {
    /// Makes a machine a node; `Err` is a sentence for the person there.
    pub(super) async fn join(&self, secret: Hash, key: Hash, name: String, from: SocketAddr) -> Result<NodeId, String> {
        let command = Command::Join { secret, key, name, node: NodeId(Uuid::now_v7()) };
        match self.driver.command(system(from.to_string()), command).await {
            Ok(Receipt::Node(node)) => Ok(node),
            Ok(receipt) => unreachable!("joining makes a node, not {receipt:?}"),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    /// Lets a certificate in from now on.
    pub(super) async fn record_certificate(&self, node: NodeId, serial: String) -> Result<(), Refusal> {
        let command = Command::RecordCertificate { node, serial };
        self.driver.command(system(node.to_string()), command).await.map(|_| ())
    }

    /// Whether a certificate is one of those that are let in.
    pub(super) async fn knows_certificate(&self, node: NodeId, serial: &str) -> bool {
        let row = self.driver.read(move |store| store.get::<Node>(&node.bytes())).await;
        row.ok().flatten().is_some_and(|node| node.serials.iter().any(|known| known == serial))
    }

    /// Hands on what an agent said.
    pub(super) async fn heard(&self, node: NodeId, session: u64, message: FromAgent) {
        self.driver.heard(node, session, message).await;
    }

    /// A file that was registered in place is no longer what it was.
    pub(super) async fn mark_changed(&self, file: Hash) {
        let command = Command::MarkChanged { file };
        if let Err(error) = self.driver.command(system("blob"), command).await {
            tracing::error!(%file, %error, "a base model that changed could not be closed");
        }
    }

    /// Whether the node's attempt, under its current token, names the file.
    pub(super) async fn may_fetch(&self, node: NodeId, attempt: AttemptId, file: Hash) -> bool {
        self.allowed(Query::MayFetch { node, attempt, file }).await
    }

    /// Whether the attempt is current and the node's.
    pub(super) async fn may_upload(&self, node: NodeId, attempt: AttemptId) -> bool {
        self.allowed(Query::MayUpload { node, attempt }).await
    }

    /// Whether the attempt was placed on this node, now or before: its lines are kept even when its word no longer counts.
    pub(super) async fn may_append(&self, node: NodeId, id: AttemptId) -> bool {
        let placed =
            move |attempt: &Attempt| attempt.id == id && attempt.members.iter().any(|member| member.node == node);
        self.driver.read(move |store| store.scan(&id.job.bytes(), placed)).await.is_ok_and(|found| !found.is_empty())
    }

    async fn allowed(&self, query: Query) -> bool {
        matches!(self.driver.query(Actor::System, query).await, Ok(Answer::Allowed(true)))
    }
}
