//! Two ends of a wire in one process: what both have after a step, and who is let go.

use super::*;
use std::thread;

fn pair() -> (Ranks, Ranks) {
    let (leader, follower) = UnixStream::pair().expect("a pair");
    (Ranks::lead(vec![leader]), Ranks::Follower(Place { rank: 1, ranks: 2 }, Wire::new(follower)))
}

fn refused() -> Result<(), TrainError> {
    Err(TrainError::Refused { what: "activations".into(), bytes: 7 })
}

type Given = (Result<(), TrainError>, Vec<f32>, f64);

fn reduced(ranks: &mut Ranks, (own, mut grads, loss): Given) -> (Result<(), TrainError>, Vec<f32>, f64) {
    let mut losses = [loss];
    let result = ranks.all_reduce(own, &mut [&mut grads], &mut losses);
    (result, grads, losses[0])
}

/// What both have after they met.
fn met(
    leader: &mut Ranks,
    follower: &mut Ranks,
    led: Given,
    followed: Given,
) -> [(Result<(), TrainError>, Vec<f32>, f64); 2] {
    thread::scope(|scope| {
        let other = scope.spawn(|| reduced(follower, followed));
        let own = reduced(leader, led);
        [own, other.join().expect("no panic")]
    })
}

#[test]
fn both_have_the_sums_afterwards() {
    let (mut leader, mut follower) = pair();
    for (result, grads, loss) in
        met(&mut leader, &mut follower, (Ok(()), vec![1.0, 2.0], 0.5), (Ok(()), vec![10.0, 20.0], 1.5))
    {
        result.expect("summed");
        assert_eq!((grads, loss), (vec![11.0, 22.0], 2.0));
    }
}

#[test]
fn one_that_is_refused_memory_undoes_the_step_of_all_and_the_next_is_taken() {
    for leads in [true, false] {
        let (mut leader, mut follower) = pair();
        let given = |refuses| (if refuses { refused() } else { Ok(()) }, vec![1.0], 1.0);
        for (result, _, _) in met(&mut leader, &mut follower, given(leads), given(!leads)) {
            assert!(matches!(result, Err(TrainError::Refused { .. })), "{result:?}");
        }
        for (result, grads, _) in met(&mut leader, &mut follower, given(false), given(false)) {
            result.expect("summed");
            assert_eq!(grads, [2.0]);
        }
    }
}

#[test]
fn a_leader_that_stops_in_a_step_lets_the_others_go() {
    let (mut leader, mut follower) = pair();
    let waits = thread::spawn(move || reduced(&mut follower, (Ok(()), vec![1.0], 1.0)).0);
    assert!(matches!(reduced(&mut leader, (Err(TrainError::Stopped), vec![1.0], 1.0)).0, Err(TrainError::Stopped)));
    drop(leader);
    let left = waits.join().expect("no panic");
    assert!(matches!(left, Err(TrainError::Stopped | TrainError::RankLost { rank: 0, .. })), "{left:?}");
}

#[test]
fn every_micro_batch_is_dealt_to_one_rank_and_each_gets_some() {
    let lengths = [30, 50, 20, 40, 60, 10];
    let ranks = |rank, ranks| {
        let (wire, _) = UnixStream::pair().expect("a pair");
        Ranks::Follower(Place { rank, ranks }, Wire::new(wire))
    };
    for count in 1..=4 {
        let dealt: Vec<_> = (0..count).map(|rank| ranks(rank, count).deal(&lengths, 1000)).collect();
        assert!(dealt.iter().all(|micro| !micro.is_empty()), "{dealt:?}");
        let mut all: Vec<usize> = dealt.into_iter().flatten().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
    }
    assert_eq!(Ranks::Alone.deal(&lengths, 100), pack::first_fit(&lengths, 100), "alone nothing is divided");
}
