//! `lorikeet base …`: base models.

use super::{jobs, named};
use crate::{
    args::Base as Args,
    client::Client,
    failure::Failure,
    output::{Output, table::base::in_words},
};
use lorikeet_api::{
    base::{AddBase, BaseModel, BaseStatus},
    route::{self, with_id},
};
use std::time::Duration;

/// Between two looks at a base that is being read.
const POLL: Duration = Duration::from_millis(200);

/// Does what was asked of base models.
pub(crate) async fn run(client: &Client, output: Output, args: Args) -> Result<(), Failure> {
    match args {
        Args::List(page) => jobs::list::<BaseModel>(client, output, route::BASES, page, None).await,
        Args::Show { base } => {
            let id = named::id::<BaseModel>(client, output, &base).await?;
            output.answer(&client.get::<BaseModel>(&with_id(route::BASE, id), &[]).await?)
        }
        Args::Delete { base } => {
            let id = named::id::<BaseModel>(client, output, &base).await?;
            let found: BaseModel = client.get(&with_id(route::BASE, id), &[]).await?;
            client.delete(&with_id(route::BASE, id)).await?;
            output.note(&format!("deleted {id} ({}); its files stay where they are", found.name));
            Ok(())
        }
        Args::Add { name, path, no_wait } => {
            let base = add(client, AddBase { name, path }, !no_wait).await?;
            output.answer(&base)?;
            judge(&base)
        }
    }
}

/// Registers a directory; waits, if told to, until it is read and hashed.
pub(crate) async fn add(client: &Client, request: AddBase, to_its_end: bool) -> Result<BaseModel, Failure> {
    let mut base: BaseModel = client.post(route::BASES, &[], &request).await?;
    while to_its_end && base.status == BaseStatus::Validating {
        tokio::time::sleep(POLL).await;
        base = client.get(&with_id(route::BASE, base.id), &[]).await?;
    }
    Ok(base)
}

/// A directory that cannot be used was the wrong one to name.
pub(crate) fn judge(base: &BaseModel) -> Result<(), Failure> {
    match base.status {
        BaseStatus::Ready | BaseStatus::Validating => Ok(()),
        BaseStatus::Error | BaseStatus::Changed => {
            let faults = base.errors.iter().map(|fault| format!("\n  {}", in_words(fault)));
            Err(Failure::mistake(format!("the base model cannot be used:{}", faults.collect::<String>())))
        }
    }
}
