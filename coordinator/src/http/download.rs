//! `/api/models/{id}/download`: one file as it is, or several as a tar stream made on the way, every chunk compared with its hash.

use super::{
    App,
    ask::{Id, Params},
    caller::Caller,
    failure::Failure,
    place::{Full, Place},
};
use crate::{
    blob::{BlobError, Blobs},
    record::Model,
};
use axum::{
    body::Body,
    extract::State,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use lorikeet_api::{ErrorCode, FieldError, route};
use lorikeet_protocol::{
    file::{FileManifest, NamedFile},
    id::{ModelId, UserId},
};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Tar's unit.
const BLOCK: u64 = 512;
/// A client that takes no part for so long has gone; it begins again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a part: a line of 35 kbit/s takes one in time.
const PART: usize = 256 << 10;
/// Parts read ahead of the client: a chunk of 16 MiB.
const AHEAD: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    #[serde(default = "everything")]
    artifact: String,
}

fn everything() -> String {
    "all".into()
}

/// A model's files: all of them or the tokenizer as a tar stream, one file as it is.
#[utoipa::path(get, path = route::MODEL_DOWNLOAD, tag = "models",
    params(("id" = String, Path), ("artifact" = Option<String>, Query, description = "all, adapter-model, adapter-config or tokenizer")),
    responses((status = 200, content_type = "application/x-tar", body = String)))]
pub(super) async fn download(
    State(app): State<Arc<App>>,
    caller: Caller,
    Id(id): Id<ModelId>,
    Params(wish): Params<Wish>,
) -> Result<Response, Failure> {
    let model = app.driver.model(caller.actor, id).await?;
    let named =
        |name: &str| -> Vec<NamedFile> { model.files.iter().filter(|file| file.path == name).cloned().collect() };
    match wish.artifact.as_str() {
        "all" => archive(&app, &caller, &model, model.files.clone()),
        "adapter-model" => single(&app, &caller, named("adapter_model.safetensors")),
        "adapter-config" => single(&app, &caller, named("adapter_config.json")),
        "tokenizer" => match tokenizer_files(&model) {
            files if files.is_empty() => Err(Failure::not_found("file")),
            files => archive(&app, &caller, &model, files),
        },
        other @ ("merged" | "gguf") => Err(Failure::fields(vec![FieldError::not_yet("artifact", other)])),
        other => {
            let expected = "all, adapter-model, adapter-config or tokenizer";
            Err(Failure::fields(vec![FieldError::new("artifact", other, expected)]))
        }
    }
}

fn tokenizer_files(model: &Model) -> Vec<NamedFile> {
    let names = ["tokenizer", "special_tokens_map", "chat_template", "vocab", "merges", "added_tokens"];
    let belongs = |file: &&NamedFile| names.iter().any(|name| file.path.starts_with(name));
    model.files.iter().filter(belongs).cloned().collect()
}

fn single(app: &App, caller: &Caller, files: Vec<NamedFile>) -> Result<Response, Failure> {
    let file = files.into_iter().next().ok_or_else(|| Failure::not_found("file"))?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (size, name) = (file.manifest.size, file.path.clone());
    let stream = Stream::of(app, caller, sender)?;
    app.tasks.spawn(async move { stream.file(&file.manifest).await });
    Ok(answer(receiver, size, &name, "application/octet-stream"))
}

fn archive(app: &App, caller: &Caller, model: &Model, files: Vec<NamedFile>) -> Result<Response, Failure> {
    let bodies: u64 = files.iter().map(|file| BLOCK + file.manifest.size.next_multiple_of(BLOCK)).sum();
    let size = bodies + 2 * BLOCK;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (stream, modified) = (Stream::of(app, caller, sender)?, model.created.0 / 1_000);
    app.tasks.spawn(async move { stream.archive(files, modified).await });
    Ok(answer(receiver, size, &format!("{}.tar", model.id), "application/x-tar"))
}

fn answer(receiver: mpsc::Receiver<Result<Bytes, BlobError>>, size: u64, name: &str, kind: &'static str) -> Response {
    // Names of ours: plain components of ASCII, so no quoting is needed.
    let disposition = HeaderValue::from_str(&format!("attachment; filename=\"{name}\""));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_LENGTH, HeaderValue::from(size)),
        (header::CONTENT_DISPOSITION, disposition.unwrap_or(HeaderValue::from_static("attachment"))),
    ];
    (headers, Body::from_stream(ReceiverStream::new(receiver))).into_response()
}

/// A place among the downloads.
fn place(app: &App, caller: &Caller) -> Result<Place<UserId>, Failure> {
    app.downloads.take(caller.actor.owner()?).map_err(|full| {
        let message = match full {
            Full::Each(most) => format!("you have {most} downloads under way, which is all one user may; wait for one"),
            Full::All(most) => format!("{most} downloads are under way, which is all there are; try again later"),
        };
        Failure::new(ErrorCode::RateLimited, message)
    })
}

/// The sending half of a download. Whatever fails breaks the connection, so that a client never takes half for whole.
struct Stream {
    blobs: Blobs,
    sender: mpsc::Sender<Result<Bytes, BlobError>>,
    _place: Place<UserId>,
}

/// The client has gone, or was told of a failure.
struct Gone;

impl Stream {
    fn of(app: &App, caller: &Caller, sender: mpsc::Sender<Result<Bytes, BlobError>>) -> Result<Self, Failure> {
        Ok(Self { blobs: app.blobs.clone(), sender, _place: place(app, caller)? })
    }

    async fn archive(self, files: Vec<NamedFile>, modified: u64) -> Result<(), Gone> {
        for file in &files {
            self.send(tar_header(file, modified)).await?;
            self.file(&file.manifest).await?;
            let padding = file.manifest.size.next_multiple_of(BLOCK) - file.manifest.size;
            self.send(vec![0; padding as usize]).await?;
        }
        self.send(vec![0; 2 * BLOCK as usize]).await
    }

    async fn file(&self, manifest: &FileManifest) -> Result<(), Gone> {
        for index in (0..).take(manifest.chunks.len()) {
            match self.blobs.chunk(manifest.hash, index).await {
                Ok(bytes) => self.send(bytes).await?,
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "a download was broken off");
                    let _ = self.sender.send_timeout(Err(error), PATIENCE).await;
                    return Err(Gone);
                }
            }
        }
        Ok(())
    }

    /// Part by part, so that a slow client that takes something is not taken for one that has gone.
    async fn send(&self, bytes: Vec<u8>) -> Result<(), Gone> {
        let mut rest = Bytes::from(bytes);
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(PART));
            self.sender.send_timeout(Ok(part), PATIENCE).await.map_err(|_| Gone)?;
        }
        Ok(())
    }
}

fn tar_header(file: &NamedFile, modified: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    // A plain path has at most 4 × 128 characters; ustar splits it, and one that does not fit is kept by its end.
    if header.set_path(&file.path).is_err() {
        let name: String = file.path.rsplit('/').next().unwrap_or("file").chars().filter(char::is_ascii).collect();
        let cut = &name[name.len().saturating_sub(99)..];
        header.set_path(cut).expect("99 plain ASCII characters fit a tar header");
    }
    header.set_size(file.manifest.size);
    header.set_mode(0o644);
    header.set_mtime(modified);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::place::Places;

    #[tokio::test]
    async fn a_chunk_leaves_in_parts_that_a_slow_line_takes_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let blobs = Blobs::open(&at("blobs"), &at("staging"), &[], 0).unwrap();
        let bytes: Vec<u8> = (0..3 * PART + 5).map(|index| (index / 9) as u8).collect();
        std::fs::write(at("source"), &bytes).unwrap();
        let manifest = blobs.put(at("source")).await.unwrap();
        let (sender, mut parts) = mpsc::channel(AHEAD);
        let _place = Places::new(1, 1).take(UserId(uuid::Uuid::nil())).unwrap();
        let sending = Stream { blobs, sender, _place }.file_and_end(manifest);
        let (mut lengths, mut found) = (Vec::new(), Vec::new());
        let taking = async {
            while let Some(part) = parts.recv().await {
                let part = part.unwrap();
                lengths.push(part.len());
                found.extend_from_slice(&part);
            }
        };
        tokio::join!(sending, taking);
        assert_eq!((lengths, found), (vec![PART, PART, PART, 5], bytes));
    }

    impl Stream {
        async fn file_and_end(self, manifest: FileManifest) {
            assert!(self.file(&manifest).await.is_ok());
        }
    }
}
