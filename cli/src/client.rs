//! HTTP to a coordinator: `lorikeet-api`'s types in and out, every refusal a [`Failure`].
//!
//! A POST carries an `Idempotency-Key`, so that it may be sent again when a connection broke before its answer came: what was
//! done is then answered, not done twice. TLS and pinning stand in [`tls`], uploads in [`upload`], event streams in [`events`].

pub(crate) mod events;
pub(crate) mod tls;
pub(crate) mod upload;

use crate::{
    failure::{Failure, chain},
    profile::Connection,
};
use lorikeet_api::{Envelope, ErrorEnvelope, LinesEnvelope, Pagination, job::MissingLines};
use lorikeet_protocol::{backoff::Backoff, id::Hash};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header};
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;
use uuid::Uuid;

/// How often a request is sent when nobody answers: a coordinator that restarts is back within a second or two.
const ATTEMPTS: u32 = 5;
/// Before the second time at most; the most is doubled before each further one.
const BACK_OFF: Duration = Duration::from_millis(200);
/// No pause is longer: whoever follows a job wants to see soon that the coordinator is back.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);
/// No byte for so long: the connection is dead. Event streams are kept alive by the server every 15 s.
const SILENCE: Duration = Duration::from_secs(60);
/// Where the server reads a whole file before it answers: the ten minutes that its config gives an inspection, and a margin.
const PATIENCE: Duration = Duration::from_secs(11 * 60);

/// A coordinator and the right to talk to it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// For requests whose answer takes the server long.
    patient: reqwest::Client,
    server: Url,
    token: Option<String>,
    /// Told by TLS.
    followed: tls::Followed,
}

impl Client {
    /// Connects to nothing yet.
    pub(crate) fn new(connection: &Connection) -> Result<Self, Failure> {
        Self::waiting(connection, SILENCE, PATIENCE)
    }

    fn waiting(connection: &Connection, silence: Duration, patience: Duration) -> Result<Self, Failure> {
        let server = address(&connection.server)?;
        let followed = tls::Followed::default();
        let http = |silence| {
            let mut http = builder().read_timeout(silence);
            if let Some(pem) = &connection.ca {
                http = http.tls_backend_preconfigured(tls::pinned(pem, &followed)?);
            }
            http.build().map_err(Failure::bug)
        };
        let (http, patient, token) = (http(silence)?, http(patience)?, connection.token.clone());
        Ok(Self { http, patient, server, token, followed })
    }

    /// The authority that follows the pinned one, once a connection has shown it.
    pub(crate) fn followed_by(&self) -> Option<Hash> {
        self.followed.get().copied()
    }

    /// One thing.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, Failure> {
        Ok(self.ask::<Envelope<T>>(path, query).await?.data)
    }

    async fn ask<E: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<E, Failure> {
        let answer = self.send(|| self.request(Method::GET, path).query(query)).await?;
        self.envelope(answer).await
    }

    /// One page of a list.
    pub(crate) async fn page<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<(Vec<T>, Option<Pagination>), Failure> {
        let envelope = self.ask::<Envelope<Vec<T>>>(path, query).await?;
        Ok((envelope.data, envelope.meta.map(|meta| meta.pagination)))
    }

    /// The whole list, page by page.
    pub(crate) async fn all<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Vec<T>, Failure> {
        Ok(self.all_said(path, query).await?.0)
    }

    /// The same of what was made of an attempt's lines, with the lines that are missing.
    pub(crate) async fn all_said<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<(Vec<T>, Vec<MissingLines>), Failure> {
        let (mut rows, mut missing) = (Vec::new(), Vec::new());
        for page in 1_u32.. {
            let mut query = query.to_vec();
            query.extend([("page", page.to_string()), ("pageSize", "100".to_owned())]);
            let mut answer = self.ask::<LinesEnvelope<Vec<T>>>(path, &query).await?;
            rows.append(&mut answer.data);
            missing = answer.missing;
            if !answer.meta.is_some_and(|meta| meta.pagination.has_more) {
                break;
            }
        }
        Ok((rows, missing))
    }

    /// What was made of an attempt's lines in one piece, with the lines that are missing.
    pub(crate) async fn said<T: DeserializeOwned>(&self, path: &str) -> Result<(T, Vec<MissingLines>), Failure> {
        let LinesEnvelope { data, missing, .. } = self.ask(path, &[]).await?;
        Ok((data, missing))
    }

    /// Asks for a change.
    pub(crate) async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        body: &B,
    ) -> Result<T, Failure> {
        let key = Uuid::now_v7().to_string();
        let http = if is_slow(path, query) { &self.patient } else { &self.http };
        let request =
            || self.request_by(http, Method::POST, path).query(query).header("idempotency-key", &key).json(body);
        let answer = self.send(request).await?;
        Ok(self.envelope::<Envelope<T>>(answer).await?.data)
    }

    /// Asks for a change of what is there.
    pub(crate) async fn patch<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, Failure> {
        let answer = self.send(|| self.request(Method::PATCH, path).json(body)).await?;
        Ok(self.envelope::<Envelope<T>>(answer).await?.data)
    }

    /// Asks for a change that has no answer but that it was done.
    pub(crate) async fn order(&self, path: &str) -> Result<(), Failure> {
        self.told(Method::POST, path).await
    }

    /// Deletes; what it was is of no interest afterwards.
    pub(crate) async fn delete(&self, path: &str) -> Result<(), Failure> {
        self.told(Method::DELETE, path).await
    }

    /// Done once, however often it has to be sent.
    async fn told(&self, method: Method, path: &str) -> Result<(), Failure> {
        let key = Uuid::now_v7().to_string();
        let answer = self.send(|| self.request(method.clone(), path).header("idempotency-key", &key)).await;
        answer.map(|_| ())
    }

    /// Bytes as they come, of a good answer.
    pub(crate) async fn download(&self, path: &str, query: &[(&str, String)]) -> Result<Response, Failure> {
        self.send(|| self.request(Method::GET, path).query(query)).await
    }

    /// Asks; again when nobody can have begun to answer; a refusal is a failure.
    async fn send(&self, request: impl Fn() -> RequestBuilder) -> Result<Response, Failure> {
        let mut back_off = Backoff::new(BACK_OFF, LONGEST_BACK_OFF);
        for attempt in 1.. {
            match request().send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) => return Err(refusal(answer).await),
                Err(error) if attempt < ATTEMPTS && is_transport(&error) && !is_slowness(&error) => {
                    tokio::time::sleep(back_off.wait(jitter())).await;
                }
                Err(error) => return Err(self.unreachable(&error)),
            }
        }
        unreachable!("the loop has no end of its own")
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_by(&self.http, method, path)
    }

    fn request_by(&self, http: &reqwest::Client, method: Method, path: &str) -> RequestBuilder {
        let url = self.url(path);
        let ours = url.origin() == self.server.origin();
        let request = http.request(method, url);
        match &self.token {
            // An upload URL may lead elsewhere; its signature is all that place needs to see.
            Some(token) if ours => request.bearer_auth(token),
            _ => request,
        }
    }

    /// A path of this server, or a whole URL as it is.
    fn url(&self, path: &str) -> Url {
        self.server.join(path).expect("our own paths and the server's URLs join; what does not parse is a path")
    }

    async fn envelope<E: DeserializeOwned>(&self, answer: Response) -> Result<E, Failure> {
        let bytes = answer.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Failure::unreachable(format!("{} does not answer like a coordinator: {error}", self.server))
                .hint("is it another program, or another version?")
        })
    }

    /// Nobody answers.
    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        // The error's own words only repeat the URL.
        let text = std::error::Error::source(error).map_or_else(|| chain(error), chain);
        let failure = Failure::unreachable(format!("reach {}: {text}", self.server));
        if text.contains("InvalidContentType") {
            let plain = self.server.as_str().replacen("https", "http", 1);
            failure.hint(format!("it answers, but without TLS: is {plain} meant?"))
        } else if text.contains("invalid HTTP version") && self.server.scheme() == "http" {
            let safe = self.server.as_str().replacen("http", "https", 1);
            failure.hint(format!("it answers, but not in plain HTTP: is {safe} meant?"))
        } else if is_slowness(error) {
            failure.hint("it took the request and did not answer in time; whether it was done, the lists tell")
        } else if text.contains("certificate") || text.contains("UnknownIssuer") {
            failure.hint("pin the coordinator's certificate authority with `lorikeet login URL --ca-hash HASH`")
        } else {
            failure.hint("is the coordinator running, and the address right?")
        }
    }
}

/// What all our HTTP has in common.
pub(crate) fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("lorikeet/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(SILENCE)
        .redirect(reqwest::redirect::Policy::none())
}

/// A server's URL: https, or http on this machine only, where nobody listens in.
pub(crate) fn address(server: &str) -> Result<Url, Failure> {
    let wrong = |why: &str| {
        Failure::mistake(format!("`{server}` is not the address of a coordinator: {why}"))
            .hint("an address looks like https://coordinator.example:7170")
    };
    if !server.contains("://") {
        let failure = wrong("it does not begin with https://");
        let plain = Url::parse(&format!("http://{server}")).ok();
        return Err(match plain.filter(|url| url.host_str().is_some_and(is_loopback)) {
            Some(url) => failure.hint(format!("is {} meant?", url.as_str().trim_end_matches('/'))),
            None => failure,
        });
    }
    let url = Url::parse(server).map_err(|error| wrong(&error.to_string()))?;
    match (url.scheme(), url.host_str()) {
        ("https", Some(_)) => Ok(url),
        ("http", Some(host)) if is_loopback(host) => Ok(url),
        ("http", Some(_)) => {
            Err(wrong("http is spoken on the loopback only; beyond it a token would be readable by all"))
        }
        _ => Err(wrong("expected https://HOST:PORT")),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether the request may not have been understood at all, so that asking again makes sense.
fn is_transport(error: &reqwest::Error) -> bool {
    error.is_connect() || error.is_timeout() || error.is_request()
}

/// Whether somebody took the request and is only slow. Asking again would start the same work once more.
fn is_slowness(error: &reqwest::Error) -> bool {
    error.is_timeout() && !error.is_connect()
}

/// What the server answers only after it has read a whole file.
fn is_slow(path: &str, query: &[(&str, String)]) -> bool {
    path.ends_with("/confirm") || query.iter().any(|(name, _)| *name == "dry_run")
}

/// Evenly drawn. Where the system has no randomness, the middle: jitter is a courtesy.
fn jitter() -> u64 {
    getrandom::u64().unwrap_or(u64::MAX / 2)
}

/// What a bad answer says.
async fn refusal(answer: Response) -> Failure {
    let (status, url) = (answer.status(), answer.url().clone());
    let retry = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok().map(str::to_owned));
    let bytes = answer.bytes().await.unwrap_or_default();
    let failure = match serde_json::from_slice::<ErrorEnvelope>(&bytes) {
        Ok(envelope) => Failure::from(envelope.error),
        Err(_) => unexplained(status, &url),
    };
    match retry {
        Some(seconds) => failure.hint(format!("try again in {seconds} s")),
        None => failure,
    }
}

fn unexplained(status: StatusCode, url: &Url) -> Failure {
    if status == StatusCode::NOT_FOUND {
        return Failure::unreachable(format!("{url} is not there: does a coordinator of this version listen?"));
    }
    Failure::refused(format!("the server answered {status} to {}", url.path()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read, net::TcpListener};

    #[tokio::test]
    async fn a_server_that_is_slow_is_asked_once_and_where_it_may_be_slow_it_is_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let connection = Connection { server, token: None, ca: None };
        let client = Client::waiting(&connection, Duration::from_millis(50), Duration::from_secs(60)).unwrap();
        let dry_run = [("dry_run", "true".to_owned())];
        let slow = tokio::spawn({
            let client = client.clone();
            async move { client.post::<_, u32>("/api/jobs", &dry_run, &()).await }
        });
        let (mut first, listener) = tokio::task::spawn_blocking(move || (accept(&listener), listener)).await.unwrap();
        let failure = client.get::<u32>("/api/nodes", &[]).await.unwrap_err();
        assert_eq!(failure.kind.exit_code(), 4);
        assert!(failure.hint.unwrap().contains("did not answer in time"));
        assert!(!slow.is_finished(), "the other was asked before and still waits");
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 25\r\n\r\n{\"success\":true,\"data\":7}";
        std::io::Write::write_all(&mut first, answer).unwrap();
        assert_eq!(slow.await.unwrap().unwrap(), 7);
        drop(accept(&listener));
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "nobody asked a second time");
    }

    /// A connection on which something was asked.
    fn accept(listener: &TcpListener) -> std::net::TcpStream {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0; 16];
        stream.read_exact(&mut asked).unwrap();
        stream
    }

    #[test]
    fn an_address_without_a_scheme_is_told_so() {
        let failure = address("far.example:7170").unwrap_err();
        assert!(failure.message.contains("does not begin with https://"));
        assert!(failure.hint.unwrap().contains("https://coordinator.example:7170"));
        for near in ["127.0.0.1:7170", "localhost:7170"] {
            assert_eq!(address(near).unwrap_err().hint, Some(format!("is http://{near} meant?")));
        }
    }

    #[test]
    fn plain_http_is_for_the_loopback_alone() {
        for good in ["http://127.0.0.1:7170", "http://localhost:1", "http://[::1]:2", "https://far.example:7170"] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in ["http://far.example", "http://10.0.0.1:7170", "far.example:7170", "ftp://127.0.0.1", "", "https://"]
        {
            assert_eq!(address(bad).unwrap_err().kind.exit_code(), 2, "{bad}");
        }
    }
}
