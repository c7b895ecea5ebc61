//! Points as the JSON of an answer, made piece by piece while it is sent: a hundred thousand of them are 20 MB.

use super::points::{Measured, Point};
use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use lorikeet_api::{
    Timestamp,
    job::{MetricsPoint, MissingLines},
};
use lorikeet_protocol::id::{AttemptId, AttemptToken, JobId};
use serde::{Serialize, Serializer, ser::SerializeStruct};
use std::{convert::Infallible, ops::Range};

/// Points of one piece: some 200 KB, made in half a millisecond.
const PIECE: usize = 1_000;

/// The envelope of a list of [`MetricsPoint`], as if it had been made whole.
pub(in super::super) fn answer(
    job: JobId,
    points: impl AsRef<[Point]> + Send + 'static,
    missing: &[MissingLines],
) -> Response {
    let many = points.as_ref().len();
    let pieces = (0..many).step_by(PIECE).map(move |start| piece(job, points.as_ref(), start..many.min(start + PIECE)));
    let words = |text: &'static [u8]| std::iter::once(Bytes::from_static(text));
    let whole = words(br#"{"success":true,"data":["#).chain(pieces).chain([end(missing)]);
    let body = Body::from_stream(futures_util::stream::iter(whole.map(Ok::<_, Infallible>)));
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// What stands behind the points.
fn end(missing: &[MissingLines]) -> Bytes {
    if missing.is_empty() {
        return Bytes::from_static(b"]}");
    }
    let missing = serde_json::to_string(missing).expect("numbers and ids, into memory");
    format!(r#"],"missing":{missing}}}"#).into()
}

fn piece(job: JobId, points: &[Point], range: Range<usize>) -> Bytes {
    let mut json = Vec::with_capacity(range.len() * 280);
    let mut attempt = (AttemptToken { generation: 0, number: 0 }, String::new());
    for index in range {
        let point = &points[index];
        if attempt.0 != point.token {
            attempt = (point.token, AttemptId { job, token: point.token }.to_string());
        }
        if index > 0 {
            json.push(b',');
        }
        let row = Row { attempt: &attempt.1, point: view(job, point) };
        serde_json::to_writer(&mut json, &row).expect("numbers and short words, into memory");
    }
    json.into()
}

/// A [`MetricsPoint`] whose attempt has its printed form already: to make that takes as long as all the rest of it.
struct Row<'a> {
    attempt: &'a str,
    point: MetricsPoint,
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let MetricsPoint { attempt: _, step, epoch, time, training_loss, .. } = &self.point;
        let MetricsPoint { validation_loss, learning_rate, gradient_norm, tokens_per_second, .. } = &self.point;
        let MetricsPoint {
            gpu_utilization_percent, gpu_memory_bytes, gpu_temperature_celsius, gpu_power_watts, ..
        } = &self.point;
        let mut row = serializer.serialize_struct("MetricsPoint", 13)?;
        row.serialize_field("attempt", self.attempt)?;
        row.serialize_field("step", step)?;
        row.serialize_field("epoch", epoch)?;
        row.serialize_field("time", time)?;
        row.serialize_field("trainingLoss", training_loss)?;
        row.serialize_field("validationLoss", validation_loss)?;
        row.serialize_field("learningRate", learning_rate)?;
        row.serialize_field("gradientNorm", gradient_norm)?;
        row.serialize_field("tokensPerSecond", tokens_per_second)?;
        // What is not known is not said: nearly every point of a CPU would be half as long again.
        gpu_utilization_percent.map_or(Ok(()), |percent| row.serialize_field("gpuUtilizationPercent", &percent))?;
        gpu_memory_bytes.map_or(Ok(()), |bytes| row.serialize_field("gpuMemoryBytes", &bytes))?;
        gpu_temperature_celsius.map_or(Ok(()), |celsius| row.serialize_field("gpuTemperatureCelsius", &celsius))?;
        gpu_power_watts.map_or(Ok(()), |watts| row.serialize_field("gpuPowerWatts", &watts))?;
        row.end()
    }
}

/// A point as others see it.
pub(in super::super) fn view(job: JobId, point: &Point) -> MetricsPoint {
    let felt = point.felt.unwrap_or_default();
    let nothing = MetricsPoint {
        attempt: AttemptId { job, token: point.token },
        step: point.step,
        epoch: None,
        time: Timestamp(point.time),
        training_loss: None,
        validation_loss: None,
        learning_rate: None,
        gradient_norm: None,
        tokens_per_second: None,
        gpu_utilization_percent: felt.utilization_percent,
        gpu_memory_bytes: felt.used_bytes,
        gpu_temperature_celsius: felt.temperature_celsius,
        gpu_power_watts: felt.power_watts,
    };
    match point.what {
        Measured::Evaluation { loss } => MetricsPoint { validation_loss: Some(loss), ..nothing },
        Measured::Step { epoch, loss, lr, grad_norm, tokens_per_second } => MetricsPoint {
            epoch: Some(epoch),
            training_loss: Some(loss),
            learning_rate: Some(lr),
            gradient_norm: Some(grad_norm),
            tokens_per_second,
            ..nothing
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::felt::Felt;
    use lorikeet_protocol::id::UnixMillis;

    #[test]
    fn a_piece_is_what_serde_makes_of_its_points() {
        let job = JobId(uuid::Uuid::from_u128(7));
        let step = Measured::Step { epoch: 0.5, loss: 1.25, lr: 1e-4, grad_norm: 3.0, tokens_per_second: None };
        let what = [step, step, Measured::Evaluation { loss: 2.0 }];
        let points: Vec<_> = (1..)
            .zip(what)
            .map(|(number, what)| Point {
                step: 3,
                // The first two by one attempt, the last by the next.
                token: AttemptToken { generation: 1, number: 1 + number / 3 },
                time: UnixMillis(1_000),
                what,
                felt: (number == 1).then_some(Felt { power_watts: Some(512.5), ..Felt::default() }),
            })
            .collect();
        let plain: Vec<_> = points.iter().map(|point| serde_json::to_string(&view(job, point)).unwrap()).collect();
        assert_eq!(piece(job, &points, 0..3), plain.join(","));
        assert_eq!(piece(job, &points, 1..2), format!(",{}", plain[1]));
    }
}
