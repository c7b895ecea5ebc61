//! Values with a unit, as people write them: `30s`, `512MiB`.

use serde::{Deserialize, Deserializer, de::Error as _};

/// `5s`, `1m 30s`, `200ms`.
pub(super) mod duration {
    use super::*;
    use std::time::Duration;

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(|_| D::Error::custom(format!("`{text}` is no duration like `30s`")))
    }
}

/// `512MiB`, `4GiB`.
pub(super) mod bytes {
    use super::*;

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let size = text.parse::<bytesize::ByteSize>();
        size.map(|size| size.0).map_err(|_| D::Error::custom(format!("`{text}` is no size like `512MiB`")))
    }
}
