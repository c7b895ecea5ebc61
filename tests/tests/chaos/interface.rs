//! A machine in a network of its own, whose interface goes down for real: nothing is answered, not even refused.

use crate::{assert_untouched, machine, numbers};
use lorikeet_tests::{Lab, lab::Machine, until};
use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

const STEPS: u64 = 400;

/// A namespace, and a pair of interfaces that leads there; gone when dropped.
struct Network {
    name: String,
    /// On our side.
    interface: String,
    address: Ipv4Addr,
}

impl Network {
    /// `None`: this machine does not let us; said, so that nobody takes it for a pass.
    fn make() -> Option<Self> {
        let id = std::process::id();
        // Numbers of their own for every run, in a range that is for private use; two addresses of four.
        let [third, fourth] = [(id / 64 % 256) as u8, (id % 64 * 4) as u8];
        let address = |last: u8| Ipv4Addr::new(10, 213, third, fourth + last);
        let network = Self { name: format!("lorikeet-{id}"), interface: format!("lk{id}"), address: address(1) };
        let (name, ours, theirs) = (&network.name, &network.interface, format!("lk{id}p"));
        let steps = [
            format!("netns add {name}"),
            format!("link add {ours} type veth peer name {theirs} netns {name}"),
            format!("address add {}/30 dev {ours}", address(1)),
            format!("link set {ours} up"),
            format!("-n {name} address add {}/30 dev {theirs}", address(2)),
            format!("-n {name} link set {theirs} up"),
            format!("-n {name} link set lo up"),
        ];
        match steps.iter().try_for_each(|step| ip(step)) {
            Ok(()) => Some(network),
            Err(why) => {
                eprintln!("SKIPPED: a network of its own needs the right to make one: {why}");
                None
            }
        }
    }

    fn set(&self, state: &str) {
        ip(&format!("link set {} {state}", self.interface)).expect("the interface is ours");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = ip(&format!("link delete {}", self.interface));
        let _ = ip(&format!("netns delete {}", self.name));
    }
}

fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("`ip {words}`: {}", told.trim())) }
}

#[test]
fn an_interface_that_is_down_for_less_than_lost_after_restarts_nothing_and_for_longer_moves_the_job() {
    let Some(network) = Network::make() else { return };
    let lab = Lab::start_at(IpAddr::V4(network.address));
    let far = lab.agent_on("far", &Machine { network: Some(network.name.clone()), ..machine(1, STEPS, 20) });
    let file = lab.job_file_bearing("short", STEPS, 1_000, "20s");
    let short = lab.submit(&file);
    lab.api.until_step(&short, 5);
    network.set("down");
    lab.api.until_told_unreachable(&short);
    network.set("up");
    assert_untouched(&lab, &short, STEPS);

    let long = lab.submit(&lab.job_file("long", STEPS, 1_000));
    lab.api.until_step(&long, 30);
    let near = lab.agent_on("near", &machine(1, STEPS, 20));
    network.set("down");
    until(format!("{long} to be placed again"), || {
        let job = lab.api.job(&long);
        (job["nodeName"] == "near" && job["phase"] == "running").then_some(())
    });
    network.set("up");
    until("the copy behind the interface to be stopped", || far.workers().is_empty().then_some(()));
    let done = lab.api.until_phase(&long, &["succeeded", "failed"]);
    assert_eq!(done["phase"], "succeeded", "{done:#}");
    assert_eq!(numbers(&lab, &long), (1..=STEPS).collect::<Vec<_>>(), "each step once");
    until("the workers to be gone", || near.workers().is_empty().then_some(()));
}
