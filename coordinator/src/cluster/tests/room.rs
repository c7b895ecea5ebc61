//! Room: several devices at once, shared devices, reservations, and attempts that leave for a job of higher priority.

use super::{world::*, *};

#[test]
fn several_devices_come_all_at_once_or_not_at_all() {
    let mut world = World::with_gpus(4, Rules::default());
    let small = world.submit(1);
    let large = world.submit_with(2, |spec| spec.resources.gpus = 4);
    assert!(world.is_placed(small) && !world.is_placed(large));
    let attempt = world.run(small);
    world.report(attempt, ended(Outcome::Ok));
    assert_eq!(world.offer_of(large).unwrap().devices.len(), 4);
}

#[test]
fn a_large_job_is_not_starved_by_small_ones_behind_it() {
    let mut world = World::with_gpus(2, Rules::default());
    let hour = |spec: &mut JobSpec| spec.resources.max_runtime = Duration::from_secs(3_600);
    let first = world.submit_with(1, hour);
    let large = world.submit_with(2, |spec| spec.resources.gpus = 2);
    let long = world.submit_with(3, |spec| spec.resources.max_runtime = Duration::from_secs(7_200));
    let short = world.submit_with(4, |spec| spec.resources.max_runtime = Duration::from_secs(1_800));
    assert!(world.is_placed(first) && !world.is_placed(large));
    assert!(!world.is_placed(long), "it would hold what the large one waits for");
    assert!(world.is_placed(short), "it is done before");
    assert_eq!(world.why(long).nodes[0].2, WhyNot::Busy);
    let starts = world.why(large).expected.unwrap();
    assert_eq!(starts.0 - world.now.wall.0, 3_600_000);
}

#[test]
fn the_expected_start_counts_the_jobs_ahead_in_line() {
    let mut world = World::with_gpus(2, Rules::default());
    let hours = |hours: u64| move |spec: &mut JobSpec| spec.resources.max_runtime = Duration::from_secs(hours * 3_600);
    let (one, two) = (world.submit_with(1, hours(1)), world.submit_with(2, hours(2)));
    assert!(world.is_placed(one) && world.is_placed(two));
    let waits: Vec<_> = (3..=5).map(|n| world.submit_with(n, hours(1))).collect();
    assert_eq!(waits.iter().map(|job| starts_in(&world, *job)).collect::<Vec<_>>(), [Some(1), Some(2), None]);
    assert_eq!(world.why(waits[2]).position, 3);
    // One that no device here would do for takes none.
    world.findings.cuda_bytes = 90 << 30;
    let large = world.submit_with(6, |spec| spec.priority = 90);
    assert_eq!((world.why(large).position, world.why(waits[0]).position), (1, 2));
    assert_eq!((starts_in(&world, large), starts_in(&world, waits[0])), (None, Some(1)));
}

#[test]
fn a_job_that_a_limit_holds_back_is_ahead_in_line_and_one_that_can_never_start_is_not() {
    let mut world = World::with_gpus(3, Rules { devices_per_user: Some(2), ..Rules::default() });
    world.shares_everything();
    let wants = |gpus, priority, hours: u64| {
        move |spec: &mut JobSpec| {
            (spec.resources.gpus, spec.priority) = (gpus, priority);
            spec.resources.max_runtime = Duration::from_secs(hours * 3_600);
        }
    };
    let (first, second) = (world.submit_with(1, wants(2, 50, 1)), world.submit_as(user(), 2, wants(1, 50, 3)));
    assert!(world.is_placed(first) && world.is_placed(second));
    let last = world.submit_as(user(), 3, wants(1, 50, 1));
    let never = world.submit_with(4, wants(3, 90, 1));
    assert_eq!(world.why(never).limit, Some(Limit::TooLarge { wanted: 3, most: 2 }));
    assert_eq!(starts_in(&world, last), Some(1));
    let held_back = world.submit_with(5, wants(2, 60, 1));
    assert_eq!(world.why(held_back).limit, Some(Limit::Devices(2)));
    assert_eq!(starts_in(&world, last), Some(3));
}

#[test]
fn who_is_charged_for_a_first_job_lets_others_go_before_a_second() {
    let mut world = World::with_gpus(2, Rules::default());
    world.shares_everything();
    let lasts = |hours: u64| move |spec: &mut JobSpec| spec.resources.max_runtime = Duration::from_secs(hours * 3_600);
    let (first, second) = (world.submit_with(1, lasts(1)), world.submit_with(2, lasts(2)));
    assert!(world.is_placed(first) && world.is_placed(second));
    let ours: Vec<_> = (3..=4).map(|n| world.submit_with(n, lasts(9))).collect();
    let theirs = world.submit_as(user(), 5, lasts(1));
    let positions = [ours[0], theirs, ours[1]].map(|job| world.why(job).position);
    assert_eq!((positions, starts_in(&world, theirs)), ([1, 2, 3], Some(2)));
}

#[test]
fn a_limit_lets_no_more_jobs_be_ahead_than_it_lets_run() {
    let mut world = World::with_gpus(4, Rules { jobs_per_user: Some(1), ..Rules::default() });
    world.shares_everything();
    let lasts = |hours: u64| {
        move |spec: &mut JobSpec| {
            (spec.resources.gpus, spec.resources.max_runtime) = (2, Duration::from_secs(hours * 3_600));
        }
    };
    let (first, second) = (world.submit_with(1, lasts(1)), world.submit_as(user(), 2, lasts(2)));
    assert!(world.is_placed(first) && world.is_placed(second));
    for n in 3..=20 {
        world.submit_with(n, |spec| (spec.resources.gpus, spec.priority) = (2, 90));
    }
    let third = Actor::User { id: UserId(uuid(77)), role: Role::Admin, token: TokenId(uuid(78)) };
    let dataset = world.cluster.jobs[&first].record.dataset.to_string();
    let last = world.submit_as(third, 21, |spec| {
        lasts(1)(spec);
        spec.dataset = dataset;
    });
    assert_eq!(
        starts_in(&world, last),
        Some(2),
        "the end of the second is for whoever comes behind one more of the first's jobs"
    );
}

#[test]
fn a_job_that_foreign_memory_keeps_out_keeps_nobody_else_out() {
    let mut world = World::with_gpus(1, Rules::default());
    world.hear(FromAgent::Devices(vec![Device { free_bytes: 10 << 30, ..gpu(0) }]));
    world.findings.cuda_bytes = 20 << 30;
    let large = world.submit(1);
    world.findings.cuda_bytes = 5 << 30;
    let small = world.submit(2);
    assert!(!world.is_placed(large) && world.is_placed(small));
    let missing = WhyNot::Memory { needed_bytes: 20 << 30, free_bytes: 10 << 30, stale: None };
    world.report(world.offer_of(small).unwrap().attempt, ended(Outcome::Ok));
    assert_eq!((world.why(large).nodes[0].2.clone(), world.why(large).expected), (missing, None));
}

#[test]
fn what_ours_take_beyond_their_plan_keeps_no_job_from_its_turn() {
    let mut world = World::with_gpus(1, Rules::default());
    world.findings.cuda_bytes = 10 << 30;
    let share = |hours: u64| {
        move |spec: &mut JobSpec| {
            (spec.resources.exclusive, spec.resources.max_runtime) = (false, Duration::from_secs(hours * 3_600));
        }
    };
    let first = world.submit_with(1, share(1));
    let attempt = world.run(first);
    let ReportBody::Progress(progress) = step_one() else { unreachable!("it tells of a step") };
    world.report(attempt, ReportBody::Progress(Progress { total_steps: 2, ..progress }));
    let told = |world: &mut World, bytes: u64| {
        world.hear(FromAgent::Devices(vec![Device { free_bytes: bytes, ..gpu(0) }]));
    };
    told(&mut world, (70 << 30) - (600 << 20));
    world.findings.cuda_bytes = 80 << 30;
    let whole = world.submit(2);
    world.findings.cuda_bytes = 10 << 30;
    let small = world.submit_with(3, share(2));
    assert!(!world.is_placed(small), "it would be there longer than the first");
    assert!(world.why(whole).expected.is_some());
}

#[test]
fn what_one_that_has_just_left_had_keeps_no_job_from_its_turn_and_what_stays_there_does() {
    let mut world = World::with_gpus(1, Rules::default());
    let told = |world: &mut World, gib: u64| {
        world.hear(FromAgent::Devices(vec![Device { free_bytes: gib << 30, ..gpu(0) }]));
    };
    let share = |spec: &mut JobSpec| spec.resources.exclusive = false;
    world.findings.cuda_bytes = 60 << 30;
    let first = world.submit_with(1, share);
    let attempt = world.run(first);
    world.report(attempt, step_one());
    told(&mut world, 20);
    world.findings.cuda_bytes = 70 << 30;
    let large = world.submit_with(2, share);
    world.report(attempt, ended(Outcome::Ok));
    world.findings.cuda_bytes = 10 << 30;
    let small = world.submit_with(3, share);
    assert!(!world.is_placed(large) && !world.is_placed(small), "its node has not looked since");
    told(&mut world, 20);
    assert!(!world.is_placed(large) && world.is_placed(small), "it was somebody else's");
    world.report(world.offer_of(small).unwrap().attempt, ended(Outcome::Ok));
    told(&mut world, 80);
    assert!(world.is_placed(large));
}

#[test]
fn what_an_agent_says_of_its_progress_stops_no_clock() {
    let mut world = World::with_gpus(1, Rules::default());
    let job = world.submit(1);
    let attempt = world.run(job);
    world.pass_talking(Duration::from_secs(2));
    world.report(attempt, step_one());
    let next = world.submit(2);
    assert!(world.why(next).expected.is_some());
}

#[test]
fn jobs_that_do_not_mind_share_a_device_as_far_as_their_plans_fit() {
    let mut world = World::with_gpus(1, Rules::default());
    world.findings.cuda_bytes = 30 << 30;
    let share = |spec: &mut JobSpec| spec.resources.exclusive = false;
    let jobs: Vec<_> = (1..=3).map(|n| world.submit_with(n, share)).collect();
    assert!(world.is_placed(jobs[0]) && world.is_placed(jobs[1]) && !world.is_placed(jobs[2]));
    let missing = WhyNot::Memory { needed_bytes: 30 << 30, free_bytes: 20 << 30, stale: None };
    assert_eq!(world.why(jobs[2]).nodes[0].2, missing);
    let alone = world.submit_with(4, |spec| spec.priority = 90);
    assert!(!world.is_placed(alone), "who wants to be alone waits until it is");
}

#[test]
fn what_others_use_and_what_ours_have_yet_to_take_are_both_taken_off_a_device() {
    let mut world = World::with_gpus(1, Rules::default());
    let told = |world: &mut World, gib: u64| {
        world.hear(FromAgent::Devices(vec![Device { free_bytes: gib << 30, ..gpu(0) }]));
    };
    let share = |spec: &mut JobSpec| spec.resources.exclusive = false;
    world.findings.cuda_bytes = 20 << 30;
    // Somebody else has 35 of 80 GiB.
    told(&mut world, 45);
    let first = world.submit_with(1, share);
    let second = world.submit_with(2, share);
    let third = world.submit_with(3, share);
    assert!(world.is_placed(first) && world.is_placed(second) && !world.is_placed(third), "5 GiB are left");
    let missing = WhyNot::Memory { needed_bytes: 20 << 30, free_bytes: 5 << 30, stale: None };
    assert_eq!(world.why(third).nodes[0].2, missing);
    // The first goes on from its first step, and says so before it has taken anything.
    let attempt = world.run(first);
    world.run(second);
    world.report(attempt, ReportBody::Running { from_step: 1 });
    world.report(attempt, step_one());
    told(&mut world, 45);
    assert_eq!(world.why(third).nodes[0].2, missing);
    // It has taken its part, and is in what the node sees; the second has not.
    let ReportBody::Progress(progress) = step_one() else { unreachable!("it tells of a step") };
    world.report(attempt, ReportBody::Progress(Progress { step: 2, ..progress }));
    told(&mut world, 25);
    assert_eq!(world.why(third).nodes[0].2, missing);
    // What the others have left is there for the third.
    told(&mut world, 45);
    assert!(world.is_placed(third));
}

#[test]
fn a_figure_that_nobody_has_renewed_is_called_old() {
    let mut world = World::with_gpus(1, Rules::default());
    world.hear(FromAgent::Devices(vec![Device { free_bytes: 10 << 30, ..gpu(0) }]));
    world.findings.cuda_bytes = 20 << 30;
    let job = world.submit(1);
    let told = |world: &World| match &world.why(job).nodes[0].2 {
        WhyNot::Memory { stale, .. } => *stale,
        other => panic!("{other:?}"),
    };
    world.pass_talking(Duration::from_secs(180));
    assert_eq!(told(&world), None);
    world.pass_talking(Duration::from_secs(60));
    assert_eq!(told(&world), Some(Duration::from_secs(240)));
    world.hear(FromAgent::Devices(vec![Device { free_bytes: 10 << 30, ..gpu(0) }]));
    assert_eq!(told(&world), None);
}

#[test]
fn an_agent_that_has_no_room_after_all_costs_no_retry_and_why_says_what_it_said() {
    let mut world = World::with_gpus(1, Rules::default());
    let job = world.submit(1);
    let attempt = world.offer_of(job).unwrap().attempt;
    let reason = "device GPU-0 is busy: it has 1 MiB of memory free, 2 MiB are planned";
    world.hear(FromAgent::Declined { attempt, reason: reason.into() });
    let row = &world.cluster.jobs[&job].record;
    assert_eq!((row.phase(), row.user_failures, row.infrastructure_failures), (Phase::Queued, 0, 0));
    assert!(row.blamed.is_empty() && world.cluster.nodes[&NODE].record.suspected_by.is_empty());
    let why = world.why(job);
    assert!(why.backs_off_until.is_some());
    assert_eq!(why.last_word.as_deref(), Some(format!("declined: {reason}").as_str()));
    let next = world.until_offered(job).unwrap();
    assert!(next.token > attempt.token, "it is offered again, to whom there is");
}

#[test]
fn a_job_of_higher_priority_makes_the_one_with_least_at_stake_save_and_leave() {
    let mut world = World::with_gpus(2, Rules { preemption_margin: Some(20), ..Rules::default() });
    let (old, young) = (world.submit(1), world.submit(2));
    let old = world.run(old);
    world.pass_talking(Duration::from_secs(600));
    let young = world.run_later(young);
    world.pass_talking(Duration::from_secs(10));
    let urgent = world.submit_with(3, |spec| spec.priority = 70);
    let asked: Vec<_> = world.asked_to_leave();
    assert_eq!(asked, [young], "the other has ten minutes more to lose");
    world.pass_talking(Duration::from_secs(5));
    assert_eq!(world.asked_to_leave(), [young], "one is enough, and is asked once");
    world.report(young, ReportBody::Checkpoint(checkpoint(9)));
    world.report(young, ended(Outcome::Preempted));
    assert!(world.is_placed(urgent));
    let back = &world.cluster.jobs[&young.job].record;
    assert_eq!((back.phase(), back.user_failures, back.infrastructure_failures), (Phase::Queued, 0, 0));
    assert_eq!(back.checkpoint.as_ref().map(|checkpoint| checkpoint.step), Some(9));
    assert!(world.cluster.jobs[&old.job].attempt.as_ref().is_some_and(|row| row.leave.is_none()));
}

#[test]
fn nobody_leaves_a_device_on_which_others_memory_leaves_no_room_for_the_job() {
    let mut world = World::with_gpus(1, Rules { preemption_margin: Some(20), ..Rules::default() });
    world.findings.cuda_bytes = 10 << 30;
    let first = world.submit(1);
    let attempt = world.run(first);
    world.report(attempt, step_one());
    let told = |world: &mut World, gib: u64| {
        world.hear(FromAgent::Devices(vec![Device { free_bytes: gib << 30, ..gpu(0) }]));
    };
    // Of 80 GiB ours has 10 and somebody else 50.
    told(&mut world, 20);
    world.findings.cuda_bytes = 40 << 30;
    let urgent = world.submit_with(2, |spec| spec.priority = 90);
    assert!(world.asked_to_leave().is_empty());
    assert_eq!(world.why(urgent).expected, None);
    // Somebody else has gone.
    told(&mut world, 40);
    assert_eq!(world.asked_to_leave(), [attempt]);
    world.report(attempt, ended(Outcome::Preempted));
    told(&mut world, 50);
    assert!(world.is_placed(urgent));
}

#[test]
fn one_that_holds_two_devices_leaves_alone_for_a_job_that_wants_two() {
    let mut world = World::with_gpus(3, Rules { preemption_margin: Some(20), ..Rules::default() });
    let wide = world.submit_with(1, |spec| spec.resources.gpus = 2);
    let wide = world.run(wide);
    world.pass_talking(Duration::from_secs(600));
    let narrow = world.submit(2);
    world.run_later(narrow);
    world.pass_talking(Duration::from_secs(10));
    world.submit_with(3, |spec| (spec.priority, spec.resources.gpus) = (70, 2));
    assert_eq!(world.asked_to_leave(), [wide], "the other has less to lose, and would not be enough");
}

#[test]
fn nobody_leaves_for_a_job_that_is_hardly_more_urgent() {
    let mut world = World::with_gpus(1, Rules { preemption_margin: Some(20), ..Rules::default() });
    let first = world.submit(1);
    world.run(first);
    world.submit_with(2, |spec| spec.priority = 69);
    assert!(world.asked_to_leave().is_empty());
}

#[test]
fn the_order_to_leave_is_said_again_at_every_reconnect() {
    let mut world = World::with_gpus(1, Rules { preemption_margin: Some(1), ..Rules::default() });
    let first = world.submit(1);
    let attempt = world.run(first);
    world.submit_with(2, |spec| spec.priority = 90);
    let out = world.hello(NODE, boot(1), vec![KnownAttempt { id: attempt, phase: AttemptPhase::Running }]);
    assert!(
        sent(&out)
            .any(|message| matches!(message, ToAgent::Stop { how: StopHow::Save, cause: StopCause::Preempt, .. }))
    );
}

fn step_one() -> ReportBody {
    ReportBody::Progress(Progress {
        step: 1,
        total_steps: u64::MAX,
        epoch: 0.1,
        loss: 1.0,
        learning_rate: 0.1,
        tokens_per_second: 9.0,
        validation_loss: None,
    })
}

impl World {
    /// The second person may use the first one's dataset in these tests.
    pub(super) fn shares_everything(&mut self) {
        let dataset = self.cluster.datasets.values().next().unwrap().clone();
        let Actor::User { id, .. } = user() else { unreachable!("a person") };
        let copy = crate::record::Dataset { id: DatasetId(uuid(25)), owner: id, ..dataset };
        self.cluster.datasets.insert(copy.id, copy);
    }

    /// An offer that ran out is made again, and taken.
    fn run_later(&mut self, job: JobId) -> AttemptId {
        self.until_offered(job).unwrap();
        self.run(job)
    }

    fn asked_to_leave(&self) -> Vec<AttemptId> {
        let asked = self.history.iter().filter_map(|action| match action {
            Action::Send { message: ToAgent::Stop { attempt, cause: StopCause::Preempt, .. }, .. } => Some(*attempt),
            _ => None,
        });
        asked.collect()
    }
}

/// In how many hours a job is said to start.
fn starts_in(world: &World, job: JobId) -> Option<u64> {
    world.why(job).expected.map(|at| (at.0 - world.now.wall.0) / 3_600_000)
}
