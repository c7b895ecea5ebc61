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
    match args {
        Args::List(page) => jobs::list::<SweepSummary>(client, output, route::SWEEPS, page, None).await,
        Args::Show(OneSweep { sweep }) => {
            let id = named::id::<SweepSummary>(client, output, &sweep).await?;
            let sweep: Sweep = client.get(&with_id(route::SWEEP, id), &[]).await?;
            output.answer(&sweep)?;
            if let Some(best) = sweep.summary.best {
                output.note(&format!("fetch the best adapter with `lorikeet adapter pull {} --out adapter`", best.job));
            }
            Ok(())
        }
        Args::Cancel { sweep: OneSweep { sweep }, reason } => {
            let id = named::own_id::<SweepSummary>(client, output, &sweep).await?;
            let body = CancelJob { reason: job::reason(reason) };
            output.answer(&client.post::<_, Sweep>(&with_id(route::SWEEP_CANCEL, id), &[], &body).await?)
        }
    }
}
