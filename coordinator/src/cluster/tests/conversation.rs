//! Whatever is said in whatever order, the invariants hold.

use super::{world::*, *};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever is said in whatever order, the invariants hold, one success is applied at most once, and terminal states stay.
    #[test]
    fn any_conversation_keeps_the_invariants(moves in proptest::collection::vec((0u8..14, 0u8..4, 1u64..30), 1..80)) {
        let mut world = World::ready();
        world.join(OTHER);
        let mut known: Vec<AttemptId> = vec![];
        let mut over: BTreeSet<JobId> = BTreeSet::new();
        let mut models = 0usize;
        let mut serial = 0;
        for (kind, which, amount) in moves {
            let seen = world.history.len();
            let node = if which % 2 == 0 { NODE } else { OTHER };
            let attempt = known.get(usize::from(which) % known.len().max(1)).copied();
            match (kind, attempt) {
                (0 | 1, _) => { serial += 1; world.submit(1_000 + serial); }
                (2, _) => { world.hello(node, boot(which.into()), known.iter().map(|id| KnownAttempt { id: *id, phase: AttemptPhase::Running }).collect()); }
                (3, _) => { world.hello(node, boot(which.into()), vec![]); }
                (4, _) => world.pass(Duration::from_secs(amount * 20)),
                (5, _) => world.pass_talking(Duration::from_secs(amount)),
                (6, Some(attempt)) => { world.hear_from(node, FromAgent::Accepted(attempt)); }
                (7, Some(attempt)) => { world.report_from(node, attempt, ReportBody::Running { from_step: 0 }); }
                (8, Some(attempt)) => { world.report_from(node, attempt, ReportBody::Checkpoint(checkpoint(amount))); }
                (9, Some(attempt)) => { world.report_from(node, attempt, ended(Outcome::Ok)); }
                (10, Some(attempt)) => { world.report_from(node, attempt, ended(Outcome::Lost)); }
                (11, Some(attempt)) => { let _ = world.ask(Command::CancelJob { id: attempt.job, reason: None }); }
                (12, Some(attempt)) => { let _ = world.ask(Command::SetIntent { id: attempt.job, intent: Intent::Pause }); }
                (13, Some(attempt)) => { let _ = world.ask(Command::SetIntent { id: attempt.job, intent: Intent::Run }); }
                _ => world.heartbeat(),
            }
            for action in &world.history[seen..] {
                match action {
                    Action::Send { message: ToAgent::Offer(offer), .. } if !known.contains(&offer.attempt) => known.push(offer.attempt),
                    Action::Put(record) => match &**record {
                        Record::Job(job) => {
                            prop_assert!(!over.contains(&job.id), "a terminal state was left");
                            if job.phase().is_terminal() { over.insert(job.id); }
                        }
                        Record::Model(_) => models += 1,
                        _ => {}
                    },
                    _ => {}
                }
            }
            prop_assert!(models <= over.len());
        }
    }
}
