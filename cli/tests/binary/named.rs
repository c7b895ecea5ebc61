//! What is called by its name: which of several is meant, and what a name does to somebody else's.

use crate::{
    answers::{BASE, JOB, TOKEN, dataset, job, model},
    support::{FakeServer, Scripted, file, run},
};

/// Whose all of `answers` is.
const ME: &str = r#"{"id":"usr_01920000000070008000000000000009","email":"a@b","name":"Ada","role":"ADMIN"}"#;
const JOBS: &str = "GET /api/training-jobs?name=support+tone&page=1&pageSize=100";
const OTHER_JOB: &str = "job_01920000000070008000000000000009";

fn other(job: String) -> String {
    job.replace(JOB, OTHER_JOB)
}

/// The same of another user.
fn foreign(row: &str) -> String {
    row.replace("usr_01920000000070008000000000000009", "usr_01920000000070008000000000000008")
}

fn script<const N: usize>(answers: [&str; N]) -> FakeServer {
    FakeServer::new(answers.map(Scripted::data))
}

fn lines(server: &FakeServer) -> Vec<String> {
    server.asked().iter().map(|asked| asked.line.clone()).collect()
}

#[test]
fn a_job_is_named_by_its_name_as_well() {
    let (live, over) = (job("RUNNING", "running"), other(job("FAILED", "failed")));
    let chosen =
        format!("`support tone` is taken for {JOB}, made 2026-01-01 10:00:00 UTC: one of 2 jobs with this name\n");
    for (listed, meant, note) in
        [(format!("[{over},{live}]"), JOB, chosen.as_str()), (format!("[{over}]"), OTHER_JOB, "")]
    {
        let server = script([&listed, ME, &live]);
        let (code, _, complaint) = run(server.client().args(["job", "pause", "support tone"]));
        assert_eq!((code, complaint.as_str()), (0, note));
        let asked = [JOBS.to_owned(), "GET /api/me".into(), format!("POST /api/training-jobs/{meant}/pause")];
        assert_eq!(lines(&server), asked, "one that is not over goes first");
    }
}

#[test]
fn nobody_guesses_which_of_two_is_meant_nor_takes_a_part_of_a_name_for_it() {
    let live = job("RUNNING", "running");
    for (listed, name, code, complaint) in [
        (
            format!("[{},{live}]", other(live.clone())),
            "support tone",
            2,
            "more than one job is named `support tone`: job_01920000000070008000000000000009 and job_01920000000070008000000000000001",
        ),
        (format!("[{live}]"), "support", 2, "there is no job `support`"),
    ] {
        let server = script([&listed, ME]);
        let (found, _, said) = run(server.client().args(["job", "cancel", name]));
        assert_eq!(found, code);
        assert!(said.contains(complaint), "{said}");
        assert!(lines(&server).iter().all(|line| line.starts_with("GET")), "nothing is cancelled");
    }
}

#[test]
fn a_name_is_ones_own_before_anybody_elses_and_changes_nothing_of_theirs() {
    let (own, theirs) = (job("COMPLETED", "succeeded"), foreign(&other(job("RUNNING", "running"))));
    let both = format!("[{theirs},{own}]");
    let server = script([&both, ME, &own]);
    run(server.client().args(["job", "cancel", "support tone"]));
    assert_eq!(lines(&server)[2..], [format!("POST /api/training-jobs/{JOB}/cancel")]);
    let alone = format!("[{theirs}]");
    let server = script([&alone, ME]);
    let (code, _, complaint) = run(server.client().args(["job", "cancel", "support tone"]));
    let said = format!("the job `support tone` is somebody else's: {OTHER_JOB}");
    assert!(code == 2 && complaint.contains(&said) && complaint.contains("by its id"), "{complaint}");
    let server = script([&alone, ME, &theirs]);
    let (code, ..) = run(server.client().args(["job", "show", "support tone"]));
    assert_eq!((code, &lines(&server)[2..]), (0, &[format!("GET /api/training-jobs/{OTHER_JOB}")][..]));
    // `TOKEN` is of another.
    let server = script([&format!("[{TOKEN}]"), ME]);
    let (code, _, complaint) = run(server.client().args(["token", "revoke", "laptop"]));
    assert!(code == 2 && complaint.contains("the token `laptop` is somebody else's"), "{complaint}");
}

#[test]
fn an_upload_of_somebody_elses_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "chats.jsonl", "0123456789");
    let server = script([&format!("[{}]", foreign(&dataset("UPLOADING"))), ME, "null"]);
    run(server.client().args(["dataset", "add"]).arg(&path));
    assert_eq!(lines(&server)[2..], ["POST /api/datasets"], "a record of one's own");
}

#[test]
fn an_adapter_is_sought_among_the_jobs_that_made_one() {
    let done = other(job("COMPLETED", "succeeded"))
        .replace(r#""model":null"#, r#""model":"mdl_01920000000070008000000000000005""#);
    let listed = format!("[{},{done}]", job("RUNNING", "running"));
    let server = script([&listed, ME, &done, &model("")]);
    let (code, _, complaint) = run(server.client().args(["adapter", "show", "support tone"]));
    assert!(code == 0 && complaint.contains(&format!("is taken for {OTHER_JOB}")), "{complaint}");
    let asked = [
        format!("GET /api/training-jobs/{OTHER_JOB}"),
        "GET /api/models/mdl_01920000000070008000000000000005".to_owned(),
    ];
    assert_eq!(lines(&server)[2..], asked);
}

#[test]
fn a_file_that_is_there_already_under_its_name_is_answered_and_not_uploaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "chats.jsonl", "0123456789");
    let known = |status: &str| {
        let hash = blake3::hash(b"0123456789").to_hex();
        dataset(status).replace(r#""contentHash":null"#, &format!(r#""contentHash":"{hash}""#))
    };
    let id = "ds_01920000000070008000000000000004";
    let server = script([&format!("[{}]", known("READY")), ME]);
    let (code, answer, notes) = run(server.client().args(["dataset", "add", "--output", "json"]).arg(&path));
    assert!(code == 0 && answer.contains(&format!(r#""id": "{id}""#)), "{answer}{notes}");
    assert!(notes.contains(&format!("nothing is uploaded: {id} has this name and the same content")), "{notes}");
    assert_eq!(server.asked().len(), 2, "nothing was made");
    let faulty = format!("[{}]", known("ERROR"));
    let server = script([&faulty, ME, &known("VALIDATING"), &known("READY")]);
    let (code, _, notes) = run(server.client().args(["dataset", "add"]).arg(&path));
    assert_eq!((code, lines(&server)[2].clone()), (0, format!("POST /api/datasets/{id}/validate")), "{notes}");
    let server = script([&format!("[{}]", dataset("READY")), ME, "null"]);
    let (_, _, notes) = run(server.client().args(["dataset", "add"]).arg(&path));
    assert_eq!(lines(&server)[2..], ["POST /api/datasets"], "other bytes are another dataset");
    assert!(notes.contains(&format!("{id} has this name and other content")) && notes.contains("by its id"), "{notes}");
}

#[test]
fn a_base_model_is_shown_and_forgotten_by_its_name() {
    let listed = format!("[{BASE}]");
    let server = script([&listed, BASE]);
    let (code, answer, complaint) = run(server.client().args(["base", "show", "smollm2"]));
    assert!(code == 0 && answer.contains("/srv/smollm2"), "{answer}{complaint}");
    let server =
        FakeServer::new([Scripted::data(&listed), Scripted::data(BASE), Scripted::empty("204 No Content", &[])]);
    let (code, _, note) = run(server.client().args(["base", "delete", "smollm2"]));
    let id = "base_01920000000070008000000000000003";
    assert_eq!((code, note), (0, format!("deleted {id} (smollm2); its files stay where they are\n")));
    assert_eq!(lines(&server)[2], format!("DELETE /api/base-models/{id}"));
    let server = script(["[]"]);
    let (code, _, complaint) = run(server.client().args(["base", "delete", "smollm2"]));
    assert!(code == 2 && complaint.contains("there is no base model `smollm2`"), "{complaint}");
}

#[test]
fn a_name_that_stands_for_two_datasets_is_told_and_deletes_neither() {
    let known = dataset("READY");
    let other = known.replace("000000000004", "000000000005");
    for other in [other.clone(), other.replace("READY", "ERROR")] {
        let server = script([&format!("[{other},{known}]"), ME]);
        let (code, _, complaint) = run(server.client().args(["dataset", "delete", "chats"]));
        assert!(code == 2 && complaint.contains("0005 and ds_") && complaint.contains("by its id"), "{complaint}");
    }
}

#[test]
fn a_broken_upload_and_an_expired_token_stand_in_nobodys_way() {
    let broken = dataset("UPLOADING").replace("000000000004", "000000000005");
    let server = script([&format!("[{broken},{}]", dataset("READY")), ME, &dataset("READY")]);
    let (code, ..) = run(server.client().args(["dataset", "show", "chats"]));
    assert_eq!((code, lines(&server)[2].as_str()), (0, "GET /api/datasets/ds_01920000000070008000000000000004"));
    let own = TOKEN.replace("usr_01920000000070008000000000000002", "usr_01920000000070008000000000000009");
    let good = own
        .replace("2026-04-30", "9999-01-01")
        .replace("tok_01920000000070008000000000000009", "tok_01920000000070008000000000000008");
    let expired = own.replace("2026-04-30", "2026-01-31");
    let server = FakeServer::new([
        Scripted::data(&format!("[{good},{expired}]")),
        Scripted::data(ME),
        Scripted::empty("204 No Content", &[]),
    ]);
    let (code, _, note) = run(server.client().args(["token", "revoke", "laptop"]));
    assert!(code == 0 && note.ends_with("\ntok_01920000000070008000000000000008 works no more\n"), "{note}");
}
