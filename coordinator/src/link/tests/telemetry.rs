//! What devices say of themselves, by agents of now and of before.

use super::*;
use lorikeet_protocol::agent::former;

#[tokio::test]
async fn what_a_device_says_of_itself_is_there_while_its_node_is() {
    let world = World::new();
    let (identity, key) = world.node(12).await;
    let mut control = world.control_in(ALPN_CONTROL_METER, (&identity, &key)).await;
    control.hello(1).await;
    let said = Telemetry { sm_clock_mhz: Some(1_755), ..device_says(5) };
    let nonsense = Telemetry { power_watts: Some(f32::NAN), ..device_says(6) };
    let told = codec::encode(&former::Telemetry::from(&device_says(7))).unwrap();
    let frames = [encoded(&nonsense), told, encoded(&said)];
    world.until_device_says(&identity, std::slice::from_ref(&said), &control, &frames).await;
    control.connection.close(VarInt::from_u32(0), b"");
    world.until_device_says(&identity, &[], &control, &[]).await;
}

#[tokio::test]
async fn an_agent_of_before_is_understood_when_it_says_how_its_devices_are() {
    let world = World::new();
    let (identity, key) = world.node(12).await;
    let mut control = world.control((&identity, &key)).await;
    control.hello(1).await;
    let said = device_says(5);
    let former = codec::encode(&former::Telemetry::from(&said)).unwrap();
    let newer = encoded(&Telemetry { sm_clock_mhz: Some(1), ..device_says(6) });
    world.until_device_says(&identity, &[said], &control, &[newer, former]).await;
}

fn encoded(said: &Telemetry) -> Vec<u8> {
    codec::encode(said).unwrap()
}

/// What one of before can say as well.
fn device_says(time: u64) -> Telemetry {
    Telemetry {
        utilization_percent: Some(40.0),
        temperature_celsius: Some(50.0),
        ..Telemetry::new(DeviceId::cpu(), UnixMillis(time), 3, 9)
    }
}

impl World {
    /// Says these frames until that is what is known of the node's devices.
    async fn until_device_says(&self, node: &Identity, expected: &[Telemetry], control: &Control, frames: &[Vec<u8>]) {
        let newest = || self.services.telemetry.of(node.node).into_values().collect::<Vec<_>>();
        let deadline = std::time::Instant::now() + PATIENCE;
        while newest() != expected {
            assert!(std::time::Instant::now() < deadline, "it stayed {:?}", newest());
            for frame in frames {
                let _ = control.connection.send_datagram(frame[codec::HEADER_BYTES..].to_vec().into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
