//! Jobs that ended longer ago than they are kept: the cluster forgets them, a few in each transaction; then their metrics and logs go.

use super::{ago, is_outlived};
use crate::{
    access::Refusal,
    cluster::command::Command,
    driver::{Handle, as_system},
    record::Job,
    series::Series,
};
use lorikeet_protocol::id::{JobId, UnixMillis};
use std::time::Duration;

/// Jobs of one transaction: others wait for it.
const AT_ONCE: usize = 256;

/// All of them, oldest first.
pub(super) async fn forget(driver: &Handle, series: &Series, kept: Duration) {
    let before = ago(kept);
    match forget_before(driver, before).await {
        Ok(0) => {}
        Ok(gone) => tracing::info!(gone, "jobs that ended long ago were forgotten"),
        Err(error) => tracing::error!(%error, "jobs that ended long ago could not be forgotten"),
    }
    drop_series(driver, series, before).await;
}

/// How many the cluster was asked to forget. One that a sweep still needs stays until that is over.
async fn forget_before(driver: &Handle, before: UnixMillis) -> Result<usize, Refusal> {
    let (mut from, mut asked) = ([0; 16], 0);
    loop {
        // Ids begin with the moment at which they were made: what is newer is not even read. A range must not end before it begins.
        let keys = from..born(before).max(from);
        let old = driver.read(move |store| store.between(keys, AT_ONCE, |job: &Job| is_outlived(job, before)));
        let ids: Vec<JobId> = old.await?.iter().map(|job| job.id).collect();
        let Some(last) = ids.last() else { return Ok(asked) };
        (from, asked) = (after(*last), asked + ids.len());
        driver.command(as_system("retention"), Command::ForgetJobs { ids, before }).await?;
    }
}

/// What belongs to no job, and is of that time: its job was forgotten.
async fn drop_series(driver: &Handle, series: &Series, before: UnixMillis) {
    let end = born(before);
    for id in series.jobs().await.unwrap_or_default().into_iter().filter(|id| id.bytes() < end) {
        let row = driver.read(move |store| store.get::<Job>(&id.bytes())).await;
        if !matches!(row, Ok(None)) {
            continue;
        }
        if let Err(error) = series.remove(id).await {
            tracing::error!(job = %id, %error, "the metrics and logs of a forgotten job could not be removed");
        }
    }
}

/// Less than every id that was made at this moment or later.
fn born(moment: UnixMillis) -> [u8; 16] {
    (u128::from(moment.0) << 80).to_be_bytes()
}

fn after(id: JobId) -> [u8; 16] {
    (id.0.as_u128() + 1).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{access::Actor, http::tests::World};
    use lorikeet_protocol::{
        agent::EventLines,
        id::{AttemptId, AttemptToken},
    };

    #[tokio::test]
    async fn an_old_job_goes_with_its_lines_and_its_model_stays_as_it_was_shown() {
        let world = World::new().await;
        let live = world.job().await;
        let (driver, series) = (&world.coordinator.driver, &world.coordinator.series);
        let (old, model) = world.finished(live).await;
        for job in [old, live] {
            let attempt = AttemptId { job, token: AttemptToken { generation: 1, number: 1 } };
            series.append(EventLines { attempt, first: 1, lines: vec!["{}".into()] }).await.unwrap();
        }
        let model = lorikeet_api::route::with_id(lorikeet_api::route::MODEL, model);
        let shown = world.get(&model).await;
        // Time has to pass for what was made just now to be old.
        let made = crate::clock::now();
        while crate::clock::now() <= made {
            tokio::task::yield_now().await;
        }
        forget(driver, series, Duration::from_secs(3_600)).await;
        assert!(driver.job(Actor::System, old).await.is_ok(), "it is not an hour old");
        forget(driver, series, Duration::ZERO).await;
        assert!(driver.job(Actor::System, old).await.is_err());
        assert!(driver.job(Actor::System, live).await.is_ok(), "it is not over");
        assert_eq!(series.jobs().await.unwrap(), [live]);
        assert_eq!(world.get(&model).await, shown);
    }

    #[tokio::test]
    async fn a_row_that_does_not_read_keeps_no_other_job_from_being_forgotten() {
        let world = World::new().await;
        let live = world.job().await;
        let driver = &world.coordinator.driver;
        let [unread, _, of_unread, readable] = [
            world.finished(live).await,
            world.finished(live).await,
            world.finished(live).await,
            world.finished(live).await,
        ];
        let damage = move |store: &crate::store::Store| {
            store.damage::<Job>(&unread.0.bytes());
            store.damage::<crate::record::Model>(&of_unread.1.bytes());
            Ok(())
        };
        driver.read(damage).await.unwrap();
        let made = crate::clock::now();
        while crate::clock::now() <= made {
            tokio::task::yield_now().await;
        }
        forget(driver, &world.coordinator.series, Duration::ZERO).await;
        assert!(driver.job(Actor::System, readable.0).await.is_err(), "it is forgotten");
        assert!(
            driver.job(Actor::System, of_unread.0).await.is_ok(),
            "its model could not be told what it was made of"
        );
    }
}
