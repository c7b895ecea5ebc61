//! Who goes first, and why the others wait.

use super::{world::*, *};

#[test]
fn a_job_without_a_node_waits_and_says_why() {
    let mut world = World::new();
    world.prepare();
    let job = world.submit(1);
    assert_eq!(world.phase(job), Some(Phase::Queued));
    world.join(NODE);
    let Ok(Answer::Why(Some(why))) = world.cluster.answer(admin(), Query::Why(job), world.now) else {
        panic!("it waits")
    };
    assert_eq!(why.nodes[0].2, WhyNot::Unreachable);
    world.hello(NODE, boot(1), vec![]);
    assert!(world.offer_of(job).is_some());
}

#[test]
fn a_job_that_needs_more_memory_than_is_free_waits_and_says_how_much() {
    let mut world = World::ready_with(|findings| findings.cpu_bytes = 10 << 30);
    let job = world.submit(1);
    let Ok(Answer::Why(Some(why))) = world.cluster.answer(admin(), Query::Why(job), world.now) else {
        panic!("it waits")
    };
    assert_eq!(why.nodes[0].2, WhyNot::Memory { needed_bytes: 10 << 30, free_bytes: 8 << 30, stale: None });
}

#[test]
fn higher_priority_goes_first_then_age() {
    let mut world = World::ready();
    let first = world.submit(1);
    let second = world.submit_with(2, |spec| spec.priority = 50);
    let third = world.submit_with(3, |spec| spec.priority = 90);
    assert!(world.offer_of(first).is_some());
    let attempt = world.offer_of(first).unwrap().attempt;
    world.accept(attempt);
    world.report(attempt, ended(Outcome::Ok));
    assert!(world.offer_of(third).is_some());
    assert!(world.offer_of(second).is_none());
}

#[test]
fn what_a_job_would_rather_have_decides_only_among_what_will_do() {
    let mut world = World::new();
    world.prepare();
    let (old, new) = (Driver(570, 1, 0), Driver(580, 65, 6));
    for (node, rack, name, driver) in [(NODE, "a", "NVIDIA A100", new), (OTHER, "b", "NVIDIA H200", old)] {
        world.join(node);
        let mut hello = world.hello_message(boot(1), boot(1), vec![]);
        hello.labels = [("rack".to_owned(), rack.to_owned())].into();
        let device = |n| Device {
            name: name.into(),
            kind: DeviceKind::Cuda { compute: (9, 0), driver: Some(driver) },
            ..gpu(n)
        };
        hello.devices = (0..3).map(device).collect();
        world.handle(Event::SessionOpened { reply: 0, node, shown: shown("s"), hello: Box::new(hello) });
    }
    let at = |world: &World, job: JobId| world.cluster.jobs[&job].node();
    let label = |rack: &str| [("rack".to_owned(), rack.to_owned())].into();
    let first = world.submit_with(1, |spec| spec.resources.prefer.labels = label("a"));
    let second = world.submit_with(2, |spec| spec.resources.prefer.labels = label("b"));
    let third = world.submit_with(3, |spec| spec.resources.prefer.gpu = Some(GpuRequest::Named("a100".into())));
    assert_eq!([first, second, third].map(|job| at(&world, job)), [Some(NODE), Some(OTHER), Some(NODE)]);
    let nowhere = world.submit_with(4, |spec| spec.resources.prefer.labels = label("z"));
    assert!(at(&world, nowhere).is_some(), "a wish keeps from no node");
    let hard = world.submit_with(5, |spec| {
        spec.resources.prefer.labels = label("b");
        spec.resources.min_driver = Some(Driver(580, 0, 0));
    });
    assert_eq!(at(&world, hard), Some(NODE), "a need goes before a wish");
    let harder = world.submit_with(6, |spec| spec.resources.min_driver = Some(Driver(590, 0, 0)));
    let lack = |has| WhyNot::NoSuchDevice(Lack::Driver { least: Driver(590, 0, 0), has: Some(has) });
    let why = world.why(harder);
    assert_eq!(why.nodes.iter().map(|(_, _, why)| why.clone()).collect::<Vec<_>>(), [lack(new), lack(old)]);
}

#[test]
fn a_job_of_several_devices_is_told_how_many_there_are_and_which_of_them_lacks_room() {
    let mut world = World::with_gpus(2, Rules::default());
    let too_many = world.submit_with(1, |spec| spec.resources.gpus = 3);
    assert_eq!(world.why(too_many).nodes[0].2, WhyNot::TooFew { wanted: 3, there: 2 });
    world.hear(FromAgent::Devices(vec![gpu(0), Device { free_bytes: 10 << 30, ..gpu(1) }]));
    world.findings.cuda_bytes = 20 << 30;
    let both = world.submit_with(2, |spec| spec.resources.gpus = 2);
    assert_eq!(
        world.why(both).nodes[0].2,
        WhyNot::Memory { needed_bytes: 20 << 30, free_bytes: 10 << 30, stale: None }
    );
}

#[test]
fn what_no_gpu_trains_waits_for_a_cpu_slot_and_says_so() {
    let mut world = World::with_gpus(1, Rules::default());
    let in_f32 = |spec: &mut JobSpec| {
        let Task::Train(train) = &mut spec.task;
        train.training.base_dtype = BaseDtype::F32;
    };
    let jobs = [1, 2].map(|n| world.submit_with(n, in_f32));
    assert_eq!(world.why(jobs[0]).nodes[0].2, WhyNot::CpuOnly("training.base_dtype = f32".into()));
    let cpu = Device { id: DeviceId::cpu(), kind: DeviceKind::Cpu, ..gpu(0) };
    world.hear(FromAgent::Devices(vec![gpu(0), cpu]));
    let placed: Vec<_> = world.cluster.jobs.values().filter_map(|job| job.node()).collect();
    assert_eq!(placed.len(), 1, "one of them has the slot");
    let other = world.submit(9);
    assert!(world.is_placed(other), "the GPU is for those that it trains");
}

#[test]
fn a_model_that_is_trained_in_brain_floats_waits_for_a_gpu_beside_a_free_cpu_slot() {
    let mut world = World::with_gpus(0, Rules::default());
    let cpu = Device { id: DeviceId::cpu(), kind: DeviceKind::Cpu, ..gpu(0) };
    world.hear(FromAgent::Devices(vec![cpu.clone()]));
    let job = world.submit_with(1, |spec| {
        let Task::Train(train) = &mut spec.task;
        (train.training.method, train.training.base_dtype) = (Method::Full, BaseDtype::Bf16);
    });
    assert_eq!(world.why(job).nodes[0].2, WhyNot::NoSuchDevice(Lack::Gpu));
    let other = world.submit(2);
    assert!(world.is_placed(other), "the slot is for those that it trains");
    world.hear(FromAgent::Devices(vec![gpu(0), cpu]));
    assert!(world.is_placed(job));
}

#[test]
fn users_take_turns_however_many_jobs_one_of_them_brings() {
    let mut world = World::with_gpus(2, Rules::default());
    world.shares_everything();
    let first: Vec<_> = (1..=6).map(|n| world.submit(n)).collect();
    let later = world.submit_as(user(), 20, |_| {});
    let attempt = world.run(first[0]);
    world.pass_talking(Duration::from_secs(5));
    world.report(attempt, ended(Outcome::Ok));
    assert!(world.is_placed(later), "who has used nothing goes before who has");
    assert!(world.is_placed(first[1]) && !world.is_placed(first[2]));
}

/// A cluster in which the administrator weighs twice what the other person does.
fn weighted(gpus: usize) -> World {
    let weights = [("a@example.org".to_owned(), 2.0)].into();
    let mut world = World::with_gpus(gpus, Rules { weights, ..Rules::default() });
    let Actor::User { id, .. } = user() else { unreachable!("a person") };
    let other = Command::CreateUser { id, email: "b@example.org".into(), name: "B".into(), role: Role::User };
    world.ask_as(Actor::System, None, other).0.unwrap();
    world.shares_everything();
    world
}

#[test]
fn who_weighs_twice_as_much_gets_twice_the_device_time() {
    let mut world = weighted(3);
    let (mut n, mut used) = (0, [0, 0]);
    // Whoever has the shorter jobs gets more of them, and no more time.
    let lasts = [Duration::from_secs(20), Duration::from_secs(50)];
    let mut running: Vec<(usize, AttemptId, Duration)> = Vec::new();
    while used[0] + used[1] < 20_000 {
        for owner in [admin(), user()] {
            let waits = |job: &&LiveJob| Some(job.record.owner) == owner.user() && job.attempt.is_none();
            while world.cluster.jobs.values().filter(waits).count() < 4 {
                n += 1;
                world.submit_as(owner, n, |_| {});
            }
        }
        let placed = world.cluster.jobs.values().filter_map(|job| Some((job.record.owner, job.attempt.as_ref()?.id)));
        let placed: Vec<_> = placed.filter(|(_, id)| running.iter().all(|(_, known, _)| known != id)).collect();
        for (owner, attempt) in placed {
            let who = usize::from(owner != ADMIN);
            running.push((who, world.run(attempt.job), world.now.mono + lasts[who]));
        }
        world.pass(Duration::from_secs(5));
        world.heartbeat();
        let now = world.now.mono;
        for (who, attempt, _) in running.extract_if(.., |(_, _, ends)| *ends <= now) {
            let ReportBody::Ended(end) = ended(Outcome::Ok) else { unreachable!("an end") };
            world.report(attempt, ReportBody::Ended(Ended { held: lasts[who], ..end }));
            used[who] += lasts[who].as_secs();
        }
    }
    let part = used[0] as f64 / used[1] as f64;
    assert!((1.95..2.05).contains(&part), "{used:?}");
}

#[test]
fn weights_divide_what_one_pass_gives_and_why_names_them() {
    let mut world = weighted(6);
    world.ask(Command::CordonNode { id: NODE }).0.unwrap();
    let mine: Vec<_> = (1..=6).map(|n| world.submit(n)).collect();
    let theirs: Vec<_> = (11..=16).map(|n| world.submit_as(user(), n, |_| {})).collect();
    world.ask(Command::OpenNode { id: NODE }).0.unwrap();
    let placed = |jobs: &[JobId]| jobs.iter().filter(|job| world.is_placed(**job)).count();
    assert_eq!((placed(&mine), placed(&theirs)), (4, 2));
    world.pass_talking(Duration::from_secs(2));
    assert_eq!(world.why(mine[5]).owner, Some((Duration::from_secs(8), 2.0)));
    assert_eq!(world.why(theirs[5]).owner, Some((Duration::from_secs(4), 1.0)));
}

#[test]
fn use_counts_half_after_a_week_and_is_remembered_over_a_restart() {
    let mut world = World::ready();
    let (_, attempt) = world.running(1);
    world.pass_talking(Duration::from_secs(5));
    let out = world.report(attempt, ended(Outcome::Ok));
    let Some(Record::Usage(usage)) = row(&out, |r| matches!(r, Record::Usage(_))) else { panic!("it is written down") };
    assert_eq!(usage.device_millis, 5_000);
    let loaded = Loaded { generation: 1, usages: vec![*usage], ..Loaded::default() };
    let mut later = world.now;
    later.wall.0 += 7 * 86_400_000;
    let again = Cluster::new(loaded, Timers::default(), later);
    assert_eq!(again.fair.used(ADMIN, later), 2_500);
}

#[test]
fn a_user_gets_no_more_jobs_and_devices_than_are_allowed_and_the_next_user_does() {
    let rules = Rules { jobs_per_user: Some(1), devices_per_user: Some(2), ..Rules::default() };
    let mut world = World::with_gpus(4, rules);
    world.shares_everything();
    let first = world.submit(1);
    let second = world.submit(2);
    let large = world.submit_as(user(), 3, |spec| spec.resources.gpus = 3);
    assert!(world.is_placed(first) && !world.is_placed(second) && !world.is_placed(large));
    assert_eq!(world.why(second).limit, Some(Limit::Jobs(1)));
    assert_eq!(world.why(large).limit, Some(Limit::TooLarge { wanted: 3, most: 2 }));
    let Ok(Answer::Stuck(stuck)) = world.cluster.answer(admin(), Query::Stuck(vec![large]), world.now) else {
        panic!()
    };
    assert_eq!(stuck[&large].limit, world.why(large).limit, "a list says the same");
    let both = world.submit_as(user(), 5, |spec| spec.resources.gpus = 2);
    assert!(world.is_placed(both));
    let theirs = world.submit_as(user(), 4, |_| {});
    assert!(!world.is_placed(theirs), "one job at once");
    assert_eq!(world.why(theirs).limit, Some(Limit::Jobs(1)));
}

/// A GPU of that name, memory in GiB, compute capability and driver.
fn kind(name: &str, gib: u64, compute: (u8, u8), driver: Driver) -> Device {
    let kind = DeviceKind::Cuda { compute, driver: Some(driver) };
    Device { name: name.into(), kind, memory_bytes: gib << 30, free_bytes: gib << 30, ..gpu(0) }
}

#[test]
fn every_need_is_met_or_told_by_its_name() {
    let (old, new) = (Driver(570, 1, 0), Driver(580, 65, 6));
    let least =
        |gib: Option<u64>, min_compute| GpuRequest::Least { min_memory_bytes: gib.map(|gib| gib << 30), min_compute };
    let named = |name: &str| GpuRequest::Named(name.into());
    type Need = Box<dyn Fn(&mut Resources)>;
    let gpu_of = |wanted: GpuRequest| -> Need { Box::new(move |needs: &mut Resources| needs.gpu = wanted.clone()) };
    let driver = |wanted: Driver| -> Need { Box::new(move |needs: &mut Resources| needs.min_driver = Some(wanted)) };
    let rack = |rack: &'static str| -> Need {
        Box::new(move |needs: &mut Resources| needs.labels = [("rack".to_owned(), rack.to_owned())].into())
    };
    let lack = WhyNot::NoSuchDevice;
    let needs: Vec<(Need, Need, WhyNot)> = vec![
        (gpu_of(named("a100")), gpu_of(named("h200")), lack(Lack::Name("h200".into()))),
        (
            gpu_of(least(Some(40), None)),
            gpu_of(least(Some(41), None)),
            lack(Lack::Memory { least_bytes: 41 << 30, bytes: 40 << 30 }),
        ),
        (
            gpu_of(least(None, Some((8, 0)))),
            gpu_of(least(None, Some((9, 0)))),
            lack(Lack::Compute { least: (9, 0), has: (8, 0) }),
        ),
        (driver(old), driver(new), lack(Lack::Driver { least: new, has: Some(old) })),
        (rack("a"), rack("b"), WhyNot::Label { key: "rack".into(), value: "b".into() }),
    ];
    for (n, (met, unmet, why)) in needs.into_iter().enumerate() {
        let mut world = World::new();
        world.prepare();
        world.join(NODE);
        let mut hello = world.hello_message(boot(1), boot(1), vec![]);
        hello.labels = [("rack".to_owned(), "a".to_owned())].into();
        hello.devices = vec![kind("NVIDIA A100", 40, (8, 0), old)];
        world.handle(Event::SessionOpened { reply: 0, node: NODE, shown: shown("s"), hello: Box::new(hello) });
        let refused = world.submit_with(1, |spec| unmet(&mut spec.resources));
        let accepted = world.submit_with(2, |spec| met(&mut spec.resources));
        assert!(world.is_placed(accepted), "need {n} is met");
        assert!(!world.is_placed(refused), "need {n} is not");
        let told = world.why(refused);
        assert_eq!(told.nodes, [(NODE, "n".to_owned(), why.clone())], "though it is busy as well");
        assert_eq!(told.never, Some((NODE, "n".to_owned(), why)));
    }
}

#[test]
fn a_job_that_no_node_can_ever_take_is_told_so_with_the_nearest() {
    let mut world = World::new();
    world.prepare();
    let (small, far) = (NODE, OTHER);
    for (node, devices) in [(small, vec![gpu(0), gpu(1)]), (far, vec![kind("CPU", 20, (9, 0), Driver(1, 0, 0))])] {
        world.join(node);
        let hello = Hello { devices, ..world.hello_message(boot(1), boot(1), vec![]) };
        world.handle(Event::SessionOpened { reply: 0, node, shown: shown("s"), hello: Box::new(hello) });
    }
    let never = |world: &World, job: JobId| world.why(job).never.map(|(node, _, why)| (node, why));
    let wide = world.submit_with(1, |spec| spec.resources.gpus = 3);
    assert_eq!(never(&world, wide), Some((small, WhyNot::TooFew { wanted: 3, there: 2 })));
    assert_eq!(world.why(wide).expected, None);
    world.findings.cuda_bytes = 90 << 30;
    let large = world.submit(2);
    let too_small = WhyNot::TooSmall { needed_bytes: 90 << 30, memory_bytes: 80 << 30 };
    assert_eq!(never(&world, large), Some((small, too_small.clone())));
    assert_eq!(world.why(large).nodes[0].2, too_small);
    let needed = std::mem::replace(&mut world.findings.cuda_bytes, 1 << 30);
    let [_, waits] = [3, 4].map(|n| world.submit_with(n, |spec| spec.resources.gpus = 2));
    world.findings.cuda_bytes = needed;
    let stuck = |actor| match world.cluster.answer(actor, Query::Stuck(vec![wide, large, waits]), world.now) {
        Ok(Answer::Stuck(stuck)) => stuck.into_iter().map(|(job, why)| (job, why.never)).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let of_all = [wide, large].map(|job| (job, world.why(job).never));
    assert_eq!(stuck(admin()), of_all, "a list says the same");
    assert_eq!(stuck(user()), [], "of another's it says nothing");
    // One that is closed, or away, keeps nobody from the truth; one of which nothing is known might do.
    world.ask(Command::CordonNode { id: small }).0.unwrap();
    assert_eq!(world.why(large).nodes[0].2, WhyNot::Cordoned);
    assert!(never(&world, large).is_some());
    let query = Query::DryRun { spec: Box::new(spec()), findings: world.findings.clone() };
    let Ok(Answer::Why(Some(thought_of))) = world.cluster.answer(admin(), query, world.now) else { panic!("it waits") };
    assert_eq!(thought_of.never, world.why(large).never, "a dry run says the same");
    let unknown = NodeId(uuid(12));
    world.join(unknown);
    assert_eq!(never(&world, large), None);
    assert_eq!(world.why(large).nodes[2].2, WhyNot::Unreachable);
}

#[test]
fn each_way_for_a_node_to_be_out_has_its_reason_and_is_not_never() {
    let mut world = World::with_gpus(1, Rules::default());
    // What is there keeps the drain from ending at once.
    world.running(2);
    let out = |world: &World, job: JobId| {
        let why = world.why(job);
        assert_eq!(why.never, None);
        why.nodes[0].2.clone()
    };
    world.ask(Command::CordonNode { id: NODE }).0.unwrap();
    let job = world.submit(1);
    assert_eq!(out(&world, job), WhyNot::Cordoned);
    world.ask(Command::DrainNode { id: NODE, patience: Duration::from_secs(60) }).0.unwrap();
    assert_eq!(out(&world, job), WhyNot::Draining);
    world.cluster.nodes.get_mut(&NODE).unwrap().record.quarantine = Some("two machines".into());
    assert_eq!(out(&world, job), WhyNot::Quarantined("two machines".into()));
    let session = world.cluster.nodes[&NODE].record.sessions;
    world.handle(Event::SessionClosed { node: NODE, session, nonsense: None });
    let both = |why| WhyNot::ClosedAndAway(Box::new(why));
    assert_eq!(out(&world, job), both(WhyNot::Quarantined("two machines".into())));
    world.cluster.nodes.get_mut(&NODE).unwrap().record.quarantine = None;
    assert_eq!(out(&world, job), both(WhyNot::Draining));
    world.ask(Command::OpenNode { id: NODE }).0.unwrap();
    assert_eq!(out(&world, job), WhyNot::Unreachable);
    let hello = Hello {
        devices: vec![Device { usable: Err("fell off the bus".into()), ..gpu(0) }],
        ..world.hello_message(boot(1), boot(1), vec![])
    };
    world.handle(Event::SessionOpened { reply: 0, node: NODE, shown: shown("s"), hello: Box::new(hello) });
    assert_eq!(out(&world, job), WhyNot::Unusable("fell off the bus".into()));
}

#[test]
fn a_job_that_fits_no_message_fails_with_a_reason_and_is_never_offered() {
    let mut world = World::ready();
    let job = world.submit_with(1, |spec| {
        let lorikeet_protocol::job::Task::Train(train) = &mut spec.task;
        train.lora.target_modules = lorikeet_protocol::job::TargetModules::Names(vec!["abcdefgh".into(); 80_000]);
    });
    assert!(world.offer_of(job).is_none());
    assert_eq!(world.phase(job), None, "a job that is over is not among the live ones");
    let next = world.submit(2);
    assert!(world.offer_of(next).is_some(), "its device is free");
}

#[test]
fn a_great_many_jobs_are_placed_in_batches_right_after_one_another() {
    let mut world = World::ready_with(|findings| findings.cpu_bytes = 1);
    world.ask(Command::CordonNode { id: NODE }).0.unwrap();
    let jobs: Vec<_> = (1..=520).map(|n| world.submit_with(n, |spec| spec.resources.exclusive = false)).collect();
    world.ask(Command::OpenNode { id: NODE }).0.unwrap();
    let placed = |world: &World| jobs.iter().filter(|job| world.phase(**job) == Some(Phase::Assigned)).count();
    assert_eq!(placed(&world), 512, "others have to wait while this is written");
    // No news, and no time has passed.
    assert!(world.cluster.next_deadline().unwrap() <= world.now.mono);
    world.handle(Event::Ticked);
    assert_eq!(placed(&world), 520);
    assert!(world.cluster.next_deadline().unwrap() > world.now.mono);
}
