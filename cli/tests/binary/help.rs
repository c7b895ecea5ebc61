//! The command line as it presents itself: every `--help`, pinned.

use crate::support::{lorikeet, pin, run};

#[test]
fn every_command_explains_itself() {
    explain(&[]);
}

/// Pins the help of a command and of all below it.
fn explain(command: &[&str]) {
    let (code, help, complaint) = run(lorikeet().args(command).arg("--help"));
    assert_eq!((code, complaint.as_str()), (0, ""), "{command:?}");
    let name = if command.is_empty() { "lorikeet".to_owned() } else { command.join("_") };
    pin(&format!("help/{name}.txt"), &help);
    let listed = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap_or_default();
    // A long word about a command goes on in the next line, further in.
    for line in listed.lines().filter(|line| !line.starts_with("   ")) {
        let name = line.split_whitespace().next().unwrap();
        if name != "help" {
            explain(&[command, &[name]].concat());
        }
    }
}
