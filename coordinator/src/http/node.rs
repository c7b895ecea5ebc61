//! `/api/nodes`.

use super::{
    App,
    ask::{Ask, Id, Nothing},
    caller::Caller,
    failure::Failure,
    page::{Answered, Paging, one},
};
use crate::{
    access::{Actor, Context, Refusal},
    clock::now,
    cluster::{
        Sharing,
        command::{Answer, Command, NodeStatus as Live, Query},
    },
    discreet::Told,
    record::{Became, Closed, Drain, Drained, Job, JoinSecret},
    store::Store,
};
use axum::{Json, extract::State, http::StatusCode};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use lorikeet_api::{
    Envelope, FieldError, Timestamp,
    node::{DRAIN_WITHIN, DeviceView, DrainNode, DrainResult, DrainedAttempt, Node, NodeCache, NodeDrain, NodeStatus},
    route,
    token::{CreateJoinToken, JOIN_TTL, JoinToken},
};
use lorikeet_protocol::{
    agent::Telemetry,
    codec,
    id::{AttemptId, DeviceId, Hash, NodeId, UnixMillis},
    job::{Device, DeviceKind},
    join::{JoinTicket, PREFIX},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// An hour.
const DEFAULT_TTL: u64 = 3_600;
/// Ten minutes: a checkpoint and its upload.
const DRAIN: u64 = 600;

/// The machines of the cluster, as they are now.
#[utoipa::path(get, path = route::NODES, tag = "nodes", params(("page" = Option<u32>, Query), ("pageSize" = Option<u32>, Query)),
    responses((status = 200, body = Envelope<Vec<Node>>)))]
pub(super) async fn list(State(app): State<Arc<App>>, caller: Caller, paging: Paging) -> Answered<Vec<Node>> {
    let Answer::Nodes(nodes) = app.driver.query(caller.actor, Query::Nodes).await? else {
        unreachable!("the question for nodes is answered with nodes")
    };
    let own = own_attempts(&app, caller.actor, &nodes).await?;
    let told = |node: Live| {
        let newest = app.telemetry.of(node.record.id);
        view(node, (&own, Told::to(caller.actor)), newest)
    };
    Ok(paging.cut(nodes.into_iter().map(told).collect()))
}

/// Attempts that exist for the caller: what others run is not theirs to know. All are looked up in one read.
async fn own_attempts(app: &App, actor: Actor, nodes: &[Live]) -> Result<BTreeSet<AttemptId>, Failure> {
    let placed = nodes.iter().flat_map(|node| node.attempts.iter().map(|(attempt, _)| *attempt));
    let drained = nodes.iter().filter_map(|node| node.record.drain.as_ref()).flat_map(|drain| &drain.attempts);
    let all: BTreeSet<AttemptId> = placed.chain(drained.map(|drained| drained.attempt)).collect();
    if actor.sees_everything() {
        return Ok(all);
    }
    let read = move |store: &Store| {
        let mut own = BTreeSet::new();
        for attempt in all {
            let job: Option<Job> = match store.get(&attempt.job.bytes()) {
                Ok(job) => job,
                // Nobody knows whose it is.
                Err(error) if error.is_of_one_row() => None,
                Err(error) => return Err(error),
            };
            own.extend(job.filter(|job| actor.sees(job.owner)).map(|_| attempt));
        }
        Ok(own)
    };
    Ok(app.driver.read(read).await?)
}

/// As somebody sees it to whom these attempts exist and who is told so much.
fn view(node: Live, (own, told): (&BTreeSet<AttemptId>, Told), mut newest: BTreeMap<DeviceId, Telemetry>) -> Node {
    let status = match (node.connected, node.attempts.is_empty()) {
        _ if node.record.quarantine.is_some() || node.record.fault().is_some() => NodeStatus::Quarantined,
        (_, true) if matches!(node.record.closed, Some(Closed::Draining { .. } | Closed::Cordoned)) => {
            NodeStatus::Cordoned
        }
        (_, false) if matches!(node.record.closed, Some(Closed::Draining { .. })) => NodeStatus::Draining,
        (_, false) if node.record.closed == Some(Closed::Cordoned) => NodeStatus::Cordoned,
        (true, _) => NodeStatus::Online,
        (false, false) => NodeStatus::Unreachable,
        (false, true) => NodeStatus::Offline,
    };
    let reason = node.record.closed_because().map(|reason| told.closed(reason));
    let mut held = node.attempts;
    held.retain(|(attempt, _)| own.contains(attempt));
    Node {
        id: node.record.id,
        name: node.record.name,
        status,
        reason,
        version: node.version,
        labels: node.labels,
        devices: node
            .devices
            .into_iter()
            .map(|device| DeviceView {
                telemetry: newest.remove(&device.id).map(Into::into),
                ..device_view(device, &held, told)
            })
            .collect(),
        cache: node.sharing.map(cache_view),
        drain: node.record.drain.map(|drain| drain_view(drain, own)),
        joined_at: Timestamp(node.record.joined),
        last_seen: node.seen.map(Timestamp),
        unreachable_since: node.unreachable_since.map(Timestamp),
    }
}

fn cache_view(Sharing { cached, gives_at, moved }: Sharing) -> NodeCache {
    NodeCache {
        files: cached,
        gives_at: gives_at.map(|address| address.to_string()),
        from_coordinator_bytes: moved.from_coordinator,
        from_nodes_bytes: moved.from_nodes,
        to_nodes_bytes: moved.to_nodes,
    }
}

fn drain_view(Drain { started, until, ended, attempts }: Drain, own: &BTreeSet<AttemptId>) -> NodeDrain {
    let view = |Drained { attempt, became, checkpoint, left }: Drained| DrainedAttempt {
        attempt,
        result: match became {
            Became::Leaving => DrainResult::Leaving,
            Became::Saved => DrainResult::Saved,
            Became::Requeued => DrainResult::Requeued,
            Became::Over => DrainResult::Over,
            Became::Stopped => DrainResult::Stopped,
        },
        checkpoint_step: checkpoint,
        left_at: left.map(Timestamp),
    };
    NodeDrain {
        started_at: Timestamp(started),
        until: Timestamp(until),
        ended_at: ended.map(Timestamp),
        attempts: attempts.into_iter().filter(|drained| own.contains(&drained.attempt)).map(view).collect(),
    }
}

fn device_view(device: Device, held: &[(AttemptId, Vec<DeviceId>)], told: Told) -> DeviceView {
    let here = held.iter().filter(|(_, devices)| devices.contains(&device.id));
    let attempts = here.map(|(attempt, _)| *attempt).collect();
    DeviceView {
        kind: device.kind.into(),
        compute: match device.kind {
            DeviceKind::Cpu => None,
            DeviceKind::Cuda { compute: (major, minor), .. } => Some(format!("{major}.{minor}")),
        },
        driver: match device.kind {
            DeviceKind::Cuda { driver, .. } => driver.map(|driver| driver.to_string()),
            DeviceKind::Cpu => None,
        },
        id: device.id,
        name: device.name,
        memory_bytes: device.memory_bytes,
        free_bytes: device.free_bytes,
        unusable: device.usable.err().map(|reason| told.unusable(reason)),
        attempts,
        telemetry: None,
    }
}

/// One machine, as it is now.
#[utoipa::path(get, path = route::NODE, tag = "nodes", params(("id" = String, Path)), responses((status = 200, body = Envelope<Node>)))]
pub(super) async fn show(State(app): State<Arc<App>>, caller: Caller, Id(id): Id<NodeId>) -> Answered<Node> {
    looked_at(&app, caller.actor, id).await
}

/// It takes nothing new; what is there goes on.
#[utoipa::path(post, path = route::NODE_CORDON, tag = "nodes", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<Node>)))]
pub(super) async fn cordon(
    State(app): State<Arc<App>>,
    Id(id): Id<NodeId>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Answered<Node> {
    ordered(&app, caller.actor, context, id, Command::CordonNode { id }).await
}

/// What is there saves its state and goes elsewhere; what has not left in time is stopped.
#[utoipa::path(post, path = route::NODE_DRAIN, tag = "nodes", params(("id" = String, Path)), request_body = DrainNode,
    responses((status = 200, body = Envelope<Node>)))]
pub(super) async fn drain(
    State(app): State<Arc<App>>,
    Id(id): Id<NodeId>,
    Ask { context, caller, body }: Ask<DrainNode>,
) -> Answered<Node> {
    let seconds = body.within_seconds.unwrap_or(DRAIN);
    if !DRAIN_WITHIN.contains(&seconds) {
        let expected = format!("1 to {}", DRAIN_WITHIN.end());
        return Err(Failure::fields(vec![FieldError::new("withinSeconds", seconds, expected)]));
    }
    let patience = Duration::from_secs(seconds);
    ordered(&app, caller.actor, context, id, Command::DrainNode { id, patience }).await
}

/// It takes work again; a quarantine ends as well.
#[utoipa::path(post, path = route::NODE_OPEN, tag = "nodes", params(("id" = String, Path)),
    responses((status = 200, body = Envelope<Node>)))]
pub(super) async fn open(
    State(app): State<Arc<App>>,
    Id(id): Id<NodeId>,
    Ask { context, caller, .. }: Ask<Nothing>,
) -> Answered<Node> {
    ordered(&app, caller.actor, context, id, Command::OpenNode { id }).await
}

/// For ever: its certificates are worth nothing any more.
#[utoipa::path(delete, path = route::NODE, tag = "nodes", params(("id" = String, Path)), responses((status = 204)))]
pub(super) async fn retire(
    State(app): State<Arc<App>>,
    Id(id): Id<NodeId>,
    Ask { context, .. }: Ask<Nothing>,
) -> Result<StatusCode, Failure> {
    app.driver.command(context, Command::RetireNode { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// It is sent away at once: its certificates are worth nothing, its connections close, what is placed on it goes elsewhere.
#[utoipa::path(post, path = route::NODE_REVOKE, tag = "nodes", params(("id" = String, Path)), responses((status = 204)))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Id(id): Id<NodeId>,
    Ask { context, .. }: Ask<Nothing>,
) -> Result<StatusCode, Failure> {
    app.driver.command(context, Command::RevokeNode { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn ordered(app: &App, actor: Actor, context: Context, id: NodeId, command: Command) -> Answered<Node> {
    app.driver.command(context, command).await?;
    looked_at(app, actor, id).await
}

async fn looked_at(app: &App, actor: Actor, id: NodeId) -> Answered<Node> {
    let Answer::Nodes(nodes) = app.driver.query(actor, Query::Nodes).await? else {
        unreachable!("the question for nodes is answered with nodes")
    };
    let node = nodes.into_iter().find(|node| node.record.id == id).ok_or_else(|| Refusal::not_found("node"))?;
    let own = own_attempts(app, actor, std::slice::from_ref(&node)).await?;
    let newest = app.telemetry.of(id);
    one(view(node, (&own, Told::to(actor)), newest))
}

/// A string that makes one machine a node, once. Only an ADMIN may ask for it.
#[utoipa::path(post, path = route::JOIN_TOKENS, tag = "nodes", request_body = CreateJoinToken,
    responses((status = 201, body = Envelope<JoinToken>)))]
pub(super) async fn invite(
    State(app): State<Arc<App>>,
    Ask { context, body, .. }: Ask<CreateJoinToken>,
) -> Result<(StatusCode, Json<Envelope<JoinToken>>), Failure> {
    let ttl = body.ttl_seconds.unwrap_or(DEFAULT_TTL);
    if !JOIN_TTL.contains(&ttl) {
        return Err(Failure::fields(vec![FieldError::new("ttlSeconds", ttl, format!("1 to {}", JOIN_TTL.end()))]));
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)?;
    let hash = Hash(*blake3::hash(&secret).as_bytes());
    let expires = UnixMillis(now().0 + ttl * 1_000);
    app.driver.command(context, Command::CreateJoinSecret { hash, expires }).await?;
    // A repeated request made no second secret, so the one drawn here is nobody's; of the first neither it nor its end is told again.
    let fresh = app.driver.read(move |store| store.get::<JoinSecret>(&hash.0)).await?.is_some();
    let ticket = JoinTicket { address: app.link_address.clone(), ca_hash: app.trust.now().issuing().hash(), secret };
    let join_string = fresh.then(|| join_string(&ticket)).transpose();
    let join_string = join_string.map_err(|error| Failure::internal("a join string was not made", &error))?;
    let expires_at = fresh.then_some(Timestamp(expires));
    Ok((StatusCode::CREATED, Json(Envelope::one(JoinToken { join_string, expires_at }))))
}

/// The string that a person carries over: base64url of the body of a frame.
pub(crate) fn join_string(ticket: &JoinTicket) -> Result<String, codec::CodecError> {
    Ok(format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(&codec::encode(ticket)?[codec::HEADER_BYTES..])))
}
