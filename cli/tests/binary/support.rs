//! What the tests of the binary share: running it, a server that answers from a script, and pinned texts.
//!
//! `LORIKEET_PINS=write` rewrites the pinned files; the difference is then reviewed like any other.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

/// The binary, knowing nothing of whoever runs the tests.
pub(crate) fn lorikeet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lorikeet"));
    for name in ["LORIKEET_SERVER", "LORIKEET_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "COLUMNS"] {
        command.env_remove(name);
    }
    command.env("LORIKEET_PROFILE", "/nonexistent/profile.toml").env("NO_COLOR", "1").env("NO_PROXY", "*");
    command
}

/// Exit code, standard output, standard error.
pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary starts");
    let text = |bytes| String::from_utf8(bytes).expect("the binary speaks UTF-8");
    (status.code().expect("it is not killed"), text(stdout), text(stderr))
}

/// Compares with `tests/pins/NAME`, or rewrites it.
pub(crate) fn pin(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/pins").join(name);
    if std::env::var("LORIKEET_PINS").is_ok_and(|mode| mode == "write") {
        fs::create_dir_all(path.parent().expect("a pin lies in a folder")).expect("the folder of pins");
        fs::write(&path, text).expect("the pin is written");
    }
    let pinned = fs::read_to_string(&path).unwrap_or_default();
    assert!(pinned == text, "{} differs; LORIKEET_PINS=write rewrites it. Now:\n{text}", path.display());
}

/// What a client asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// `GET /api/…`
    pub(crate) line: String,
    /// Lower-case names.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// An answer: status line, further headers, body.
#[derive(Debug, Clone)]
pub(crate) struct Scripted {
    pub(crate) status: &'static str,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// How many bytes of the body are sent before the connection breaks; all of them when `None`.
    pub(crate) breaks_after: Option<usize>,
}

impl Scripted {
    pub(crate) fn json(status: &'static str, body: impl Into<String>) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { status, headers, body: body.into().into_bytes(), breaks_after: None }
    }

    pub(crate) fn data(data: &str) -> Self {
        Self::json("200 OK", format!("{{\"success\":true,\"data\":{data}}}"))
    }

    pub(crate) fn empty(status: &'static str, headers: &[(&'static str, &str)]) -> Self {
        let headers = headers.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        Self { status, headers, body: Vec::new(), breaks_after: None }
    }

    pub(crate) fn events(text: &str) -> Self {
        let headers = vec![("content-type", "text/event-stream".to_owned())];
        Self { status: "200 OK", headers, body: text.as_bytes().to_vec(), breaks_after: None }
    }
}

/// Answers one request after the other from a script, on a free port of the loopback, and keeps what was asked.
pub(crate) struct FakeServer {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeServer {
    /// The thread ends with the script.
    pub(crate) fn new(script: impl IntoIterator<Item = Scripted>) -> Self {
        Self::start(script, false)
    }

    /// Where a body breaks off, its connection stays open, and nothing more comes.
    pub(crate) fn stalling(script: impl IntoIterator<Item = Scripted>) -> Self {
        Self::start(script, true)
    }

    fn start(script: impl IntoIterator<Item = Scripted>, stalls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut script: VecDeque<_> = script.into_iter().collect();
        let heard = asked.clone();
        thread::spawn(move || {
            while let Some(answer) = script.pop_front() {
                let (stream, _) = listener.accept().expect("a client");
                if let Some(request) = read_request(&mut BufReader::new(&stream)) {
                    let head = request.line.starts_with("HEAD");
                    heard.lock().expect("no test panics here").push(request);
                    write_answer(&stream, &answer, head);
                }
                if stalls && answer.breaks_after.is_some() {
                    // until the client is gone
                    let _rest = (&stream).read_to_end(&mut Vec::new());
                }
            }
        });
        Self { url, asked }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no test panics here").clone()
    }

    /// The binary, pointed here.
    pub(crate) fn client(&self) -> Command {
        let mut command = lorikeet();
        command.args(["--server", &self.url, "--token", "secret"]);
        command
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length =
        headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let line = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    Some(Asked { line, headers, body })
}

fn write_answer(mut stream: impl Write, answer: &Scripted, head: bool) {
    let mut text =
        format!("HTTP/1.1 {}\r\nconnection: close\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
    answer.headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    text.push_str("\r\n");
    let sent = answer.breaks_after.unwrap_or(answer.body.len());
    let body = if head { &[][..] } else { &answer.body[..sent] };
    // A client that left early is the test's business, not the server's.
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(body));
}

/// A file of this crate's tests.
pub(crate) fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).expect("a file in a temporary folder");
    path
}
