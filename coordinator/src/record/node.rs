//! A machine: the secret that made it a node, what it is known by, and what was decided about it.

use lorikeet_protocol::id::{AttemptId, BootId, Hash, JobId, NodeId, UnixMillis};
use serde::{Deserialize, Serialize};

/// What stands between the reason for which a node is closed for a while and the moment of its end.
pub(crate) const TRIED_AGAIN: &str = "; it is tried again at ";

/// A machine with an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// What people call it.
    pub name: String,
    /// When it joined.
    pub joined: UnixMillis,
    /// Serial numbers of its certificates, newest last; only these are let in.
    pub serials: Vec<String>,
    /// BLAKE3 of its public key (SPKI): only certificates for it are let in, and it never changes. `None`: the row is of a version that
    /// did not keep it; it is learnt at the next hello.
    #[serde(default)]
    pub key: Option<Hash>,
    /// Why nothing is placed on it, if nothing is.
    pub quarantine: Option<String>,
    /// The machine's last known start.
    pub boot: Option<BootId>,
    /// Counts its sessions.
    pub sessions: u64,
    /// The last report applied.
    pub last_report: u64,
    /// Why it takes nothing new, if a person wants it so.
    #[serde(default)]
    pub closed: Option<Closed>,
    /// Jobs that ended badly on it and nowhere else, since the last thing that went well there.
    #[serde(default)]
    pub suspected_by: Vec<JobId>,
    /// What follows if too many of them did.
    #[serde(default)]
    pub probation: Option<Probation>,
    /// What its agent said last of the CAs it trusts; `None`: it has never said so.
    #[serde(default)]
    pub trust: Option<NodeTrust>,
    /// When a person sent it away for ever; rows of before do not say so.
    #[serde(default)]
    pub gone_at: Option<UnixMillis>,
    /// The last drain, until the node is opened.
    #[serde(default)]
    pub drain: Option<Drain>,
}

impl Node {
    /// Whether its agent trusts none of these CAs, by what it said last.
    pub fn is_strange_to(&self, authorities: &[Hash]) -> bool {
        let said = self.trust.as_ref().map_or(&[][..], |trust| &trust.authorities);
        !said.is_empty() && !said.iter().any(|hash| authorities.contains(hash))
    }

    /// Whether it is closed for what ended badly on it, and why.
    pub fn fault(&self) -> Option<String> {
        let Probation { reason, until: Some(until), .. } = self.probation.as_ref()? else { return None };
        Some(format!("{reason}{TRIED_AGAIN}{}", lorikeet_api::Timestamp(*until)))
    }

    /// Whether a person has sent it away for ever.
    pub(crate) fn is_gone(&self) -> bool {
        self.closed == Some(Closed::Retired)
    }
}

/// What became of what was placed on a node when it was drained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// When it was ordered.
    pub started: UnixMillis,
    /// What has not left by then is stopped.
    pub until: UnixMillis,
    /// When the last had left, or the time was up.
    pub ended: Option<UnixMillis>,
    /// All that was placed there.
    pub attempts: Vec<Drained>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Which.
    pub attempt: AttemptId,
    /// What became of it.
    pub became: Became,
    /// The step of the checkpoint that its job had when it had left.
    pub checkpoint: Option<u64>,
    /// When it had left.
    pub left: Option<UnixMillis>,
}

/// What becomes of an attempt whose node is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Became {
    /// It was asked to save its state and leave.
    Leaving,
    /// It has, after its last step, and its job goes on from there.
    Saved,
    /// It has left without that; its job goes on from the checkpoint before.
    Requeued,
    /// Its job ended, or a person took it from the queue.
    Over,
    /// It had not left in time and was stopped as it was.
    Stopped,
}

/// Which CAs a node trusts, durably there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTrust {
    /// BLAKE3 of their certificates (DER).
    pub authorities: Vec<Hash>,
    /// Which of them signed the certificate that it holds.
    pub issuer: Option<Hash>,
}

/// Several jobs in a row ended badly on a node: nothing new is placed on it for a while, then it is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probation {
    /// For people.
    pub reason: String,
    /// Closed until then; `None`: it is being tried.
    pub until: Option<UnixMillis>,
    /// How often in a row; each time is twice as long as the one before.
    pub times: u32,
}

/// What a person has decided about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Closed {
    /// What is there goes on; nothing new comes.
    Cordoned,
    /// What is there saves its state and goes elsewhere.
    Draining {
        /// What has not left by then is stopped.
        until: UnixMillis,
    },
    /// It will not come back.
    Retired,
}

/// A secret that makes one machine a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinSecret {
    /// BLAKE3 of the secret.
    pub hash: Hash,
    /// Until when it works.
    pub expires: UnixMillis,
    /// The first public key that used it, and the node it became.
    pub used: Option<(Hash, NodeId)>,
}

impl JoinSecret {
    /// So long after its end it is named in its refusals, and the key that used it may ask again.
    pub(crate) const KEPT_MILLIS: u64 = 86_400_000;

    /// Whether nobody asks for it any more.
    pub(crate) fn is_over(&self, now: UnixMillis) -> bool {
        self.expires.0.saturating_add(Self::KEPT_MILLIS) <= now.0
    }
}
