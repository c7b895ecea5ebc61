//! One of Kueue's queues: a user whose jobs come at their times.

use super::{Board, KINDS, Kind, order, user};
use lorikeet_api::{JobFile, Presets};
use lorikeet_coordinator::{
    access::{Actor, Role},
    cluster::command::Command,
    driver::Handle,
};
use lorikeet_protocol::{
    id::{DatasetId, JobId},
    job::JobSpec,
};
use lorikeet_tests::findings;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

/// With a dataset of its own.
pub(super) async fn open(handle: &Handle) -> Actor {
    let user = user(handle, Role::User).await;
    let id = DatasetId(Uuid::now_v7());
    let (name, file_name) = ("d".to_owned(), "d.jsonl".to_owned());
    order(handle, user, Command::CreateDataset { id, name, description: None, file_name, size: 10, format: None })
        .await;
    order(handle, user, Command::ConfirmDataset { id, manifest: findings::file("d.jsonl", 31).manifest }).await;
    user
}

/// Starts to submit all its jobs, or one in `part`; says how many they will be.
pub(super) fn feed(handle: &Handle, cohort: usize, user: Actor, part: usize, board: &Arc<Board>) -> usize {
    let begins = Instant::now();
    for kind in KINDS {
        let (handle, board) = (handle.clone(), Arc::clone(board));
        tokio::spawn(async move {
            let mut times = tokio::time::interval_at(begins, Duration::from_millis(kind.every));
            // One that comes late does not make the next one late.
            times.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let spec = spec(kind, cohort);
            for _ in 0..kind.count / part {
                times.tick().await;
                let id = Uuid::now_v7();
                board.read().submitted.insert(id, std::time::Instant::now());
                let spec = Box::new(spec.clone());
                order(&handle, user, Command::SubmitJob { id: JobId(id), spec, start: Default::default() }).await;
            }
        });
    }
    KINDS.iter().map(|kind| kind.count / part).sum()
}

fn spec(kind: Kind, cohort: usize) -> JobSpec {
    let file = JobFile::from_toml("base = \"b\"\ndataset = \"d\"").expect("a job file");
    let mut spec = file.resolve(&Presets::embedded()).expect("a job file");
    spec.priority = kind.priority;
    spec.resources.exclusive = false;
    spec.resources.labels = [("cohort".to_owned(), cohort.to_string())].into();
    spec
}
