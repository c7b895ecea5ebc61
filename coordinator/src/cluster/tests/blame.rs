//! Whose fault a bad end is.

use super::{world::*, *};

#[test]
fn a_poison_job_ends_after_three_nodes_and_closes_none_of_them() {
    let mut world = World::with_nodes(5);
    let jobs: Vec<_> = (0..4)
        .map(|n| {
            let job = world.submit_with(n, |spec| spec.policy.retries = 0);
            world.crash_until_over(job);
            job
        })
        .collect();
    assert!(
        world.cluster.nodes.values().all(|node| node.record.probation.is_none() && node.record.suspected_by.is_empty())
    );
    let failed = world.history.iter().rev().find_map(|action| match action {
        Action::Put(record) => match &**record {
            Record::Job(job) if job.id == jobs[0] => Some((**job).clone()),
            _ => None,
        },
        _ => None,
    });
    let failed = failed.unwrap();
    assert_eq!((failed.blamed.len(), failed.user_failures, failed.attempts), (3, 0, 3));
    let JobState::Failed(failure) = failed.state else { panic!("{:?}", failed.state) };
    assert!(failure.message.starts_with("ended badly 3 times in a row on 3 nodes"), "{}", failure.message);
}

#[test]
fn a_bad_node_is_closed_with_its_reason_after_three_jobs_and_each_goes_on_elsewhere() {
    let mut world = World::with_nodes(1);
    let jobs: Vec<_> = (0..8).map(|n| world.submit(n)).collect();
    // The good one comes later, so that the bad one is met first.
    world.join(OTHER);
    world.hello(OTHER, boot(2), vec![]);
    let bad = NodeId(uuid(50));
    for _ in 0..40 {
        for job in &jobs {
            let at = world.cluster.jobs.get(job).and_then(|job| job.node());
            match at.zip(world.offer_of(*job)) {
                Some((at, offer)) if at == bad => world.crash(at, offer.attempt),
                Some((at, offer)) => world.finish(at, offer.attempt),
                None => {}
            }
        }
        world.pass_all(Duration::from_secs(3));
    }
    let node = &world.cluster.nodes[&bad];
    let reason = node.record.fault().expect("it is closed");
    assert!(
        reason.starts_with("3 jobs in a row ended badly on it, the last one: it fell over; it is tried again at 20")
    );
    assert!(jobs.iter().all(|job| world.phase(*job).is_none()), "every job got through");
    assert!(world.cluster.nodes[&OTHER].record.probation.is_none());
    let waits = world.submit_with(20, |spec| spec.resources.gpus = 3);
    let told = world.why(waits).nodes;
    assert!(
        told.iter().any(|(node, _, why)| *node == bad && matches!(why, WhyNot::Quarantined(why) if *why == reason))
    );
    world.ask(Command::OpenNode { id: bad }).0.unwrap();
    assert!(world.cluster.nodes[&bad].record.suspected_by.is_empty());
}

#[test]
fn a_closed_node_is_tried_again_and_closed_for_twice_as_long_or_cleared() {
    let mut world = World::with_nodes(2);
    let (at, _) = world.busy(1);
    let bad = world.cluster.nodes.keys().copied().find(|node| *node != at).unwrap();
    let mut n = 1;
    let mut crash = |world: &mut World| {
        n += 1;
        let job = world.submit(n);
        let attempt = world.until_offered(job).expect("the node is open");
        world.crash(bad, attempt);
        world.ask(Command::CancelJob { id: job, reason: None }).0.unwrap();
        world.cluster.nodes[&bad].record.fault().is_some()
    };
    assert_eq!([crash(&mut world), crash(&mut world), crash(&mut world)], [false, false, true]);
    for minutes in [10, 20, 40] {
        let waits = world.submit(100 + u128::from(minutes));
        world.pass_all(Duration::from_secs(60 * minutes - 5));
        assert!(!world.is_placed(waits), "{minutes} minutes are not over");
        world.pass_all(Duration::from_secs(10));
        assert!(world.is_placed(waits), "{minutes} minutes are over");
        let attempt = world.offer_of(waits).unwrap().attempt;
        world.crash(bad, attempt);
        assert!(world.cluster.nodes[&bad].record.fault().is_some(), "one more is enough");
        world.ask(Command::CancelJob { id: waits, reason: None }).0.unwrap();
    }
    world.pass_all(Duration::from_secs(80 * 60 + 5));
    let job = world.submit(200);
    let attempt = world.until_offered(job).unwrap();
    world.finish(bad, attempt);
    let node = &world.cluster.nodes[&bad].record;
    assert_eq!((node.probation.clone(), node.suspected_by.len()), (None, 0));
    let told = story(&world.history, bad);
    let deeds: Vec<_> = told.iter().map(|(deed, ..)| *deed).collect();
    assert_eq!(deeds, [&["node.quarantine", "node.probation"].repeat(4)[..], &["node.clear"]].concat());
    assert_eq!(told.last().map(|(.., why)| *why), Some("something went well on it"));
}

#[test]
fn nodes_are_cleared_of_a_job_that_ends_badly_everywhere() {
    let mut world = World::with_nodes(2);
    let (at, running) = world.busy(1);
    let first = world.cluster.nodes.keys().copied().find(|node| *node != at).unwrap();
    let jobs: Vec<_> = (2..5)
        .map(|n| {
            let job = world.submit(n);
            let attempt = world.until_offered(job).unwrap();
            world.crash(first, attempt);
            job
        })
        .collect();
    assert!(world.cluster.nodes[&first].record.fault().is_some());
    world.finish(at, running);
    let attempt = world.until_offered(jobs[0]).unwrap();
    world.crash(at, attempt);
    let node = &world.cluster.nodes[&first].record;
    assert_eq!((node.fault(), node.suspected_by.len()), (None, 2));
    let told = story(&world.history, first);
    let [("node.quarantine", "", closed), ("node.clear", before, why)] = told[..] else { panic!("{told:?}") };
    assert_eq!((before, why), (closed, format!("{} ended badly elsewhere too", jobs[0]).as_str()));
}

#[test]
fn a_job_whose_device_failed_under_it_is_tried_elsewhere_first_though_nobody_is_to_blame() {
    let mut world = World::with_nodes(2);
    let job = world.submit(1);
    let fails = |world: &mut World| {
        let attempt = world.until_offered(job).expect("there is always a node");
        let node = world.cluster.jobs[&job].node().unwrap();
        world.hear_from(node, FromAgent::Accepted(attempt));
        let ended = Ended { held: Duration::ZERO, ..fallen(Outcome::Hardware) };
        world.report_from(node, attempt, ReportBody::Ended(ended));
        assert!(world.cluster.jobs[&job].record.blamed.is_empty());
        node
    };
    let (first, second, third) = (fails(&mut world), fails(&mut world), fails(&mut world));
    assert_ne!(first, second);
    assert_eq!(first, third, "where it was shunned before, it is taken now");
    world.ask(Command::CordonNode { id: second }).0.unwrap();
    assert_eq!(fails(&mut world), first, "there is no other place");
}

#[test]
fn machines_that_are_off_do_not_make_the_others_few() {
    let mut world = World::with_nodes(2);
    for n in 0..10 {
        world.join(NodeId(uuid(70 + n)));
    }
    for n in 0..12 {
        let job = world.submit(n);
        let attempt = world.until_offered(job).unwrap();
        let node = world.cluster.jobs[&job].node().unwrap();
        world.crash(node, attempt);
        world.ask(Command::CancelJob { id: job, reason: None }).0.unwrap();
    }
    assert_eq!(world.cluster.nodes.values().filter(|node| node.record.fault().is_some()).count(), 1);
}

#[test]
fn what_goes_well_on_a_node_clears_it() {
    let mut world = World::with_nodes(2);
    for n in 0..12 {
        let job = world.submit(n);
        let attempt = world.until_offered(job).unwrap();
        let node = world.cluster.jobs[&job].node().unwrap();
        if n % 2 == 0 {
            world.crash(node, attempt);
            world.ask(Command::CancelJob { id: job, reason: None }).0.unwrap();
        } else {
            world.finish(node, attempt);
        }
        world.pass_all(Duration::from_secs(1));
    }
    assert!(world.cluster.nodes.values().all(|node| node.record.probation.is_none()));
}

#[test]
fn never_more_than_half_of_the_nodes_are_closed_for_what_ends_badly_on_them() {
    let mut world = World::with_nodes(4);
    for n in 0..60 {
        let job = world.submit(n);
        let attempt = world.until_offered(job).unwrap();
        let node = world.cluster.jobs[&job].node().unwrap();
        world.crash(node, attempt);
        // Before it could fail anywhere else.
        world.ask(Command::CancelJob { id: job, reason: None }).0.unwrap();
    }
    assert_eq!(world.cluster.nodes.values().filter(|node| node.record.fault().is_some()).count(), 2);
}

#[test]
fn silence_is_nobodys_fault() {
    let mut world = World::with_nodes(1);
    let job = world.submit(1);
    let attempt = world.until_offered(job).unwrap();
    world.hear_from(NodeId(uuid(50)), FromAgent::Accepted(attempt));
    let lost_after = world.cluster.jobs[&job].record.spec.policy.lost_after;
    world.pass_in_steps(lost_after + Duration::from_secs(60));
    let record = &world.cluster.jobs[&job].record;
    assert_eq!((record.phase(), record.infrastructure_failures, record.blamed.len()), (Phase::Queued, 0, 0));
    assert!(world.cluster.nodes.values().all(|node| node.record.suspected_by.is_empty()));
}

#[test]
fn an_end_that_held_nothing_blames_nobody() {
    let mut world = World::with_nodes(2);
    for n in 0..5 {
        let job = world.submit(n);
        let attempt = world.until_offered(job).unwrap();
        let node = world.cluster.jobs[&job].node().unwrap();
        world.hear_from(node, FromAgent::Accepted(attempt));
        let lost = Ended { held: Duration::ZERO, ..fallen(Outcome::Lost) };
        world.report_from(node, attempt, ReportBody::Ended(lost));
        assert_eq!(world.cluster.jobs[&job].record.infrastructure_failures, 0);
        world.ask(Command::CancelJob { id: job, reason: None }).0.unwrap();
    }
    assert!(world.cluster.nodes.values().all(|node| node.record.suspected_by.is_empty()));
}

#[test]
fn the_two_budgets_are_apart() {
    let mut world = World::with_nodes(1);
    let job = world.submit_with(1, |spec| spec.policy.retries = 1);
    let attempt = world.until_offered(job).unwrap();
    world.crash(NodeId(uuid(50)), attempt);
    let attempt = world.until_offered(job).unwrap();
    let node = NodeId(uuid(50));
    world.hear_from(node, FromAgent::Accepted(attempt));
    world.report_from(node, attempt, failed(FailureClass::Internal));
    let record = &world.cluster.jobs[&job].record;
    assert_eq!((record.user_failures, record.infrastructure_failures), (1, 1));
    let attempt = world.until_offered(job).unwrap();
    world.hear_from(node, FromAgent::Accepted(attempt));
    world.report_from(node, attempt, failed(FailureClass::Internal));
    assert_eq!(world.phase(job), None, "one try more was allowed");
}

fn fallen(outcome: Outcome) -> Ended {
    let ReportBody::Ended(ended) = ended(outcome) else { unreachable!("that is what it makes") };
    Ended { files: vec![], message: Some("it fell over".into()), ..ended }
}

impl World {
    /// So many machines with a CPU slot each.
    fn with_nodes(count: u128) -> Self {
        let mut world = Self::new();
        world.prepare();
        for n in 0..count {
            let node = NodeId(uuid(50 + n));
            world.join(node);
            world.hello(node, boot(50 + n), vec![]);
        }
        world
    }

    fn crash(&mut self, node: NodeId, attempt: AttemptId) {
        self.hear_from(node, FromAgent::Accepted(attempt));
        self.report_from(node, attempt, ReportBody::Ended(fallen(Outcome::Lost)));
    }

    /// A node that has a job for as long as anybody looks.
    fn busy(&mut self, n: u128) -> (NodeId, AttemptId) {
        let job = self.submit(n);
        let attempt = self.until_offered(job).unwrap();
        let node = self.cluster.jobs[&job].node().unwrap();
        self.hear_from(node, FromAgent::Accepted(attempt));
        self.report_from(node, attempt, ReportBody::Running { from_step: 0 });
        (node, attempt)
    }

    fn finish(&mut self, node: NodeId, attempt: AttemptId) {
        self.hear_from(node, FromAgent::Accepted(attempt));
        self.report_from(node, attempt, ended(Outcome::Ok));
    }

    fn crash_until_over(&mut self, job: JobId) {
        while self.cluster.jobs.contains_key(&job) {
            let attempt = self.until_offered(job).expect("there is always a node");
            let node = self.cluster.jobs[&job].node().unwrap();
            self.crash(node, attempt);
        }
    }

    /// Time passes while every node goes on talking.
    fn pass_all(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.pass(Duration::from_secs(1));
            for node in self.cluster.nodes.keys().copied().collect::<Vec<_>>() {
                self.hear_from(node, FromAgent::Heartbeat);
            }
        }
    }
}
