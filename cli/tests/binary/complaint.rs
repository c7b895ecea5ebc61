//! A complaint about other trainers that the whole program has to answer; `docs/complaints.md` lists all of them.

use std::process::Command;

#[test]
fn complaint_10_installing_needs_other_things_of_the_right_version() {
    // The loader names what it would load, and starts nothing.
    let program = env!("CARGO_BIN_EXE_lorikeet");
    let output = Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.iter().any(|name| name.starts_with("libc.so")), "{listed}");
    let of_the_system =
        ["linux-vdso", "libc.so", "libm.so", "libgcc_s.so", "libdl.so", "libpthread.so", "librt.so", "ld-linux"];
    for name in names {
        let file = name.rsplit('/').next().unwrap();
        assert!(of_the_system.iter().any(|known| file.starts_with(known)), "{name} has to be installed:\n{listed}");
    }
}
