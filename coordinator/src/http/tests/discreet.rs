//! What machines say of themselves is read by everybody, what the jobs of another said on them by nobody but administrators.

use super::*;
use crate::{cluster::Shown, driver::Session};
use lorikeet_protocol::{
    agent::{Ended, FromAgent, Hello, Report, ReportBody, ToAgent},
    id::{BootId, DeviceId, Hash, NodeId},
    job::{Device, DeviceKind, Outcome},
};
use std::collections::BTreeSet;

/// What a job says when it ends, and nobody else is to read.
const SECRET: &str = "patient 4711 has no field `age`";

fn device(id: &str, usable: Result<(), String>) -> Device {
    let (id, name) = (DeviceId(id.to_owned()), "a device".to_owned());
    Device { id, name, kind: DeviceKind::Cpu, memory_bytes: 1 << 40, free_bytes: 1 << 40, usable }
}

impl World {
    /// A machine with these devices, and its session.
    async fn machine(&self, seed: u8, devices: Vec<Device>) -> (NodeId, Session) {
        let (node, hash, key) = (NodeId(Uuid::from_u128(seed.into())), Hash([seed; 32]), Hash([seed + 100; 32]));
        let (serial, name) = (format!("0{seed}"), format!("machine-{seed}"));
        self.command(Command::CreateJoinSecret { hash, expires: UnixMillis(u64::MAX) }).await;
        self.command(Command::Join { secret: hash, key, name: name.clone(), node }).await;
        self.command(Command::RecordCertificate { node, serial: serial.clone(), joined: None }).await;
        let boot = BootId(Uuid::from_u128(1));
        let hello = Hello {
            boot,
            instance: boot,
            version: "test".into(),
            name,
            labels: Default::default(),
            devices,
            attempts: vec![],
            cached: vec![],
            acknowledged: 0,
        };
        let shown = Shown { serial, key, is_newest: true };
        (node, self.coordinator.driver.open_session(node, shown, hello).await.unwrap())
    }

    /// Ends every attempt that is offered in a session badly, until so many jobs were.
    async fn end_badly(&self, node: NodeId, session: &mut Session, jobs: usize) {
        let (mut ended, mut number) = (BTreeSet::new(), 0);
        while ended.len() < jobs {
            let ToAgent::Offer(offer) = session.outbox.recv().await.unwrap() else { continue };
            number += 1;
            ended.insert(offer.attempt.job);
            let body = ReportBody::Ended(Ended {
                outcome: Outcome::Lost,
                class: None,
                message: Some(SECRET.into()),
                step: 0,
                held: Duration::from_secs(1),
                files: vec![],
                summary: None,
                last_event: 0,
            });
            let report = Report { number, attempt: offer.attempt, time: UnixMillis(1), body };
            self.coordinator.driver.heard(node, session.number, FromAgent::Report(report)).await;
        }
    }
}

#[tokio::test]
async fn what_the_jobs_of_one_said_on_a_machine_is_not_read_by_another() {
    let world = World::new().await;
    let other = world.user("other@example.org", Role::User).await;
    let first = world.job().await;
    for _ in 0..2 {
        let (status, body) = world.call(Method::POST, route::JOBS, json!({ "base": "tiny", "dataset": "chats" })).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
    }
    let held = format!("its memory is still held by process 7, the dead worker of {first}-1.1");
    let (_, _working) = world.machine(1, vec![]).await;
    let devices = vec![device("cpu", Ok(())), device("GPU-0", Err(held.clone()))];
    let (node, mut session) = world.machine(2, devices).await;
    world.end_badly(node, &mut session, 3).await;
    let path = route::with_id(route::NODE, node);
    let row = world.wait(&path, |row| row["status"] == "QUARANTINED").await;
    let reason = row["reason"].as_str().unwrap();
    assert!(reason.contains(SECRET) && reason.contains("it is tried again at"), "{reason}");
    assert_eq!(row["devices"][1]["unusable"], json!(held));
    let listed = answer(world.ask(Method::GET, route::NODES, &other)).await.1["data"][1].clone();
    let shown = answer(world.ask(Method::GET, &path, &other)).await.1["data"].clone();
    for row in [listed, shown] {
        let reason = row["reason"].as_str().unwrap();
        assert!(reason.starts_with("several jobs in a row ended badly on it; it is tried again at"), "{reason}");
        let unusable = "its memory is still held by process 7, the dead worker of another attempt";
        assert_eq!(row["devices"][1]["unusable"], json!(unusable));
        let whole = row.to_string();
        assert!(!whole.contains(SECRET) && !whole.contains(&first.to_string()), "{whole}");
    }
}

#[tokio::test]
async fn a_job_whose_row_does_not_read_is_nobodys_and_hides_no_machine() {
    let world = World::new().await;
    let other = world.user("other@example.org", Role::User).await;
    let job = world.job().await;
    let (node, mut session) = world.machine(1, vec![device("cpu", Ok(()))]).await;
    while !matches!(session.outbox.recv().await.unwrap(), ToAgent::Offer(_)) {}
    let damage = move |store: &crate::store::Store| {
        store.damage::<record::Job>(&job.bytes());
        Ok(())
    };
    world.coordinator.driver.read(damage).await.unwrap();
    let (status, listed) = answer(world.ask(Method::GET, route::NODES, &other)).await;
    assert_eq!((status, &listed["data"][0]["id"]), (StatusCode::OK, &json!(node.to_string())), "{listed}");
}
