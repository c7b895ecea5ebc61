//! `lorikeet jobs`: the list.

use crate::{
    args::Jobs,
    client::Client,
    failure::Failure,
    output::{Output, View, table},
};
use lorikeet_api::{job::Job, route};
use serde::de::DeserializeOwned;

/// One page.
pub(crate) async fn run(client: &Client, output: Output, args: Jobs) -> Result<(), Failure> {
    let status = args.status.map(|status| ("status", status.to_uppercase()));
    list::<Job>(client, output, route::JOBS, args.page, status).await
}

/// One page of any list.
pub(super) async fn list<T>(
    client: &Client,
    output: Output,
    path: &str,
    page: crate::args::Page,
    filter: Option<(&'static str, String)>,
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
