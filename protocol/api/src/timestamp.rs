//! Moments in JSON: RFC 3339, UTC, milliseconds.

use lorikeet_protocol::id::UnixMillis;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{borrow::Cow, fmt};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{KnownFormat, ObjectBuilder, RefOr, SchemaFormat, Type, schema::Schema},
};

/// A moment by the wall clock; `2026-01-31T12:00:00.000Z` in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub UnixMillis);

impl From<UnixMillis> for Timestamp {
    fn from(millis: UnixMillis) -> Self {
        Self(millis)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, millis) = (self.0.0 / 1_000, self.0.0 % 1_000);
        let moment = OffsetDateTime::from_unix_timestamp(seconds as i64).ok();
        let form = moment.filter(|moment| moment.year() <= 9_999).map(|moment| written(moment, millis as u32));
        // Beyond the year 9999 there is no such form; a record that says so is damaged, and shows it.
        f.write_str(form.as_ref().and_then(|form| str::from_utf8(form).ok()).unwrap_or("9999-12-31T23:59:59.999Z"))
    }
}

/// Digit by digit: a curve has a hundred thousand of them, and a general form takes ten times as long.
fn written(moment: OffsetDateTime, millis: u32) -> [u8; 24] {
    let mut form = *b"0000-00-00T00:00:00.000Z";
    let mut put = |end: usize, mut value: u32| {
        for digit in form[..end].iter_mut().rev().take_while(|byte| byte.is_ascii_digit()) {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(4, moment.year().unsigned_abs());
    put(7, u8::from(moment.month()).into());
    put(10, moment.day().into());
    put(13, moment.hour().into());
    put(16, moment.minute().into());
    put(19, moment.second().into());
    put(23, millis);
    form
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let moment = OffsetDateTime::parse(&text, &Rfc3339).map_err(D::Error::custom)?;
        let millis = u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).map_err(D::Error::custom)?;
        Ok(Self(UnixMillis(millis)))
    }
}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
    }
}

impl ToSchema for Timestamp {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_reads_back_as_it_was_written() {
        let moment = Timestamp(UnixMillis(1_767_225_600_123));
        let text = serde_json::to_string(&moment).unwrap();
        assert_eq!(text, "\"2026-01-01T00:00:00.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&text).unwrap(), moment);
        assert_eq!(serde_json::from_str::<Timestamp>("\"2026-01-01T01:00:00.123+01:00\"").unwrap(), moment);
    }

    #[test]
    fn a_moment_is_written_as_rfc_3339_says() {
        let form =
            time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        // Every 40 days and some, over eight hundred years.
        for millis in (0..25_000_000_000_000u64).step_by(3_456_789_012) {
            let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).unwrap();
            assert_eq!(Timestamp(UnixMillis(millis)).to_string(), moment.format(form).unwrap());
        }
        let last = Timestamp(UnixMillis(253_402_300_799_999));
        assert_eq!(
            [last, Timestamp(UnixMillis(u64::MAX))].map(|moment| moment.to_string()),
            ["9999-12-31T23:59:59.999Z"; 2]
        );
    }
}
