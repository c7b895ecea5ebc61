//! The first day: users, nodes, a dataset and a base, before anything can go wrong.

use super::{Event, FileManifest, Happening, Hash, Kept, STORM, Waiting, Weather, World, client, wish::Wish};
use crate::findings;
use lorikeet_coordinator::{
    access::{Actor, Context, Role},
    cluster::{Rows, command::Command},
};
use lorikeet_protocol::{
    file::NamedFile,
    id::{BaseId, DatasetId, RequestId, TokenId, UnixMillis, UserId},
};
use uuid::Uuid;

/// Who runs the cluster, and trains on it as well.
pub(super) const OWNER: UserId = UserId(Uuid::from_u128(1));
/// Another who trains.
pub(super) const OTHER: UserId = UserId(Uuid::from_u128(2));

/// A dataset that is no dataset, and one that is; the bytes of both come late.
pub(super) const BROKEN: DatasetId = DatasetId(Uuid::from_u128(30));
const LATE: DatasetId = DatasetId(Uuid::from_u128(31));

pub(super) fn late() -> [DatasetId; 2] {
    [BROKEN, LATE]
}

/// What their owner calls them.
pub(super) const NAMES: [&str; 2] = ["broken", "late"];

pub(super) fn manifest() -> FileManifest {
    FileManifest { size: 10, hash: Hash([31; 32]), chunks: vec![Hash([31; 32])] }
}

/// The one base model, registered.
pub(super) fn base() -> Command {
    Command::RegisterBase { id: BaseId(Uuid::from_u128(4)), name: "b".into(), path: "/b".into() }
}

/// And its one file, or the one that took its place.
pub(super) fn base_file(is_other: bool) -> NamedFile {
    findings::file("model.safetensors", if is_other { 32 } else { 30 })
}

fn create(id: DatasetId, name: &str) -> Command {
    let (name, description, file_name, format) = (name.to_owned(), None, "d.jsonl".into(), None);
    Command::CreateDataset { id, name, description, file_name, size: 10, format }
}

/// One of the two, with a token.
pub(super) fn client(id: UserId) -> Actor {
    let role = if id == OWNER { Role::Admin } else { Role::User };
    Actor::User { id, role, token: TokenId(Uuid::from_u128(id.0.as_u128() + 10)) }
}

impl World {
    pub(super) fn set_up(&mut self) -> Kept {
        self.brain.start(0);
        let key = |byte| Hash([byte; 32]);
        let mut commands = vec![];
        for (id, role, name) in [(OWNER, Role::Admin, "A"), (OTHER, Role::User, "B")] {
            let email = format!("{name}@example.org");
            commands.push((Actor::System, Command::CreateUser { id, email, name: name.into(), role }));
            let dataset = DatasetId(Uuid::from_u128(id.0.as_u128() + 20));
            commands.push((client(id), create(dataset, "d")));
            commands.push((client(id), Command::ConfirmDataset { id: dataset, manifest: manifest() }));
        }
        commands.extend(late().into_iter().zip(NAMES).map(|(id, name)| (client(OWNER), create(id, name))));
        commands.push((client(OWNER), base()));
        for (index, node) in self.nodes.iter().enumerate() {
            let secret = key(100 + index as u8);
            commands.push((client(OWNER), Command::CreateJoinSecret { hash: secret, expires: UnixMillis(u64::MAX) }));
            commands.push((Actor::System, Command::Join { secret, key: key(7), name: "n".into(), node: node.id }));
            commands.push((
                Actor::System,
                Command::RecordCertificate { node: node.id, serial: node.serial.clone(), joined: None },
            ));
        }
        for (actor, command) in commands {
            self.request(actor, command, None, Waiting::Setup);
        }
        for node in 0..self.nodes.len() {
            self.at(10, Happening::NodeStarts { node });
        }
        match self.weather {
            Weather::Storm => self.wish_for_anything(),
            Weather::Outage(_) => {
                for number in 0..self.nodes.len() {
                    self.wish(Wish::plain(number), 5_000);
                }
            }
        }
        Ok(())
    }

    fn wish_for_anything(&mut self) {
        for number in 0..self.chance.between(20, 30) as usize + self.nodes.len() / 2 {
            let wish = Wish::new(number, &mut self.chance);
            let when = self.chance.between(100, STORM / 2);
            self.wish(wish, when);
        }
    }

    fn wish(&mut self, wish: Wish, when: u64) {
        wish.jobs.iter().for_each(|job| self.promises.natures.insert(*job, wish.nature).map_or((), drop));
        self.wishes.push(wish);
        self.at(when, Happening::Client(client::Order::Submit(self.wishes.len() - 1)));
    }

    pub(super) fn request(&mut self, actor: Actor, command: Command, key: Option<String>, who: Waiting) {
        let reply = self.brain.wait(who);
        let request = RequestId(Uuid::from_u128(u128::from(reply)));
        let idempotency = key.map(|key| lorikeet_coordinator::access::Idempotency { key, body: Hash([1; 32]) });
        let context = Context { actor, request, from: "the simulation".into(), idempotency };
        self.post(Event::Requested { reply, context, command, rows: Rows::default() });
    }
}
