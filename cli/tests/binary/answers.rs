//! Answers as people and programs see them, and what the client asks for them.

use crate::support::{FakeServer, Scripted, file, pin, run};
use rustix::process::{Pid, Signal, kill_process};
use std::{fs, process::Stdio};

pub(crate) const JOB: &str = "job_01920000000070008000000000000001";

#[test]
fn lists_are_tables_for_people_and_json_for_programs() {
    for (name, args, data) in [
        ("jobs", &["jobs", "--status", "running"][..], format!("[{}]", job("RUNNING", "running"))),
        ("nodes", &["nodes"], format!("[{NODE}]")),
        ("datasets", &["dataset", "list"], format!("[{}]", dataset("READY"))),
        ("bases", &["base", "list"], format!("[{BASE}]")),
        ("adapters", &["adapter", "list"], format!("[{}]", model(""))),
        ("job", &["job", "show", JOB], job("FAILED", "failed")),
        ("why", &["job", "why", JOB], WHY.to_owned()),
        ("metrics", &["job", "metrics", JOB], METRICS.to_owned()),
        ("checkpoints", &["job", "checkpoints", JOB], CHECKPOINTS.to_owned()),
        ("logs", &["job", "logs", JOB], LOGS.to_owned()),
        ("adapter", &["adapter", "show", "mdl_01920000000070008000000000000005"], model("")),
        ("tokens", &["token", "list"], format!("[{TOKEN}]")),
        ("token", &["token", "add", "laptop", "--ttl", "1h"], TOKEN.to_owned()),
        ("join", &["node", "token", "--ttl", "30m"], JOIN.to_owned()),
        ("ca", &["ca", "status"], rotation()),
    ] {
        for form in ["table", "json"] {
            let server = FakeServer::new([Scripted::data(&data)]);
            let (code, answer, complaint) = run(server.client().args(args).args(["--output", form]));
            let note = if name == "token" { "the secret is shown this once\n" } else { "" };
            assert_eq!((code, complaint.as_str()), (0, note), "{name} {form}");
            pin(&format!("answers/{name}.{form}.txt"), &answer);
            assert_eq!(server.asked()[0].header("authorization"), Some("Bearer secret"));
        }
    }
}

#[test]
fn a_token_is_withdrawn_by_its_id() {
    let server = FakeServer::new([Scripted::empty("204 No Content", &[])]);
    let (code, _, note) = run(server.client().args(["token", "revoke", "tok_01920000000070008000000000000009"]));
    assert_eq!((code, note.as_str()), (0, "tok_01920000000070008000000000000009 works no more\n"));
    assert_eq!(server.asked()[0].line, "DELETE /api/tokens/tok_01920000000070008000000000000009");
}

#[test]
fn a_queued_job_that_cannot_start_is_told_apart_in_the_list() {
    let row =
        |never: &str| job("QUEUED", "queued").replace(r#""reason":null"#, &format!(r#""reason":"r","never":{never}"#));
    let list = |row: &str| run(FakeServer::new([Scripted::data(&format!("[{row}]"))]).client().arg("jobs")).1;
    assert!(list(&row("true")).contains("QUEUED (cannot start)"));
    assert!(!list(&row("false")).contains("cannot start"));
}

#[test]
fn a_model_of_a_coordinator_of_before_is_listed_with_its_jobs_id() {
    let before = model("").replace(r#""jobName":"support tone","#, "");
    let server = FakeServer::new([Scripted::data(&format!("[{before}]"))]);
    let (code, answer, complaint) = run(server.client().args(["adapter", "list"]));
    assert!(code == 0 && answer.contains(JOB), "{answer}{complaint}");
}

#[test]
fn a_sweep_is_shown_with_the_command_that_fetches_the_best_of_it() {
    let sweep = |best: &str| {
        format!(
            r#"{{"id":"sweep_01920000000070008000000000000006","owner":"usr_01920000000070008000000000000009","name":"tone","status":"COMPLETED","jobs":2,"ended":2,"succeeded":2,"stoppedEarly":0,"maxParallel":null,"stop":null,"best":{best},"createdAt":"2026-01-01T10:00:00Z","completedAt":null,"children":[]}}"#
        )
    };
    let show = |best: &str| {
        let server = FakeServer::new([Scripted::data(&sweep(best))]);
        run(server.client().args(["sweep", "show", "sweep_01920000000070008000000000000006"]))
    };
    let (code, _, note) = show(&format!(r#"{{"job":"{JOB}","loss":1.5}}"#));
    assert_eq!(code, 0, "{note}");
    assert_eq!(note, format!("fetch the best adapter with `lorikeet adapter pull {JOB} --out adapter`\n"));
    assert_eq!(show("null").2, "");
}

#[test]
fn what_others_wrote_is_shown_and_not_obeyed() {
    let job = job("QUEUED", "queued").replace("\"name\":\"", "\"name\":\"\\u001b]0;pwn\\u0007");
    for args in [&["jobs"][..], &["job", "show", JOB]] {
        let data = if args.len() == 1 { format!("[{job}]") } else { job.clone() };
        let server = FakeServer::new([Scripted::data(&data)]);
        let (code, answer, _) = run(server.client().args(args));
        assert!(code == 0 && !answer.contains(['\u{1b}', '\u{7}']), "{answer:?}");
        assert!(answer.contains("\\u{1b}]0;pwn"), "{answer}");
    }
}

#[test]
fn a_page_says_where_it_stands_and_is_asked_for_by_number() {
    let meta = "{\"pagination\":{\"page\":2,\"pageSize\":1,\"total\":3,\"hasMore\":true}}";
    let body = format!("{{\"success\":true,\"data\":[{}],\"meta\":{meta}}}", job("QUEUED", "queued"));
    let server = FakeServer::new([Scripted::json("200 OK", body)]);
    let (code, _, note) = run(server.client().args(["jobs", "--page", "2", "--page-size", "1", "--status", "queued"]));
    assert_eq!((code, note.as_str()), (0, "page 2 of 3, 3 in all\n"));
    assert_eq!(server.asked()[0].line, "GET /api/training-jobs?page=2&pageSize=1&status=QUEUED");
}

#[test]
fn a_base_that_cannot_be_used_says_why_and_to_an_administrator_where() {
    let broken = BASE.replace("READY", "ERROR");
    let fault = r#""errors":[{"line":null,"path":"config.json","message":"it is not there"}]"#;
    let broken = broken.replace(r#""errors":[]"#, fault);
    let list =
        |base: &str| run(FakeServer::new([Scripted::data(&format!("[{base}]"))]).client().args(["base", "list"])).1;
    let answer = list(&broken);
    assert!(
        answer.ends_with("\n\ncannot be used:\nsmollm2 (/srv/smollm2): config.json: it is not there\n"),
        "{answer}"
    );
    let answer = list(&broken.replace(r#""/srv/smollm2""#, "null"));
    assert!(answer.ends_with("\nsmollm2: config.json: it is not there\n"), "{answer}");
}

#[test]
fn what_is_submitted_is_the_file_with_what_was_set_and_may_be_sent_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "job.toml", "base = \"b\"\ndataset = \"d\"\n");
    let server = FakeServer::new([Scripted::data(&job("QUEUED", "submitted"))]);
    let (code, _, _) =
        run(server.client().arg("submit").arg(&path).args(["--set", "lora.rank=8", "--set", "name=it's x"]));
    assert_eq!(code, 0);
    let asked = &server.asked()[0];
    assert_eq!(asked.line, "POST /api/training-jobs");
    assert!(asked.header("idempotency-key").is_some());
    let body = r#"{"name":"it's x","base":"b","dataset":"d","lora":{"rank":8}}"#;
    assert_eq!(String::from_utf8_lossy(&asked.body), body);
}

#[test]
fn the_preset_of_the_command_line_goes_before_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "job.toml", "base = \"b\"\ndataset = \"d\"\npreset = \"balanced\"\n");
    let server = FakeServer::new([Scripted::data(&job("QUEUED", "submitted"))]);
    let (code, _, complaint) = run(server.client().arg("submit").arg(&path).args(["--preset", "conservative"]));
    assert_eq!(code, 0, "{complaint}");
    let body = r#"{"base":"b","dataset":"d","preset":"conservative"}"#;
    assert_eq!(String::from_utf8_lossy(&server.asked()[0].body), body);
}

#[test]
fn the_help_of_submit_tells_what_a_job_may_wait_for_by_an_example_that_works() {
    let (_, help, _) = run(crate::support::lorikeet().args(["submit", "--help"]));
    let example = help.lines().find_map(|line| line.split_once("--set 'after=")?.1.split_once('\'')).unwrap().0;
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "job.toml", "base = \"b\"\ndataset = \"d\"\n");
    let server = FakeServer::new([Scripted::data(&job("QUEUED", "blocked"))]);
    let (code, _, complaint) =
        run(server.client().arg("submit").arg(&path).args(["--set", &format!("after={example}")]));
    assert_eq!(code, 0, "{complaint}");
    let body = format!("{{\"base\":\"b\",\"dataset\":\"d\",\"after\":{example}}}");
    assert_eq!(String::from_utf8_lossy(&server.asked()[0].body), body);
    for form in [":ok", ":any", "fail", "hold = true", "not_before"] {
        assert!(help.contains(form), "{form} in {help}");
    }
}

#[test]
fn a_dry_run_that_would_be_rejected_is_the_persons_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "job.toml", "base = \"b\"\ndataset = \"d\"\n");
    let good = format!("{{\"spec\":{SPEC},\"findings\":{FINDINGS},\"faults\":[],\"why\":{WHY}}}");
    let server = FakeServer::new([Scripted::data(&good)]);
    let (code, answer, _) = run(server.client().arg("submit").arg(&path).arg("--dry-run"));
    assert_eq!(code, 0);
    pin("answers/dry_run.table.txt", &answer);
    assert_eq!(server.asked()[0].line, "POST /api/training-jobs?dry_run=true");
    let fault = "{\"line\":7,\"path\":\"$.messages\",\"message\":\"it is empty\"}";
    let bad = format!("{{\"spec\":{SPEC},\"findings\":null,\"faults\":[{fault}],\"why\":{WHY}}}");
    let server = FakeServer::new([Scripted::data(&bad)]);
    assert_eq!(run(server.client().arg("submit").arg(&path).arg("--dry-run")).0, 2);
}

#[test]
fn a_dry_run_of_a_job_that_could_never_start_is_the_servers_refusal_and_is_printed_whole() {
    let folder = tempfile::tempdir().unwrap();
    let job = file(folder.path(), "job.toml", "base = \"b\"\ndataset = \"d\"\n");
    let sweep = file(folder.path(), "sweep.toml", "base = \"b\"\ndataset = \"d\"\n[sweep]\nlora.rank = [8, 16]\n");
    let why = |never: bool| {
        format!(
            "{{\"phase\":\"queued\",\"summary\":\"never, as the machines are\",\"never\":{never},\"position\":1,\"nodes\":[]}}"
        )
    };
    let dry = |never| format!("{{\"spec\":{SPEC},\"findings\":{FINDINGS},\"faults\":[],\"why\":{}}}", why(never));
    let of_sweep = |never| format!("{{\"jobs\":2,\"values\":[],\"first\":{}}}", dry(never));
    for (path, data, code) in
        [(&job, dry(false), 0), (&job, dry(true), 3), (&sweep, of_sweep(false), 0), (&sweep, of_sweep(true), 3)]
    {
        let server = FakeServer::new([Scripted::data(&data)]);
        let mut submit = server.client();
        let (ended, answer, complaint) = run(submit.arg("submit").arg(path).args(["--dry-run", "--output", "json"]));
        assert_eq!(ended, code, "{complaint}");
        assert!(answer.contains("\"never\"") && answer.contains("\"spec\""), "{answer}");
        assert_eq!(complaint.contains("would not start: never, as the machines are"), code == 3, "{complaint}");
    }
}

#[test]
fn following_survives_a_broken_stream_and_ends_with_the_job() {
    let first = format!(
        "id: 1\nevent: progress\ndata: {{\"type\":\"progress\",{}\n\nid: 2\n{}",
        &job("RUNNING", "running")[1..],
        metrics(1, 5.5)
    );
    let second = format!(
        "id: 3\n{}id: 4\nevent: complete\ndata: {{\"type\":\"complete\",{}\n\n",
        metrics(2, 4.25),
        &job("COMPLETED", "succeeded")[1..]
    );
    let mut broken = Scripted::events(&(first + "id: 3\nevent: metr"));
    broken.breaks_after = Some(broken.body.len() - 5);
    let server = FakeServer::new([broken, Scripted::events(&second)]);
    let (code, answer, notes) = run(server.client().args(["job", "follow", JOB]));
    assert_eq!(code, 0, "{notes}");
    assert!(answer.contains("COMPLETED (succeeded)"), "{answer}");
    assert!(notes.contains(&format!("lorikeet adapter pull {JOB} --out adapter")), "{notes}");
    assert!(notes.contains("step 1") && notes.contains("loss 5.5000"), "{notes}");
    assert!(notes.contains("the connection to the coordinator broke") && notes.contains("is back"), "{notes}");
    let asked = server.asked();
    assert_eq!((asked[0].header("last-event-id"), asked[1].header("last-event-id")), (None, Some("2")));
}

#[test]
fn a_followed_job_that_fails_exits_with_5_and_its_hint() {
    let text = format!("id: 1\nevent: complete\ndata: {{\"type\":\"complete\",{}\n\n", &job("FAILED", "failed")[1..]);
    let server = FakeServer::new([Scripted::events(&text)]);
    let (code, _, complaint) = run(server.client().args(["job", "follow", JOB]));
    assert_eq!(code, 5);
    assert!(complaint.contains("error: the job failed: out of memory\nhint: a smaller batch"), "{complaint}");
}

#[test]
fn an_upload_goes_on_where_the_server_says_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "chats.jsonl", "0123456789");
    let created = format!(
        "{{\"dataset\":{},\"uploadUrl\":\"/api/uploads/1?signature=x\",\"expiresAt\":\"2026-01-01T00:00:00Z\"}}",
        dataset("UPLOADING")
    );
    let server = FakeServer::new([
        Scripted::data("[]"),
        Scripted::data(&created),
        Scripted::empty("200 OK", &[("upload-offset", "4")]),
        Scripted::empty("409 Conflict", &[]),
        Scripted::empty("200 OK", &[("upload-offset", "6")]),
        Scripted::empty("204 No Content", &[("upload-offset", "10")]),
        Scripted::data(&dataset("VALIDATING")),
        Scripted::data(&dataset("READY")),
    ]);
    let (code, answer, complaint) = run(server.client().args(["dataset", "add"]).arg(&path));
    assert_eq!(code, 0, "{complaint}");
    assert!(answer.contains("READY"), "{answer}");
    let asked = server.asked();
    assert_eq!(asked[1].body, br#"{"name":"chats","fileName":"chats.jsonl","sizeBytes":10}"#);
    assert_eq!(asked[3].line, "PATCH /api/uploads/1?signature=x");
    assert_eq!((asked[3].header("upload-offset"), asked[3].body.as_slice()), (Some("4"), &b"456789"[..]));
    assert_eq!((asked[5].header("upload-offset"), asked[5].body.as_slice()), (Some("6"), &b"6789"[..]));
    let hash = blake3::hash(b"0123456789").to_hex();
    assert_eq!(asked[6].body, format!("{{\"hash\":\"{hash}\"}}").as_bytes());
}

#[test]
fn an_upload_that_another_writes_too_waits_while_that_gets_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "chats.jsonl", "0123456789");
    let created = format!(
        "{{\"dataset\":{},\"uploadUrl\":\"/api/uploads/1?signature=x\",\"expiresAt\":\"2026-01-01T00:00:00Z\"}}",
        dataset("UPLOADING")
    );
    let mut script =
        vec![Scripted::data("[]"), Scripted::data(&created), Scripted::empty("200 OK", &[("upload-offset", "0")])];
    // More often than a request is sent when nobody answers.
    for offset in 1..=8 {
        script.push(Scripted::empty("409 Conflict", &[]));
        script.push(Scripted::empty("200 OK", &[("upload-offset", &offset.to_string())]));
    }
    script.push(Scripted::empty("204 No Content", &[("upload-offset", "10")]));
    script.extend([Scripted::data(&dataset("VALIDATING")), Scripted::data(&dataset("READY"))]);
    let (code, _, complaint) = run(FakeServer::new(script).client().args(["dataset", "add"]).arg(&path));
    assert_eq!(code, 0, "{complaint}");
}

#[test]
fn an_upload_whose_link_expires_goes_on_with_a_fresh_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chats.jsonl");
    fs::File::create(&path).unwrap().set_len((8 << 20) + 1).unwrap();
    let link = |signature: &str| {
        let dataset = dataset("UPLOADING");
        Scripted::data(&format!(
            "{{\"dataset\":{dataset},\"uploadUrl\":\"/api/uploads/1?signature={signature}\",\"expiresAt\":\"2026-01-01T00:00:00Z\"}}"
        ))
    };
    let refused = "{\"success\":false,\"error\":{\"code\":\"FORBIDDEN\",\"message\":\"this upload link has expired\"}}";
    let server = FakeServer::new([
        Scripted::data("[]"),
        link("old"),
        Scripted::empty("200 OK", &[("upload-offset", "0")]),
        Scripted::empty("204 No Content", &[("upload-offset", "8388608")]),
        Scripted::json("403 Forbidden", refused),
        link("new"),
        Scripted::empty("204 No Content", &[("upload-offset", "8388609")]),
        Scripted::data(&dataset("READY")),
    ]);
    let (code, _, complaint) = run(server.client().args(["dataset", "add"]).arg(&path));
    assert_eq!(code, 0, "{complaint}");
    let asked: Vec<_> = server.asked().into_iter().map(|asked| asked.line).collect();
    assert!(
        asked[5].starts_with("POST /api/datasets/") && asked[6] == "PATCH /api/uploads/1?signature=new",
        "{asked:?}"
    );
}

#[test]
fn of_a_job_that_waits_again_the_attempt_and_the_node_are_the_last_ones() {
    let shown = |status: &str, phase: &str| {
        let server = FakeServer::new([Scripted::data(&job(status, phase))]);
        let (code, answer, complaint) = run(server.client().args(["job", "show", JOB]));
        assert_eq!(code, 0, "{complaint}");
        let row = |value: &str| {
            let line = answer.lines().find(|line| line.trim_end().ends_with(value)).unwrap();
            line[..line.len() - value.len()].trim_end().to_owned()
        };
        (row(&format!("{JOB}-1.1")), row("gpu-a"))
    };
    assert_eq!(shown("RUNNING", "running"), ("attempt".into(), "node".into()));
    assert_eq!(shown("QUEUED", "queued"), ("last attempt".into(), "last node".into()));
    let listed = |status: &str, phase: &str| {
        let server = FakeServer::new([Scripted::data(&format!("[{}]", job(status, phase)))]);
        run(server.client().arg("jobs")).1
    };
    assert!(listed("RUNNING", "running").contains("gpu-a") && !listed("QUEUED", "queued").contains("gpu-a"));
}

#[test]
fn a_closed_node_that_is_not_connected_is_said_to_be_away() {
    let away = NODE.replace(r#""0.1.0""#, "null");
    let cordoned = |node: &str| node.replace("ONLINE", "CORDONED");
    let cases = [
        (cordoned(&away), "CORDONED, away"),
        (cordoned(NODE), "CORDONED "),
        (away.replace("ONLINE", "OFFLINE"), "OFFLINE "),
    ];
    for (node, status) in cases {
        let server = FakeServer::new([Scripted::data(&format!("[{node}]"))]);
        let (code, answer, complaint) = run(server.client().arg("nodes"));
        assert!(code == 0 && answer.contains(status), "{status}: {answer}{complaint}");
    }
}

#[test]
fn what_is_missing_is_said_beside_the_list() {
    let missing = format!(
        r#"[{{"attempt":"{JOB}-1.1","from":5,"through":9}},{{"attempt":"{JOB}-1.2","from":7,"through":null}}]"#
    );
    for (name, data) in [("metrics", METRICS), ("logs", LOGS)] {
        let body = format!(r#"{{"success":true,"data":{data},"missing":{missing}}}"#);
        for form in ["table", "json"] {
            let server = FakeServer::new([Scripted::json("200 OK", body.clone())]);
            let (code, answer, note) = run(server.client().args(["job", name, JOB, "--output", form]));
            assert_eq!(code, 0, "{note}");
            let first = format!(
                "something is missing here: lines 5 to 9 of {JOB}-1.1, which the coordinator's disk has not kept"
            );
            assert!(note.contains(&first) && note.contains(&format!("lines from 7 on of {JOB}-1.2")), "{note}");
            assert!(!answer.contains("missing"), "the list has nothing but its items: {answer}");
        }
    }
}

#[test]
fn what_is_missing_is_said_where_a_job_is_followed() {
    let missing = format!(
        "id: 1\nevent: missing\ndata: {{\"type\":\"missing\",\"attempt\":\"{JOB}-1.1\",\"from\":7,\"through\":7}}\n\n"
    );
    let complete =
        format!("event: complete\ndata: {{\"type\":\"complete\",{}\n\n", &job("COMPLETED", "succeeded")[1..]);
    let events = metrics(1, 5.5) + &missing + &complete;
    for command in [&["job", "follow", JOB][..], &["job", "logs", JOB, "-f"]] {
        let server = FakeServer::new([Scripted::events(&events)]);
        let (code, answer, notes) = run(server.client().args(command));
        assert_eq!(code, 0, "{notes}");
        assert!(notes.contains(&format!("something is missing here: line 7 of {JOB}-1.1")), "{notes}");
        assert!(!answer.contains("missing"), "{answer}");
    }
}

#[test]
fn a_log_without_lines_says_so_and_where_the_steps_are() {
    let server = FakeServer::new([Scripted::data("[]")]);
    let (code, answer, note) = run(server.client().args(["job", "logs", JOB]));
    assert_eq!((code, answer.as_str()), (0, ""));
    assert!(note.contains(&format!("lorikeet job metrics {JOB}")), "{note}");
}

#[test]
fn a_pull_that_is_interrupted_leaves_nothing() {
    let files = files(&[("adapter_config.json", b"{}")]);
    for signal in [Signal::INT, Signal::TERM] {
        let folder = tempfile::tempdir().unwrap();
        let tar = Scripted { status: "200 OK", headers: vec![], body: vec![0; 1000], breaks_after: Some(10) };
        let server = FakeServer::stalling([Scripted::data(&model(&files)), tar]);
        let mut pull = server.client();
        pull.args(["adapter", "pull", "mdl_01920000000070008000000000000005", "--out"]).arg(folder.path().join("out"));
        let mut pull = pull.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = || {
            let mut asides = fs::read_dir(folder.path()).unwrap();
            asides.any(|aside| fs::metadata(aside.unwrap().path().join("adapter.tar")).is_ok_and(|tar| tar.len() > 0))
        };
        while !begun() {
            assert_eq!(pull.try_wait().unwrap(), None, "it waits for the rest");
        }
        kill_process(Pid::from_child(&pull), signal).unwrap();
        let ended = pull.wait_with_output().unwrap();
        let complaint = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(130) && complaint.contains("interrupted"), "{complaint}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no temporary folder is left");
    }
}

#[test]
fn an_adapter_is_pulled_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let good = tar(&[("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"weights")]);
    let files = files(&[("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"weights")]);
    let pull = |body: Vec<u8>, out: &str| {
        let tar = Scripted { status: "200 OK", headers: vec![], body, breaks_after: None };
        let server = FakeServer::new([Scripted::data(&model(&files)), tar]);
        let out = folder.path().join(out);
        let id = "mdl_01920000000070008000000000000005";
        let told = run(server.client().args(["adapter", "pull", id, "--out"]).arg(&out));
        (told, out)
    };
    let ((code, _, note), out) = pull(good.clone(), "good");
    assert_eq!(code, 0, "{note}");
    assert_eq!(fs::read(out.join("adapter_model.safetensors")).unwrap(), b"weights");
    for (name, bad) in [
        ("altered", tar(&[("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"weighty")])),
        ("missing", tar(&[("adapter_config.json", b"{}")])),
        ("foreign", tar(&[("adapter_config.json", b"{}"), ("evil.sh", b"")])),
        ("twice", tar(&[("adapter_config.json", b"{}"), ("adapter_config.json", b"{}")])),
        ("short", good[..600].to_vec()),
    ] {
        let ((code, _, complaint), out) = pull(bad, name);
        assert_eq!(code, 3, "{name}: {complaint}");
        assert!(!out.exists(), "{name}: nothing half-written");
    }
    let ((code, _, _), _) = pull(good, "good");
    assert_eq!(code, 2, "a folder with files in it is never written over");
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 1, "no temporary folder is left");
}

#[test]
fn logging_in_on_the_loopback_writes_a_profile_that_later_commands_use() {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("deep/profile.toml");
    let me = "{\"id\":\"usr_01920000000070008000000000000009\",\"email\":\"a@b\",\"name\":\"Ada\",\"role\":\"ADMIN\"}";
    let server = FakeServer::new([Scripted::data(me), Scripted::data("[]")]);
    let mut login = crate::support::lorikeet();
    let token = file(folder.path(), "token", "secret\n");
    let (code, _, note) =
        run(login.env("LORIKEET_PROFILE", &profile).args(["login", &server.url, "--token-file"]).arg(&token));
    assert_eq!(code, 0, "{note}");
    assert!(note.starts_with("you are Ada (a@b); written to "), "{note}");
    let (code, _, complaint) = run(crate::support::lorikeet().env("LORIKEET_PROFILE", &profile).arg("nodes"));
    assert_eq!(code, 0, "{complaint}");
    assert_eq!(server.asked()[1].header("authorization"), Some("Bearer secret"));
}

fn metrics(step: u64, loss: f64) -> String {
    let point =
        format!("\"attempt\":\"{JOB}-1.1\",\"step\":{step},\"time\":\"2026-01-01T00:00:00Z\",\"trainingLoss\":{loss}");
    format!("event: metrics\ndata: {{\"type\":\"metrics\",{point}}}\n\n")
}

pub(crate) fn job(status: &str, phase: &str) -> String {
    let error = "{\"class\":\"out_of_memory\",\"message\":\"out of memory\",\"hint\":\"a smaller batch\"}";
    let error = if status == "FAILED" { error } else { "null" };
    format!(
        r#"{{"id":"{JOB}","owner":"usr_01920000000070008000000000000009","name":"support tone","status":"{status}",
"phase":"{phase}","intent":"run","stage":"TRAINING","progress":41.5,"step":83,"totalSteps":200,"epoch":1.25,"loss":2.34567,
"validationLoss":2.5,"learningRate":0.0002,"tokensPerSecond":1234.5,"secondsLeft":95.0,"estimatedCostMicros":null,
"currentCostMicros":1230000,"energyKwh":1.25,"attempt":"{JOB}-1.1","node":"node_01920000000070008000000000000002","nodeName":"gpu-a",
"reason":null,"error":{error},"retries":0,"parent":null,"baseId":"base_01920000000070008000000000000003","base":"smollm2",
"datasetId":"ds_01920000000070008000000000000004","dataset":"chats","model":null,"priority":50,"spec":{SPEC},
"createdAt":"2026-01-01T10:00:00.000Z","queuedAt":"2026-01-01T10:00:01.000Z","startedAt":"2026-01-01T10:00:02.000Z",
"completedAt":null}}"#
    )
    .replace('\n', "")
}

pub(crate) fn dataset(status: &str) -> String {
    format!(
        r#"{{"id":"ds_01920000000070008000000000000004","owner":"usr_01920000000070008000000000000009","name":"chats",
"description":null,"format":"CHAT_MESSAGES","status":"{status}","fileName":"chats.jsonl","sizeBytes":10,"contentHash":null,
"conversations":300,"pairs":400,"trainingPairs":400,"averageTurns":2.5,"tokens":null,"trainingReady":true,"warnings":[],
"errors":[],"errorCount":0,"samples":[],"createdAt":"2026-01-01T10:00:00.000Z","uploadedAt":null,"validatedAt":null}}"#
    )
    .replace('\n', "")
}

pub(crate) fn model(files: &str) -> String {
    format!(
        r#"{{"id":"mdl_01920000000070008000000000000005","owner":"usr_01920000000070008000000000000009","job":"{JOB}",
"jobName":"support tone","name":"Model from chats","version":"1.0.0","description":null,"status":"STORED","base":"smollm2","dataset":"chats",
"datasetId":"ds_01920000000070008000000000000004","datasetHash":null,"files":[{files}],"sizeBytes":9,
"summary":{{"final_loss":1.5,"steps":200,"stop":"done"}},"configuration":{SPEC},"createdAt":"2026-01-01T10:05:00.000Z"}}"#
    )
    .replace('\n', "")
}

fn files(files: &[(&str, &[u8])]) -> String {
    let file = |(path, bytes): &(&str, &[u8])| {
        format!("{{\"path\":\"{path}\",\"sizeBytes\":{},\"hash\":\"{}\"}}", bytes.len(), blake3::hash(bytes).to_hex())
    };
    files.iter().map(file).collect::<Vec<_>>().join(",")
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

const SPEC: &str = r#"{"name":"support tone","base":"smollm2","dataset":"chats","preset":"balanced",
"training":{"method":"lora","learning_rate":0.0002,"batch_size":8,"epochs":3,"max_seq_length":2048,"schedule":"cosine","seed":42},
"lora":{"rank":16,"alpha":32.0,"dropout":0.05}}"#;
const FINDINGS: &str = r#"{"examples":270,"validationExamples":30,"totalSteps":170,"epochTokens":32000,
"supervisedTokens":12000,"longestTokens":180,"cutExamples":2,"cutTokens":50,"cpuBytes":123456789,"cudaBytes":98765432,
"rendered":[[{"text":"<user>hi","supervised":false},{"text":"hello","supervised":true}]]}"#;
const WHY: &str = r#"{"phase":"queued","summary":"no node has room for it now","position":2,"nodes":[
{"node":"node_01920000000070008000000000000002","name":"gpu-a","fits":false,"code":"busy","message":"every device is taken"}]}"#;
const METRICS: &str = r#"[
{"attempt":"job_01920000000070008000000000000001-1.1","step":0,"epoch":0.0,"time":"2026-01-01T10:00:02.000Z",
"trainingLoss":null,"validationLoss":5.5,"learningRate":null,"gradientNorm":null,"tokensPerSecond":null},
{"attempt":"job_01920000000070008000000000000001-1.1","step":1,"epoch":0.1,"time":"2026-01-01T10:00:03.000Z",
"trainingLoss":5.4321,"validationLoss":null,"learningRate":0.00002,"gradientNorm":1.5,"tokensPerSecond":1234.5}]"#;
const CHECKPOINTS: &str = r#"[{"attempt":"job_01920000000070008000000000000001-1.1","step":100,"loss":2.5,"kind":"PERIODIC",
"sizeBytes":1234567,"files":[],"createdAt":"2026-01-01T10:02:00.000Z"}]"#;
const LOGS: &str = r#"[{"attempt":"job_01920000000070008000000000000001-1.1","seq":3,"time":"2026-01-01T10:00:02.000Z",
"level":"WARNING","message":"2 examples were cut"}]"#;
/// Two authorities; one node that has followed, one of an older version, one that was never here.
fn rotation() -> String {
    let (old, next) = ("1".repeat(64), "2".repeat(64));
    let facts = |hash: &str| format!(r#"{{"hash":"{hash}","expiresAt":"2056-01-31T12:00:00.000Z","daysLeft":10950}}"#);
    let node = |n: u32, name: &str, trusts: &str, holds: &str, behind: &str| {
        let id = format!("node_0192000000007000800000000000001{n}");
        format!(r#"{{"id":"{id}","name":"{name}","trusts":[{trusts}],"holds":{holds},"behind":{behind}}}"#)
    };
    let older = "its agent is older than this coordinator and knows no second authority; upgrade it";
    let untold = "it does not trust the next authority yet; it does as soon as it is here";
    let nodes = [
        node(1, "gpu-1", &format!(r#""{next}","{old}""#), &format!("\"{next}\""), "null"),
        node(2, "gpu-2", "", "null", &format!("\"{older}\"")),
        node(3, "gpu-3", &format!("\"{old}\""), &format!("\"{old}\""), &format!("\"{untold}\"")),
    ]
    .join(",");
    let waits = format!(r#""gpu-2: {older}","gpu-3: {untold}""#);
    format!(
        r#"{{"phase":"OVERLAP","current":{},"next":{},"beganAt":"2026-02-01T12:00:00.000Z","finishesAt":"2026-02-08T12:00:00.000Z","waitsFor":[{waits}],"nodes":[{nodes}]}}"#,
        facts(&old),
        facts(&next)
    )
}

const JOIN: &str = r#"{"joinString":"LK1.abc","expiresAt":"2026-01-01T11:00:00.000Z"}"#;
const NODE: &str = r#"{"id":"node_01920000000070008000000000000002","name":"gpu-a","status":"ONLINE","version":"0.1.0",
"labels":{"rack":"a"},"devices":[
{"id":"GPU-1","name":"NVIDIA H200","kind":"CUDA","compute":"9.0","memoryBytes":150754820096,"freeBytes":150000000000,
"unusable":null,"attempts":["job_01920000000070008000000000000001-1.1"]},
{"id":"cpu","name":"EPYC","kind":"CPU","compute":null,"memoryBytes":68719476736,"freeBytes":60000000000,"unusable":null,
"attempts":[]}],"cache":{"files":9,"givesAt":"192.0.2.7:7172",
"fromCoordinatorBytes":2147483648,"fromNodesBytes":15032385536,"toNodesBytes":0},
"joinedAt":"2026-01-01T09:00:00.000Z","lastSeen":"2026-01-01T10:00:00.000Z","unreachableSince":null}"#;
pub(crate) const BASE: &str = r#"{"id":"base_01920000000070008000000000000003","name":"smollm2","path":"/srv/smollm2","status":"READY",
"architecture":"LlamaForCausalLM","parameters":134515008,"dtype":"BF16","vocabulary":49152,"chatTemplate":true,
"sizeBytes":269060552,"files":[],"errors":[],"addedBy":"usr_01920000000070008000000000000009",
"createdAt":"2026-01-01T09:00:00.000Z"}"#;

pub(crate) const TOKEN: &str = r#"{"id":"tok_01920000000070008000000000000009","owner":"usr_01920000000070008000000000000002","name":"laptop","secret":"lk_shown_once","createdAt":"2026-01-31T12:00:00Z","expiresAt":"2026-04-30T12:00:00Z"}"#;
