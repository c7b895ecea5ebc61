//! Streams, metrics and logs of a job that left lines behind.

use super::*;
use crate::{record::AttemptEnd, series::Series};
use lorikeet_api::job::MetricsPoint;
use lorikeet_protocol::{
    agent::EventLines,
    id::AttemptId,
    job::{AttemptPhase, Outcome},
};
use std::ops::Range;

const LINES: [&str; 5] = [
    r#"{"seq":1,"time":1000,"type":"stage","stage":"training"}"#,
    r#"{"seq":2,"time":1000,"type":"log","level":"INFO","message":"here we go"}"#,
    r#"{"seq":3,"time":2000,"type":"step","step":1,"epoch":0.5,"loss":2.5,"lr":0.1,"grad_norm":1.0,"tokens":10,"supervised_tokens":5,"seconds":2.0}"#,
    r#"{"seq":4,"time":3000,"type":"from a later version"}"#,
    r#"{"seq":5,"time":3000,"type":"eval","step":1,"loss":2.0,"perplexity":7.4,"tokens":5,"seconds":1.0}"#,
];

/// A finished job with lines; the series folder has one writer more for a moment, on an attempt of its own.
async fn told(world: &World) -> JobId {
    told_with(world, LINES.map(str::to_owned).to_vec()).await
}

fn part(range: Range<usize>) -> Vec<String> {
    LINES[range].iter().map(|line| (*line).to_owned()).collect()
}

async fn told_with(world: &World, lines: Vec<String>) -> JobId {
    let queued = world.job().await;
    let (job, _) = world.finished(queued).await;
    tell(world, job, 1, lines).await;
    job
}

/// More lines of its attempt.
async fn tell(world: &World, job: JobId, first: u64, lines: Vec<String>) {
    let attempt = AttemptId { job, token: AttemptToken { generation: 1, number: 1 } };
    let (series, thread) = Series::open(&world.data().join("series"), crate::series::Limits::default()).unwrap();
    let through = first + lines.len() as u64 - 1;
    assert_eq!(series.append(EventLines { attempt, first, lines }).await.unwrap(), through);
    drop(series);
    thread.join().unwrap();
}

/// Where the lines of an attempt lie.
fn segment(world: &World, attempt: AttemptId) -> PathBuf {
    world.data().join(format!("series/{}/{}/00000000000000000001.seg", attempt.job, attempt.token))
}

/// Names and ids of a stream's events, and the data of the last.
async fn stream(world: &World, job: JobId, last: Option<&str>) -> (Vec<(String, String)>, Value) {
    let mut request = world.ask(Method::GET, &route::with_id(route::JOB_EVENTS, job), &world.admin);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    told_to_the_end(String::new(), request.send().await.unwrap()).await
}

/// Likewise, of a stream of which `text` was read already.
async fn told_to_the_end(text: String, response: reqwest::Response) -> (Vec<(String, String)>, Value) {
    let rest = tokio::time::timeout(Duration::from_secs(20), response.text()).await.unwrap().unwrap();
    let text = text + &rest;
    let field = |block: &str, name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default()
            .trim_start_matches(':')
            .trim()
            .to_owned()
    };
    let blocks: Vec<&str> = text.split("\n\n").filter(|block| block.contains("data")).collect();
    let data = field(blocks.last().unwrap(), "data");
    let names = blocks.iter().map(|block| (field(block, "event"), field(block, "id"))).collect();
    (names, serde_json::from_str(&data).unwrap())
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, id)| ((*name).to_owned(), (*id).to_owned())).collect()
}

#[tokio::test]
async fn a_stream_tells_everything_and_ends_with_the_job() {
    let world = World::new().await;
    let job = told(&world).await;
    let (names, last) = stream(&world, job, None).await;
    let expected = [("stage", "1.1:1"), ("log", "1.1:2"), ("metrics", "1.1:3"), ("metrics", "1.1:5"), ("complete", "")];
    assert_eq!(names, pairs(&expected));
    assert_eq!((last["type"].as_str(), last["status"].as_str()), (Some("complete"), Some("COMPLETED")));
}

#[tokio::test]
async fn a_stream_goes_on_behind_the_last_event_its_client_has() {
    let world = World::new().await;
    let job = told(&world).await;
    let (names, _) = stream(&world, job, Some("1.1:3")).await;
    assert_eq!(names, pairs(&[("metrics", "1.1:5"), ("complete", "")]));
}

#[tokio::test]
async fn a_stream_of_a_waiting_job_ends_soon_after_its_cancel() {
    let world = World::new().await;
    let job = world.job().await;
    let request = world.ask(Method::GET, &route::with_id(route::JOB_EVENTS, job), &world.admin);
    let mut open = request.send().await.unwrap();
    // The stream is there and waits once it has told how the job stands.
    let first = open.chunk().await.unwrap().unwrap();
    world.call(Method::POST, &route::with_id(route::JOB_CANCEL, job), json!({})).await;
    let cancelled = Instant::now();
    let (names, last) = told_to_the_end(String::from_utf8(first.to_vec()).unwrap(), open).await;
    assert!(cancelled.elapsed() < Duration::from_secs(1), "{:?}", cancelled.elapsed());
    assert_eq!(names.last().unwrap().0, "complete");
    assert_eq!(last["status"], "CANCELLED");
}

#[tokio::test]
async fn metrics_and_logs_come_from_the_lines() {
    let world = World::new().await;
    let job = told(&world).await;
    let metrics = world.get(&route::with_id(route::JOB_METRICS, job)).await;
    assert_eq!((&metrics[0]["trainingLoss"], &metrics[0]["tokensPerSecond"]), (&json!(2.5), &json!(5.0)), "{metrics}");
    assert_eq!(metrics[1]["validationLoss"], 2.0);
    let later = world.get(&format!("{}?from=2", route::with_id(route::JOB_METRICS, job))).await;
    assert_eq!(later, json!([]));
    let short = world.get(&format!("{}?limit=1", route::with_id(route::JOB_METRICS, job))).await;
    assert_eq!(short, json!([metrics[0]]));
    let logs = world.get(&route::with_id(route::JOB_LOGS, job)).await;
    assert_eq!((logs[0]["message"].as_str(), &logs[0]["seq"]), (Some("here we go"), &json!(2)));
}

#[tokio::test]
async fn metrics_and_logs_say_what_the_disk_has_not_kept() {
    let world = World::new().await;
    let sound = told(&world).await;
    let job = told_with(&world, part(0..3)).await;
    let attempt = AttemptId { job, token: AttemptToken { generation: 1, number: 1 } };
    tell(&world, job, 4, part(3..5)).await;
    let segment = segment(&world, attempt);
    let mut bytes = fs::read(&segment).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&segment, bytes).unwrap();
    let missing = json!([{ "attempt": attempt, "from": 4, "through": null }]);
    for path in [route::JOB_METRICS, route::JOB_LOGS] {
        let ask = async |job| world.call(Method::GET, &route::with_id(path, job), json!({})).await;
        for _ in 0..2 {
            let (status, body) = ask(job).await;
            assert_eq!((status, &body["missing"]), (StatusCode::OK, &missing), "{body}");
            assert_eq!(body["data"].as_array().unwrap().len(), 1, "what is whole is told: {body}");
        }
        let (_, body) = ask(sound).await;
        assert!(body.get("missing").is_none() && body["data"] != json!([]), "{body}");
    }
}

#[tokio::test]
async fn nothing_but_metrics_and_logs_is_documented_to_miss_lines() {
    let world = World::new().await;
    let (_, document) = answer(world.ask(Method::GET, route::OPENAPI, &world.admin)).await;
    let schemas = document["components"]["schemas"].as_object().unwrap().iter();
    let with = schemas.filter(|(_, schema)| schema["properties"].get("missing").is_some()).map(|(name, _)| name);
    let with: Vec<_> = with.map(|name| format!("#/components/schemas/{name}")).collect();
    let answered = |path: &str| {
        let content = &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"];
        content["schema"]["$ref"].as_str().unwrap().to_owned()
    };
    assert_eq!(with, [answered(route::JOB_LOGS), answered(route::JOB_METRICS)]);
}

/// What becomes of the file of an attempt's lines.
type Way<'a> = &'a dyn Fn(AttemptId);

#[tokio::test]
async fn lines_that_went_with_their_whole_file_are_missed_in_lists_and_streams() {
    let world = World::new().await;
    let emptied = |attempt| fs::write(segment(&world, attempt), b"").unwrap();
    let deleted = |attempt| fs::remove_file(segment(&world, attempt)).unwrap();
    let torn = |attempt| tear(&segment(&world, attempt));
    let sound = |_: AttemptId| {};
    // Of which attempt lines are missing then. Of a second one there is not even a folder.
    let ways: [(Way<'_>, Option<u32>); 5] =
        [(&emptied, Some(1)), (&deleted, Some(1)), (&torn, Some(1)), (&sound, Some(2)), (&sound, None)];
    for (way, number) in ways {
        let job = told(&world).await;
        let attempt = |number| AttemptId { job, token: AttemptToken { generation: 1, number } };
        world.insert((1..=number.unwrap_or(1)).map(|number| over(attempt(number))).collect()).await;
        way(attempt(1));
        let expected = number.map(|number| json!([{ "attempt": attempt(number), "from": 1, "through": 5 }]));
        let expected = expected.unwrap_or_default();
        for path in [route::JOB_METRICS, route::JOB_LOGS] {
            let (status, body) = world.call(Method::GET, &route::with_id(path, job), json!({})).await;
            assert_eq!((status, &body["missing"]), (StatusCode::OK, &expected), "{body}");
        }
        let (names, last) = stream(&world, job, None).await;
        let told = names.iter().filter(|(name, _)| name == "missing").count();
        assert_eq!(told, expected.as_array().map_or(0, Vec::len), "{names:?}");
        assert_eq!(last["type"], "complete");
    }
}

#[tokio::test]
async fn a_stream_says_what_is_missing_where_it_should_stand() {
    let world = World::new().await;
    let job = told_with(&world, part(0..3)).await;
    let first = segment(&world, AttemptId { job, token: AttemptToken { generation: 1, number: 1 } });
    tell(&world, job, 4, part(3..5)).await;
    tear(&first);
    // They come again, in a segment of their own.
    tell(&world, job, 4, part(3..5)).await;
    fs::remove_file(&first).unwrap();
    let (names, _) = stream(&world, job, None).await;
    assert_eq!(names, pairs(&[("missing", ""), ("metrics", "1.1:5"), ("complete", "")]));
    let (names, _) = stream(&world, job, Some("1.1:3")).await;
    assert_eq!(names, pairs(&[("metrics", "1.1:5"), ("complete", "")]), "who has them misses nothing");
    let known = told(&world).await;
    assert_eq!(stream(&world, known, None).await.0.len(), 5);
    let taken = AttemptId { job: known, token: AttemptToken { generation: 1, number: 1 } };
    fs::remove_file(segment(&world, taken)).unwrap();
    let (names, _) = stream(&world, known, None).await;
    assert_eq!(names, pairs(&[("missing", ""), ("complete", "")]), "though the file was taken from under it");
}

#[tokio::test]
async fn what_is_missing_between_lines_is_said_between_them() {
    let world = World::new().await;
    let job = told_with(&world, part(0..2)).await;
    let first = segment(&world, AttemptId { job, token: AttemptToken { generation: 1, number: 1 } });
    let third = first.with_file_name("00000000000000000003.seg");
    // Three segments, the second of the third line alone; then nothing of that can be read.
    tell(&world, job, 3, part(2..3)).await;
    tear(&first);
    tell(&world, job, 3, part(2..3)).await;
    tell(&world, job, 4, part(3..4)).await;
    tear(&third);
    tell(&world, job, 4, part(3..5)).await;
    fs::write(&third, &fs::read(&third).unwrap()[..12]).unwrap();
    let (names, _) = stream(&world, job, None).await;
    let whole = stream(&world, told(&world).await, None).await.0;
    let mut expected: Vec<_> = whole.into_iter().filter(|(_, id)| id != "1.1:3").collect();
    let behind = expected.iter().position(|(_, id)| id == "1.1:2").unwrap() + 1;
    expected.insert(behind, ("missing".to_owned(), String::new()));
    assert_eq!(names, expected);
}

/// Its last record is not whole any more.
fn tear(segment: &Path) {
    let bytes = fs::read(segment).unwrap();
    fs::write(segment, &bytes[..bytes.len() - 1]).unwrap();
}

/// An attempt that ended long ago with its fifth line.
fn over(id: AttemptId) -> Record {
    let end = AttemptEnd {
        outcome: Outcome::Ok,
        class: None,
        message: None,
        at: UnixMillis(1_000),
        held: Duration::ZERO,
        last_event: 5,
    };
    Record::Attempt(record::Attempt {
        id,
        owner: UserId(Uuid::nil()),
        members: vec![],
        planned_bytes: 0,
        phase: AttemptPhase::Done,
        from_step: None,
        offered_at: UnixMillis(1_000),
        running_at: None,
        leave: None,
        energy_joules: None,
        end: Some(end),
    })
}

#[tokio::test]
async fn a_long_curve_is_told_whole_or_in_as_many_points_as_are_asked_for() {
    let world = World::new().await;
    let line = |step: u64| {
        let loss = if step == 1_700 { 9.5 } else { 1.0 };
        let event = format!(r#""type":"step","step":{step},"epoch":0.5,"loss":{loss:?},"lr":0.1,"grad_norm":1.0"#);
        format!(r#"{{"seq":{step},"time":1000,{event},"tokens":10,"supervised_tokens":5,"seconds":2.0}}"#)
    };
    let job = told_with(&world, (1..=2_500).map(line).collect()).await;
    let metrics = route::with_id(route::JOB_METRICS, job);
    let points: Vec<MetricsPoint> = serde_json::from_value(world.get(&metrics).await).unwrap();
    assert_eq!(points.iter().map(|point| point.step).collect::<Vec<_>>(), (1..=2_500).collect::<Vec<_>>());
    let thinned = world.get(&format!("{metrics}?maxPoints=50")).await;
    let thinned: Vec<MetricsPoint> = serde_json::from_value(thinned).unwrap();
    assert!((3..=50).contains(&thinned.len()), "{}", thinned.len());
    assert!(thinned.iter().any(|point| point.training_loss == Some(9.5)));
    assert!(thinned.iter().all(|point| points.contains(point)));
    for (query, field) in [("maxPoints=9", "maxPoints"), ("maxPoints=100001", "maxPoints"), ("limit=0", "limit")] {
        let (status, body) = world.call(Method::GET, &format!("{metrics}?{query}"), json!({})).await;
        assert_eq!((status, &body["error"]["field"]), (StatusCode::BAD_REQUEST, &json!(field)), "{body}");
    }
}

#[tokio::test]
async fn open_streams_do_not_hold_up_a_shutdown() {
    let world = World::new().await;
    let job = world.job().await;
    let request = world.ask(Method::GET, &route::with_id(route::JOB_EVENTS, job), &world.admin);
    let mut open = request.send().await.unwrap();
    assert!(open.chunk().await.unwrap().is_some());
    let begun = Instant::now();
    world.coordinator.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_stream_that_its_client_has_stopped_reading_does_not_hold_up_a_shutdown() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new().await;
    // More than both ends of a connection take in by themselves.
    let word =
        |seq| format!(r#"{{"seq":{seq},"time":1,"type":"log","level":"INFO","message":"{}"}}"#, "x".repeat(60_000));
    let job = told_with(&world, (1..=50).map(word).collect()).await;
    for first in (51..=500).step_by(50) {
        tell(&world, job, first, (first..first + 50).map(word).collect()).await;
    }
    let mut stream = tokio::net::TcpStream::connect(world.coordinator.http_address()).await.unwrap();
    let path = route::with_id(route::JOB_EVENTS, job);
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", world.admin);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 100_000];
    stream.read_exact(&mut first).await.unwrap();
    let begun = Instant::now();
    world.coordinator.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}
