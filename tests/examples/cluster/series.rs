//! B8: how many points a second are kept, and how soon a long series is read. B9: how soon a line reaches who follows it.

use crate::{
    Size,
    place::{Client, Place, job},
    report::{Report, percentiles},
};
use lorikeet_tests::crowd::Script;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn ingest(size: Size, report: &mut Report) {
    let agents = 16;
    let place = Place::new();
    let lasts = Duration::from_secs(size.of(2, 20));
    // More than can be kept: each agent makes six thousand a second.
    let script = Script { lasts, step: Duration::from_micros(160), ..Script::default() };
    let crowd = place.crowd(agents, &script);
    let (before, began) = (place.used(), Instant::now());
    place.submit(agents, 8, &job());
    place.until("every attempt to end", PATIENCE, || crowd.board.ended() >= agents);
    place.until("every point to be kept", PATIENCE, || {
        let lines = crowd.board.read().lines;
        lines.0 > 0 && lines.0 == lines.1
    });
    let points = crowd.board.read().lines.1;
    let measured = format!("{:.0} points/s, {points} in all", points as f64 / began.elapsed().as_secs_f64());
    report.row("B8", &format!("{agents} attempts at once"), measured, "≥ 50,000/s", place.cost_since(before));
    let client = place.client();
    let (before, jobs) = (place.used(), place.runtime.block_on(client.get("/api/jobs?pageSize=1")));
    let id = jobs[0]["id"].as_str().expect("a job").to_owned();
    for (query, whose, target) in [("", "", "< 50 ms for 100,000"), ("?maxPoints=1000", " as 1,000 points", "")] {
        let ask = |_| place.runtime.block_on(ask(&client, &format!("/api/jobs/{id}/metrics{query}")));
        let answers: Vec<_> = (0..10).map(ask).collect();
        let (points, bytes) = (answers[0].points, answers[0].bytes);
        let load = format!("a series{whose}, read ten times: {points} points, {:.1} MB", bytes as f64 / 1e6);
        let of = |time: fn(&Answer) -> Duration| percentiles(answers.iter().map(time).collect());
        let first = answers[0].whole.as_secs_f64() * 1e3;
        let measured = format!(
            "first time {first:.0} ms; until the last byte {}; parsed {}",
            of(|answer| answer.whole),
            of(|answer| answer.parsed)
        );
        report.row("B8", &load, measured, target, place.cost_since(before));
    }
    place.runtime.block_on(crowd.leave());
}

/// What an answer of points took.
struct Answer {
    points: usize,
    bytes: usize,
    /// Until its last byte was here.
    whole: Duration,
    /// And until it was plain values.
    parsed: Duration,
}

async fn ask(client: &Client, path: &str) -> Answer {
    let asked = Instant::now();
    let request = client.http.get(format!("{}{path}", client.server)).bearer_auth(&client.token);
    let answer = request.send().await.expect("it answers").bytes().await.expect("to its end");
    let whole = asked.elapsed();
    let value: serde_json::Value = serde_json::from_slice(&answer).expect("JSON");
    let points = value["data"].as_array().map_or(0, Vec::len);
    Answer { points, bytes: answer.len(), whole, parsed: asked.elapsed() }
}

pub(crate) fn follow(size: Size, report: &mut Report) {
    let place = Place::new();
    let lasts = Duration::from_secs(size.of(3, 20));
    let crowd = place.crowd(8, &Script { lasts, step: Duration::from_millis(50), ..Script::default() });
    place.submit(8, 8, &job());
    place.until("every job to run", PATIENCE, || crowd.board.read().running.len() >= 8);
    let client = place.client();
    let jobs = place.runtime.block_on(client.get("/api/jobs?pageSize=8"));
    let ids: Vec<String> =
        jobs.as_array().expect("a list").iter().map(|job| job["id"].as_str().unwrap_or_default().into()).collect();
    let before = place.used();
    let late = place.runtime.block_on(async {
        // The first stands still: nobody reads what it is sent.
        let stalled =
            client.http.get(format!("{}/api/jobs/{}/events", client.server, ids[0])).bearer_auth(&client.token);
        let stalled = stalled.send().await.expect("a stream");
        let follow = |id: &String| {
            let request = client.http.get(format!("{}/api/jobs/{id}/events", client.server)).bearer_auth(&client.token);
            tokio::spawn(async move {
                let mut stream = request.send().await.expect("a stream");
                let (mut text, mut late) = (String::new(), vec![]);
                while let Ok(Some(bytes)) = stream.chunk().await {
                    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                    text.push_str(&String::from_utf8_lossy(&bytes));
                    while let Some(end) = text.find('\n') {
                        let line: String = text.drain(..=end).collect();
                        let Some(json) = line.strip_prefix("data:") else { continue };
                        let event: serde_json::Value = serde_json::from_str(json.trim()).unwrap_or_default();
                        if let Some(made) = event["gradientNorm"].as_f64() {
                            late.push(now.saturating_sub(Duration::from_millis(made as u64)));
                        }
                    }
                }
                late
            })
        };
        let followers: Vec<_> = ids.iter().skip(1).map(follow).collect();
        let mut late = vec![];
        for follower in followers {
            late.extend(follower.await.expect("it follows to the end"));
        }
        drop(stalled);
        late
    });
    let load = format!("7 followers at 20 lines/s, one stalled beside them, {} lines", late.len());
    report.row("B9", &load, percentiles(late), "p99 < 200 ms", place.cost_since(before));
    place.runtime.block_on(crowd.leave());
}
