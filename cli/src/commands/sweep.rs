//! `lorikeet sweep …`: many jobs of one file.

use super::{job, jobs};
use crate::{args::Sweep as Args, client::Client, failure::Failure, output::Output};
use lorikeet_api::{
    job::CancelJob,
    route::{self, with_id},
    sweep::{Sweep, SweepSummary},
};

/// Does what was asked of one sweep, or lists them.
pub(crate) async fn run(client: &Client, output: Output, args: Args) -> Result<(), Failure> {
    match args {
        Args::List(page) => jobs::list::<SweepSummary>(client, output, route::SWEEPS, page, None).await,
        Args::Show(one) => output.answer(&client.get::<Sweep>(&with_id(route::SWEEP, one.id), &[]).await?),
        Args::Cancel { sweep, reason } => {
            let body = CancelJob { reason: job::reason(reason) };
            output.answer(&client.post::<_, Sweep>(&with_id(route::SWEEP_CANCEL, sweep.id), &[], &body).await?)
        }
    }
}
