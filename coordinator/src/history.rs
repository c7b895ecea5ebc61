//! Lists and single rows, as an actor may see them. Everything is read after what was asked before is durable.

use crate::{
    access::{Actor, Refusal},
    driver::Handle,
    record::{Attempt, Base, Dataset, Job, Model, StoredCheckpoint, Sweep, Token, User},
    store::{self, Row},
};
use lorikeet_protocol::id::{BaseId, DatasetId, JobId, ModelId, SweepId, UserId};

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Rows before it.
    pub offset: usize,
    /// Rows of it, at most.
    pub limit: usize,
}

/// Part of a list, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// How many there are in all.
    pub total: usize,
}

/// Which rows of a list are wanted.
pub type Keep<R> = Box<dyn Fn(&R) -> bool + Send>;

impl Handle {
    /// Datasets that are not deleted; of them those that `keep` wants.
    pub async fn datasets(
        &self,
        actor: Actor,
        page: Page,
        keep: Option<Keep<Dataset>>,
    ) -> Result<Listed<Dataset>, Refusal> {
        self.list(whose(actor), page, keep).await
    }

    /// One dataset.
    pub async fn dataset(&self, actor: Actor, id: DatasetId) -> Result<Dataset, Refusal> {
        let row = self.row(id.bytes().to_vec()).await?;
        actor.find(row.filter(|row: &Dataset| row.deleted_at.is_none()), |row| row.owner, "dataset")
    }

    /// Base models: everybody may read them.
    pub async fn bases(&self, page: Page) -> Result<Listed<Base>, Refusal> {
        self.list(None, page, None).await
    }

    /// One base model.
    pub async fn base(&self, id: BaseId) -> Result<Base, Refusal> {
        let row: Option<Base> = self.row(id.bytes().to_vec()).await?;
        row.filter(|row| row.deleted_at.is_none()).ok_or_else(|| Refusal::not_found("base model"))
    }

    /// Jobs, finished ones too; of them those that `keep` wants.
    pub async fn jobs(&self, actor: Actor, page: Page, keep: Option<Keep<Job>>) -> Result<Listed<Job>, Refusal> {
        self.list(whose(actor), page, keep).await
    }

    /// One job.
    pub async fn job(&self, actor: Actor, id: JobId) -> Result<Job, Refusal> {
        let row = self.row(id.bytes().to_vec()).await?;
        actor.find(row, |row: &Job| row.owner, "job")
    }

    /// Sweeps, finished ones too.
    pub async fn sweeps(&self, actor: Actor, page: Page) -> Result<Listed<Sweep>, Refusal> {
        self.list(whose(actor), page, None).await
    }

    /// One sweep and its jobs.
    pub async fn sweep(&self, actor: Actor, id: SweepId) -> Result<(Sweep, Vec<Job>), Refusal> {
        let row: Option<Sweep> = self.row(id.bytes().to_vec()).await?;
        let sweep = actor.find(row, |row| row.owner, "sweep")?;
        let ids: Vec<_> = sweep.children.iter().map(|child| child.job).collect();
        let jobs = self.read(move |store| ids.iter().map(|id| store.get(&id.bytes())).collect::<Result<Vec<_>, _>>());
        Ok((sweep, jobs.await?.into_iter().flatten().collect()))
    }

    /// A job's attempts, oldest first.
    pub async fn attempts(&self, actor: Actor, id: JobId) -> Result<Vec<Attempt>, Refusal> {
        self.job(actor, id).await?;
        self.read(move |store| store.scan(&id.bytes(), |_: &Attempt| true)).await
    }

    /// A job's checkpoints, oldest first.
    pub async fn checkpoints(&self, actor: Actor, id: JobId) -> Result<Vec<StoredCheckpoint>, Refusal> {
        self.job(actor, id).await?;
        self.read(move |store| store.scan(&id.bytes(), |_: &StoredCheckpoint| true)).await
    }

    /// Models that are not deleted.
    pub async fn models(&self, actor: Actor, page: Page) -> Result<Listed<Model>, Refusal> {
        self.list(whose(actor), page, None).await
    }

    /// One model.
    pub async fn model(&self, actor: Actor, id: ModelId) -> Result<Model, Refusal> {
        let row = self.row(id.bytes().to_vec()).await?;
        actor.find(row.filter(|row: &Model| row.deleted_at.is_none()), |row| row.owner, "model")
    }

    /// One user.
    pub async fn user(&self, actor: Actor, id: UserId) -> Result<User, Refusal> {
        let row = self.row(id.bytes().to_vec()).await?;
        actor.find(row, |row: &User| row.id, "user")
    }

    /// Tokens that were not withdrawn; never their secrets.
    pub async fn tokens(&self, actor: Actor, page: Page) -> Result<Listed<Token>, Refusal> {
        self.list(whose(actor), page, None).await
    }

    async fn list<R: store::Listed + Send + 'static>(
        &self,
        owner: Option<UserId>,
        page: Page,
        keep: Option<Keep<R>>,
    ) -> Result<Listed<R>, Refusal> {
        let (rows, total) = self.read(move |store| store.listed(owner, page.offset, page.limit, keep)).await?;
        Ok(Listed { rows, total })
    }

    async fn row<R: Row + Send + 'static>(&self, key: Vec<u8>) -> Result<Option<R>, Refusal> {
        self.read(move |store| store.get(&key)).await
    }
}

/// Whose rows an actor's lists hold; everybody's: `None`.
fn whose(actor: Actor) -> Option<UserId> {
    actor.user().filter(|_| !actor.sees_everything())
}
