//! The first day: users, nodes, a dataset and a base, before anything can go wrong.

use super::{Event, FileManifest, Happening, Hash, Kept, STORM, Waiting, Weather, World, client, wish::Wish};
use lorikeet_coordinator::{
    access::{Actor, Context, Role},
    cluster::{Rows, command::Command},
};
use lorikeet_protocol::id::{BaseId, DatasetId, JobId, RequestId, TokenId, UnixMillis, UserId};
use uuid::Uuid;

/// Who runs the cluster, and trains on it as well.
pub(super) const OWNER: UserId = UserId(Uuid::from_u128(1));
/// Another who trains.
pub(super) const OTHER: UserId = UserId(Uuid::from_u128(2));

/// One of the two, with a token.
pub(super) fn client(id: UserId) -> Actor {
    let role = if id == OWNER { Role::Admin } else { Role::User };
    Actor::User { id, role, token: TokenId(Uuid::from_u128(id.0.as_u128() + 10)) }
}

impl World {
    pub(super) fn set_up(&mut self) -> Kept {
        self.brain.start(0);
        let key = |byte| Hash([byte; 32]);
        let manifest = FileManifest { size: 10, hash: key(31), chunks: vec![key(31)] };
        let mut commands = vec![];
        for (id, role, name) in [(OWNER, Role::Admin, "A"), (OTHER, Role::User, "B")] {
            let email = format!("{name}@example.org");
            commands.push((Actor::System, Command::CreateUser { id, email, name: name.into(), role }));
            let (dataset, file_name) = (DatasetId(Uuid::from_u128(id.0.as_u128() + 20)), "d.jsonl".into());
            let (name, description, format) = ("d".into(), None, None);
            let create = Command::CreateDataset { id: dataset, name, description, file_name, size: 10, format };
            commands.push((client(id), create));
            commands.push((client(id), Command::ConfirmDataset { id: dataset, manifest: manifest.clone() }));
        }
        let base = BaseId(Uuid::from_u128(4));
        commands.push((client(OWNER), Command::RegisterBase { id: base, name: "b".into(), path: "/b".into() }));
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
        let rows = self.rows(&command);
        self.post(Event::Requested { reply, context, command, rows });
    }
}

impl World {
    /// As the driver does: rows of what is over come from the store.
    fn rows(&self, command: &Command) -> Rows {
        let start = match command {
            Command::SubmitJob { start, .. } => start,
            Command::SubmitSweep(sweep) => &sweep.start,
            _ => return Rows::default(),
        };
        let ids = start.after.iter().filter_map(|after| after.job.parse::<JobId>().ok());
        Rows { named: ids.filter_map(|id| self.brain.store.jobs.get(&id).cloned()).collect(), ..Rows::default() }
    }
}
