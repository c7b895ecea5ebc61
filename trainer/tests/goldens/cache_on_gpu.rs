//! Generating on a device: the logits over a cache, and what a new token costs.

use std::collections::BTreeMap;

use lorikeet_trainer::model::Cache;
use lorikeet_trainer::ops::cuda::{TRAFFIC, timeline};

use super::case::Case;
use super::{REFUSED, apart, gpu, on_gpu};

/// Of the logits: over a cache probabilities stay in `f32`, where the whole at once rounds them.
const CACHED: f64 = 0.03;

#[test]
fn token_by_token_over_a_cache_the_logits_are_those_of_the_whole() {
    for name in Case::names(&["quantised"]).into_iter().filter(|name| !REFUSED.contains(&name.as_str())) {
        let golden = on_gpu(&name);
        let (view, mut ours, mut theirs) = (golden.view(), Vec::new(), Vec::new());
        for (round, tokens) in golden.case.sequences.iter().map(|sequence| &sequence.tokens).enumerate() {
            let mut cache = Cache::new(&golden.model, Some(&view)).expect("a cache");
            let first = (round * 7 + 1).min(tokens.len() - 1);
            let parts = std::iter::once(&tokens[..first]).chain(tokens[first..].chunks(1 + round % 2));
            for part in parts {
                ours.extend(cache.extend(part, &|| false).expect("a pass"));
                theirs.extend(golden.model.next_logits(cache.tokens(), Some(&view)).expect("a pass"));
            }
            assert_eq!(cache.tokens(), tokens);
        }
        let off = apart(&ours, &theirs);
        println!("{name:<28} logits over a cache {off:.2e} off those of the whole");
        assert!(off < CACHED, "{name}: logits over a cache are {off} of their length off");
    }
}

#[test]
fn a_new_token_costs_one_row_however_many_came_before() {
    let golden = on_gpu("gemma2");
    let (view, tokens) = (golden.view(), &golden.case.sequences[0].tokens);
    let mut cache = Cache::new(&golden.model, Some(&view)).expect("a cache");
    cache.extend(&tokens[..9], &|| false).expect("a pass");
    let one = |cache: &mut Cache<'_>, token: u32| {
        let before = [TRAFFIC.there(), TRAFFIC.back(), TRAFFIC.waits()];
        gpu().record();
        cache.extend(&[token], &|| false).expect("a pass");
        let moved = [TRAFFIC.there() - before[0], TRAFFIC.back() - before[1], TRAFFIC.waits() - before[2]];
        let launches = gpu().recorded().expect("read").spent.into_iter().map(|spent| (spent.work, spent.launches));
        (moved, launches.collect::<BTreeMap<_, _>>())
    };
    let (moved, launches) = one(&mut cache, tokens[9]);
    println!("{:<28} {} bytes there, {} back, {launches:?}", "a new token", moved[0], moved[1]);
    let config = golden.model.config();
    assert!(moved[0] < 100, "a token, its place and the like: {moved:?}");
    assert_eq!(moved[1..], [2 * config.vocab_size as u64, 1], "one row of logits comes back, and is waited for");
    let of = |name: &'static str| launches.get(&timeline::Work::Named(name)).copied().unwrap_or_default();
    assert_eq!([of("decode_parts"), of("attention_forward")], [config.num_hidden_layers, 0], "{launches:?}");
    let rows = launches.keys().filter_map(|work| match work {
        timeline::Work::Product { rows, .. } => Some(*rows),
        timeline::Work::Named(_) => None,
    });
    assert!(rows.clone().count() > 0 && rows.clone().all(|rows| rows == 1), "{launches:?}");
    for token in &tokens[10..20] {
        assert_eq!(one(&mut cache, *token), (moved, launches.clone()), "the same for every one");
    }
}
