//! What a hostile or broken peer may send: any bytes end in a message or an error, within the memory of one frame.

mod examples;

use lorikeet_protocol::{
    agent::{EventLines, FromAgent, ToAgent},
    blob::{BlobAnswer, BlobRequest},
    codec::{self, CodecError, HEADER_BYTES, MAX_FRAME_BYTES},
    join::{JoinAnswer, JoinRequest, JoinTicket},
    share::{ShareAnswer, ShareRequest},
};
use proptest::prelude::*;

#[test]
fn a_length_of_4_gib_is_refused_before_anything_is_allocated() {
    assert!(matches!(codec::body_length([0xff; HEADER_BYTES]), Err(CodecError::TooLong { .. })));
    assert!(codec::body_length((MAX_FRAME_BYTES as u32).to_le_bytes()).is_ok());
}

#[test]
fn a_vector_that_announces_more_than_a_frame_holds_is_refused() {
    let mut body = codec::encode(&FromAgent::Renew(vec![])).unwrap()[HEADER_BYTES..].to_vec();
    body.pop();
    body.extend([253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(codec::decode::<FromAgent>(&body), Err(CodecError::Decode(_))));
}

#[test]
fn a_message_longer_than_a_frame_is_not_sent() {
    let attempt = "job_01920000000070008000000000000001-1.1".parse().unwrap();
    let lines = EventLines { attempt, first: 1, lines: vec!["x".repeat(MAX_FRAME_BYTES)] };
    assert!(codec::encode(&FromAgent::Events(lines)).is_err());
}

#[test]
fn another_version_and_trailing_bytes_are_named() {
    let mut body = codec::encode(&FromAgent::Heartbeat).unwrap()[HEADER_BYTES..].to_vec();
    body.push(0);
    assert!(matches!(codec::decode::<FromAgent>(&body), Err(CodecError::Trailing(1))));
    body[0] = 99;
    assert!(matches!(codec::decode::<FromAgent>(&body), Err(CodecError::Version { found: 99, .. })));
    assert!(matches!(codec::decode::<FromAgent>(&[]), Err(CodecError::Empty)));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..512)) {
        decode_as_everything(&body);
    }

    #[test]
    fn mutated_messages_never_panic_and_what_decodes_encodes_again(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let frames = all_frames();
        let mut body = which.get(&frames)[HEADER_BYTES..].to_vec();
        let position = at.index(body.len());
        body[position] ^= byte;
        decode_as_everything(&body);
        if let Ok(message) = codec::decode::<FromAgent>(&body) {
            prop_assert!(codec::encode(&message).is_ok());
        }
        body.truncate(cut.index(body.len() + 1));
        decode_as_everything(&body);
    }
}

fn all_frames() -> Vec<Vec<u8>> {
    let from = examples::from_agent()
        .iter()
        .map(|message| codec::encode(message).expect("our own examples encode"))
        .collect::<Vec<_>>();
    let to = examples::to_agent()
        .iter()
        .map(|message| codec::encode(message).expect("our own examples encode"))
        .collect::<Vec<_>>();
    let blob = examples::blob_requests()
        .iter()
        .map(|message| codec::encode(message).expect("our own examples encode"))
        .collect::<Vec<_>>();
    [from, to, blob].concat()
}

fn decode_as_everything(body: &[u8]) {
    let _ = codec::decode::<FromAgent>(body);
    let _ = codec::decode::<ToAgent>(body);
    let _ = codec::decode::<BlobRequest>(body);
    let _ = codec::decode::<BlobAnswer>(body);
    let _ = codec::decode::<ShareRequest>(body);
    let _ = codec::decode::<ShareAnswer>(body);
    let _ = codec::decode::<JoinTicket>(body);
    let _ = codec::decode::<JoinRequest>(body);
    let _ = codec::decode::<JoinAnswer>(body);
}
