//! A device whose memory a dead worker still holds.

use super::*;

#[test]
fn a_device_held_by_a_dead_worker_is_out_after_the_grace_and_back_when_it_lets_go() {
    let mut scene = Scene::running();
    scene.gone(1);
    assert_eq!(usable_after(&mut scene, 29, &[42]), Ok(()), "a driver takes its time");
    let quarantined = usable_after(&mut scene, 1, &[42]).unwrap_err();
    assert!(quarantined.contains("process 42") && quarantined.contains(&id(1).to_string()), "{quarantined}");
    let out = scene.heard(offer(2));
    assert!(
        matches!(&out[..], [Action::Tell(FromAgent::Declined { reason, .. })] if reason.contains("quarantined")),
        "{out:?}"
    );
    assert_eq!(usable_after(&mut scene, 600, &[]), Ok(()));
    assert!(scene.heard(offer(2)).contains(&Action::Tell(FromAgent::Accepted(id(2)))));
}

#[test]
fn what_others_hold_and_what_a_living_worker_holds_is_nobodys_fault() {
    let mut scene = Scene::running();
    assert_eq!(usable_after(&mut scene, 600, &[42, 7]), Ok(()), "it trains");
    scene.gone(1);
    assert_eq!(usable_after(&mut scene, 600, &[7]), Ok(()), "a stranger");
    assert_eq!(usable_after(&mut scene, 600, &[42]), Ok(()), "it had let go; its number was given to somebody else");
}

#[test]
fn only_the_devices_of_the_dead_worker_are_looked_at() {
    let mut scene = Scene::running();
    scene.gone(1);
    let spare = DeviceId("spare".into());
    scene.now.mono += Duration::from_secs(60);
    scene.event(Event::Looked(Seen { holders: [(spare.clone(), vec![42])].into(), ..seen(&[]) }));
    assert_eq!(scene.host.devices().iter().find(|device| device.id == spare).unwrap().usable, Ok(()));
}

/// What is said of the CPU slot so many seconds later, with these processes on it.
fn usable_after(scene: &mut Scene, seconds: u64, pids: &[u32]) -> Result<(), String> {
    scene.now.mono += Duration::from_secs(seconds);
    scene.event(Event::Looked(seen(pids)));
    scene.host.devices().iter().find(|device| device.id == DeviceId::cpu()).unwrap().usable.clone()
}
