//! One example of every message against its recorded form: bytes for what travels as bincode, text for what lies in files as JSON.
//!
//! A change here is a change of the wire or of a file format: it needs a new type beside the old one, or a new `VERSION`.
//! `LORIKEET_PINS=write cargo test -p lorikeet-protocol --test pins` rewrites the records; the diff is reviewed.

mod examples;

use lorikeet_protocol::{
    agent::{Foreign, RemappedRows, ReportBody, Telemetry, WORD, former},
    codec,
    id::{DeviceId, UnixMillis},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Write as _, path::PathBuf};

#[test]
fn what_agents_say_keeps_its_bytes() {
    pin_frames("from_agent", &examples::from_agent());
}

#[test]
fn what_the_coordinator_says_keeps_its_bytes() {
    pin_frames("to_agent", &examples::to_agent());
}

#[test]
fn blob_requests_and_answers_keep_their_bytes() {
    pin_frames("blob_request", &examples::blob_requests());
    pin_frames("blob_answer", &examples::blob_answers());
}

#[test]
fn sharing_keeps_its_bytes() {
    pin_frames("share_request", &[examples::share_request()]);
    pin_frames("share_answer", &examples::share_answers());
}

#[test]
fn joining_keeps_its_bytes() {
    pin_frames("join_ticket", &[examples::join_ticket()]);
    pin_frames("join_request", &[examples::join_request()]);
    pin_frames("join_answer", &examples::join_answers());
}

#[test]
fn telemetry_keeps_its_bytes_and_fits_a_datagram() {
    let telemetry = examples::telemetry();
    assert!(codec::encode(&telemetry).expect("our own examples encode and read back").len() <= 1_100);
    pin_frames("telemetry_4", &[telemetry]);
}

#[test]
fn telemetry_of_before_keeps_its_bytes_and_says_the_same() {
    let (former, telemetry) = (examples::former_telemetry(), examples::telemetry());
    pin_frames("telemetry", std::slice::from_ref(&former));
    assert_eq!(Telemetry::from(former.clone()), known_before(telemetry.clone()));
    assert_eq!(former::Telemetry::from(&telemetry), former);
    let silent = Telemetry { utilization_percent: None, ..telemetry };
    assert_eq!(former::Telemetry::from(&silent).utilization_percent, 0.0, "it has no other word for that");
}

fn known_before(said: Telemetry) -> Telemetry {
    let Telemetry { utilization_percent, temperature_celsius, power_watts, .. } = said;
    let new = Telemetry::new(said.device, said.time, said.used_bytes, said.memory_bytes);
    Telemetry { utilization_percent, temperature_celsius, power_watts, ..new }
}

#[test]
fn an_end_with_its_energy_is_the_same_end_to_a_peer_of_before() {
    let metered = examples::metered();
    let body = ReportBody::Metered(metered.clone());
    assert_eq!((body.end(), body.files()), (Some(&metered.ended), &metered.ended.files[..]));
    assert_eq!(body.unmetered(), ReportBody::Ended(metered.ended));
}

#[test]
fn the_largest_telemetry_fits_a_datagram() {
    let most = Telemetry {
        device: DeviceId("x".repeat(WORD)),
        time: UnixMillis(u64::MAX),
        used_bytes: u64::MAX,
        memory_bytes: u64::MAX,
        corrected_errors: Some(u64::MAX),
        uncorrected_errors: Some(u64::MAX),
        sm_clock_mhz: Some(u32::MAX),
        memory_clock_mhz: Some(u32::MAX),
        remapped_rows: Some(RemappedRows { corrected: u32::MAX, uncorrected: u32::MAX, pending: true, failed: true }),
        foreign: Some(Foreign { processes: u32::MAX, bytes: u64::MAX }),
        ..examples::telemetry()
    };
    assert!(codec::encode(&most).unwrap().len() <= 1_100);
}

#[test]
fn the_attempt_directory_keeps_its_text() {
    pin_json("spec", &[examples::spec()]);
    pin_json("holder", &[examples::holder()]);
    pin_json("stop_request", &[examples::stop_request()]);
    pin_json("events", &examples::events());
}

#[test]
fn inspections_keep_their_text() {
    pin_json("inspections", &examples::inspections());
}

/// One line of hex digits per message, header included; each must also decode to what it was made of.
fn pin_frames<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, messages: &[T]) {
    let mut text = String::new();
    for message in messages {
        let frame = codec::encode(message).expect("our own examples encode and read back");
        let header = frame[..codec::HEADER_BYTES].try_into().expect("our own examples encode and read back");
        assert_eq!(
            codec::body_length(header).expect("our own examples encode and read back"),
            frame.len() - codec::HEADER_BYTES
        );
        assert_eq!(
            &codec::decode::<T>(&frame[codec::HEADER_BYTES..]).expect("our own examples encode and read back"),
            message
        );
        frame.iter().for_each(|byte| write!(text, "{byte:02x}").expect("our own examples encode and read back"));
        text.push('\n');
    }
    compare(&format!("{name}.hex"), &text);
}

/// One line of JSON per value; each must also read back as what it was made of.
fn pin_json<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, values: &[T]) {
    let mut text = String::new();
    for value in values {
        let line = serde_json::to_string(value).expect("our own examples encode and read back");
        assert_eq!(&serde_json::from_str::<T>(&line).expect("our own examples encode and read back"), value);
        text.push_str(&line);
        text.push('\n');
    }
    compare(&format!("{name}.jsonl"), &text);
}

fn compare(file: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/pins").join(file);
    if std::env::var("LORIKEET_PINS").is_ok_and(|mode| mode == "write") {
        std::fs::write(&path, text).expect("our own examples encode and read back");
    }
    let pinned = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(pinned, text, "{file} changed: is this meant? then `cargo xtask pins`");
}
