//! What a person calls by its name: an id is taken as it is, anything else is looked up among what the caller may see.
//!
//! A name may be several things'. The caller's own go before what an administrator sees of others, and a name changes nothing of
//! somebody else's. What is over steps back behind what is not; of those that are all over the newest is meant, since nothing can happen
//! to them; which one was taken is said. Where that leaves two, nobody is guessed at.

use crate::{
    client::Client,
    failure::Failure,
    output::{Output, table::moment},
};
use lorikeet_api::{
    Timestamp,
    base::BaseModel,
    dataset::Dataset,
    job::{Job, JobStatus},
    node::Node,
    route,
    server::Me,
    sweep::{SweepStatus, SweepSummary},
    token::Token,
};
use lorikeet_protocol::id::{BaseId, DatasetId, IdError, JobId, NodeId, SweepId, TokenId, UserId};
use serde::de::DeserializeOwned;
use std::{
    fmt::Display,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

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
    /// Whose it is; nobody's is everybody's.
    fn owner(&self) -> Option<UserId>;
    /// Since when it is there.
    fn made(&self) -> Timestamp;
    /// Whether nothing more can become of it, or nothing can be done with it.
    fn is_over(&self) -> bool {
        false
    }
}

/// What has a name, newest first.
pub(super) struct Known<T> {
    /// The caller's.
    pub(super) own: Vec<T>,
    /// Others', of which only administrators are told.
    others: Vec<T>,
}

/// The id of what was named; asks the server only where that was not an id.
pub(super) async fn id<T: Named>(client: &Client, output: Output, which: &str) -> Result<T::Id, Failure> {
    id_fitting(client, output, which, |_: &T| true).await
}

/// The same, where of one name those that fit are meant, if there are any.
pub(super) async fn id_fitting<T: Named>(
    client: &Client,
    output: Output,
    which: &str,
    fits: impl Fn(&T) -> bool,
) -> Result<T::Id, Failure> {
    match which.parse() {
        Ok(id) => Ok(id),
        Err(unparsed) => {
            let Known { own, others } = all::<T>(client, which).await?;
            let mut found = if own.is_empty() { others } else { own };
            let count = found.len();
            if found.iter().any(&fits) {
                found.retain(fits);
            }
            let found = the_one(found, which)?.ok_or_else(|| unknown::<T>(which, unparsed))?;
            Ok(taken(output, found, which, count))
        }
    }
}

/// The id of what is to be changed: somebody else's goes by its id alone.
pub(super) async fn own_id<T: Named>(client: &Client, output: Output, which: &str) -> Result<T::Id, Failure> {
    match which.parse() {
        Ok(id) => Ok(id),
        Err(unparsed) => {
            let Known { own, others } = all::<T>(client, which).await?;
            let count = own.len();
            match (the_one(own, which)?, others.first()) {
                (Some(found), _) => Ok(taken(output, found, which, count)),
                (None, Some(other)) => {
                    let message = format!("the {} `{which}` is somebody else's: {}", T::KIND, other.id());
                    Err(Failure::mistake(message).hint("to change what is not yours, name it by its id"))
                }
                (None, None) => Err(unknown::<T>(which, unparsed)),
            }
        }
    }
}

/// All of this name.
pub(super) async fn all<T: Named>(client: &Client, name: &str) -> Result<Known<T>, Failure> {
    let wanted = T::IS_SEARCHED.then(|| ("name", name.to_owned()));
    let mut found: Vec<T> = client.all(T::LIST, wanted.as_slice()).await?;
    found.retain(|known| known.name() == name);
    if found.iter().all(|known| known.owner().is_none()) {
        return Ok(Known { own: found, others: Vec::new() });
    }
    let me: Me = client.get(route::ME, &[]).await?;
    let (own, others) = found.into_iter().partition(|known| known.owner() == Some(me.id));
    Ok(Known { own, others })
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

/// The id of what is meant; where it was chosen among several, that is said.
fn taken<T: Named>(output: Output, found: T, name: &str, count: usize) -> T::Id {
    let id = found.id();
    if count > 1 {
        let made = moment(found.made());
        output.note(&format!("`{name}` is taken for {id}, made {made}: one of {count} {}s with this name", T::KIND));
    }
    id
}

fn unknown<T: Named>(which: &str, IdError { expected, .. }: IdError) -> Failure {
    Failure::mistake(format!("there is no {} `{which}`", T::KIND))
        .hint(format!("its name or its id, `{expected}`, stands in `lorikeet {}`", T::COMMAND))
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
    fn owner(&self) -> Option<UserId> {
        Some(self.owner)
    }
    fn made(&self) -> Timestamp {
        self.created_at
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
    fn owner(&self) -> Option<UserId> {
        Some(self.owner)
    }
    fn made(&self) -> Timestamp {
        self.created_at
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
    fn owner(&self) -> Option<UserId> {
        Some(self.owner)
    }
    fn made(&self) -> Timestamp {
        self.created_at
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
    fn owner(&self) -> Option<UserId> {
        None
    }
    fn made(&self) -> Timestamp {
        self.joined_at
    }
}

impl Named for BaseModel {
    type Id = BaseId;
    const KIND: &str = "base model";
    const LIST: &str = route::BASES;
    const IS_SEARCHED: bool = false;
    const COMMAND: &str = "base list";

    fn id(&self) -> BaseId {
        self.id
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn owner(&self) -> Option<UserId> {
        None
    }
    fn made(&self) -> Timestamp {
        self.created_at
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
    fn owner(&self) -> Option<UserId> {
        Some(self.owner)
    }
    fn made(&self) -> Timestamp {
        self.created_at
    }
    fn is_over(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expires_at.is_some_and(|end| u128::from(end.0.0) <= now.as_millis())
    }
}
