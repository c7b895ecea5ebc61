//! `lorikeet sweep …`: many jobs of one file.

use super::{job, jobs, named};
use crate::{
    args::{OneSweep, Sweep as Args},
    client::Client,
    failure::Failure,
    output::Output,
};
use lorikeet_api::{
    job::CancelJob,
    route::{self, with_id},
    sweep::{Sweep, SweepSummary},
};

/// Does what was asked of one sweep, or lists them.
pub(crate) async fn run(client: &Client, output: Output, args: Args) -> Result<(), Failure> {
    let id = async |OneSweep { sweep }: OneSweep| named::id::<SweepSummary>(client, &sweep).await;
    match args {
        Args::List(page) => jobs::list::<SweepSummary>(client, output, route::SWEEPS, page, None).await,
        Args::Show(one) => output.answer(&client.get::<Sweep>(&with_id(route::SWEEP, id(one).await?), &[]).await?),
        Args::Cancel { sweep, reason } => {
            let body = CancelJob { reason: job::reason(reason) };
            output.answer(&client.post::<_, Sweep>(&with_id(route::SWEEP_CANCEL, id(sweep).await?), &[], &body).await?)
        }
    }
}
