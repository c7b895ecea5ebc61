//! Two ends of a wire in one process: what both have after a step, and who is let go.

use super::*;
use crate::FailureClass;
use std::thread;

const GO_ON: Stop<'static> = &|| false;

fn pair() -> (Ranks, Ranks) {
    let (leader, follower) = UnixStream::pair().expect("a pair");
    (Ranks::lead(vec![leader]), Ranks::Follower(Seat { rank: 1, ranks: 2 }, Wire::new(follower), None))
}

fn refused() -> Result<(), TrainError> {
    Err(TrainError::Refused { what: "activations".into(), bytes: 7 })
}

type Given = (Result<(), TrainError>, Vec<f32>, f64);

fn reduced(ranks: &mut Ranks, (own, mut grads, loss): Given) -> Given {
    let mut losses = [loss];
    let result = ranks.all_reduce(own, &mut [&mut grads], &mut losses, GO_ON);
    (result, grads, losses[0])
}

/// What both have after they met.
fn met(leader: &mut Ranks, follower: &mut Ranks, led: Given, followed: Given) -> [Given; 2] {
    thread::scope(|scope| {
        let other = scope.spawn(|| reduced(follower, followed));
        let own = reduced(leader, led);
        [own, other.join().expect("no panic")]
    })
}

#[test]
fn both_have_the_sums_afterwards() {
    let (mut leader, mut follower) = pair();
    let (led, followed) = ((Ok(()), vec![1.0, 2.0], 0.5), (Ok(()), vec![10.0, 20.0], 1.5));
    for (result, grads, loss) in met(&mut leader, &mut follower, led, followed) {
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
    assert!(matches!(waits.join().expect("no panic"), Err(TrainError::Stopped)));
}

#[test]
fn a_leader_that_waits_for_a_rank_hears_that_it_shall_stop() {
    let (mut leader, _silent) = pair();
    let mut grads = [1.0];
    let waited = leader.all_reduce(Ok(()), &mut [&mut grads], &mut [1.0], &|| true);
    assert!(matches!(waited, Err(TrainError::Stopped)), "{waited:?}");
}

#[test]
fn a_rank_that_gives_up_is_told_in_its_own_words_even_where_the_leader_was_speaking() {
    let (leader, follower) = UnixStream::pair().expect("a pair");
    let mut leader = Ranks::lead(vec![leader]);
    give_up(follower, &TrainError::Dataset { reason: "line 3".into() });
    let error = leader.tell_each(|_, wire| wire.send_word(&"anything", GO_ON)).expect_err("it is gone");
    assert_eq!((error.class(), error.to_string().as_str()), (FailureClass::Dataset, "rank 1: dataset: line 3"));
}

#[test]
fn a_rank_that_dies_without_a_word_is_lost() {
    let (mut leader, follower) = pair();
    drop(follower);
    let (result, _, _) = reduced(&mut leader, (Ok(()), vec![1.0], 1.0));
    assert!(result.is_err_and(|error| error.class() == FailureClass::RankLost));
}
