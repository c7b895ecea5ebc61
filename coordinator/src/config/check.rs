//! Which values of the config cannot be, alone or together; each is named with what would do.

use super::{Config, ConfigError};
use axum::http::Uri;
use lorikeet_api::FieldError;
use lorikeet_protocol::settings;
use rustls_pki_types::ServerName;
use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

/// A machine that is stolen should not be believed for long.
const LONGEST_VALIDITY: Duration = Duration::from_secs(366 * 86_400);

/// Who is silent for longer than a day is not merely late.
const LONGEST_LEASE: Duration = Duration::from_secs(86_400);

/// Nobody can take an upload URL back, and an upload that broke off is kept no longer.
const LONGEST_UPLOAD: Duration = Duration::from_secs(7 * 86_400);

/// Between the weights of two users; beyond a thousand the lighter one would in truth get nothing.
const WEIGHTS: RangeInclusive<f64> = 0.001..=1_000.0;

impl Config {
    /// Whether the values can stand together; names every one that cannot.
    pub fn check(&self) -> Result<(), ConfigError> {
        let faults = self.faults();
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::Values(faults)) }
    }

    pub(super) fn faults(&self) -> Vec<FieldError> {
        let mut faults = Vec::new();
        let mut refuse = |wrong: bool, field: &str, value: &dyn std::fmt::Display, expected: &str| {
            if wrong {
                faults.push(FieldError::new(field, value, expected));
            }
        };
        let (timers, show) = (&self.timers, |duration| humantime::format_duration(duration).to_string());
        refuse(self.data.as_os_str().is_empty(), "data", &"\"\"", "a directory");
        for root in &self.base_roots {
            refuse(!root.is_absolute(), "base_roots", &root.display(), "absolute paths");
        }
        refuse(!is_email(&self.admin_email), "admin_email", &self.admin_email, "an e-mail address");
        let (chain, key) = (self.http.certificate.is_some(), self.http.key.is_some());
        refuse(chain && !key, "http.key", &"missing", "the key of http.certificate");
        refuse(key && !chain, "http.certificate", &"missing", "the certificate of http.key");
        refuse(self.http.timeout < Duration::from_secs(1), "http.timeout", &show(self.http.timeout), "at least 1s");
        let (all, each) = (self.http.connections, self.http.connections_per_address);
        refuse(all == 0, "http.connections", &0, "1 or more");
        refuse(each == 0, "http.connections_per_address", &0, "1 or more");
        refuse(self.http.idle < Duration::from_secs(1), "http.idle", &show(self.http.idle), "at least 1s");
        let ttl = self.http.upload_ttl;
        refuse(ttl < Duration::from_secs(60), "http.upload_ttl", &show(ttl), "at least 1m");
        refuse(ttl > LONGEST_UPLOAD, "http.upload_ttl", &show(ttl), "7days at most");
        if let Some(url) = &self.http.public_url {
            refuse(!is_url(url), "http.public_url", url, "a URL like https://lorikeet.example:7170");
        }
        for name in &self.http.names {
            refuse(!is_host(name), "http.names", name, "DNS names and IP addresses");
        }
        let validity = self.link.certificate_ttl;
        // Renewed at half of it, by an agent that may be silent for a lease and is not away: each half has room for that twice.
        let short = validity < timers.lease.saturating_mul(4).max(Duration::from_secs(1));
        refuse(short, "link.certificate_ttl", &show(validity), "four times timers.lease and 1s at least");
        refuse(validity > LONGEST_VALIDITY, "link.certificate_ttl", &show(validity), "a year at most");
        let slow = self.link.bandwidth.filter(|bytes| *bytes < 1 << 20);
        refuse(slow.is_some(), "link.bandwidth", &slow.unwrap_or(0), "1MiB a second at least");
        if let Some(address) = &self.link.advertise {
            refuse(!settings::is_address(address), "link.advertise", address, "host:port");
            let nowhere = address.parse().is_ok_and(|address: SocketAddr| address.ip().to_canonical().is_unspecified());
            refuse(nowhere, "link.advertise", address, "an address that agents can dial");
        }
        let beat = timers.heartbeat;
        refuse(beat < Duration::from_millis(10), "timers.heartbeat", &show(beat), "at least 10ms");
        // Two beats may be lost without a word about it.
        refuse(timers.lease > LONGEST_LEASE, "timers.lease", &show(timers.lease), "a day at most");
        refuse(timers.lease < beat.saturating_mul(3), "timers.lease", &show(timers.lease), "three heartbeats at least");
        refuse(timers.offer.is_zero(), "timers.offer", &show(timers.offer), "more than nothing");
        refuse(timers.offer > LONGEST_LEASE, "timers.offer", &show(timers.offer), "a day at most");
        let (first, limit) = (timers.back_off, timers.back_off_limit);
        refuse(first.is_zero(), "timers.back_off", &show(first), "more than nothing");
        refuse(limit < first, "timers.back_off_limit", &show(limit), "timers.back_off at least");
        refuse(limit > LONGEST_LEASE, "timers.back_off_limit", &show(limit), "a day at most");
        // With a margin of nothing two jobs of one priority would put each other out for ever.
        let margin = self.scheduler.preemption_margin.unwrap_or(1);
        refuse(!(1..=100).contains(&margin), "scheduler.preemption_margin", &margin, "1 to 100");
        // With a limit of none nothing would ever run.
        for (field, most) in
            [("jobs_per_user", self.scheduler.jobs_per_user), ("gpus_per_user", self.scheduler.gpus_per_user)]
        {
            refuse(most == Some(0), &format!("scheduler.{field}"), &0, "1 or more, or no limit");
        }
        let staged = self.storage.attempt_limit;
        refuse(staged < 1 << 20, "storage.attempt_limit", &staged, "1MiB at least: an adapter has to fit");
        for (user, weight) in &self.scheduler.weights {
            let field = format!("scheduler.weights.{user}");
            refuse(!is_email(user), &field, user, "the e-mail address of a user, in quotes");
            // No number is in no range.
            refuse(!WEIGHTS.contains(weight), &field, weight, "0.001 to 1000");
        }
        let (job, all) = (self.storage.series_limit, self.storage.series_total);
        refuse(job < 1 << 20, "storage.series_limit", &job, "1MiB at least");
        refuse(all < job, "storage.series_total", &all, "storage.series_limit at least");
        // What has come and is not on record yet looks like what no record names any more.
        let unreferenced = self.storage.unreferenced;
        let hour = Duration::from_secs(3_600);
        refuse(unreferenced < hour, "storage.unreferenced", &show(unreferenced), "1h at least");
        let kept = self.storage.keep_series.unwrap_or(Duration::MAX);
        refuse(kept < hour, "storage.keep_series", &show(kept.min(LONGEST_LEASE)), "1h at least");
        // A repeated request is answered with what it made for a day.
        for (field, kept) in
            [("storage.keep_jobs", self.storage.keep_jobs), ("storage.keep_audit", self.storage.keep_audit)]
        {
            let kept = kept.unwrap_or(Duration::MAX);
            refuse(kept < Duration::from_secs(86_400), field, &show(kept.min(LONGEST_LEASE)), "1day at least");
        }
        refuse(self.inspect.at_once == 0, "inspect.at_once", &0, "1 or more");
        refuse(self.inspect.memory < 64 << 20, "inspect.memory", &self.inspect.memory, "64MiB at least");
        // Files that could not be read in time are refused for good.
        let within = self.inspect.timeout;
        refuse(within < Duration::from_secs(1), "inspect.timeout", &show(within), "at least 1s");
        if let Some(program) = &self.inspect.program {
            // It is started in other folders than this one.
            refuse(!program.is_absolute(), "inspect.program", &program.display(), "an absolute path");
        }
        faults
    }
}

fn is_email(text: &str) -> bool {
    let parts = text.split_once('@').filter(|_| !text.contains(char::is_whitespace));
    parts.is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
}

/// What a certificate can be valid for; a whole level of names too: `*.lorikeet.example`.
fn is_host(text: &str) -> bool {
    ServerName::try_from(text.strip_prefix("*.").unwrap_or(text)).is_ok()
}

/// Without question or fragment: paths are put behind it.
fn is_url(text: &str) -> bool {
    let is_ours = |url: Uri| {
        let host = url.host().is_some_and(|host| !host.is_empty());
        host && matches!(url.scheme_str(), Some("http" | "https")) && url.query().is_none()
    };
    !text.contains('#') && text.parse().is_ok_and(is_ours)
}

#[cfg(test)]
mod tests {
    use super::{super::list, *};

    #[test]
    fn values_with_which_nothing_would_ever_run_are_refused() {
        for (text, expected) in [
            ("[link]\ncertificate_ttl = \"99999y\"\n", "link.certificate_ttl"),
            ("[timers]\noffer = \"99999y\"\n", "timers.offer"),
            ("[scheduler]\njobs_per_user = 0\n", "scheduler.jobs_per_user is 0"),
            ("[scheduler]\ngpus_per_user = 0\n", "scheduler.gpus_per_user is 0"),
            ("[storage]\nattempt_limit = \"0\"\n", "storage.attempt_limit is 0"),
            ("[storage]\nkeep_free = \"99999999999999999999GiB\"\n", "99999999999999999999GiB"),
        ] {
            let error = list(&Config::parse(text).unwrap_err());
            assert!(error.contains(expected) && error.contains("line 2"), "{text}: {error}");
        }
    }

    #[test]
    fn values_that_would_be_regretted_later_are_refused_at_the_start() {
        let long = "18446744073709551615s";
        for (section, key, good, bad) in [
            (
                "http",
                "names",
                r#"["lorikeet.example", "*.lorikeet.example", "10.0.0.7", "fd00::7"]"#,
                &[r#"["not a name"]"#, r#"["https://lorikeet.example"]"#, r#"["lorikeet.example:7170"]"#, r#"[""]"#][..],
            ),
            (
                "http",
                "public_url",
                r#""https://lorikeet.example:7170/""#,
                &[
                    r#""https://""#,
                    r#""https://:7170""#,
                    r#""ftp://lorikeet.example""#,
                    r#""https://a b""#,
                    r#""https://a/?b""#,
                    r#""https://a/#b""#,
                ],
            ),
            (
                "link",
                "advertise",
                r#""[fd00::7]:7171""#,
                &[
                    r#""lorikeet.example""#,
                    r#""lorikeet.example:""#,
                    r#""lorikeet.example:0""#,
                    r#"":7171""#,
                    r#""a b:7171""#,
                    r#""fd00::7:7171""#,
                    // It is listened on and cannot be dialled.
                    r#""0.0.0.0:7171""#,
                    r#""[::]:7171""#,
                    r#""[::ffff:0.0.0.0]:7171""#,
                ],
            ),
            // An agent that is silent for a lease is not away: it must find its certificate good.
            ("link", "certificate_ttl", r#""2m""#, &[r#""1s""#, r#""119s""#, r#""0s""#]),
            ("inspect", "program", r#""/usr/bin/lorikeet""#, &[r#""lorikeet""#, r#""./lorikeet""#, r#""""#]),
            ("inspect", "timeout", r#""1s""#, &[r#""0s""#, r#""1ms""#]),
            // What was uploaded and is in no record yet would go with the next sweep.
            ("storage", "unreferenced", r#""1h""#, &[r#""0s""#, r#""59m""#]),
            ("storage", "keep_series", r#""1h""#, &[r#""0s""#]),
            ("storage", "keep_jobs", r#""1day""#, &[r#""0s""#]),
            ("storage", "keep_audit", r#""1day""#, &[r#""0s""#]),
            ("timers", "back_off", r#""1ms""#, &[r#""0s""#]),
            ("timers", "back_off_limit", r#""1day""#, &[&format!("{long:?}")]),
            ("http", "upload_ttl", r#""7days""#, &[&format!("{long:?}")]),
        ] {
            let read = |value: &str| Config::parse(&format!("[{section}]\n{key} = {value}\n"));
            read(good).unwrap_or_else(|faults| panic!("{}", list(&faults)));
            for value in bad {
                let error = list(&read(value).unwrap_err());
                assert!(error.contains(&format!("line 2: {section}.{key} is ")), "{value}: {error}");
                assert!(error.contains("expected "), "{value}: {error}");
            }
        }
        // A number that overflows is a fault like another.
        let error = list(&Config::parse(&format!("[timers]\nheartbeat = {long:?}\n")).unwrap_err());
        assert!(error.contains("three heartbeats at least"), "{error}");
        for email in ["admin", "@", "admin@", "@localhost", "ad min@localhost"] {
            let error = list(&Config::parse(&format!("admin_email = {email:?}\n")).unwrap_err());
            assert!(error.contains("line 1: admin_email"), "{email}: {error}");
        }
    }

    #[test]
    fn of_a_certificate_and_its_key_the_one_that_is_missing_is_named() {
        for (there, absent) in [("certificate", "key"), ("key", "certificate")] {
            let error = list(&Config::parse(&format!("[http]\n{there} = \"/etc/lorikeet/it.pem\"\n")).unwrap_err());
            assert!(
                error.contains(&format!("http.{absent} is missing, expected the {absent} of http.{there}")),
                "{error}"
            );
        }
    }
}
