//! What a script sees: 0 fine, 2 the person's mistake, 3 the server refused, 4 unreachable, 5 the job failed.

use crate::support::{FakeServer, Scripted, file, lorikeet, run};
use std::io::{Read, Write};
use std::net::TcpListener;

#[test]
fn a_wrong_argument_is_the_persons_mistake() {
    for args in [
        &["fly"][..],
        &["submit"],
        &["job", "show", "7"],
        &["submit", "a.toml", "--set", "lora.rank"],
        &["jobs", "--page-size", "101"],
        &["jobs", "--status", "foo"],
        &["agent"],
        &["login", "https://x", "--ca-hash", "abc"],
    ] {
        let (code, answer, complaint) = run(lorikeet().args(args));
        assert_eq!((code, answer.as_str()), (2, ""), "{args:?}: {complaint}");
        assert!(complaint.starts_with("error:"), "{args:?}: {complaint}");
    }
}

#[test]
fn a_time_that_the_server_would_not_take_is_told_by_its_flag() {
    let node = "node_01920000000070008000000000000002";
    for (args, flag, expected) in [
        (&["node", "drain", node, "--within", "0s"][..], "--within <TIME>", "expected 1s to 1d"),
        (&["node", "drain", node, "--within", "999ms"], "--within <TIME>", "expected 1s to 1d"),
        (&["node", "token", "--ttl", "0s"], "--ttl <TIME>", "expected 1s to 1d"),
        (&["node", "token", "--ttl", "25h"], "--ttl <TIME>", "expected 1s to 1d"),
        (&["token", "add", "laptop", "--ttl", "0s"], "--ttl <TIME>", "expected 1s to 3650d"),
        (&["token", "add", "laptop", "--ttl", "11years"], "--ttl <TIME>", "expected 1s to 3650d"),
    ] {
        let (code, answer, complaint) = run(lorikeet().args(["--server", "http://127.0.0.1:9"]).args(args));
        assert_eq!((code, answer.as_str()), (2, ""), "{args:?}: {complaint}");
        assert!(complaint.contains(flag) && complaint.contains(expected), "{args:?}: {complaint}");
    }
}

#[test]
fn a_job_file_is_judged_before_any_server_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let job = file(folder.path(), "job.toml", "base = \"b\"\ndataset = \"d\"\n[training]\nbatch = 8\n");
    let (code, _, complaint) = run(lorikeet().args(["--server", "http://127.0.0.1:9", "submit"]).arg(&job));
    assert_eq!(code, 2);
    assert!(complaint.contains("line 4: training.batch is unknown"), "{complaint}");
    let job = file(folder.path(), "job.toml", "base = \"b\"\ndataset = \"d\"\n[training]\nbatch_size = 300\n");
    let (code, _, complaint) = run(lorikeet().args(["--server", "http://127.0.0.1:9", "submit"]).arg(&job));
    assert_eq!(code, 2);
    let expected = "line 4: training.batch_size is 300, expected a whole number 1…256";
    assert!(complaint.contains(expected), "{complaint}");
    let job = file(folder.path(), "set.toml", "base = \"b\"\ndataset = \"d\"\n[training]\nbatch_size = 8\n");
    let mut submit = lorikeet();
    submit.args(["--server", "http://127.0.0.1:9", "submit"]).arg(&job).args(["--set", "training.batch_size=300"]);
    let (code, _, complaint) = run(&mut submit);
    assert!(code == 2 && complaint.contains("set.toml with --set: training.batch_size is 300"), "{complaint}");
    assert!(!complaint.contains("line 4"), "the file's line is sound: {complaint}");
    let missing = folder.path().join("none.toml");
    assert_eq!(run(lorikeet().args(["--server", "http://127.0.0.1:9", "submit"]).arg(missing)).0, 2);
}

#[test]
fn what_has_no_end_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["submit", "/dev/zero"][..], &["dataset", "add", "/dev/zero"]] {
        let (code, _, complaint) = run(lorikeet().args(["--server", "http://127.0.0.1:9"]).args(args));
        assert!(code == 2 && complaint.contains("not a regular file"), "{args:?}: {complaint}");
    }
    let long = file(folder.path(), "long.toml", &format!("base = \"b\"\n# {}\n", "x".repeat(2 << 20)));
    let (code, _, complaint) = run(lorikeet().args(["--server", "http://127.0.0.1:9", "submit"]).arg(&long));
    assert!(code == 2 && complaint.contains("more than 1048576 bytes"), "{complaint}");
}

#[test]
fn a_token_that_cannot_be_one_is_the_persons_mistake() {
    let (code, _, complaint) = run(lorikeet().args(["--server", "http://127.0.0.1:9", "--token", "a\nb", "jobs"]));
    assert!(code == 2 && complaint.contains("token"), "{complaint}");
}

#[test]
fn a_verdict_is_the_same_when_nobody_reads_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let broken = file(folder.path(), "broken.jsonl", "{\"messages\": 3}\nnot json\n");
    for form in ["table", "json"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut check = lorikeet();
        check.args(["dataset", "check", "--output", form]).arg(&broken).stdout(writer);
        let ended = check.stderr(std::process::Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(2), "{form}: {}", String::from_utf8_lossy(&ended.stderr));
    }
}

#[test]
fn plain_http_to_a_port_that_speaks_tls_is_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // for as long as the test runs: a client asks more than once
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _asked = stream.read(&mut [0; 4096]);
            // what rustls says to plain words: a fatal alert
            let _told = stream.write_all(b"\x15\x03\x03\x00\x02\x02\x32");
        }
    });
    let (code, _, complaint) = run(lorikeet().args(["--server", &url, "--token", "secret", "jobs"]));
    let expected = format!("is {}/ meant?", url.replacen("http", "https", 1));
    assert!(code == 4 && complaint.contains(&expected), "{code} {complaint}");
}

#[test]
fn a_file_with_nothing_to_train_on_is_faulty() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        r#"{"training_file_metadata":{"format_spec":"brightrun-lora-v4"},"consultant_profile":{},"conversations":[]}"#;
    let empty = file(folder.path(), "empty.json", text);
    let (code, answer, complaint) = run(lorikeet().args(["dataset", "check"]).arg(&empty));
    assert!(code == 2 && answer.contains("no pair that can be trained on"), "{answer}{complaint}");
}

#[test]
fn without_a_server_the_person_is_told_how_to_name_one() {
    let (code, _, complaint) = run(lorikeet().arg("jobs"));
    assert_eq!(code, 2);
    assert!(complaint.contains("hint: give --server URL or LORIKEET_SERVER"), "{complaint}");
    assert_eq!(run(lorikeet().args(["--server", "http://far.example", "jobs"])).0, 2, "no token over plain http");
}

#[test]
fn a_server_that_is_not_there_is_unreachable() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (code, _, complaint) = run(lorikeet().args(["--server", &format!("http://127.0.0.1:{port}"), "nodes"]));
    assert_eq!(code, 4);
    assert!(complaint.contains("hint: is the coordinator running"), "{complaint}");
    assert_eq!(complaint.matches(&port.to_string()).count(), 1, "said once: {complaint}");
    // A server that speaks plain HTTP answers a TLS greeting in the clear.
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
        }
    });
    let (code, _, complaint) = run(lorikeet().args(["--server", &format!("https://{address}"), "nodes"]));
    assert!(code == 4 && complaint.contains(&format!("is http://{address}/ meant?")), "{complaint}");
    let other = FakeServer::new([Scripted::json("200 OK", "<html>")]);
    assert_eq!(run(other.client().arg("nodes")).0, 4, "another program answers");
}

#[test]
fn a_refusal_is_the_servers_and_a_field_error_the_persons() {
    let refuse = |status, code| Scripted::json(status, refusal(code, "no such thing"));
    let server = FakeServer::new([refuse("404 Not Found", "NOT_FOUND")]);
    let (code, answer, complaint) = run(server.client().args(["job", "why", JOB]));
    assert_eq!(
        (code, answer.as_str()),
        (2, ""),
        "what names nothing is the person's mistake, as a name in a job file is"
    );
    assert_eq!(complaint, "error: the server refused: no such thing\n");
    let server = FakeServer::new([refuse("409 Conflict", "CONFLICT")]);
    assert_eq!(run(server.client().args(["job", "cancel", JOB])).0, 3);
    let server = FakeServer::new([refuse("401 Unauthorized", "UNAUTHORIZED")]);
    let (code, _, complaint) = run(server.client().arg("nodes"));
    assert!(code == 3 && complaint.contains("lorikeet login"), "{complaint}");
    let server = FakeServer::new([refuse("400 Bad Request", "VALIDATION_ERROR")]);
    assert_eq!(run(server.client().arg("nodes")).0, 2);
}

#[test]
fn a_closed_pipe_is_nobodys_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let line = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let chats = file(folder.path(), "chats.jsonl", line);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = lorikeet().args(["dataset", "check"]).arg(&chats).stdout(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
}

const JOB: &str = "job_01920000000070008000000000000001";

fn refusal(code: &str, message: &str) -> String {
    format!("{{\"success\":false,\"error\":{{\"code\":\"{code}\",\"message\":\"{message}\"}}}}")
}
