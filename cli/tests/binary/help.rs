//! The command line as it presents itself: every `--help`, pinned.

use crate::support::{lorikeet, pin, run};

const COMMANDS: &[&str] = &[
    "",
    "demo",
    "train",
    "generate",
    "eval",
    "plan",
    "quantise",
    "submit",
    "jobs",
    "job",
    "job show",
    "job cancel",
    "job release",
    "job priority",
    "job retry",
    "job why",
    "job logs",
    "job metrics",
    "job checkpoints",
    "job follow",
    "sweep",
    "sweep list",
    "sweep show",
    "sweep cancel",
    "dataset",
    "dataset check",
    "dataset preview",
    "dataset add",
    "dataset list",
    "dataset show",
    "dataset delete",
    "base",
    "base add",
    "base list",
    "adapter",
    "adapter list",
    "adapter show",
    "adapter pull",
    "adapter merge",
    "adapter export",
    "nodes",
    "node",
    "node show",
    "node token",
    "node revoke",
    "token",
    "token add",
    "token list",
    "token revoke",
    "login",
    "ca",
    "ca show",
    "doctor",
    "dev",
    "coordinator",
    "coordinator compact",
    "backup",
    "restore",
    "agent",
    "agent join",
    "worker",
    "inspect",
    "inspect dataset",
    "inspect base",
    "inspect job",
];

#[test]
fn every_command_explains_itself() {
    for command in COMMANDS {
        let (code, help, complaint) = run(lorikeet().args(command.split_whitespace()).arg("--help"));
        assert_eq!((code, complaint.as_str()), (0, ""), "{command}");
        let name = if command.is_empty() { "lorikeet".to_owned() } else { command.replace(' ', "_") };
        pin(&format!("help/{name}.txt"), &help);
    }
}

#[test]
fn no_command_is_missing_from_the_pins() {
    let (_, help, _) = run(lorikeet().arg("--help"));
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // A long word about a command goes on in the next line, further in.
    for line in listed.lines().filter(|line| !line.starts_with("   ")) {
        let name = line.split_whitespace().next().unwrap();
        assert!(name == "help" || COMMANDS.contains(&name), "{name}");
    }
}
