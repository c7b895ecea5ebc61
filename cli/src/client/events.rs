//! A job's event stream, as one stream whatever the connection does: it reconnects with `Last-Event-ID` until the job ends.
//!
//! ```text
//! first connection ─► events … ─► broken ─► wait, connect, wait, connect … ─► events … ─► complete
//!        └► nobody answers after a few tries: unreachable
//! ```
//! A first connection that fails is told at once: the address may be wrong. After that the server is known, and it is waited for
//! as long as it takes: a job of days outlives restarts, and whoever follows it can always leave.

use super::{ATTEMPTS, BACK_OFF, Client, LONGEST_BACK_OFF, is_transport, jitter, refusal};
use crate::failure::{Failure, chain};
use futures_util::{StreamExt, stream::BoxStream};
use lorikeet_api::{
    job::JobEvent,
    route::{self, with_id},
};
use lorikeet_protocol::{backoff::Backoff, id::JobId};
use reqwest::{Method, Response, header};
use sse_stream::{Sse, SseByteStream};
use std::time::Duration;

type Blocks = BoxStream<'static, Result<Sse, sse_stream::Error>>;

/// What following brings.
#[derive(Debug)]
pub(crate) enum Told {
    /// Something happened to the job.
    Event(Box<JobEvent>),
    /// The connection broke, and why; told once until it is back.
    Broken(String),
    /// It is back.
    Back,
}

/// Follows one job.
pub(crate) struct Events<'a> {
    client: &'a Client,
    job: JobId,
    /// Where a new connection goes on.
    last_id: Option<String>,
    /// The connection, while there is one.
    stream: Option<Blocks>,
    back_off: Backoff,
    /// Before the next connection.
    pause: Option<Duration>,
    stage: Stage,
    /// An event that comes behind the word that the connection is back.
    held: Option<Box<JobEvent>>,
}

/// How the conversation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No server has answered yet.
    New { tries: u32 },
    /// All is well.
    Followed,
    /// The person was told that it broke.
    Broken,
}

impl Client {
    /// From the job's beginning to its end.
    pub(crate) fn events(&self, job: JobId) -> Events<'_> {
        Events::new(self, job, Backoff::new(BACK_OFF, LONGEST_BACK_OFF))
    }
}

impl<'a> Events<'a> {
    fn new(client: &'a Client, job: JobId, back_off: Backoff) -> Self {
        let stage = Stage::New { tries: 0 };
        Self { client, job, last_id: None, stream: None, back_off, pause: None, stage, held: None }
    }

    /// The next thing. The stream never ends before `complete`; after it nothing should be asked.
    pub(crate) async fn next(&mut self) -> Result<Told, Failure> {
        if let Some(event) = self.held.take() {
            return Ok(Told::Event(event));
        }
        loop {
            let broken = match &mut self.stream {
                None => self.connect().await?.err(),
                Some(stream) => match stream.next().await {
                    Some(Ok(block)) => match self.read(block)? {
                        Some(event) => return Ok(self.tell(event)),
                        None => None,
                    },
                    Some(Err(error)) => Some(chain(&error)),
                    None => Some("it ended before the job did".to_owned()),
                },
            };
            let Some(why) = broken else { continue };
            self.stream = None;
            self.pause = Some(self.back_off.wait(jitter()));
            if self.stage == Stage::Followed {
                self.stage = Stage::Broken;
                return Ok(Told::Broken(why));
            }
        }
    }

    /// Only an event is a sign that the connection truly works.
    fn tell(&mut self, event: JobEvent) -> Told {
        self.back_off.reset();
        let event = Box::new(event);
        match std::mem::replace(&mut self.stage, Stage::Followed) {
            Stage::Broken => {
                self.held = Some(event);
                Told::Back
            }
            Stage::New { .. } | Stage::Followed => Told::Event(event),
        }
    }

    /// `None` for a block without data, and for events of a later version.
    fn read(&mut self, block: Sse) -> Result<Option<JobEvent>, Failure> {
        self.last_id = block.id.or(self.last_id.take());
        let Some(data) = block.data else { return Ok(None) };
        match serde_json::from_str(&data) {
            Ok(JobEvent::Error { message }) => Err(Failure::refused(format!("the event stream ended: {message}"))),
            Ok(event) => Ok(Some(event)),
            Err(error) if KNOWN.contains(&block.event.as_deref().unwrap_or_default()) => {
                Err(Failure::unreachable(format!("read an event of the job: {error}")))
            }
            Err(_) => Ok(None),
        }
    }

    /// Connects, or says why it has to be tried again; a refusal is final, and so are the first few failures.
    async fn connect(&mut self) -> Result<Result<(), String>, Failure> {
        if let Some(pause) = self.pause.take() {
            tokio::time::sleep(pause).await;
        }
        let mut request = self.client.request(Method::GET, &with_id(route::JOB_EVENTS, self.job));
        request = request.header(header::ACCEPT, EVENT_STREAM);
        if let Some(id) = &self.last_id {
            request = request.header("last-event-id", id);
        }
        match request.send().await {
            Ok(answer) if answer.status().is_success() && is_event_stream(&answer) => {
                self.stream = Some(SseByteStream::new(answer.bytes_stream()).boxed());
                if let Stage::New { .. } = self.stage {
                    self.stage = Stage::Followed;
                }
                Ok(Ok(()))
            }
            Ok(answer) if answer.status().is_success() => {
                let why = format!("{} answers with something else than events", self.client.server);
                self.again(why.clone(), Failure::unreachable(why).hint("is it another program, or another version?"))
            }
            Ok(answer) if answer.status().is_server_error() => {
                self.again(format!("the server answers {}", answer.status()), refusal(answer).await)
            }
            Ok(answer) => Err(refusal(answer).await),
            Err(error) if is_transport(&error) => self.again(chain(&error), self.client.unreachable(&error)),
            Err(error) => Err(self.client.unreachable(&error)),
        }
    }

    /// A server that never answered is given up after a few tries; one that did is waited for.
    fn again(&mut self, why: String, failure: Failure) -> Result<Result<(), String>, Failure> {
        match &mut self.stage {
            Stage::New { tries } if *tries + 1 >= ATTEMPTS => Err(failure),
            Stage::New { tries } => {
                *tries += 1;
                Ok(Err(why))
            }
            Stage::Followed | Stage::Broken => Ok(Err(why)),
        }
    }
}

fn is_event_stream(answer: &Response) -> bool {
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with(EVENT_STREAM))
}

const EVENT_STREAM: &str = "text/event-stream";
const KNOWN: [&str; 9] = ["progress", "metrics", "stage", "log", "missing", "cost", "checkpoint", "complete", "error"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Connection;
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
    };

    #[tokio::test]
    async fn a_stream_that_breaks_again_and_again_is_taken_up_again_and_told_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = client(&listener);
        let server = thread::spawn(move || {
            answer(&listener, OK, &event(1));
            for _ in 0..20 {
                answer(&listener, OK, "");
                answer(&listener, "HTTP/1.1 503 Service Unavailable\r\n", "");
                drop(listener.accept().unwrap());
            }
            answer(&listener, OK, &event(2))
        });
        let mut events = Events::new(&client, job(), Backoff::new(Duration::from_millis(1), Duration::from_millis(2)));
        assert_eq!(step(events.next().await.unwrap()), 1);
        assert!(matches!(events.next().await.unwrap(), Told::Broken(_)));
        assert!(matches!(events.next().await.unwrap(), Told::Back));
        assert_eq!(step(events.next().await.unwrap()), 2);
        let asked = server.join().unwrap().to_lowercase();
        assert!(asked.contains("last-event-id: 1"), "{asked}");
    }

    #[tokio::test]
    async fn a_first_connection_that_nobody_answers_is_told_soon() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = client(&listener);
        drop(listener);
        let mut events = Events::new(&client, job(), Backoff::new(Duration::from_millis(1), Duration::from_millis(2)));
        assert_eq!(events.next().await.unwrap_err().kind.exit_code(), 4);
    }

    #[tokio::test]
    async fn a_job_that_is_gone_meanwhile_ends_the_following() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = client(&listener);
        thread::spawn(move || {
            answer(&listener, OK, &event(1));
            answer(
                &listener,
                "HTTP/1.1 404 Not Found\r\n",
                "{\"success\":false,\"error\":{\"code\":\"NOT_FOUND\",\"message\":\"there is no such job\"}}",
            )
        });
        let mut events = Events::new(&client, job(), Backoff::new(Duration::from_millis(1), Duration::from_millis(2)));
        assert_eq!(step(events.next().await.unwrap()), 1);
        assert!(matches!(events.next().await.unwrap(), Told::Broken(_)));
        assert!(events.next().await.unwrap_err().message.contains("no such job"));
    }

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";

    /// One request answered, and the connection closed; what was asked.
    fn answer(listener: &TcpListener, head: &str, body: &str) -> String {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        let mut byte = [0];
        while !asked.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            asked.push(byte[0]);
        }
        stream.write_all(format!("{head}connection: close\r\n\r\n{body}").as_bytes()).unwrap();
        String::from_utf8(asked).unwrap()
    }

    fn event(step: u64) -> String {
        let checkpoint =
            format!("{{\"type\":\"stage\",\"stage\":\"{}\"}}", if step == 1 { "TRAINING" } else { "SAVING" });
        format!("id: {step}\nevent: stage\ndata: {checkpoint}\n\n")
    }

    /// Which of the two events it is.
    fn step(told: Told) -> u64 {
        let Told::Event(event) = told else { panic!("{told:?}") };
        let JobEvent::Stage { stage } = *event else { panic!("{event:?}") };
        if crate::output::table::word(&stage) == "TRAINING" { 1 } else { 2 }
    }

    fn client(listener: &TcpListener) -> Client {
        let server = format!("http://{}", listener.local_addr().unwrap());
        Client::new(&Connection { server, token: None, ca: None }).unwrap()
    }

    fn job() -> JobId {
        JobId(uuid::Uuid::from_u128(1))
    }
}
