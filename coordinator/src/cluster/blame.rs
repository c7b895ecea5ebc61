//! Whose fault a bad end is: the job's or the node's. Nobody's data or settings explain it, so each of the two is a suspect.
//!
//! A job that ended badly on several nodes is the cause itself: it ends, and the nodes are cleared of it. A node on which several
//! jobs in a row ended badly, each of them nowhere else, is closed for a while and then tried again: one more such job closes it
//! for twice as long, anything that goes well there clears it, and a person may open it at any time. So one poison job closes no
//! node, one bad node ends no job, and no job waits for ever for somebody to look. When half of the nodes that could work are closed
//! like that, the fault is not theirs, and no further one is.

use super::{Action, Cause, Cluster, LiveNode, Now, place::later, put};
use crate::record::{Closed, Job, Probation, Record};
use lorikeet_protocol::{
    agent::Ended,
    id::{JobId, NodeId},
    job::Outcome,
};
use std::time::Duration;

/// A job whose process crashed this often in a row without a new checkpoint is the cause itself.
const CRASHES_IN_A_ROW: u32 = 8;

/// A job that crashed on this many nodes is the cause itself.
const CRASHED_NODES: usize = 3;

/// A node on which this many jobs in a row ended badly, and nowhere else, is the cause.
const SUSPICIOUS_JOBS: usize = 3;

/// How long a node is closed the first time, and at most.
const CLOSED: Duration = Duration::from_secs(600);
const CLOSED_AT_MOST: Duration = Duration::from_secs(86_400);

/// Whether somebody is to blame for an end besides the user. What the coordinator itself declares over has held nothing: silence is
/// nobody's crash.
pub(super) fn is_suspicious(ended: &Ended) -> bool {
    let outcome =
        matches!(ended.outcome, Outcome::PrepareFailed | Outcome::Lost | Outcome::Hardware | Outcome::DiskFull);
    outcome && ended.held > Duration::ZERO
}

impl Job {
    /// It ended badly there. Answers why it will not be tried again, if it will not.
    pub(super) fn suspect(&mut self, node: Option<NodeId>, ended: &Ended) -> Option<String> {
        if is_suspicious(ended) {
            self.infrastructure_failures += 1;
            node.into_iter().for_each(|node| *self.blamed.entry(node).or_default() += 1);
        }
        let (crashes, nodes) = (self.infrastructure_failures, self.blamed.len());
        let enough = nodes >= CRASHED_NODES && crashes as usize >= CRASHED_NODES;
        (crashes >= CRASHES_IN_A_ROW || enough).then(|| {
            let word = ended.message.as_deref().unwrap_or("no word why");
            format!("ended badly {crashes} times in a row on {nodes} nodes: {word}")
        })
    }
}

impl Cluster {
    /// A live job ended badly on a node: the node is suspected, unless the job did so elsewhere as well.
    pub(super) fn suspect_node(&mut self, id: NodeId, job: JobId, ended: &Ended, now: Now, out: &mut Vec<Action>) {
        let blamed: Vec<_> = self.jobs[&job].record.blamed.keys().copied().collect();
        if blamed.len() > 1 {
            return blamed.into_iter().for_each(|node| self.clear_of(node, job, now, out));
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if !node.record.suspected_by.contains(&job) {
            node.record.suspected_by.push(job);
            out.push(put(Record::Node(node.record.clone())));
        }
        if self.nodes[&id].record.suspected_by.len() >= SUSPICIOUS_JOBS {
            self.close_faulty(id, ended, now, out);
        }
    }

    fn clear_of(&mut self, id: NodeId, job: JobId, now: Now, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if let Some(place) = node.record.suspected_by.iter().position(|suspicious| *suspicious == job) {
            node.record.suspected_by.remove(place);
            let few = node.record.suspected_by.len() < SUSPICIOUS_JOBS;
            let lifted = few.then(|| node.record.probation.take()).flatten();
            out.push(put(Record::Node(node.record.clone())));
            self.cleared(id, lifted, &format!("{job} ended badly elsewhere too"), now, out);
        }
    }

    /// What kept a node closed, or on trial, is taken back: it is written down like everything else that is decided about a node.
    fn cleared(&mut self, id: NodeId, lifted: Option<Probation>, why: &str, now: Now, out: &mut Vec<Action>) {
        if let Some(probation) = lifted {
            self.wake_node(id, now);
            self.unsettled = true;
            let change = (Some(probation.reason), Some(why.to_owned()));
            self.audit(&Cause::default(), "node.clear", id.to_string(), change, now, out);
        }
    }

    fn close_faulty(&mut self, id: NodeId, ended: &Ended, now: Now, out: &mut Vec<Action>) {
        let faulty = self.nodes.values().filter(|node| node.record.fault().is_some()).count();
        let working = self.nodes.values().filter(|node| node.could_work()).count();
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.record.fault().is_none()) else { return };
        if (faulty + 1) * 2 > faulty + working {
            return;
        }
        let word = ended.message.as_deref().unwrap_or("no word why");
        let reason =
            format!("{} jobs in a row ended badly on it, the last one: {word}", node.record.suspected_by.len());
        let times = node.record.probation.as_ref().map_or(0, |probation| probation.times);
        let closed = CLOSED.saturating_mul(2_u32.saturating_pow(times)).min(CLOSED_AT_MOST);
        let until = Some(later(now.wall, closed));
        node.record.probation = Some(Probation { reason: reason.clone(), until, times: times + 1 });
        out.push(put(Record::Node(node.record.clone())));
        self.wake_node(id, now);
        self.unsettled = true;
        self.audit(&Cause::default(), "node.quarantine", id.to_string(), (None, Some(reason)), now, out);
    }

    /// The time of a closed node is over: it is tried again, and the next job that ends badly there closes it for longer.
    pub(super) fn end_probation(&mut self, id: NodeId, now: Now, out: &mut Vec<Action>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(probation) = node.record.probation.as_mut() else { return };
        if probation.until.is_none_or(|until| until > now.wall) {
            return;
        }
        probation.until = None;
        node.record.suspected_by.truncate(SUSPICIOUS_JOBS - 1);
        out.push(put(Record::Node(node.record.clone())));
        self.unsettled = true;
        self.audit(&Cause::default(), "node.probation", id.to_string(), (None, None), now, out);
    }

    /// Something went well on a node: nothing is wrong with it.
    pub(super) fn praise(&mut self, id: NodeId, now: Now, out: &mut Vec<Action>) {
        let suspected = |node: &&mut LiveNode| !node.record.suspected_by.is_empty() || node.record.probation.is_some();
        if let Some(node) = self.nodes.get_mut(&id).filter(suspected) {
            node.record.suspected_by.clear();
            let lifted = node.record.probation.take();
            out.push(put(Record::Node(node.record.clone())));
            self.cleared(id, lifted, "something went well on it", now, out);
        }
    }
}

impl LiveNode {
    /// Whether it is here and nobody but its own bad ends could keep work from it.
    fn could_work(&self) -> bool {
        self.session.is_some() && self.record.closed_because().is_none()
    }
}

impl crate::record::Node {
    /// Whether nothing new is placed on it, and why, as far as its row says.
    pub fn closed_because(&self) -> Option<String> {
        let closed = self.closed.map(|closed| match closed {
            Closed::Cordoned => "a person has closed it; `lorikeet node open` opens it".to_owned(),
            Closed::Draining { .. } => "it is drained".to_owned(),
            Closed::Retired => "it is retired".to_owned(),
        });
        self.quarantine.clone().or_else(|| self.fault()).or(closed)
    }
}
