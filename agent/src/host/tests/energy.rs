//! What an attempt's devices drew, as its end says it.

use super::*;

#[test]
fn an_end_says_what_the_devices_drew_since_the_attempt_was_accepted() {
    let mut scene = Scene::on_gpus(300);
    scene.pass(10);
    scene.begins(1, true);
    scene.pass(20);
    scene.now.mono += Duration::from_secs(2);
    let out = scene.gone(1);
    assert_eq!(joules(&out), Some(22 * 300), "the last look is two seconds old");
    assert_eq!(ended(&out).held, Duration::from_secs(22));
}

#[test]
fn a_device_that_says_nothing_of_its_energy_makes_an_end_without_it() {
    let mut scene = Scene::running();
    assert_eq!(joules(&scene.gone(1)), None, "unknown is not 0");
}

#[test]
fn what_was_drawn_while_no_agent_was_there_is_charged_by_the_next_one_and_once() {
    let mut scene = Scene::on_gpus(300);
    scene.begins(1, true);
    scene.pass(10);
    scene.now.mono += Duration::from_secs(100);
    scene.restart();
    scene.pass(10);
    scene.restart();
    scene.pass(10);
    assert_eq!(joules(&scene.gone(1)), Some(130 * 300));
}

#[test]
fn after_a_reboot_only_what_was_kept_before_it_is_known() {
    let mut scene = Scene::on_gpus(300);
    scene.begins(1, true);
    scene.pass(120);
    scene.rules.boot = BootId(uuid::Uuid::from_u128(99));
    scene.restart();
    let joules = joules(&scene.gone(1)).unwrap();
    assert!((60 * 300..=120 * 300).contains(&joules), "{joules}");
}

#[test]
fn an_attempt_that_an_agent_of_before_began_does_not_pass_the_rest_off_as_the_whole() {
    let mut scene = Scene::on_gpus(300);
    scene.begins(1, true);
    scene.pass(10);
    scene.records.get_mut(&id(1)).unwrap().energy = None;
    scene.restart();
    scene.pass(10);
    assert_eq!(joules(&scene.gone(1)), None);
}

#[test]
fn attempts_that_share_a_device_share_what_it_draws() {
    let mut scene = Scene::on_gpus(300);
    scene.begins(1, false);
    scene.pass(10);
    scene.begins(2, false);
    scene.pass(10);
    let first = joules(&scene.gone(1));
    scene.pass(10);
    assert_eq!(
        (first, joules(&scene.event(Event::Worker(other_job(2), News::Gone { how: "signal: 9".into() })))),
        (Some(10 * 300 + 10 * 150), Some(10 * 150 + 10 * 300))
    );
}

fn joules(out: &[Action]) -> Option<u64> {
    out.iter().find_map(|action| match action {
        Action::Report(_, ReportBody::Metered(Metered { energy_joules, .. })) => Some(*energy_joules),
        _ => None,
    })
}

impl Scene {
    /// A GPU that draws so much since the machine was started.
    fn on_gpus(watts: u64) -> Self {
        let mut scene = Self::new();
        scene.rules.proves_gpus = false;
        (scene.host, _) = Host::restore(scene.rules.clone(), vec![], scene.now);
        scene.watts = watts;
        scene.pass(0);
        scene
    }

    /// So many seconds, with a look at the end of each.
    fn pass(&mut self, seconds: u64) {
        for second in 0..=seconds {
            self.now.mono += Duration::from_secs(u64::from(second > 0));
            let gpu = Device {
                id: DeviceId("GPU-1".into()),
                kind: DeviceKind::Cuda { compute: (9, 0), driver: None },
                ..seen(&[]).devices[0].clone()
            };
            let counter = Drawn::Counted(self.now.mono.as_millis() as u64 * self.watts);
            let drawn = [(gpu.id.clone(), counter)].into();
            self.event(Event::Looked(Seen { devices: vec![gpu], drawn, ..Seen::default() }));
        }
    }

    fn begins(&mut self, number: u32, exclusive: bool) {
        let mut offer = offer_on(if number == 1 { id(1) } else { other_job(number) }, "GPU-1");
        offer.job.resources.exclusive = exclusive;
        let attempt = offer.attempt;
        self.heard(ToAgent::Offer(Box::new(offer)));
        self.event(Event::Prepared(attempt));
        self.event(Event::Worker(attempt, News::Holds { pid: 40 + number }));
    }
}
