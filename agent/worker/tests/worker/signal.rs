//! What a running worker does when it is told something.

use std::process::Stdio;
use std::time::{Duration, Instant};

use lorikeet_protocol::agent::CheckpointKind;
use lorikeet_protocol::job::StopCause;
use lorikeet_protocol::worker::{EventLine, StopRequest, WorkerEvent};
use lorikeet_trainer::checkpoint;
use lorikeet_worker::Exit;
use rustix::process::Signal;

use crate::place::{Place, TIED, Worker, ask_to_stop, endless, lines, outcome, steps};

#[test]
fn sigterm_saves_the_last_whole_step_and_leaves() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = Place::new();
        let dir = place.attempt("a", endless);
        let worker = Worker::start(&dir);
        worker.wait_for(&dir, |event| matches!(event, WorkerEvent::Step(_)));
        worker.signal(signal);
        assert_eq!(worker.exit_code(), i32::from(Exit::Stopped.code()));
        let WorkerEvent::Stopped { step, checkpoint: Some(path), cause: StopCause::Signal } = outcome(&dir) else {
            panic!("{:?}", outcome(&dir))
        };
        assert_eq!(checkpoint::verify(&dir.join(path)).expect("whole").manifest.step, step);
        assert_eq!(steps(&dir).len() as u64, step, "every step has its line");
    }
}

#[test]
fn sigusr2_leaves_at_once_and_saves_nothing() {
    let place = Place::new();
    let dir = place.attempt("a", endless);
    let worker = Worker::start(&dir);
    worker.wait_for(&dir, |event| matches!(event, WorkerEvent::Step(_)));
    let began = Instant::now();
    worker.signal(Signal::USR2);
    assert_eq!(worker.exit_code(), i32::from(Exit::Discarded.code()));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(matches!(outcome(&dir), WorkerEvent::Stopped { checkpoint: None, cause: StopCause::Signal, .. }));
    let emergency =
        |line: &EventLine| matches!(line.event, WorkerEvent::Checkpoint { kind: CheckpointKind::Emergency, .. });
    assert!(!lines(&dir).iter().any(emergency));
}

#[test]
fn sigusr1_saves_now_and_goes_on_and_with_a_stop_file_it_stops() {
    let place = Place::new();
    let dir = place.attempt("a", endless);
    let worker = Worker::start(&dir);
    worker.wait_for(&dir, |event| matches!(event, WorkerEvent::Step(_)));
    worker.signal(Signal::USR1);
    let saved =
        worker.wait_for(&dir, |event| matches!(event, WorkerEvent::Checkpoint { kind: CheckpointKind::Emergency, .. }));
    worker.wait_for_line(&dir, |line| line.seq > saved.seq && matches!(line.event, WorkerEvent::Step(_)));
    ask_to_stop(&dir, StopRequest { save: true, cause: StopCause::Preempt });
    worker.signal(Signal::USR1);
    assert_eq!(worker.exit_code(), i32::from(Exit::Stopped.code()));
    assert!(matches!(outcome(&dir), WorkerEvent::Stopped { checkpoint: Some(_), cause: StopCause::Preempt, .. }));
}

#[test]
fn a_tied_worker_saves_and_leaves_when_its_parent_is_gone() {
    let place = Place::new();
    let dir = place.attempt("a", endless);
    let worker = Worker::start_with(&dir, |command| command.env(TIED, "1").stdin(Stdio::piped()));
    worker.wait_for(&dir, |event| matches!(event, WorkerEvent::Step(_)));
    drop(worker.child.borrow_mut().stdin.take());
    assert_eq!(worker.exit_code(), i32::from(Exit::Stopped.code()));
    assert!(matches!(outcome(&dir), WorkerEvent::Stopped { checkpoint: Some(_), cause: StopCause::Signal, .. }));
}

#[test]
fn a_stop_file_that_is_there_before_the_worker_is_obeyed() {
    let place = Place::new();
    let dir = place.attempt("a", endless);
    ask_to_stop(&dir, StopRequest { save: false, cause: StopCause::Cancel });
    assert_eq!(Worker::start(&dir).exit_code(), i32::from(Exit::Discarded.code()));
    let expected = WorkerEvent::Stopped { step: 0, checkpoint: None, cause: StopCause::Cancel };
    assert_eq!(outcome(&dir), expected);
}
