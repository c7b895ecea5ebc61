//! An agent of version 1 as bytes: what it says must be understood, and what it hears must be what it can read, for as long as a
//! coordinator speaks that version. These bytes are never made anew; a later version gets a file of its own beside this one.

use super::*;

/// Hello: boot 1, instance 2, version "0.1.0", name "gpu-7", no labels, devices, attempts or files, nothing acknowledged.
pub(super) const HELLO: &str = "3300000001\
    00\
    00000000000000000000000000000001\
    00000000000000000000000000000002\
    05302e312e30\
    056770752d37\
    00000000\
    00";
const HEARTBEAT: &str = "020000000101";
/// Accepted: an attempt that nobody offered.
const ACCEPTED: &str = "140000000103019200000000700080000000000000010203";
/// Report 1 of an attempt that is not current: Running from step 100.
const RUNNING: &str = "20000000010501019200000000700080000000000000010203fd006c50c4a00100000164";

#[tokio::test]
async fn an_agent_of_version_one_is_understood_and_understands() {
    let world = World::new();
    let (identity, key) = world.node(30).await;
    let mut control = world.control((&identity, &key)).await;
    say(&mut control, &bytes(HELLO)).await;
    let welcome = hear(&mut control).await;
    // Version byte, variant 0, the node's id, session 1.
    assert_eq!(welcome[..2], [1, 0], "{welcome:02x?}");
    assert_eq!(welcome[2..18], *identity.node.0.as_bytes());
    assert_eq!(welcome[18], 1);
    for words in [HEARTBEAT, ACCEPTED, RUNNING] {
        say(&mut control, &bytes(words)).await;
    }
    // The offer was nobody's: Stop (2) of that attempt, discarding (1), superseded; then report 1 is acknowledged (4).
    let stop = hear(&mut control).await;
    assert_eq!(stop[..2], [1, 2], "{stop:02x?}");
    assert_eq!(hear(&mut control).await, [1, 4, 1]);
}

pub(super) fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

pub(super) async fn say(control: &mut Control, frame: &[u8]) {
    control.send.write_all(frame).await.unwrap();
}

/// The body of the next frame.
pub(super) async fn hear(control: &mut Control) -> Vec<u8> {
    let mut length = [0; 4];
    timeout(PATIENCE, control.receive.read_exact(&mut length)).await.unwrap().unwrap();
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    timeout(PATIENCE, control.receive.read_exact(&mut body)).await.unwrap().unwrap();
    body
}
