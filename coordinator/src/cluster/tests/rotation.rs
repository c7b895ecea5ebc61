//! Who would be cut off if the older CA were forgotten.

use super::{world::*, *};
use crate::cluster::rotation::Behind;

#[test]
fn a_node_is_behind_until_it_trusts_the_next_ca_and_holds_a_certificate_of_it() {
    let (old, next) = (hash(1), hash(2));
    let mut world = World::ready();
    let behind = |world: &World| world.cluster.nodes[&NODE].record.behind(next, true);
    world.cluster.nodes.get_mut(&NODE).unwrap().record.key = None;
    assert_eq!(behind(&world), Some(Behind::Unkeyed));
    world.hello(NODE, boot(1), vec![]);
    assert_eq!(behind(&world), Some(Behind::Unheard));
    for (authorities, issuer, expected) in [
        (vec![], None, Some(Behind::Older)),
        (vec![old], Some(old), Some(Behind::Unkept)),
        (vec![next, old], Some(old), Some(Behind::Uncertified)),
        (vec![next], None, Some(Behind::Uncertified)),
        (vec![next, old], Some(next), None),
    ] {
        let out = world.hear(FromAgent::Trusts(Trusts { authorities, issuer }));
        assert!(row(&out, |record| matches!(record, Record::Node(_))).is_some(), "it is durable");
        assert_eq!(behind(&world), expected);
    }
    let out = world.hear(FromAgent::Trusts(Trusts { authorities: vec![next, old], issuer: Some(next) }));
    assert!(row(&out, |record| matches!(record, Record::Node(_))).is_none(), "what is known is not written again");
}

#[test]
fn a_node_that_is_here_and_keeps_nothing_is_told_apart_from_one_that_is_away() {
    let (old, next) = (hash(1), hash(2));
    let mut world = World::ready();
    world.hear(FromAgent::Trusts(Trusts { authorities: vec![old], issuer: Some(old) }));
    let refused =
        |world: &mut World| world.ask(Command::FinishRotation { next: Some(next), force: false }).0.unwrap_err();
    let here = refused(&mut world).to_string();
    assert!(here.contains("its disk does not keep it"), "{here}");
    let session = world.cluster.nodes[&NODE].session.as_ref().unwrap().number;
    world.handle(Event::SessionClosed { node: NODE, session, nonsense: None });
    let away = refused(&mut world).to_string();
    assert!(away.contains("as soon as it is here") && !away.contains("disk"), "{away}");
}

#[test]
fn nobody_is_cut_off_unless_a_person_says_so_and_who_was_sent_away_does_not_count() {
    let next = hash(2);
    let mut world = World::ready();
    world.join(OTHER);
    world.hear(FromAgent::Trusts(Trusts { authorities: vec![next], issuer: Some(next) }));
    let finish = |world: &mut World, force| world.ask(Command::FinishRotation { next: Some(next), force }).0;
    let refused = finish(&mut world, false).unwrap_err().to_string();
    assert!(refused.contains(&OTHER.to_string()) && !refused.contains(&NODE.to_string()), "{refused}");
    assert_eq!(finish(&mut world, true), Ok(Receipt::Authority(next)));
    world.ask(Command::RetireNode { id: OTHER }).0.unwrap();
    assert_eq!(finish(&mut world, false), Ok(Receipt::Authority(next)));
}

#[test]
fn a_machine_that_joins_under_the_next_ca_and_never_connects_holds_nothing_up() {
    let (old, next) = (hash(1), hash(2));
    let mut world = World::ready();
    world.hear(FromAgent::Trusts(Trusts { authorities: vec![next], issuer: Some(next) }));
    let finish = |world: &mut World| world.ask(Command::FinishRotation { next: Some(next), force: false }).0;
    for (n, ca, holds_up) in [(60, next, false), (61, old, true)] {
        let (secret, key, node) = (hash(n as u8), hash(n as u8 + 100), NodeId(uuid(n)));
        let expires = UnixMillis(world.now.wall.0 + 1_000);
        world.ask(Command::CreateJoinSecret { hash: secret, expires }).0.unwrap();
        world.ask_as(Actor::System, None, Command::Join { secret, key, name: "n".into(), node }).0.unwrap();
        let command = Command::RecordCertificate { node, serial: format!("s{n}"), joined: Some(ca) };
        world.ask_as(Actor::System, None, command).0.unwrap();
        assert_eq!(finish(&mut world).is_err(), holds_up, "{n}");
    }
    let refused = finish(&mut world).unwrap_err().to_string();
    assert!(refused.contains(&NodeId(uuid(61)).to_string()) && refused.contains("as soon as it is here"), "{refused}");
}

#[test]
fn of_many_nodes_that_would_be_cut_off_ten_are_named_and_the_others_counted() {
    let mut world = World::ready();
    (100..115).for_each(|n| world.join(NodeId(uuid(n))));
    let refused = world.ask(Command::FinishRotation { next: Some(hash(2)), force: false }).0.unwrap_err().to_string();
    assert_eq!(refused.matches("node_").count(), 10, "{refused}");
    assert!(refused.ends_with("; and 6 more"), "{refused}");
}

#[test]
fn a_node_that_trusts_nothing_that_is_here_is_a_stranger_and_one_that_never_said_is_not() {
    let mut world = World::ready();
    let is_strange = |world: &World, here: &[Hash]| world.cluster.nodes[&NODE].record.is_strange_to(here);
    assert!(!is_strange(&world, &[hash(1)]), "it has not said anything");
    world.hear(FromAgent::Trusts(Trusts { authorities: vec![hash(2), hash(1)], issuer: Some(hash(2)) }));
    assert!(!is_strange(&world, &[hash(1)]) && !is_strange(&world, &[hash(3), hash(2)]));
    assert!(is_strange(&world, &[hash(3)]), "a folder from an older backup, or a rotation that was forced");
}
