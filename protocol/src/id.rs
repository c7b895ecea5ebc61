//! Names of things. Every id has one printed form, used in logs, on the command line, over HTTP and in file names.
//!
//! Ids are UUIDv7, so their order is the order of their creation; printed as a prefix and 32 hex digits (`job_0192…`).
//! In JSON they are that string, in bincode the 16 bytes.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Text that should be an id and is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read `{found}` as an id: expected `{expected}`")]
pub struct IdError {
    /// What was given.
    pub found: String,
    /// What would be right.
    pub expected: &'static str,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl $name {
            /// What stands before the hex digits.
            pub const PREFIX: &'static str = $prefix;

            /// The 16 bytes, in the order in which ids sort.
            pub fn bytes(&self) -> [u8; 16] {
                *self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let wrong = || IdError { found: text.chars().take(64).collect(), expected: concat!($prefix, "<32 hex digits>") };
                parse_simple(text.strip_prefix($prefix).ok_or_else(wrong)?).map($name).ok_or_else(wrong)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { self.bytes().serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(deserializer).map(|bytes| $name(Uuid::from_bytes(bytes)))
                }
            }
        }
    )*};
}

ids! {
    /// What was asked for: one fine-tuning.
    JobId = "job_";
    /// Many jobs that were asked for at once.
    SweepId = "sweep_";
    /// A machine with an agent.
    NodeId = "node_";
    /// An uploaded training file.
    DatasetId = "ds_";
    /// The record of a finished adapter.
    ModelId = "mdl_";
    /// A registered base model.
    BaseId = "base_";
    /// A person.
    UserId = "usr_";
    /// A bearer token (its record, never the secret).
    TokenId = "tok_";
    /// One start of one machine: a new one means that nothing of before is alive.
    BootId = "boot_";
    /// One request over HTTP; the same in the log, the audit record and the answer's `x-request-id`.
    RequestId = "req_";
}

/// The 32 lower-case hex digits of a UUID and nothing else: two spellings of one id would be two names.
fn parse_simple(text: &str) -> Option<Uuid> {
    let plain = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| Uuid::try_parse(text).ok()).flatten()
}

/// Fences one placement of a job: (cluster generation, attempt number), compared as a pair. A restored coordinator has a
/// higher generation, so whatever the agents of the day before still say is older than anything it hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptToken {
    /// Raised by every restore from a backup.
    pub generation: u32,
    /// Counts from 1 within a job.
    pub number: u32,
}

impl fmt::Display for AttemptToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.number)
    }
}

impl FromStr for AttemptToken {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError { found: text.chars().take(64).collect(), expected: "<generation>.<number>" };
        let (generation, number) = text.split_once('.').ok_or_else(wrong)?;
        Ok(Self { generation: decimal(generation).ok_or_else(wrong)?, number: decimal(number).ok_or_else(wrong)? })
    }
}

/// A number as `Display` prints it: no sign, no leading zero.
fn decimal(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|number| number.to_string() == text)
}

/// One placement of one job. Its printed form, `job_…-1.3`, names the attempt's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// The job placed.
    pub job: JobId,
    /// Which placement.
    pub token: AttemptToken,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.job, self.token)
    }
}

impl FromStr for AttemptId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError {
            found: text.chars().take(96).collect(),
            expected: "job_<32 hex digits>-<generation>.<number>",
        };
        let (job, token) = text.split_once('-').ok_or_else(wrong)?;
        Ok(Self { job: job.parse().map_err(|_| wrong())?, token: token.parse().map_err(|_| wrong())? })
    }
}

impl Serialize for AttemptId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            (self.job, self.token).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for AttemptId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            <(JobId, AttemptToken)>::deserialize(deserializer).map(|(job, token)| Self { job, token })
        }
    }
}

/// One GPU by its UUID (`GPU-…`), or `cpu` for the CPU slot of a machine. Named by its node; unique within it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceId(pub String);

impl DeviceId {
    /// The CPU slot.
    pub fn cpu() -> Self {
        Self("cpu".into())
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A BLAKE3 hash. It names bytes; it never stands in for the right to read them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError { found: text.chars().take(80).collect(), expected: "<64 lower-case hex digits>" };
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = hex(pair[0]).zip(hex(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(wrong)?;
        }
        Ok(Self(bytes))
    }
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// A moment by the wall clock, in milliseconds since 1970 (UTC). For records and people; leases use a monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_read_back() {
        let job = JobId(Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001));
        assert_eq!(job.to_string(), "job_01920000000070008000000000000001");
        assert_eq!(job.to_string().parse(), Ok(job));
        let attempt = AttemptId { job, token: AttemptToken { generation: 1, number: 3 } };
        assert_eq!(attempt.to_string(), "job_01920000000070008000000000000001-1.3");
        assert_eq!(attempt.to_string().parse(), Ok(attempt));
        assert_eq!(serde_json::to_string(&attempt).unwrap(), format!("\"{attempt}\""));
    }

    #[test]
    fn another_spelling_of_an_id_is_refused() {
        for text in [
            "",
            "job_",
            "ds_01920000000070008000000000000001",
            "job_0192000000007000800000000000000G",
            "job_01920000-0000-7000-8000-000000000001",
        ] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
        for text in ["1", "1.", "01.2", "1.+2", "1.2.3"] {
            assert!(text.parse::<AttemptToken>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_newer_generation_outranks_any_number() {
        let old = AttemptToken { generation: 1, number: 900 };
        assert!(AttemptToken { generation: 2, number: 1 } > old);
    }

    #[test]
    fn a_hash_is_64_lower_case_digits() {
        let hash = Hash(std::array::from_fn(|i| i as u8));
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert!(hash.to_string().to_uppercase().parse::<Hash>().is_err());
        assert!("ab".parse::<Hash>().is_err());
    }
}
