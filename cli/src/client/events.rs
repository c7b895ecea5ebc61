//! A job's event stream, as one stream whatever the connection does: it reconnects with `Last-Event-ID` until the job ends.

use super::{ATTEMPTS, BACK_OFF, Client, is_transport, refusal};
use crate::failure::Failure;
use futures_util::{StreamExt, stream::BoxStream};
use lorikeet_api::{
    job::JobEvent,
    route::{self, with_id},
};
use lorikeet_protocol::id::JobId;
use reqwest::{Method, header};
use sse_stream::{Sse, SseByteStream};

/// Follows one job.
pub(crate) struct Events<'a> {
    client: &'a Client,
    job: JobId,
    /// Where a new connection goes on.
    last_id: Option<String>,
    /// The connection, while there is one.
    stream: Option<BoxStream<'static, Result<Sse, sse_stream::Error>>>,
    /// Connections that broke since the last event.
    broken: u32,
}

impl Client {
    /// From the job's beginning to its end.
    pub(crate) fn events(&self, job: JobId) -> Events<'_> {
        Events { client: self, job, last_id: None, stream: None, broken: 0 }
    }
}

impl Events<'_> {
    /// The next event. The stream never ends before `complete`; after it nothing should be asked.
    pub(crate) async fn next(&mut self) -> Result<JobEvent, Failure> {
        loop {
            let Some(stream) = &mut self.stream else {
                self.stream = Some(self.connect().await?);
                continue;
            };
            match stream.next().await {
                Some(Ok(block)) => {
                    if let Some(event) = self.read(block)? {
                        self.broken = 0;
                        return Ok(event);
                    }
                }
                Some(Err(_)) | None => {
                    self.stream = None;
                    self.back_off().await?;
                }
            }
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

    async fn connect(&mut self) -> Result<BoxStream<'static, Result<Sse, sse_stream::Error>>, Failure> {
        loop {
            let request = self.client.request(Method::GET, &with_id(route::JOB_EVENTS, self.job));
            let mut request = request.header(header::ACCEPT, "text/event-stream");
            if let Some(id) = &self.last_id {
                request = request.header("last-event-id", id);
            }
            match request.send().await {
                Ok(answer) if answer.status().is_success() => {
                    return Ok(SseByteStream::new(answer.bytes_stream()).boxed());
                }
                Ok(answer) if !answer.status().is_server_error() => return Err(refusal(answer).await),
                Ok(_) => self.back_off().await?,
                Err(error) if self.broken >= ATTEMPTS || !is_transport(&error) => {
                    return Err(self.client.unreachable(&error));
                }
                Err(_) => self.back_off().await?,
            }
        }
    }

    /// A coordinator that restarts is back soon; one that does not come back is told after a few tries.
    async fn back_off(&mut self) -> Result<(), Failure> {
        if self.broken > 2 * ATTEMPTS {
            return Err(Failure::unreachable("the event stream breaks off again and again")
                .hint("the job goes on without us; look with `lorikeet job show`"));
        }
        tokio::time::sleep(BACK_OFF * 2_u32.pow(self.broken.min(5))).await;
        self.broken += 1;
        Ok(())
    }
}

const KNOWN: [&str; 8] = ["progress", "metrics", "stage", "log", "cost", "checkpoint", "complete", "error"];
