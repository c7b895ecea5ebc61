//! One value of every message, with every field away from its default, shared by the pins and the property tests.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use lorikeet_protocol::{agent::*, blob::*, file::*, id::*, inspect::*, job::*, join::*, share::*, worker::*};
use std::{collections::BTreeMap, time::Duration};

const fn uuid(n: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0000 + n)
}

fn job_id() -> JobId {
    JobId(uuid(1))
}

fn attempt() -> AttemptId {
    AttemptId { job: job_id(), token: AttemptToken { generation: 2, number: 3 } }
}

fn hash(byte: u8) -> Hash {
    Hash([byte; 32])
}

fn manifest() -> FileManifest {
    FileManifest { size: CHUNK_BYTES + 7, hash: hash(1), chunks: vec![hash(2), hash(3)] }
}

fn file(path: &str) -> NamedFile {
    NamedFile { path: path.into(), manifest: manifest() }
}

fn checkpoint() -> Checkpoint {
    Checkpoint { step: 100, loss: 1.25, kind: CheckpointKind::Periodic, files: vec![file("manifest.json")] }
}

pub fn job() -> JobSpec {
    JobSpec {
        name: "support tone".into(),
        base: "smollm2-135m".into(),
        dataset: "support-chats".into(),
        validation_dataset: Some("held-out".into()),
        init_adapter: Some("tone".into()),
        preset: "balanced".into(),
        priority: 50,
        task: Task::Train(Train {
            training: Training {
                method: Method::Lora,
                learning_rate: 2e-4,
                batch_size: 8,
                micro_tokens: MicroTokens::Auto,
                length: TrainingLength::Epochs(5),
                max_seq_length: 2048,
                schedule: Schedule::Cosine,
                adam_beta1: 0.9,
                adam_beta2: 0.999,
                adam_epsilon: 1e-8,
                warmup_ratio: 0.1,
                weight_decay: 0.01,
                max_grad_norm: 1.0,
                shuffle: true,
                seed: 42,
                validation_fraction: 0.1,
                supervise: Supervise::Assistant,
                eval_every: Every::Epoch,
                checkpoint_every: Every::Steps(100),
                base_dtype: BaseDtype::Auto,
                early_stopping: Some(3),
                sample_prompts: vec!["Where is my parcel?".into()],
                grad_norms: true,
            },
            data: DataFilter {
                quality_min: Some(3.5),
                tiers: vec!["production".into()],
                human_reviewed: Some(true),
                personas: vec!["anxious_planner".into()],
                arcs: Vec::new(),
                topics: Vec::new(),
            },
            lora: Lora::plain(16, 32.0, 0.1),
        }),
        resources: Resources {
            gpus: 1,
            gpu: GpuRequest::Least { min_memory_bytes: Some(40 << 30), min_compute: Some((8, 0)) },
            labels: BTreeMap::from([("rack".into(), "a".into())]),
            min_driver: Some(Driver(580, 65, 6)),
            prefer: Prefer {
                gpu: Some(GpuRequest::Named("H200".into())),
                labels: [("rack".into(), "b".into())].into(),
            },
            exclusive: true,
            max_runtime: Duration::from_secs(86_400),
        },
        policy: Policy {
            retries: 2,
            lost_after: Duration::from_secs(300),
            on_lost: OnLost::Requeue,
            max_cost_micros: Some(12_500_000),
        },
    }
}

pub fn devices() -> Vec<Device> {
    vec![
        Device {
            id: DeviceId::cpu(),
            name: "a processor".into(),
            kind: DeviceKind::Cpu,
            memory_bytes: 24 << 30,
            free_bytes: 20 << 30,
            usable: Ok(()),
        },
        Device {
            id: DeviceId("GPU-1234".into()),
            name: "NVIDIA H200".into(),
            kind: DeviceKind::Cuda { compute: (9, 0), driver: Some(Driver(580, 65, 6)) },
            memory_bytes: 141 << 30,
            free_bytes: 140 << 30,
            usable: Err("this build has no CUDA".into()),
        },
    ]
}

pub fn from_agent() -> Vec<FromAgent> {
    let report = |number, body| {
        FromAgent::Report(Report { number, attempt: attempt(), time: UnixMillis(1_790_000_000_000), body })
    };
    vec![
        FromAgent::Hello(Box::new(Hello {
            boot: BootId(uuid(4)),
            instance: BootId(uuid(5)),
            version: "0.1.0".into(),
            name: "gpu-7".into(),
            labels: BTreeMap::from([("rack".into(), "a".into())]),
            devices: devices(),
            attempts: vec![KnownAttempt { id: attempt(), phase: AttemptPhase::Running }],
            cached: vec![hash(6)],
            acknowledged: 12,
        })),
        FromAgent::Heartbeat,
        FromAgent::Devices(devices()),
        FromAgent::Accepted(attempt()),
        FromAgent::Declined { attempt: attempt(), reason: "the device is busy".into() },
        report(1, ReportBody::Preparing),
        report(2, ReportBody::Running { from_step: 100 }),
        report(
            3,
            ReportBody::Progress(Progress {
                step: 120,
                total_steps: 500,
                epoch: 1.2,
                loss: 1.125,
                learning_rate: 1.5e-4,
                tokens_per_second: 350.5,
                validation_loss: Some(1.25),
            }),
        ),
        report(4, ReportBody::Checkpoint(checkpoint())),
        report(5, ReportBody::Finalizing),
        report(
            6,
            ReportBody::Ended(Ended {
                outcome: Outcome::Oom,
                class: Some(FailureClass::OutOfMemory),
                message: Some("out of memory at step 3; a smaller batch would fit".into()),
                step: 3,
                held: Duration::from_millis(61_500),
                files: vec![file("adapter_model.safetensors")],
                summary: Some("{}".into()),
                last_event: 17,
            }),
        ),
        FromAgent::Events(EventLines { attempt: attempt(), first: 7, lines: vec!["{\"seq\":7}".into()] }),
        FromAgent::Renew(vec![0x30, 0x82]),
        FromAgent::Trusts(Trusts { authorities: vec![hash(7), hash(8)], issuer: Some(hash(8)) }),
        report(7, ReportBody::Metered(metered())),
    ]
}

pub fn metered() -> Metered {
    let ended = Ended {
        outcome: Outcome::Ok,
        class: None,
        message: None,
        step: 500,
        held: Duration::from_millis(61_500),
        files: vec![file("adapter_model.safetensors")],
        summary: Some("{}".into()),
        last_event: 517,
    };
    Metered { ended, energy_joules: 1_234_567 }
}

pub fn to_agent() -> Vec<ToAgent> {
    vec![
        ToAgent::Welcome(Box::new(Welcome {
            node: NodeId(uuid(8)),
            session: 4,
            heartbeat: Duration::from_secs(5),
            last_report: 6,
            verdicts: vec![
                (attempt(), Verdict::Adopt),
                (attempt(), Verdict::Stop),
                (attempt(), Verdict::Report),
                (attempt(), Verdict::Forget),
            ],
            events: vec![(attempt(), 7)],
        })),
        ToAgent::Offer(Box::new(Offer {
            attempt: attempt(),
            job: job(),
            devices: vec![DeviceId::cpu()],
            planned_bytes: 3 << 30,
            base: vec![file("model.safetensors")],
            dataset: file("chats.jsonl"),
            validation: Some(file("held-out.jsonl")),
            init_adapter: vec![file("adapter_config.json")],
            resume: Some(checkpoint()),
            time_left: Duration::from_secs(3_600),
        })),
        ToAgent::Stop { attempt: attempt(), how: StopHow::Save, cause: StopCause::Pause },
        ToAgent::Stop { attempt: attempt(), how: StopHow::Discard, cause: StopCause::Cancel },
        ToAgent::SaveNow(attempt()),
        ToAgent::Acknowledged { through: 6 },
        ToAgent::EventsAcknowledged { attempt: attempt(), through: 7 },
        ToAgent::Forget(attempt()),
        ToAgent::Renewed(vec![0x30, 0x82]),
        ToAgent::Goodbye(Farewell::Superseded),
        ToAgent::Goodbye(Farewell::TwoMachines),
        ToAgent::Goodbye(Farewell::Revoked),
        ToAgent::Goodbye(Farewell::ShuttingDown),
        ToAgent::Goodbye(Farewell::Misbehaved),
        ToAgent::Trust(vec![vec![0x30, 0x82], vec![0x30, 0x83]]),
        ToAgent::Expelled(NodeId(uuid(8))),
    ]
}

pub fn blob_requests() -> Vec<BlobRequest> {
    vec![
        BlobRequest::Fetch { attempt: attempt(), file: hash(9), chunk: 2 },
        BlobRequest::Offer { attempt: attempt(), manifest: manifest() },
        BlobRequest::Put { attempt: attempt(), file: hash(9), chunk: 1 },
        BlobRequest::Finish { attempt: attempt(), file: hash(9) },
        BlobRequest::Announce(announcement(Listens::Nowhere)),
        BlobRequest::Announce(announcement(Listens::Port(7172))),
        BlobRequest::Announce(announcement(Listens::At(([192, 0, 2, 7], 7172).into()))),
        BlobRequest::Givers { attempt: attempt(), file: hash(9) },
    ]
}

fn announcement(listens: Listens) -> Announcement {
    let moved = Moved { from_coordinator: 1 << 30, from_nodes: 15 << 30, to_nodes: 7 };
    Announcement { listens, files: vec![hash(9), hash(10)], moved }
}

fn grant() -> Grant {
    Grant { reader: NodeId(uuid(8)), file: hash(9), expires: UnixMillis(1_790_000_000_000), seal: hash(12) }
}

pub fn share_request() -> ShareRequest {
    ShareRequest { grant: grant(), chunk: 3 }
}

pub fn share_answers() -> Vec<ShareAnswer> {
    vec![ShareAnswer::Bytes(CHUNK_BYTES), ShareAnswer::Refused(Refusal::NotYours)]
}

pub fn blob_answers() -> Vec<BlobAnswer> {
    let refused =
        [Refusal::NotYours, Refusal::Missing, Refusal::Corrupt, Refusal::NoSpace, Refusal::TooLarge, Refusal::Busy];
    let mut answers = vec![BlobAnswer::Bytes(CHUNK_BYTES), BlobAnswer::Wanted(vec![0, 3]), BlobAnswer::Stored];
    answers.extend(refused.map(BlobAnswer::Refused));
    answers.push(BlobAnswer::Announced { key: GrantKey([13; 32]), time: UnixMillis(1_790_000_000_000) });
    let givers = ["192.0.2.7:7172", "[2001:db8::7]:7172"].map(|address| Giver {
        node: NodeId(uuid(9)),
        address: address.parse().expect("an address written here"),
        grant: grant(),
    });
    answers.push(BlobAnswer::Givers(givers.to_vec()));
    answers
}

pub fn join_ticket() -> JoinTicket {
    JoinTicket { address: "gpu.example:7171".into(), ca_hash: hash(10), secret: [11; 32] }
}

pub fn join_request() -> JoinRequest {
    JoinRequest { secret: [11; 32], signing_request: vec![0x30], name: "gpu-7".into() }
}

pub fn join_answers() -> Vec<JoinAnswer> {
    vec![
        JoinAnswer::Joined(Identity { node: NodeId(uuid(8)), certificate: vec![0x30], ca: vec![0x31] }),
        JoinAnswer::Refused { reason: "this secret was used by another key".into() },
    ]
}

pub fn telemetry() -> Telemetry {
    Telemetry {
        device: DeviceId("GPU-8f6b2d1c-0000-1111-2222-333344445555".into()),
        time: UnixMillis(1_790_000_000_000),
        used_bytes: 100 << 30,
        memory_bytes: 141 << 30,
        utilization_percent: Some(98.5),
        temperature_celsius: Some(61.0),
        power_watts: Some(640.25),
        sm_clock_mhz: Some(1_755),
        memory_clock_mhz: Some(3_201),
        throttle_reasons: Some(throttle_reasons().into()),
        corrected_errors: Some(7),
        uncorrected_errors: Some(2),
        remapped_rows: Some(RemappedRows { corrected: 3, uncorrected: 1, pending: true, failed: true }),
        foreign: Some(Foreign { processes: 2, bytes: 3 << 30 }),
    }
}

pub fn throttle_reasons() -> [ThrottleReason; 9] {
    use ThrottleReason::*;
    [
        GpuIdle,
        ApplicationsClocksSetting,
        SwPowerCap,
        HwSlowdown,
        SyncBoost,
        SwThermalSlowdown,
        HwThermalSlowdown,
        HwPowerBrakeSlowdown,
        DisplayClockSetting,
    ]
}

pub fn former_telemetry() -> former::Telemetry {
    former::Telemetry {
        device: DeviceId("GPU-8f6b2d1c-0000-1111-2222-333344445555".into()),
        time: UnixMillis(1_790_000_000_000),
        utilization_percent: 98.5,
        used_bytes: 100 << 30,
        memory_bytes: 141 << 30,
        temperature_celsius: Some(61.0),
        power_watts: Some(640.25),
    }
}

pub fn spec() -> Spec {
    Spec {
        attempt: Some(attempt()),
        job: job(),
        base: "/var/lib/lorikeet/cache/base".into(),
        dataset: "/var/lib/lorikeet/cache/chats.jsonl".into(),
        validation: Some("/var/lib/lorikeet/cache/held-out.jsonl".into()),
        init_adapter: Some("/var/lib/lorikeet/adapter".into()),
        cache: "/var/lib/lorikeet/cache/tokens".into(),
        devices: vec![DeviceId::cpu()],
        threads: Some(2),
    }
}

pub fn holder() -> Holder {
    Holder { pid: 4711, start_ticks: 123_456, boot: BootId(uuid(4)) }
}

pub fn stop_request() -> StopRequest {
    StopRequest { save: true, cause: StopCause::Preempt }
}

pub fn events() -> Vec<EventLine> {
    let events = [
        WorkerEvent::Stage { stage: Stage::Loading },
        WorkerEvent::Plan(Plan {
            examples: 40,
            validation_examples: 4,
            conversations: 12,
            total_steps: 25,
            epoch_tokens: 40_000,
            supervised_tokens: 8_000,
            longest_tokens: 1_024,
            cut_examples: 3,
            cut_tokens: 900,
            trainable_parameters: 4_884_480,
            base_parameters: 134_515_008,
            micro_tokens: 2_048,
            memory_bytes: 3 << 30,
            memory: Memory {
                weights: 538_060_032,
                adapters: 39_075_840,
                optimizer: 39_075_840,
                activations: 1 << 30,
                token_and_layer: 26_916,
                head: 50 << 20,
                layer: 60 << 20,
                program: 24 << 20,
            },
            recompute: 3,
            modules: vec![Modules {
                module: "q_proj".into(),
                layers: "0-29".into(),
                count: 30,
                rank: 16,
                alpha: 32.0,
                inputs: 576,
                outputs: 576,
                parameters: 552_960,
            }],
            from_step: 5,
            reached: Some(Reached { epoch: 0.25, loss: 2.75, lr: 5e-5 }),
        }),
        WorkerEvent::Log { level: Level::Warning, message: "3 examples lost history".into() },
        WorkerEvent::Step(Step {
            step: 6,
            epoch: 0.5,
            loss: 2.5,
            lr: 1e-4,
            grad_norm: 0.75,
            tokens: 1_900,
            supervised_tokens: 400,
            seconds: 1.5,
        }),
        WorkerEvent::Eval { step: 6, loss: 2.25, perplexity: 9.5, base_loss: Some(3.25), tokens: 800, seconds: 0.25 },
        WorkerEvent::Checkpoint {
            step: 6,
            loss: 2.5,
            kind: CheckpointKind::Emergency,
            path: "checkpoints/step-00000006".into(),
        },
        WorkerEvent::Sample { step: 6, prompt: "hello".into(), text: "hello there".into() },
        WorkerEvent::Finished {
            step: 25,
            files: vec![WrittenFile { path: "adapter_config.json".into(), size: 700, hash: hash(12) }],
        },
        WorkerEvent::Stopped {
            step: 6,
            checkpoint: Some("checkpoints/step-00000006".into()),
            cause: StopCause::Signal,
        },
        WorkerEvent::Failed {
            class: FailureClass::NonFinite,
            message: "the loss of step 7 is not finite".into(),
            hint: Some("a lower learning rate".into()),
        },
    ];
    let line = |(at, event): (u64, _)| EventLine { seq: at + 1, time: UnixMillis(1_790_000_000_000 + at), event };
    (0..).zip(events).map(line).collect()
}

pub fn inspections() -> Vec<Inspection> {
    vec![
        Inspection::Dataset(DatasetFindings {
            format: Some(DatasetFormat::BrightrunLoraV4),
            conversations: 12,
            pairs: 89,
            trainable_pairs: 44,
            average_turns: 7.5,
            tokens: Some(60_000),
            warnings: vec!["45 pairs have no target".into()],
            errors: vec![Fault { line: Some(3), path: "$.target_response".into(), message: "is empty".into() }],
            error_count: 1,
            samples: vec![vec![SampleMessage { role: "user".into(), content: "hello".into(), supervised: false }]],
        }),
        Inspection::Base(BaseFindings {
            architecture: "LlamaForCausalLM".into(),
            parameters: 134_515_008,
            config_json: "{}".into(),
            dtype: "BF16".into(),
            vocabulary: 49_152,
            chat_template: true,
            files: vec!["model.safetensors".into()],
        }),
        Inspection::Job(JobFindings {
            examples: 40,
            validation_examples: 4,
            total_steps: 25,
            epoch_tokens: 40_000,
            supervised_tokens: 8_000,
            longest_tokens: 1_024,
            cut_examples: 3,
            cut_tokens: 900,
            cpu_bytes: 3 << 30,
            cuda_bytes: 2 << 30,
            rendered: vec![RenderedExample { parts: vec![RenderedPart { text: "hello".into(), supervised: true }] }],
        }),
        Inspection::Refused {
            faults: vec![Fault { line: None, path: "model.safetensors".into(), message: "is not there".into() }],
        },
    ]
}
