//! Who is named as a giver, and to whom.

use super::{world::*, *};
use crate::cluster::Announced;
use lorikeet_protocol::share::{GIVERS, Moved};
use std::{collections::BTreeSet, net::SocketAddr};

const ADDRESS: ([u8; 4], u16) = ([192, 0, 2, 7], 7172);

fn announce(world: &mut World, node: NodeId, files: &[u8], gives_at: Option<SocketAddr>) {
    let files = files.iter().map(|byte| hash(*byte)).collect();
    let said = Announced { files, gives_at, moved: Moved::default() };
    let session = session(world, node);
    world.handle(Event::Announced { node, session, said });
}

fn session(world: &World, node: NodeId) -> u64 {
    world.cluster.nodes[&node].session.as_ref().unwrap().number
}

/// `None`: refused.
fn givers(world: &World, node: NodeId, attempt: AttemptId, file: u8) -> Option<Vec<NodeId>> {
    let asked = Query::Givers { node, attempt, file: hash(file) };
    let Ok(Answer::Givers(givers)) = world.cluster.answer(Actor::System, asked, world.now) else { panic!("givers") };
    givers.map(|givers| givers.into_iter().map(|(node, _)| node).collect())
}

/// An attempt on `NODE` that needs file 30, and another node that gives it.
fn beside_a_giver() -> (World, AttemptId) {
    let mut world = World::ready();
    let (_, attempt) = world.running(1);
    world.join(OTHER);
    world.hello(OTHER, boot(2), vec![]);
    announce(&mut world, OTHER, &[30], Some(ADDRESS.into()));
    assert_eq!(givers(&world, NODE, attempt, 30), Some(vec![OTHER]));
    (world, attempt)
}

#[test]
fn a_node_hears_only_of_givers_of_what_its_current_attempt_names() {
    let (mut world, attempt) = beside_a_giver();
    announce(&mut world, OTHER, &[30, 99], Some(ADDRESS.into()));
    assert_eq!(givers(&world, NODE, attempt, 31), Some(vec![]), "the dataset is nowhere else");
    assert_eq!(givers(&world, NODE, attempt, 99), None, "another's file");
    assert_eq!(givers(&world, OTHER, attempt, 30), None, "another's attempt");
    world.report(attempt, ended(Outcome::Ok));
    assert_eq!(givers(&world, NODE, attempt, 30), None, "an attempt that is over");
}

#[test]
fn only_who_said_that_it_has_the_file_and_gives_it_is_named() {
    let (mut world, attempt) = beside_a_giver();
    for (files, gives_at, named) in [
        (&[30][..], None, false),
        (&[31], Some(ADDRESS.into()), false),
        (&[30, 31], Some(ADDRESS.into()), true),
        (&[], Some(ADDRESS.into()), false),
    ] {
        announce(&mut world, OTHER, files, gives_at);
        let expected = if named { vec![OTHER] } else { vec![] };
        assert_eq!(givers(&world, NODE, attempt, 30), Some(expected), "{files:?} at {gives_at:?}");
    }
    announce(&mut world, NODE, &[30], Some(ADDRESS.into()));
    assert_eq!(givers(&world, NODE, attempt, 30), Some(vec![]), "nobody is sent to itself");
    // An agent of before says what it has in its hello, and nothing of giving.
    let hello = Hello { cached: vec![hash(30)], ..world.hello_message(boot(2), boot(3), vec![]) };
    world.handle(Event::SessionOpened { reply: 0, node: OTHER, shown: shown("s"), hello: Box::new(hello) });
    assert_eq!(givers(&world, NODE, attempt, 30), Some(vec![]));
}

#[test]
fn a_giver_that_is_silent_gone_set_aside_or_revoked_is_not_named() {
    let (mut world, attempt) = beside_a_giver();
    let session = session(&world, OTHER);
    world.handle(Event::SessionClosed { node: OTHER, session, nonsense: None });
    assert_eq!(givers(&world, NODE, attempt, 30), Some(vec![]), "gone");

    let (mut world, attempt) = beside_a_giver();
    world.pass_talking(Duration::from_secs(40));
    assert_eq!(givers(&world, NODE, attempt, 30), Some(vec![]), "silent for longer than its lease");

    let (mut world, attempt) = beside_a_giver();
    world.cluster.nodes.get_mut(&OTHER).unwrap().record.quarantine = Some("two machines".into());
    assert_eq!(givers(&world, NODE, attempt, 30), Some(vec![]), "set aside");

    let (mut world, attempt) = beside_a_giver();
    world.ask(Command::RevokeNode { id: OTHER }).0.unwrap();
    assert_eq!(givers(&world, NODE, attempt, 30), Some(vec![]), "revoked");
}

#[test]
fn a_revoked_reader_is_named_nobody() {
    let (mut world, attempt) = beside_a_giver();
    world.ask(Command::RevokeNode { id: NODE }).0.unwrap();
    assert_eq!(givers(&world, NODE, attempt, 30), None);
}

#[test]
fn of_a_node_that_is_sent_away_every_other_one_is_told_and_who_was_away_when_it_is_back() {
    let (mut world, _) = beside_a_giver();
    let told = |out: &[Action], node| {
        let message = ToAgent::Expelled(OTHER);
        out.iter()
            .any(|action| matches!(action, Action::Send { node: to, message: said } if *to == node && *said == message))
    };
    let third = NodeId(uuid(12));
    world.join(third);
    let out = world.ask(Command::RevokeNode { id: OTHER }).1;
    assert!(told(&out, NODE) && !told(&out, OTHER) && !told(&out, third), "{out:?}");
    let out = world.hello(third, boot(3), vec![]);
    assert!(told(&out, third));
    let welcome = out.iter().position(|action| matches!(action, Action::Send { message: ToAgent::Welcome(_), .. }));
    let word = out.iter().position(|action| matches!(action, Action::Send { message: ToAgent::Expelled(_), .. }));
    assert!(welcome < word, "nothing stands before the welcome");
    world.pass_talking(Duration::from_secs(200));
    assert!(!told(&world.hello(third, boot(3), vec![]), third), "what leave there was has run out");
}

#[test]
fn of_many_givers_a_few_are_named() {
    let (mut world, attempt) = beside_a_giver();
    for n in 100..120 {
        let node = NodeId(uuid(n));
        world.join(node);
        world.hello(node, boot(n), vec![]);
        announce(&mut world, node, &[30], Some(ADDRESS.into()));
    }
    let named = givers(&world, NODE, attempt, 30).unwrap();
    assert_eq!(named.len(), GIVERS);
    assert_eq!(givers(&world, NODE, attempt, 30).unwrap(), named, "the same for a minute");
    let mut all = BTreeSet::new();
    for _ in 0..20 {
        world.now.wall.0 += 60_000;
        all.extend(givers(&world, NODE, attempt, 30).unwrap());
    }
    assert!(all.len() > 15, "whom it cannot reach makes room for others: {}", all.len());
}

#[test]
fn what_comes_late_of_an_earlier_session_is_not_taken_for_news() {
    let (mut world, attempt) = beside_a_giver();
    let earlier = session(&world, OTHER);
    world.hello(OTHER, boot(2), vec![]);
    assert_ne!(session(&world, OTHER), earlier);
    announce(&mut world, OTHER, &[30], Some(ADDRESS.into()));
    let said = Announced { files: vec![], gives_at: None, moved: Moved::default() };
    world.handle(Event::Announced { node: OTHER, session: earlier, said });
    assert_eq!(givers(&world, NODE, attempt, 30), Some(vec![OTHER]));
}

#[test]
fn what_a_node_announces_is_what_placement_knows_of_its_cache() {
    let (mut world, _) = beside_a_giver();
    assert!(world.cluster.nodes[&OTHER].cached.contains(&hash(30)));
    announce(&mut world, OTHER, &[31], None);
    assert_eq!(world.cluster.nodes[&OTHER].cached, [hash(31)].into());
}
