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
    scene.now.mono += Duration::from_secs(600);
    let out = scene.event(Event::Looked(seen(&[])));
    assert!(out.contains(&Action::Test(DeviceId::cpu())), "nobody holds it any more: {out:?}");
    assert!(usable_after(&mut scene, 1, &[]).unwrap_err().ends_with("it is being tested"));
    let out = scene.event(Event::Tested(DeviceId::cpu(), Ok(())));
    assert_eq!(out, [Action::KeepQuarantine(Reasons::new())]);
    assert_eq!(usable_after(&mut scene, 1, &[]), Ok(()));
    assert!(scene.heard(offer(2)).contains(&Action::Tell(FromAgent::Accepted(id(2)))));
}

#[test]
fn a_look_at_which_the_driver_says_nothing_takes_no_dead_worker_off_its_device() {
    let mut scene = Scene::running();
    scene.gone(1);
    assert_eq!(usable_after(&mut scene, 10, &[42]), Ok(()));
    let mut silent = Seen { holders: BTreeMap::new(), ..seen(&[]) };
    silent.devices[0].usable = Err("the driver does not answer".into());
    scene.event(Event::Looked(silent));
    let quarantined = usable_after(&mut scene, 20, &[42]).unwrap_err();
    assert!(quarantined.contains("process 42"), "{quarantined}");
}

#[test]
fn silence_about_who_computes_on_a_gpu_is_not_nobody() {
    let mut scene = scene_on_gpu();
    scene.gone(1);
    assert_eq!(scene.looks_at_gpu(10, 40, None), Ok(()), "a driver takes its time");
    let quarantined = scene.looks_at_gpu(20, 40, None).unwrap_err();
    assert!(quarantined.contains("36864 MiB more of its memory are in use than before"), "{quarantined}");
    let named = scene.looks_at_gpu(1, 40, Some(&[42])).unwrap_err();
    assert!(named.contains("it is tested before it is offered"), "{named}");
    assert!(!scene.tests_gpu(4_000, 40, Some(&[42])), "it holds memory, however long");
    assert!(scene.tests_gpu(1, 4, None), "what is in use is what was in use before");
}

#[test]
fn where_the_driver_has_other_numbers_for_processes_the_memory_says_what_is_left() {
    let mut scene = scene_on_gpu();
    assert_eq!(scene.looks_at_gpu(5, 40, Some(&[9_042])), Ok(()), "the number of the machine, not of the container");
    scene.gone(1);
    assert_eq!(scene.looks_at_gpu(29, 40, Some(&[])), Ok(()));
    assert!(scene.looks_at_gpu(1, 40, Some(&[])).unwrap_err().contains("whose worker is dead"));
    let mut scene = scene_on_gpu();
    scene.gone(1);
    assert_eq!(scene.looks_at_gpu(5, 4, Some(&[])), Ok(()));
    assert_eq!(scene.looks_at_gpu(60, 40, Some(&[])), Ok(()), "it had come back: this is somebody else's");
}

#[test]
fn a_driver_that_named_a_worker_of_ours_is_believed_that_none_is_left() {
    let mut scene = scene_on_gpu();
    assert_eq!(scene.looks_at_gpu(5, 40, Some(&[42])), Ok(()));
    scene.gone(1);
    assert_eq!(scene.looks_at_gpu(60, 40, Some(&[7])), Ok(()), "somebody else came meanwhile");
}

#[test]
fn memory_that_may_be_somebody_elses_keeps_a_gpu_from_its_test_for_an_hour() {
    let mut scene = scene_on_gpu();
    scene.gone(1);
    assert!(scene.looks_at_gpu(30, 40, None).is_err());
    assert!(!scene.tests_gpu(3_500, 40, None));
    assert!(scene.tests_gpu(100, 40, None));
}

#[test]
fn what_a_dead_worker_held_is_not_taken_for_what_was_in_use_before_the_next() {
    let mut scene = scene_on_gpu();
    scene.gone(1);
    assert_eq!(scene.looks_at_gpu(5, 40, None), Ok(()));
    scene.heard(ToAgent::Offer(Box::new(offer_on(id(2), "GPU-1"))));
    scene.event(Event::Prepared(id(2)));
    scene.news(2, News::Holds { pid: 43 });
    assert_eq!(scene.looks_at_gpu(600, 80, None), Ok(()), "one of ours is at work there");
    scene.gone(2);
    assert_eq!(scene.looks_at_gpu(29, 40, None), Ok(()), "the second has its time as well");
    assert!(scene.looks_at_gpu(1, 40, None).is_err());
}

#[test]
fn memory_that_a_dead_follower_holds_is_found() {
    let mut scene = Scene::running();
    scene.news(1, News::Joined { pids: vec![42, 43] });
    scene.gone(1);
    assert_eq!(usable_after(&mut scene, 29, &[43]), Ok(()));
    let quarantined = usable_after(&mut scene, 1, &[43]).unwrap_err();
    assert!(quarantined.contains("process 43"), "{quarantined}");
}

#[test]
fn after_a_reboot_a_gpu_is_tested_at_once_whoever_was_on_it() {
    let mut scene = scene_on_gpu();
    (scene.rules.proves_gpus, scene.rules.boot) = (true, BootId(uuid::Uuid::from_u128(99)));
    scene.restart();
    scene.gone(1);
    assert!(scene.tests_gpu(1, 4, Some(&[])), "nothing outlives a reboot");
}

#[test]
fn a_gpu_of_which_nobody_can_know_what_a_dead_worker_left_is_tested() {
    let mut scene = scene_on_gpu();
    let record = scene.records.get_mut(&id(1)).unwrap();
    record.used_before.clear();
    scene.rules.proves_gpus = true;
    scene.restart();
    scene.gone(1);
    assert!(scene.tests_gpu(1, 40, None), "an agent that did not look began it");
}

#[test]
fn the_processor_is_left_to_a_gpu_that_a_look_or_two_miss_and_offered_once_it_has_vanished() {
    let mut scene = Scene::new();
    (scene.host.rules.spares_cpu, scene.host.rules.proves_gpus) = (true, false);
    let offered = |scene: &mut Scene, gpus: usize| {
        let mut seen = seen(&[]);
        seen.devices.truncate(1);
        let gpu = Device {
            id: DeviceId("GPU-0".into()),
            kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
            ..seen.devices[0].clone()
        };
        seen.devices.extend(std::iter::repeat_n(gpu, gpus));
        scene.event(Event::Looked(seen));
        scene
            .host
            .devices()
            .iter()
            .filter(|device| device.usable.is_ok())
            .map(|device| device.id.to_string())
            .collect::<Vec<_>>()
    };
    let nothing = Vec::<String>::new();
    assert_eq!(offered(&mut scene, 1), ["GPU-0"]);
    assert_eq!([(); 2].map(|()| offered(&mut scene, 0)), [const { Vec::<String>::new() }; 2], "a driver may be busy");
    assert_eq!(offered(&mut scene, 1), ["GPU-0"]);
    let gone = [(); 4].map(|()| offered(&mut scene, 0));
    assert_eq!(gone, [nothing.clone(), nothing.clone(), vec!["cpu".into()], vec!["cpu".into()]]);
    assert_eq!(offered(&mut scene, 1), nothing, "it is back, and has to pass its test");
    scene.event(Event::Tested(DeviceId("GPU-0".into()), Ok(())));
    assert_eq!(offered(&mut scene, 1), ["GPU-0"]);
}

#[test]
fn a_device_that_failed_a_worker_is_out_at_once_and_stays_so_until_it_passes_its_test() {
    let mut scene = Scene::running();
    let out = scene.fails(1, FailureClass::Hardware);
    let kept = out.iter().find_map(|action| match action {
        Action::KeepQuarantine(reasons) => Some(reasons.clone()),
        _ => None,
    });
    let reasons = kept.expect("it outlives the agent");
    assert!(reasons[&DeviceId::cpu()].contains(&id(1).to_string()), "{reasons:?}");
    let out = scene.heard(offer(2));
    assert!(
        matches!(&out[..], [Action::Tell(FromAgent::Declined { reason, .. })] if reason.contains("quarantined")),
        "{out:?}"
    );
    let out = scene.event(Event::Looked(seen(&[])));
    assert!(out.contains(&Action::Test(DeviceId::cpu())), "its dead worker holds nothing any more: {out:?}");
    scene.event(Event::Tested(DeviceId::cpu(), Err(Unfit::Failed("two rows differ".into()))));
    assert!(usable_after(&mut scene, 1, &[]).unwrap_err().ends_with("its last test failed: two rows differ"));
    scene.now.mono += Duration::from_secs(600);
    assert!(scene.event(Event::Tick).contains(&Action::Test(DeviceId::cpu())), "it is tried again");
    scene.event(Event::Tested(DeviceId::cpu(), Ok(())));
    assert_eq!(usable_after(&mut scene, 1, &[]), Ok(()));
}

#[test]
fn a_device_that_nobody_can_test_is_offered_again_after_a_rest() {
    let mut scene = Scene::running();
    scene.fails(1, FailureClass::Hardware);
    assert!(scene.event(Event::Looked(seen(&[]))).contains(&Action::Test(DeviceId::cpu())));
    scene.event(Event::Tested(DeviceId::cpu(), Err(Unfit::Untested)));
    let why = usable_after(&mut scene, 3_599, &[]).unwrap_err();
    assert!(why.contains(&id(1).to_string()) && why.contains("no test") && why.contains("60 minutes"), "{why}");
    assert_eq!(scene.host.next_deadline(), Some(scene.now.mono + Duration::from_secs(1)));
    assert_eq!(scene.wait(1), [Action::KeepQuarantine(Reasons::new())]);
    assert_eq!(usable_after(&mut scene, 1, &[]), Ok(()));
}

#[test]
fn a_device_that_was_out_when_the_agent_ended_is_tested_by_the_next_one_first() {
    let mut scene = Scene::running();
    let now = scene.now;
    scene.host.quarantine([(DeviceId::cpu(), "it failed".to_owned())].into(), now);
    let tests = |out: &[Action]| out.contains(&Action::Test(DeviceId::cpu()));
    assert!(!tests(&scene.event(Event::Looked(seen(&[])))), "a worker is at work on it");
    assert!(usable_after(&mut scene, 1, &[]).is_err());
    scene.gone(1);
    assert!(tests(&scene.event(Event::Looked(seen(&[])))), "nobody is any more");
}

#[test]
fn devices_are_tested_one_after_another() {
    let mut scene = Scene::running();
    scene.gone(1);
    let now = scene.now;
    let reasons = ["cpu", "spare"].map(|id| (DeviceId(id.into()), "it failed".to_owned()));
    scene.host.quarantine(reasons.into(), now);
    let tests = |out: &[Action]| -> Vec<String> {
        let test = |action: &Action| if let Action::Test(device) = action { Some(device.0.clone()) } else { None };
        out.iter().filter_map(test).collect()
    };
    assert_eq!(tests(&scene.event(Event::Looked(seen(&[])))), ["cpu"]);
    assert_eq!(scene.host.next_deadline(), None, "the end of the first is what the second waits for");
    assert_eq!(tests(&scene.event(Event::Tested(DeviceId::cpu(), Ok(())))), ["spare"]);
}

#[test]
fn the_cpu_slot_is_there_where_no_gpu_proves_fit_and_only_there() {
    let gpu = || Device {
        id: DeviceId("GPU-1".into()),
        kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
        ..seen(&[]).devices[0].clone()
    };
    let look = |scene: &mut Scene| {
        scene.event(Event::Looked(Seen { devices: vec![gpu(), seen(&[]).devices[0].clone()], ..Seen::default() }));
        let names: Vec<_> = scene.host.devices().iter().map(|device| device.id.0.clone()).collect();
        names
    };
    let mut scene = Scene::running();
    assert_eq!(look(&mut scene), ["GPU-1", "cpu"], "somebody trains on it");
    scene.gone(1);
    assert_eq!(look(&mut scene), ["GPU-1"], "it may yet pass its test");
    scene.event(Event::Tested(DeviceId("GPU-1".into()), Err(Unfit::Failed("lora: dA".into()))));
    assert_eq!(look(&mut scene), ["GPU-1", "cpu"]);
    scene.wait(600);
    scene.event(Event::Tested(DeviceId("GPU-1".into()), Ok(())));
    assert_eq!(look(&mut scene), ["GPU-1"]);
}

#[test]
fn the_cpu_slot_waits_also_for_a_gpu_that_is_tested_again_because_it_failed_under_its_test() {
    let gpu = DeviceId("GPU-1".into());
    let mut scene = Scene::new();
    let look = |scene: &mut Scene, fault: Option<&str>| {
        let kind = DeviceKind::Cuda { compute: (9, 0), driver: None };
        let cpu = seen(&[]).devices[0].clone();
        let faults = fault.map(|fault| (gpu.clone(), fault.to_owned())).into_iter().collect();
        let devices = vec![Device { id: gpu.clone(), kind, ..cpu.clone() }, cpu];
        scene.event(Event::Looked(Seen { devices, faults, ..Seen::default() }));
        let names: Vec<_> = scene.host.devices().iter().map(|device| device.id.0.clone()).collect();
        names
    };
    assert_eq!(look(&mut scene, Some("2 memory errors")), ["GPU-1"]);
    look(&mut scene, Some("the driver reported error XID 79"));
    let out = scene.event(Event::Tested(gpu.clone(), Ok(())));
    assert!(out.contains(&Action::Test(gpu.clone())), "{out:?}");
    assert_eq!(look(&mut scene, None), ["GPU-1"], "it has failed no test");
    look(&mut scene, Some("the driver reported error XID 48"));
    scene.event(Event::Tested(gpu.clone(), Ok(())));
    look(&mut scene, None);
    let why = scene.host.devices()[0].usable.clone().unwrap_err();
    assert!(why.ends_with("XID 48; it is tested before it is offered"), "{why}");
    scene.wait(600);
    scene.event(Event::Tested(gpu.clone(), Err(Unfit::Failed("lora: dA".into()))));
    assert_eq!(look(&mut scene, None), ["GPU-1", "cpu"]);
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
    scene.event(Event::Looked(Seen { holders: [(spare.clone(), holding(&[42]))].into(), ..seen(&[]) }));
    assert_eq!(scene.host.devices().iter().find(|device| device.id == spare).unwrap().usable, Ok(()));
}

#[test]
fn a_device_that_fails_by_its_drivers_word_ends_its_attempt_blames_nobody_and_is_out_until_it_has_passed_its_test() {
    let mut scene = Scene::running();
    scene.line(1, step(3));
    scene.now.mono += Duration::from_secs(60);
    let out = scene.event(Event::Looked(fails("cpu", "the driver reported error XID 79")));
    assert!(out.contains(&Action::Kill(id(1))), "{out:?}");
    assert_eq!(devices_out(&scene), ["cpu"], "the others go on working");
    let said = WorkerEvent::Failed { class: FailureClass::NonFinite, message: "the loss is NaN".into(), hint: None };
    scene.line(2, said);
    let out = scene.gone(1);
    let end = ended(&out);
    assert_eq!((end.outcome, end.held), (Outcome::Hardware, Duration::ZERO), "nobody is charged or blamed");
    assert_eq!(end.message.as_deref(), Some("its device cpu failed: the driver reported error XID 79"));
    let out = scene.event(Event::Looked(seen(&[])));
    assert!(out.contains(&Action::Test(DeviceId::cpu())), "{out:?}");
    scene.event(Event::Tested(DeviceId::cpu(), Ok(())));
    assert_eq!(usable_after(&mut scene, 1, &[]), Ok(()));
}

#[test]
fn a_worker_that_failed_before_its_driver_said_so_failed_of_its_device() {
    let failed = |class| WorkerEvent::Failed { class, message: "the loss is NaN".into(), hint: None };
    for class in [FailureClass::NonFinite, FailureClass::Internal, FailureClass::OutOfMemory, FailureClass::Hardware] {
        let mut scene = Scene::running();
        scene.line(1, failed(class));
        scene.now.mono += Duration::from_secs(5);
        scene.event(Event::Looked(fails("cpu", "the driver reported error XID 48")));
        let out = scene.gone(1);
        let end = ended(&out);
        assert_eq!((end.outcome, end.class, end.held), (Outcome::Hardware, None, Duration::ZERO), "{class:?}");
        assert_eq!(end.message.as_deref(), Some("its device cpu failed: the driver reported error XID 48"));
        assert_eq!(scene.event(Event::InputsRead(id(1), vec!["model".into()])), [], "it is over");
    }
    let mut scene = Scene::running();
    scene.news(1, News::Stalled { quiet: Duration::from_secs(1800) });
    scene.event(Event::Looked(fails("cpu", "the driver reported error XID 79")));
    assert_eq!(ended(&scene.gone(1)).outcome, Outcome::Hardware, "it hung for its device's sake");
    let mut scene = Scene::running();
    scene.line(1, failed(FailureClass::DiskFull));
    scene.event(Event::Looked(fails("cpu", "the driver reported error XID 48")));
    assert_eq!(ended(&scene.gone(1)).outcome, Outcome::DiskFull, "that has a reason of its own");
}

#[test]
fn a_job_stays_innocent_of_its_devices_failure_over_a_restart_of_the_agent() {
    let mut scene = Scene::running();
    scene.line(1, step(3));
    scene.event(Event::Looked(fails("cpu", "the driver reported error XID 79")));
    scene.now.mono += Duration::from_secs(60);
    let out = scene.restart();
    assert!(out.contains(&Action::Kill(id(1))), "the agent may have died before it gave the order: {out:?}");
    scene.news(1, News::Holds { pid: 42 });
    let said = WorkerEvent::Failed { class: FailureClass::NonFinite, message: "the loss is NaN".into(), hint: None };
    scene.line(2, said);
    let out = scene.gone(1);
    let end = ended(&out);
    assert_eq!((end.outcome, end.held), (Outcome::Hardware, Duration::ZERO), "nobody is charged or blamed");
    assert_eq!(end.message.as_deref(), Some("its device cpu failed: the driver reported error XID 79"));
}

#[test]
fn an_attempt_that_is_being_prepared_ends_with_its_device_and_one_that_said_its_last_word_does_not() {
    let mut scene = Scene::new();
    scene.heard(offer(1));
    scene.now.mono += Duration::from_secs(60);
    let out = scene.event(Event::Looked(fails("cpu", "2 memory errors")));
    assert_eq!((ended(&out).outcome, ended(&out).held), (Outcome::Hardware, Duration::ZERO));
    let mut scene = Scene::running();
    scene.line(1, WorkerEvent::Finished { step: 10, files: vec![] });
    scene.event(Event::Looked(fails("cpu", "2 memory errors")));
    scene.event(Event::AdapterUploaded(id(1), vec![], None));
    assert_eq!(ended(&scene.gone(1)).outcome, Outcome::Ok);
}

#[test]
fn of_several_devices_only_the_one_that_failed_is_out() {
    let mut scene = Scene::new();
    let both = ["cpu", "spare"].map(|id| DeviceId(id.into()));
    scene.heard(ToAgent::Offer(Box::new(Offer { devices: both.to_vec(), ..offer_on(id(1), "cpu") })));
    scene.event(Event::Prepared(id(1)));
    scene.news(1, News::Holds { pid: 42 });
    scene.event(Event::Looked(fails("spare", "the driver reported error XID 48")));
    scene.gone(1);
    scene.event(Event::Looked(seen(&[])));
    assert_eq!(devices_out(&scene), ["spare"]);
}

#[test]
fn a_device_that_fails_a_third_time_within_a_day_is_not_believed_any_more() {
    let mut scene = Scene::new();
    for failure in 1..=3 {
        let out = scene.event(Event::Looked(fails("cpu", "the driver reported error XID 94")));
        assert_eq!(out.contains(&Action::Test(DeviceId::cpu())), failure < 3, "{failure}: {out:?}");
        scene.event(Event::Tested(DeviceId::cpu(), Ok(())));
    }
    let why = usable_after(&mut scene, 7 * 24 * 3600, &[]).unwrap_err();
    assert!(why.contains("XID 94") && why.contains("3 times within a day"), "{why}");
    let out = scene.event(Event::Looked(fails("cpu", "the driver reported error XID 79")));
    assert!(!out.contains(&Action::Test(DeviceId::cpu())), "one more, a week later: {out:?}");
    assert!(usable_after(&mut scene, 1, &[]).unwrap_err().contains("XID 79"));
    // The next agent begins with a test: somebody was there.
    let mut scene = Scene::new();
    let now = scene.now;
    scene.host.quarantine([(DeviceId::cpu(), "XID 94".to_owned())].into(), now);
    assert!(scene.event(Event::Looked(seen(&[]))).contains(&Action::Test(DeviceId::cpu())));
}

#[test]
fn one_failure_that_is_told_in_several_looks_counts_once() {
    let mut scene = Scene::new();
    let xid = |number: u32| fails("cpu", &format!("the driver reported error XID {number}"));
    for failure in 1..=3 {
        for number in [79, 48, 94] {
            scene.event(Event::Looked(xid(number)));
        }
        let why = usable_after(&mut scene, 1, &[]).unwrap_err();
        assert!(why.contains("XID 94"), "{why}");
        assert_eq!(why.contains("3 times within a day"), failure == 3, "{failure}: {why}");
        // What was said under the first test has it tested once more.
        let tested = [(); 2].map(|()| scene.event(Event::Tested(DeviceId::cpu(), Ok(()))));
        assert_eq!(tested[0].contains(&Action::Test(DeviceId::cpu())), failure < 3, "{failure}: {tested:?}");
    }
}

#[test]
fn a_device_that_fails_under_every_test_is_tested_no_more_often_than_one_that_does_not_pass() {
    let mut scene = Scene::new();
    let tests = |out: &[Action]| out.contains(&Action::Test(DeviceId::cpu()));
    assert!(tests(&scene.event(Event::Looked(fails("cpu", "the driver reported error XID 79")))));
    scene.event(Event::Looked(fails("cpu", "the driver reported error XID 48")));
    assert!(tests(&scene.event(Event::Tested(DeviceId::cpu(), Ok(())))), "that may still have been the same");
    scene.event(Event::Looked(fails("cpu", "the driver reported error XID 48")));
    assert!(!tests(&scene.event(Event::Tested(DeviceId::cpu(), Ok(())))));
    assert!(!tests(&scene.wait(599)) && tests(&scene.wait(1)));
}

#[test]
fn a_device_that_fails_under_its_test_is_tested_again_whatever_that_says() {
    let mut scene = Scene::new();
    scene.event(Event::Looked(fails("cpu", "2 memory errors")));
    scene.event(Event::Looked(fails("cpu", "the driver reported error XID 79")));
    let out = scene.event(Event::Tested(DeviceId::cpu(), Ok(())));
    assert!(out.contains(&Action::Test(DeviceId::cpu())), "{out:?}");
    assert!(usable_after(&mut scene, 1, &[]).unwrap_err().contains("XID 79"), "the last word counts");
}

#[test]
fn a_gpu_that_vanishes_ends_its_attempt_stays_on_the_list_and_is_tested_when_it_is_back() {
    let gpu = Device {
        id: DeviceId("GPU-1".into()),
        kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
        ..seen(&[]).devices[0].clone()
    };
    let mut scene = Scene::new();
    scene.rules.proves_gpus = false;
    let rules = scene.rules.clone();
    (scene.host, _) = Host::restore(rules, vec![], scene.now);
    let with = Seen { devices: vec![gpu.clone(), seen(&[]).devices[0].clone()], ..Seen::default() };
    let without = Seen { devices: vec![seen(&[]).devices[0].clone()], ..Seen::default() };
    scene.event(Event::Looked(with.clone()));
    scene.heard(ToAgent::Offer(Box::new(offer_on(id(1), "GPU-1"))));
    scene.event(Event::Prepared(id(1)));
    scene.news(1, News::Holds { pid: 42 });
    let kills = |out: &[Action]| out.contains(&Action::Kill(id(1)));
    let looks: Vec<bool> = (0..3).map(|_| kills(&scene.event(Event::Looked(without.clone())))).collect();
    assert_eq!(looks, [false, false, true], "one look says little");
    assert!(ended(&scene.gone(1)).message.as_deref().is_some_and(|why| why.contains("vanished")));
    let missing = scene.host.devices().iter().find(|device| device.id == gpu.id).expect("it stays on the list");
    assert!(missing.usable.as_ref().is_err_and(|why| why.contains("missing")), "{missing:?}");
    let tests = |out: &[Action]| out.contains(&Action::Test(DeviceId("GPU-1".into())));
    assert!(!tests(&scene.event(Event::Looked(without))), "there is nothing to test");
    // With it comes what its driver had said before it fell off its bus.
    let faults = [(gpu.id.clone(), "the driver reported error XID 79".to_owned())].into();
    assert!(tests(&scene.event(Event::Looked(Seen { faults, ..with.clone() }))));
    for _ in 0..2 {
        scene.event(Event::Tested(gpu.id.clone(), Ok(())));
    }
    let fault = |xid: u32| [(gpu.id.clone(), format!("the driver reported error XID {xid}"))].into();
    assert!(
        tests(&scene.event(Event::Looked(Seen { faults: fault(48), ..with }))),
        "the second failure, not the third"
    );
}

#[test]
fn others_on_a_gpu_are_counted_where_they_can_be_told_from_ours() {
    let mut scene = scene_on_gpu();
    let gpu = DeviceId("GPU-1".into());
    let foreign = |scene: &Scene| scene.host.foreign(&gpu).map(|foreign| foreign.processes);
    scene.look_at_gpu(1, 40, Some(&[7, 9_042]));
    assert_eq!(foreign(&scene), None, "one of the two may be ours");
    scene.look_at_gpu(1, 40, Some(&[7, 8, 42]));
    assert_eq!(foreign(&scene), Some(2));
    scene.look_at_gpu(1, 40, None);
    assert_eq!(foreign(&scene), None, "silence");
    scene.gone(1);
    scene.look_at_gpu(1, 40, Some(&[7, 42]));
    assert_eq!(foreign(&scene), Some(1), "a dead worker of ours is nobody else");
}

/// A worker, 42, on a GPU of which 4 GiB were in use before.
fn scene_on_gpu() -> Scene {
    let mut scene = Scene::new();
    scene.rules.proves_gpus = false;
    (scene.host, _) = Host::restore(scene.rules.clone(), vec![], scene.now);
    assert_eq!(scene.looks_at_gpu(0, 4, Some(&[])), Ok(()));
    scene.heard(ToAgent::Offer(Box::new(offer_on(id(1), "GPU-1"))));
    scene.event(Event::Prepared(id(1)));
    scene.news(1, News::Holds { pid: 42 });
    scene
}

impl Scene {
    /// What is said of the GPU so many seconds later, with so many GiB in use and these processes on it; `None`: the driver does not say.
    fn looks_at_gpu(&mut self, seconds: u64, used: u64, pids: Option<&[u32]>) -> Result<(), String> {
        self.look_at_gpu(seconds, used, pids);
        self.host.devices()[0].usable.clone()
    }

    fn tests_gpu(&mut self, seconds: u64, used: u64, pids: Option<&[u32]>) -> bool {
        self.look_at_gpu(seconds, used, pids).contains(&Action::Test(DeviceId("GPU-1".into())))
    }

    fn look_at_gpu(&mut self, seconds: u64, used: u64, pids: Option<&[u32]>) -> Vec<Action> {
        self.now.mono += Duration::from_secs(seconds);
        let gpu = Device {
            id: DeviceId("GPU-1".into()),
            kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
            memory_bytes: 100 << 30,
            free_bytes: (100 - used) << 30,
            ..seen(&[]).devices[0].clone()
        };
        let holders = pids.map(|pids| (gpu.id.clone(), holding(pids))).into_iter().collect();
        self.event(Event::Looked(Seen { devices: vec![gpu], holders, ..Seen::default() }))
    }
}

/// A look that hears this of a device.
fn fails(device: &str, fault: &str) -> Seen {
    Seen { faults: [(DeviceId(device.into()), fault.to_owned())].into(), ..seen(&[]) }
}

/// Devices that were taken out, as far as they could be used before.
fn devices_out(scene: &Scene) -> Vec<&str> {
    let out = scene
        .host
        .devices()
        .iter()
        .filter(|device| device.usable.as_ref().is_err_and(|why| why.contains("quarantined")));
    out.map(|device| device.id.0.as_str()).collect()
}

/// What is said of the CPU slot so many seconds later, with these processes on it.
fn usable_after(scene: &mut Scene, seconds: u64, pids: &[u32]) -> Result<(), String> {
    scene.now.mono += Duration::from_secs(seconds);
    scene.event(Event::Looked(seen(pids)));
    scene.host.devices().iter().find(|device| device.id == DeviceId::cpu()).unwrap().usable.clone()
}

impl Scene {
    /// The worker says why it failed, and goes.
    fn fails(&mut self, number: u32, class: FailureClass) -> Vec<Action> {
        let mut out = self.line(3, WorkerEvent::Failed { class, message: "no".into(), hint: None });
        out.extend(self.gone(number));
        out
    }
}

#[test]
fn a_gpu_is_tested_before_it_is_offered_for_the_first_time_unless_it_is_at_work() {
    let gpu = |id: &str| Device {
        id: DeviceId(id.into()),
        kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
        ..seen(&[]).devices[0].clone()
    };
    let look = |scene: &mut Scene| {
        let devices = vec![gpu("GPU-1"), gpu("cpu"), Device { usable: Err("too old".into()), ..gpu("GPU-2") }];
        scene.event(Event::Looked(Seen { devices, ..Seen::default() }))
    };
    let mut scene = Scene::running();
    let out = look(&mut scene);
    let tests: Vec<_> = out.iter().filter(|action| matches!(action, Action::Test(_))).collect();
    assert_eq!(tests, [&Action::Test(DeviceId("GPU-1".into()))], "the other one trains, and the third cannot: {out:?}");
    let usable = |scene: &Scene| scene.host.devices()[0].usable.clone();
    assert!(usable(&scene).unwrap_err().ends_with("for the first time; it is tested before it is offered"));
    scene.event(Event::Tested(DeviceId("GPU-1".into()), Ok(())));
    assert_eq!(look(&mut scene), [], "once is enough");
    assert_eq!(usable(&scene), Ok(()));
}
