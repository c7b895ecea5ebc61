//! Checkpoints count once they are uploaded.

use super::*;

#[test]
fn a_checkpoint_is_reported_once_it_is_uploaded_and_never_before() {
    let mut scene = Scene::running();
    let out = scene.line(4, checkpoint_event(10, CheckpointKind::Periodic));
    assert!(bodies(&out).is_empty());
    assert!(matches!(&out[..], [Action::UploadCheckpoint(_, made)] if made.step == 10 && made.seq == 4), "{out:?}");
    let out = scene.event(Event::CheckpointUploaded(id(1), 4, Box::new(checkpoint(10))));
    assert_eq!(bodies(&out), [&ReportBody::Checkpoint(checkpoint(10))]);
}

#[test]
fn a_newer_checkpoint_makes_a_waiting_one_needless_and_a_best_one_stays() {
    let mut scene = Scene::running();
    scene.line(1, checkpoint_event(10, CheckpointKind::Periodic));
    for (seq, step, kind) in
        [(2, 20, CheckpointKind::Periodic), (3, 20, CheckpointKind::Best), (4, 30, CheckpointKind::Periodic)]
    {
        assert!(scene.line(seq, checkpoint_event(step, kind)).is_empty());
    }
    let mut uploaded = vec![];
    let mut seq = 1;
    loop {
        let out = scene.event(Event::CheckpointUploaded(id(1), seq, Box::new(checkpoint(0))));
        let next = out.iter().find_map(|action| match action {
            Action::UploadCheckpoint(_, made) => Some(made.seq),
            _ => None,
        });
        let Some(next) = next else { break };
        uploaded.push(next);
        seq = next;
    }
    assert_eq!(uploaded, [3, 4]);
}

#[test]
fn the_end_waits_for_a_checkpoint_that_is_on_its_way() {
    let mut scene = Scene::running();
    scene.heard(stop(StopHow::Save, StopCause::Preempt));
    scene.line(4, checkpoint_event(12, CheckpointKind::Emergency));
    scene.line(
        5,
        WorkerEvent::Stopped {
            step: 12,
            checkpoint: Some("checkpoints/step-00000012".into()),
            cause: StopCause::Signal,
        },
    );
    assert!(bodies(&scene.gone(1)).is_empty());
    let out = scene.event(Event::CheckpointUploaded(id(1), 4, Box::new(checkpoint(12))));
    let bodies = bodies(&out);
    assert!(matches!(bodies[..], [ReportBody::Checkpoint(_), ReportBody::Ended(_)]), "{bodies:?}");
    assert_eq!(ended(&out).outcome, Outcome::Preempted);
}

#[test]
fn a_worker_that_vanishes_in_mid_upload_still_leaves_its_checkpoint() {
    let mut scene = Scene::running();
    scene.line(4, checkpoint_event(12, CheckpointKind::Periodic));
    assert_eq!(bodies(&scene.gone(1)), [&ReportBody::Finalizing]);
    let out = scene.event(Event::CheckpointGivenUp(id(1), 4, Some("its files are gone".into())));
    assert_eq!(ended(&out).outcome, Outcome::Lost);
}
