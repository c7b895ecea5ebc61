//! The blob connection: file bytes in whole chunks, each on a stream of its own.
//!
//! One bidirectional stream carries one request, one answer and, after either, the raw bytes they announce. A fetch names the
//! attempt it is for and is refused unless that attempt, under its current token, names the file. What is uploaded is only
//! staged: it counts once a report that names it was accepted.

use crate::{
    file::FileManifest,
    id::{AttemptId, Hash, UnixMillis},
    share::{Announcement, Giver, GrantKey},
};
use serde::{Deserialize, Serialize};

/// The agent's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobRequest {
    /// One chunk of a file that the attempt needs.
    Fetch {
        /// Who needs it.
        attempt: AttemptId,
        /// The file.
        file: Hash,
        /// Which chunk.
        chunk: u32,
    },
    /// Which chunks of this file are still wanted? Opens its staging.
    Offer {
        /// Who made it.
        attempt: AttemptId,
        /// What it is.
        manifest: FileManifest,
    },
    /// One chunk of an offered file; its bytes follow.
    Put {
        /// Who made it.
        attempt: AttemptId,
        /// The file.
        file: Hash,
        /// Which chunk.
        chunk: u32,
    },
    /// Every chunk is there: check the whole, keep it.
    Finish {
        /// Who made it.
        attempt: AttemptId,
        /// The file.
        file: Hash,
    },
    /// What this node has in its cache; only under `lorikeet-blob/2`.
    Announce(Announcement),
    /// Which other nodes have a file that the attempt needs? Only under `lorikeet-blob/2`.
    Givers {
        /// Who needs it.
        attempt: AttemptId,
        /// The file.
        file: Hash,
    },
}

/// The coordinator's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BlobAnswer {
    /// This many bytes of the chunk follow.
    Bytes(u64),
    /// These chunks are still wanted; none: the file is already here whole.
    Wanted(Vec<u32>),
    /// Done.
    Stored,
    /// No, and why.
    Refused(Refusal),
    /// It is known now.
    Announced {
        /// What seals the grants that this node shall honour.
        key: GrantKey,
        /// The coordinator's clock, by which they expire.
        time: UnixMillis,
    },
    /// These may be asked.
    Givers(Vec<Giver>),
}

/// Why a blob request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The attempt does not name this file, is not this node's, or is over.
    NotYours,
    /// No such file or chunk.
    Missing,
    /// The bytes are not what their hash says.
    Corrupt,
    /// The coordinator's disk is full.
    NoSpace,
    /// Larger than what the attempt may upload.
    TooLarge,
    /// Try again later.
    Busy,
}
