//! `/api/ca`, `/api/ca/rotation`: the certificate authority, and the way to the next one.

use super::{
    App,
    ask::{Ask, Nothing},
    caller::Caller,
    failure::Failure,
    page::{Answered, one},
};
use crate::{
    access::Actor,
    clock::now,
    cluster::command::{Answer, NodeStatus as Live, Query},
    link::{tls::Authority, trust::Authorities},
    rotation::{self, RotationError},
};
use axum::extract::State;
use lorikeet_api::{
    Envelope, Timestamp,
    ca::{CaCertificate, CaFacts, FinishRotation, NodeTrust, Rotation, RotationPhase},
    route,
};
use lorikeet_protocol::id::UnixMillis;
use std::{sync::Arc, time::Duration};

impl From<RotationError> for Failure {
    fn from(error: RotationError) -> Self {
        match error {
            RotationError::Refused(refusal) => refusal.into(),
            RotationError::Files(error) => error.into(),
        }
    }
}

/// The certificate of the CA that signs; needs no token, because who pins it compares the hash first.
#[utoipa::path(get, path = route::CA, tag = "ca", security(()), responses((status = 200, body = Envelope<CaCertificate>)))]
pub(super) async fn certificate(State(app): State<Arc<App>>) -> Answered<CaCertificate> {
    let authorities = app.trust.now();
    one(CaCertificate { pem: authorities.issuing().pem().to_owned(), hash: authorities.issuing().hash() })
}

/// Where the rotation of the CA is, and what it waits for; for administrators.
#[utoipa::path(get, path = route::CA_ROTATION, tag = "ca", responses((status = 200, body = Envelope<Rotation>)))]
pub(super) async fn show(State(app): State<Arc<App>>, caller: Caller) -> Answered<Rotation> {
    caller.actor.require_admin("see what nodes trust")?;
    standing(&app, caller.actor).await
}

/// Makes the next CA, which signs from now on; both are trusted until the rotation is finished. One that is under way goes on.
#[utoipa::path(post, path = route::CA_ROTATION, tag = "ca", responses((status = 200, body = Envelope<Rotation>)))]
pub(super) async fn begin(
    State(app): State<Arc<App>>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Answered<Rotation> {
    rotation::begin(&app.driver, &app.trust, context).await?;
    standing(&app, caller.actor).await
}

/// Forgets the older CA now. Refused with the names of the nodes that would be cut off, unless it is forced.
#[utoipa::path(post, path = route::CA_ROTATION_FINISH, tag = "ca", request_body = FinishRotation,
    responses((status = 200, body = Envelope<Rotation>)))]
pub(super) async fn finish(
    State(app): State<Arc<App>>,
    Ask { context, caller, body }: Ask<FinishRotation>,
) -> Answered<Rotation> {
    rotation::finish(&app.driver, &app.trust, context, body.force).await?;
    standing(&app, caller.actor).await
}

async fn standing(app: &App, actor: Actor) -> Answered<Rotation> {
    let Answer::Nodes(nodes) = app.driver.query(actor, Query::Nodes).await? else {
        unreachable!("the question for nodes is answered with nodes")
    };
    let authorities = app.trust.now();
    let nodes: Vec<NodeTrust> = nodes.into_iter().map(|node| trust_of(node, &authorities)).collect();
    let finishes = rotation::finishes_at(&authorities, app.config.link.certificate_ttl);
    let waits_for = finishes.map_or_else(Vec::new, |at| waits(&nodes, at, now()));
    one(Rotation {
        phase: if authorities.next().is_some() { RotationPhase::Overlap } else { RotationPhase::Settled },
        current: facts(authorities.current()),
        next: authorities.next().map(facts),
        began_at: authorities.next().map(|next| moment(next.made())),
        finishes_at: finishes.map(Timestamp),
        waits_for,
        nodes,
    })
}

fn trust_of(node: Live, authorities: &Authorities) -> NodeTrust {
    let behind = if node.record.is_strange_to(&authorities.hashes()) {
        Some("it trusts no authority that is here: it was cut off and has to join again".to_owned())
    } else {
        node.record.behind(authorities.issuing().hash(), node.connected).map(|why| why.to_string())
    };
    let trust = node.record.trust;
    let holds = trust.as_ref().and_then(|trust| trust.issuer);
    let trusts = trust.map(|trust| trust.authorities).unwrap_or_default();
    NodeTrust { id: node.record.id, name: node.record.name, trusts, holds, behind }
}

/// Nodes first: they are what a person can do something about.
fn waits(nodes: &[NodeTrust], finishes: UnixMillis, now: UnixMillis) -> Vec<String> {
    let behind = nodes.iter().filter_map(|node| Some(format!("{}: {}", node.name, node.behind.as_ref()?)));
    let time = (now < finishes)
        .then(|| format!("{}, so that people and programs that are seldom here learn of it too", Timestamp(finishes)));
    behind.chain(time).collect()
}

fn facts(authority: &Authority) -> CaFacts {
    let left = authority.ends().saturating_sub(Duration::from_millis(now().0));
    CaFacts { hash: authority.hash(), expires_at: moment(authority.ends()), days_left: left.as_secs() / 86_400 }
}

fn moment(since: Duration) -> Timestamp {
    Timestamp(UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}
