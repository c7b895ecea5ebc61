//! `lorikeet nodes` and `lorikeet node …`.

use super::{job::NoBody, named};
use crate::{
    args::{Node as Args, OneNode},
    client::Client,
    failure::Failure,
    output::Output,
};
use lorikeet_api::{
    node::{DrainNode, Node},
    route::{self, with_id},
    token::{CreateJoinToken, JoinToken},
};
use std::time::{Duration, Instant};

/// A drain takes minutes.
const POLL: Duration = Duration::from_millis(500);
/// A worker that is stopped as it is ends at once; its word takes a report.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// All machines: they are few enough for one list.
pub(crate) async fn list(client: &Client, output: Output) -> Result<(), Failure> {
    output.answer(&client.all::<Node>(route::NODES, &[]).await?)
}

/// Does what was asked of one machine, or for the next one.
pub(crate) async fn run(client: &Client, output: Output, args: Args) -> Result<(), Failure> {
    let at = async |route, OneNode { node }: OneNode| {
        Ok::<_, Failure>(with_id(route, named::id::<Node>(client, output, &node).await?))
    };
    match args {
        Args::List => list(client, output).await,
        Args::Token { ttl } => invite(client, output, ttl).await,
        Args::Show(node) => output.answer(&client.get::<Node>(&at(route::NODE, node).await?, &[]).await?),
        Args::Cordon(node) => output.answer(&order(client, &at(route::NODE_CORDON, node).await?, &NoBody {}).await?),
        Args::Open(node) => output.answer(&order(client, &at(route::NODE_OPEN, node).await?, &NoBody {}).await?),
        Args::Drain { node, wait, within } => {
            let body = DrainNode { within_seconds: Some(within.as_secs()) };
            let path = at(route::NODE_DRAIN, node).await?;
            if wait {
                let ordered: Node = client.post(&path, &[], &body).await?;
                return drained(client, output, ordered, within).await;
            }
            output.answer(&order(client, &path, &body).await?)
        }
        Args::Retire(node) => client.delete(&at(route::NODE, node).await?).await,
        Args::Revoke(node) => client.order(&at(route::NODE_REVOKE, node).await?).await,
    }
}

/// Until nothing that was there runs any more. A machine that is not heard stops nothing: that is said, and its word is not waited for.
async fn drained(client: &Client, output: Output, mut node: Node, within: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + within + STOPPED_WITHIN;
    while goes_on(&node) && Instant::now() < deadline {
        tokio::time::sleep(POLL).await;
        node = client.get(&with_id(route::NODE, node.id), &[]).await?;
    }
    output.answer(&node)?;
    what_is_left(&node).map_or(Ok(()), |why| Err(Failure::refused(why)))
}

/// Whether more may become of what was there: until the drain's time is up, and then as long as somebody is here to say so.
fn goes_on(node: &Node) -> bool {
    let is_heard = node.unreachable_since.is_none();
    node.drain.as_ref().is_some_and(|drain| !drain.is_done() && (drain.ended_at.is_none() || is_heard))
}

/// Why a person may not switch the machine off yet.
fn what_is_left(node: &Node) -> Option<String> {
    let Some(drain) = &node.drain else {
        return Some("the drain was withdrawn: somebody opened the node, and work may run there".into());
    };
    let left = drain.attempts.iter().filter(|attempt| attempt.left_at.is_none()).count();
    let silent =
        || format!("{left} of its attempts were told to stop and have not said that they did; the node may be away");
    (left > 0).then(silent)
}

/// The node as it is afterwards, as a list of one.
async fn order(client: &Client, path: &str, body: &(impl serde::Serialize + Sync)) -> Result<Vec<Node>, Failure> {
    Ok(vec![client.post(path, &[], body).await?])
}

async fn invite(client: &Client, output: Output, ttl: Option<Duration>) -> Result<(), Failure> {
    let body = CreateJoinToken { ttl_seconds: ttl.map(|ttl| ttl.as_secs()) };
    let token: JoinToken = client.post(route::JOIN_TOKENS, &[], &body).await?;
    output.answer(&token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorikeet_api::node::{DrainResult, DrainedAttempt, NodeDrain};

    #[test]
    fn a_drain_that_somebody_withdrew_does_not_look_like_one_that_is_done() {
        let nodes: Vec<Node> = serde_json::from_str(include_str!("../../tests/pins/answers/nodes.json.txt")).unwrap();
        let mut node = nodes.into_iter().next().unwrap();
        assert!(what_is_left(&node).unwrap().contains("opened the node"));
        let (started_at, until, ended_at) = (node.joined_at, node.joined_at, Some(node.joined_at));
        node.drain = Some(NodeDrain { started_at, until, ended_at, attempts: vec![] });
        assert_eq!(what_is_left(&node), None);
    }

    #[test]
    fn the_word_of_a_machine_that_is_away_is_not_waited_for_when_the_time_is_up() {
        let nodes: Vec<Node> = serde_json::from_str(include_str!("../../tests/pins/answers/nodes.json.txt")).unwrap();
        let mut node = nodes.into_iter().next().unwrap();
        let (started_at, until) = (node.joined_at, node.joined_at);
        let attempt = "job_01920000000070008000000000000001-1.1".parse().unwrap();
        let stopped = DrainedAttempt { attempt, result: DrainResult::Stopped, checkpoint_step: None, left_at: None };
        let drain = |ended_at| Some(NodeDrain { started_at, until, ended_at, attempts: vec![stopped.clone()] });
        node.drain = drain(Some(node.joined_at));
        assert!(goes_on(&node), "its worker is being stopped");
        node.unreachable_since = Some(node.joined_at);
        assert!(!goes_on(&node));
        (node.unreachable_since, node.version) = (None, None);
        assert!(goes_on(&node), "an agent that starts anew is soon back");
        node.unreachable_since = Some(node.joined_at);
        node.drain = drain(None);
        assert!(goes_on(&node), "it may come back in time");
    }
}
