//! What a person calls by its name: an id is taken as it is, anything else is looked up among what the caller may see.
//!
//! A name may be several things'. What is over steps back behind what is not; of those that are all over the newest is meant, since
//! nothing can happen to them. Where that leaves two, nobody is guessed at.

use crate::{client::Client, failure::Failure};
use lorikeet_api::{
    dataset::Dataset,
    job::{Job, JobStatus},
    node::Node,
    route,
    sweep::{SweepStatus, SweepSummary},
    token::Token,
};
use lorikeet_protocol::id::{DatasetId, IdError, JobId, NodeId, SweepId, TokenId};
use serde::de::DeserializeOwned;
use std::{fmt::Display, str::FromStr};

/// A thing of the server's that has a name.
pub(super) trait Named: DeserializeOwned {
    /// What the server knows it by.
    type Id: FromStr<Err = IdError> + Display;
    /// In words.
    const KIND: &str;
    /// Its list, newest first.
    const LIST: &str;
    /// Whether the server looks through the list itself.
    const IS_SEARCHED: bool;
    /// The command that prints the list.
    const COMMAND: &str;

    /// Its id.
    fn id(&self) -> Self::Id;
    /// Its name.
    fn name(&self) -> &str;
    /// Whether nothing more can become of it.
    fn is_over(&self) -> bool {
        false
    }
}

/// The id of what was named; asks the server only where that was not an id.
pub(super) async fn id<T: Named>(client: &Client, which: &str) -> Result<T::Id, Failure> {
    match which.parse() {
        Ok(id) => Ok(id),
        Err(IdError { expected, .. }) => {
            let found = the_one(all::<T>(client, which).await?, which)?;
            found.map(|found| found.id()).ok_or_else(|| {
                Failure::refused(format!("there is no {} `{which}`", T::KIND))
                    .hint(format!("its name or its id, `{expected}`, stands in `lorikeet {}`", T::COMMAND))
            })
        }
    }
}

/// All of this name, newest first.
pub(super) async fn all<T: Named>(client: &Client, name: &str) -> Result<Vec<T>, Failure> {
    let search = T::IS_SEARCHED.then(|| ("search", name.to_owned()));
    let mut found: Vec<T> = client.all(T::LIST, search.as_slice()).await?;
    found.retain(|known| known.name() == name);
    Ok(found)
}

fn the_one<T: Named>(found: Vec<T>, name: &str) -> Result<Option<T>, Failure> {
    let (over, mut open): (Vec<T>, Vec<T>) = found.into_iter().partition(T::is_over);
    if let [one, other, ..] = open.as_slice() {
        let (kind, one, other) = (T::KIND, one.id(), other.id());
        let message = format!("more than one {kind} is named `{name}`: {one} and {other}");
        return Err(Failure::mistake(message).hint("name the one that is meant by its id"));
    }
    Ok(open.pop().or_else(|| over.into_iter().next()))
}

impl Named for Job {
    type Id = JobId;
    const KIND: &str = "job";
    const LIST: &str = route::JOBS;
    const IS_SEARCHED: bool = true;
    const COMMAND: &str = "jobs";

    fn id(&self) -> JobId {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn is_over(&self) -> bool {
        match self.status {
            JobStatus::Queued | JobStatus::Initializing | JobStatus::Running => false,
            JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled => true,
        }
    }
}

impl Named for SweepSummary {
    type Id = SweepId;
    const KIND: &str = "sweep";
    const LIST: &str = route::SWEEPS;
    const IS_SEARCHED: bool = false;
    const COMMAND: &str = "sweep list";

    fn id(&self) -> SweepId {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn is_over(&self) -> bool {
        self.status != SweepStatus::Running
    }
}

impl Named for Dataset {
    type Id = DatasetId;
    const KIND: &str = "dataset";
    const LIST: &str = route::DATASETS;
    const IS_SEARCHED: bool = true;
    const COMMAND: &str = "dataset list";

    fn id(&self) -> DatasetId {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Node {
    type Id = NodeId;
    const KIND: &str = "node";
    const LIST: &str = route::NODES;
    const IS_SEARCHED: bool = false;
    const COMMAND: &str = "nodes";

    fn id(&self) -> NodeId {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Token {
    type Id = TokenId;
    const KIND: &str = "token";
    const LIST: &str = route::TOKENS;
    const IS_SEARCHED: bool = false;
    const COMMAND: &str = "token list";

    fn id(&self) -> TokenId {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
}
