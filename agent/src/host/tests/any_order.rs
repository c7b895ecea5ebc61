//! Any events in any order.

use super::*;

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(256))]

    #[test]
    fn no_order_of_events_breaks_the_invariants(events in proptest::collection::vec((0u8..20, 1u64..9), 1..60)) {
        let mut scene = Scene::new();
        let (mut ends, mut seq) = (0, 0);
        for (kind, number) in events {
            seq += 1;
            let out = scene.any_event(kind, number, seq);
            ends += bodies(&out).iter().filter(|body| body.end().is_some()).count();
        }
        proptest::prop_assert!(ends <= scene.accepted, "{} attempts ended {ends} times", scene.accepted);
    }
}
