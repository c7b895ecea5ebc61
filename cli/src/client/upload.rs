//! Uploads: the core of tus 1.0. HEAD asks how much is there, PATCH adds to it; what broke off goes on where it stopped. A link
//! works for a while only: when it has expired, a fresh one is asked for.

use super::{ATTEMPTS, BACK_OFF, Client, LONGEST_BACK_OFF, is_transport, jitter, refusal};
use crate::failure::Failure;
use bytes::Bytes;
use lorikeet_api::{
    dataset::DatasetCreated,
    route::{self, with_id},
};
use lorikeet_protocol::backoff::Backoff;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use std::path::Path;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};

/// Bytes of one PATCH: what is sent again at most when a connection breaks.
const PART_BYTES: u64 = 8 << 20;

impl Client {
    /// Sends `file` (of `size` bytes) to where `created` says; `progress` hears how many bytes are there.
    pub(crate) async fn upload(
        &self,
        created: &DatasetCreated,
        file: &Path,
        size: u64,
        progress: impl Fn(u64),
    ) -> Result<(), Failure> {
        let mut opened = File::open(file).await.map_err(|error| Failure::file("open", file, &error))?;
        let (mut url, mut fresh) = (created.upload_url.clone(), true);
        let mut offset = self.offset(&url).await?;
        // Counts broken connections and conflicts since the last byte that arrived, whoever sent it.
        let mut broken = 0;
        let mut back_off = Backoff::new(BACK_OFF, LONGEST_BACK_OFF);
        while offset < size {
            progress(offset);
            let part =
                read_part(&mut opened, offset, size).await.map_err(|error| Failure::file("read", file, &error))?;
            match self.part(&url, offset, part).send().await {
                Ok(answer) if answer.status().is_success() => {
                    offset = upload_offset(&answer)?;
                    (broken, fresh) = (0, false);
                    back_off.reset();
                }
                // A link that took something before and is refused now has expired.
                Ok(answer) if answer.status() == StatusCode::FORBIDDEN && !fresh => {
                    let path = with_id(route::DATASET_UPLOAD_URL, created.dataset.id);
                    let renewed: DatasetCreated = self.post(&path, &[], &serde_json::json!({})).await?;
                    (url, fresh) = (renewed.upload_url, true);
                }
                // Another writer, or an answer that was lost: the server knows best how much it has. While another writes and gets on,
                // it is waited for.
                Ok(answer) if answer.status() == StatusCode::CONFLICT && broken < ATTEMPTS => {
                    tokio::time::sleep(back_off.wait(jitter())).await;
                    let here = self.offset(&url).await?;
                    broken += 1;
                    if here > offset {
                        broken = 0;
                        back_off.reset();
                    }
                    offset = here;
                }
                Ok(answer) => return Err(refusal(answer).await),
                Err(error) if broken < ATTEMPTS && is_transport(&error) => {
                    tokio::time::sleep(back_off.wait(jitter())).await;
                    broken += 1;
                    offset = self.offset(&url).await?;
                }
                Err(error) => {
                    return Err(self.unreachable(&error).hint("run the same command again to go on from here"));
                }
            }
        }
        progress(offset);
        Ok(())
    }

    async fn offset(&self, url: &str) -> Result<u64, Failure> {
        upload_offset(&self.send(|| tus(self.request(Method::HEAD, url))).await?)
    }

    fn part(&self, url: &str, offset: u64, part: Bytes) -> RequestBuilder {
        tus(self.request(Method::PATCH, url))
            .header("upload-offset", offset)
            .header(header::CONTENT_TYPE, "application/offset+octet-stream")
            .body(part)
    }
}

fn tus(request: RequestBuilder) -> RequestBuilder {
    request.header("tus-resumable", "1.0.0")
}

fn upload_offset(answer: &Response) -> Result<u64, Failure> {
    let offset = answer.headers().get("upload-offset").and_then(|value| value.to_str().ok()?.parse().ok());
    offset.ok_or_else(|| Failure::unreachable("the upload's address answers without an Upload-Offset"))
}

async fn read_part(file: &mut File, offset: u64, size: u64) -> std::io::Result<Bytes> {
    file.seek(std::io::SeekFrom::Start(offset)).await?;
    let wanted = PART_BYTES.min(size - offset);
    let mut part = Vec::with_capacity(wanted as usize);
    file.take(wanted).read_to_end(&mut part).await?;
    if part.is_empty() {
        return Err(std::io::Error::other("it became shorter while it was sent"));
    }
    Ok(part.into())
}
