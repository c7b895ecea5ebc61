//! The first day: users, nodes, a dataset and a base, before anything can go wrong.

use super::{Event, FileManifest, Happening, Hash, Kept, NamedFile, Waiting, World, client};
use lorikeet_coordinator::{
    access::{Actor, Context, Role},
    cluster::{Rows, command::Command},
};
use lorikeet_protocol::{
    id::{BaseId, DatasetId, RequestId, TokenId, UnixMillis, UserId},
    inspect::{BaseFindings, DatasetFindings, JobFindings},
};
use uuid::Uuid;

/// Who asks for everything.
pub(super) const OWNER: UserId = UserId(Uuid::from_u128(1));
const TOKEN: TokenId = TokenId(Uuid::from_u128(2));

/// The client.
pub(super) fn client() -> Actor {
    Actor::User { id: OWNER, role: Role::Admin, token: TOKEN }
}

impl World {
    pub(super) fn set_up(&mut self) -> Kept {
        self.brain.start(0);
        let key = |byte| Hash([byte; 32]);
        let manifest = FileManifest { size: 10, hash: key(31), chunks: vec![key(31)] };
        let mut commands = vec![
            (
                Actor::System,
                Command::CreateUser { id: OWNER, email: "a@example.org".into(), name: "A".into(), role: Role::Admin },
            ),
            (
                client(),
                Command::CreateDataset {
                    id: DatasetId(Uuid::from_u128(3)),
                    name: "d".into(),
                    description: None,
                    file_name: "d.jsonl".into(),
                    size: 10,
                    format: None,
                },
            ),
            (client(), Command::ConfirmDataset { id: DatasetId(Uuid::from_u128(3)), manifest }),
            (client(), Command::RegisterBase { id: BaseId(Uuid::from_u128(4)), name: "b".into(), path: "/b".into() }),
        ];
        for (index, node) in self.nodes.iter().enumerate() {
            let secret = key(100 + index as u8);
            commands.push((client(), Command::CreateJoinSecret { hash: secret, expires: UnixMillis(u64::MAX) }));
            commands.push((Actor::System, Command::Join { secret, key: key(7), name: "n".into(), node: node.id }));
            commands.push((Actor::System, Command::RecordCertificate { node: node.id, serial: node.serial.clone() }));
        }
        for (actor, command) in commands {
            self.request(actor, command, None, Waiting::Setup);
        }
        for node in 0..self.nodes.len() {
            self.at(10, Happening::NodeStarts { node });
        }
        let jobs = self.chance.between(20, 30);
        for number in 0..jobs {
            let when = self.chance.between(5_000, super::STORM / 2);
            self.jobs.push(client::Wish::new(number, &mut self.chance));
            self.at(when, Happening::Client(client::Order::Submit(number as usize)));
        }
        Ok(())
    }

    pub(super) fn request(&mut self, actor: Actor, command: Command, key: Option<String>, who: Waiting) {
        let reply = self.brain.wait(who);
        let request = RequestId(Uuid::from_u128(u128::from(reply)));
        let idempotency = key.map(|key| lorikeet_coordinator::access::Idempotency { key, body: Hash([1; 32]) });
        let context = Context { actor, request, from: "the simulation".into(), idempotency };
        self.post(Event::Requested { reply, context, command, rows: Rows::default() });
    }
}

/// A file of ten bytes.
pub(super) fn file(path: &str, byte: u8) -> NamedFile {
    let hash = Hash([byte; 32]);
    NamedFile { path: path.into(), manifest: FileManifest { size: 10, hash, chunks: vec![hash] } }
}

pub(super) fn dataset_findings() -> DatasetFindings {
    DatasetFindings {
        format: None,
        conversations: 3,
        pairs: 3,
        trainable_pairs: 3,
        average_turns: 2.0,
        tokens: None,
        warnings: vec![],
        errors: vec![],
        error_count: 0,
        samples: vec![],
    }
}

pub(super) fn base_findings() -> BaseFindings {
    BaseFindings {
        architecture: "LlamaForCausalLM".into(),
        parameters: 1,
        config_json: "{}".into(),
        dtype: "F32".into(),
        vocabulary: 256,
        chat_template: false,
        files: vec![],
    }
}

pub(super) fn job_findings() -> JobFindings {
    JobFindings {
        examples: 10,
        validation_examples: 1,
        total_steps: super::super::worker::STEPS,
        epoch_tokens: 100,
        supervised_tokens: 50,
        longest_tokens: 20,
        cut_examples: 0,
        cut_tokens: 0,
        cpu_bytes: 1 << 30,
        cuda_bytes: 20 << 30,
        rendered: vec![],
    }
}
