//! Serial numbers of certificates: they say when they were drawn, so that a coordinator restored from an older copy can tell a
//! certificate that it issued since from one that it no longer lets in.
//!
//! ```text
//! 7e   milliseconds since 1970, 6 bytes, big-endian   9 random bytes       32 digits in hex: positive, no leading zero
//! ```

use lorikeet_protocol::id::UnixMillis;

/// What every serial number begins with.
const FIRST: u8 = 0x7e;

/// A serial number of this moment.
pub fn serial(now: UnixMillis, random: [u8; 9]) -> [u8; 16] {
    let mut serial = [0; 16];
    serial[0] = FIRST;
    serial[1..7].copy_from_slice(&now.0.to_be_bytes()[2..]);
    serial[7..].copy_from_slice(&random);
    serial
}

/// When a serial number, in hex, was drawn; `None`: it is none of ours.
pub fn drawn_at(serial: &str) -> Option<UnixMillis> {
    let digits = serial.strip_prefix("7e").filter(|rest| serial.len() == 32 && rest.is_ascii())?;
    u64::from_str_radix(&digits[..12], 16).ok().map(UnixMillis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_says_when_it_was_drawn() {
        let hex = |bytes: [u8; 16]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for now in [0, 1, 1_796_000_000_000, (1 << 48) - 1] {
            assert_eq!(drawn_at(&hex(serial(UnixMillis(now), [0xff; 9]))), Some(UnixMillis(now)));
        }
        for other in ["", "7e", "7f000000000000000000000000000000", "7e00000000000é0000000000000000"] {
            assert_eq!(drawn_at(other), None, "{other}");
        }
    }
}
