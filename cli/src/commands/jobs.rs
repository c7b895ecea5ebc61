//! `lorikeet jobs`: the list.

use crate::{
    args::{Jobs, Status},
    client::Client,
    failure::Failure,
    output::{
        Output, View,
        table::{self, word},
    },
};
use lorikeet_api::{
    job::{Job, JobStatus},
    route,
};
use serde::de::DeserializeOwned;

/// One page.
pub(crate) async fn run(client: &Client, output: Output, args: Jobs) -> Result<(), Failure> {
    let status = args.status.map(|status| ("status", word(&of(status))));
    let search = args.search.map(|text| ("search", text));
    list::<Job>(client, output, route::JOBS, args.page, status.into_iter().chain(search)).await
}

fn of(status: Status) -> JobStatus {
    match status {
        Status::Queued => JobStatus::Queued,
        Status::Initializing => JobStatus::Initializing,
        Status::Running => JobStatus::Running,
        Status::Completed => JobStatus::Completed,
        Status::Failed => JobStatus::Failed,
        Status::Cancelled => JobStatus::Cancelled,
    }
}

/// One page of any list.
pub(super) async fn list<T>(
    client: &Client,
    output: Output,
    path: &str,
    page: crate::args::Page,
    filter: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<(), Failure>
where
    T: DeserializeOwned,
    Vec<T>: View,
{
    let mut query = vec![("page", page.page.to_string()), ("pageSize", page.page_size.to_string())];
    query.extend(filter);
    let (rows, pagination) = client.page::<T>(path, &query).await?;
    output.answer(&rows)?;
    if let Some(place) = table::place(pagination) {
        output.note(&place);
    }
    Ok(())
}
