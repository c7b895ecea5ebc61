//! What the values of a config have to be, alone and beside each other, whatever machine it is for.

use super::Config;
use lorikeet_protocol::{
    agent::{LABELS, WORD},
    file::CHUNK_BYTES,
    settings::{Fault, is_address},
};
use std::time::Duration;

impl Config {
    /// Every value that makes none.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        self.check_timers(&mut faults);
        self.check_words(&mut faults);
        self.check_environment(&mut faults);
        let mut require = |holds, key, expected, found: &dyn std::fmt::Display| {
            faults.extend(refuse_unless(holds, key, expected, found));
        };
        let worker = &self.worker;
        let slack = worker.memory_slack;
        require((1.0..=1_000.0).contains(&slack), "worker.memory_slack", "from 1 to 1000", &slack);
        let threads = worker.threads.unwrap_or(1);
        require((1..=4_096).contains(&threads), "worker.threads", "from 1 to 4096", &threads);
        let limit = worker.memory_limit.unwrap_or(u64::MAX);
        require(limit >= 64 << 20, "worker.memory_limit", "at least 64 MiB: no worker runs in less", &limit);
        let (log, events) = (worker.log_limit, worker.events_limit);
        require(log >= 64 << 10, "worker.log_limit", "at least 64 KiB", &log);
        require(events >= 1 << 20, "worker.events_limit", "at least 1 MiB", &events);
        let budget = self.cache.budget;
        require(
            budget >= CHUNK_BYTES,
            "cache.budget",
            "at least 16 MiB, a chunk: every job fetches its files into it",
            &budget,
        );
        let parallel = self.cache.parallel;
        require((1..=16).contains(&parallel), "cache.parallel", "from 1 to 16", &parallel);
        let slow = self.cache.bandwidth.filter(|bytes| *bytes < 1 << 20);
        require(slow.is_none(), "cache.bandwidth", "at least 1 MiB", &slow.unwrap_or(0));
        let scrub = self.cache.scrub;
        require(scrub == 0 || scrub >= 1 << 20, "cache.scrub", "0, or at least 1 MiB", &scrub);
        let share = &self.share;
        let (given, least) = (share.bandwidth, "at least 8 MiB: with less a chunk comes too late to be of use");
        require(given >= 8 << 20, "share.bandwidth", least, &given);
        if let Some(address) = share.address {
            require(share.listen.is_some(), "share.address", "beside share.listen", &address);
            let ip = address.ip().to_canonical();
            let several = ip.is_multicast() || ip == std::net::IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
            let is_one = address.port() != 0 && !ip.is_unspecified() && !several;
            require(is_one, "share.address", "an address that others can reach", &address);
        }
        let (keep, idle) = (self.link.keep_alive, self.link.idle_timeout);
        require(keep < idle, "link.idle_timeout", "longer than link.keep_alive", &humantime::format_duration(idle));
        let (first, longest) = (self.link.backoff_first, self.link.backoff_longest);
        let found = humantime::format_duration(longest);
        require(first <= longest, "link.backoff_longest", "no shorter than link.backoff_first", &found);
        let burn_in = self.devices.burn_in.as_ref();
        let expected = "a program and its arguments, or left out for the worker's own test";
        require(burn_in.is_none_or(|words| !words.is_empty()), "devices.burn_in", expected, &"an empty list");
        let mut ids = std::collections::BTreeSet::new();
        for fake in &self.devices.fake {
            require(fake.memory > 0, "devices.fake", "devices with memory", &format!("{} with none", fake.id));
            require(!fake.id.is_empty(), "devices.fake", "devices with an id", &"one without");
            require(ids.insert(&fake.id), "devices.fake", "devices with an id each", &fake.id);
        }
        faults
    }

    /// What a coordinator would not listen to.
    fn check_words(&self, faults: &mut Vec<Fault>) {
        let count = self.labels.len();
        faults.extend(refuse_unless(count <= LABELS, "labels", &format!("at most {LABELS}"), &count));
        // A job cannot ask for it.
        let without_key = self.labels.get("").map(|value| format!("\"\" = {value:?}")).unwrap_or_default();
        faults.extend(refuse_unless(without_key.is_empty(), "labels", "labels with a key each", &without_key));
        let expected = format!("at most {WORD} bytes, as its key");
        for (key, value) in &self.labels {
            let (short, bytes) = (&key[..key.floor_char_boundary(WORD)], key.len().max(value.len()));
            faults.extend(refuse_unless(bytes <= WORD, &format!("labels.{short}"), &expected, &bytes));
        }
        let ids = self.devices.fake.iter().map(|fake| fake.id.len());
        let longest = ids.max().unwrap_or(0);
        let expected = format!("devices with an id of at most {WORD} bytes");
        faults.extend(refuse_unless(longest <= WORD, "devices.fake", &expected, &longest));
    }

    /// What no process can be started with, or nobody be reached at.
    fn check_environment(&self, faults: &mut Vec<Fault>) {
        let data = &self.data_dir;
        // It is told to workers, which start elsewhere.
        faults.extend(refuse_unless(
            data.is_absolute(),
            "data_dir",
            "an absolute path",
            &format!("`{}`", data.display()),
        ));
        for (key, value) in &self.worker.env {
            let is_name = !key.is_empty() && !key.contains(['=', '\0']);
            faults.extend(refuse_unless(is_name, "worker.env", "variables with a name", &format!("{key:?}")));
            let is_value = !value.contains('\0');
            faults.extend(refuse_unless(is_value, "worker.env", "values without a zero byte", &format!("{value:?}")));
        }
        if let Some(address) = &self.coordinator {
            faults.extend(refuse_unless(
                is_address(address),
                "coordinator",
                "host:port, `lorikeet.example:7171`",
                &format!("`{address}`"),
            ));
        }
        let name = self.name.as_deref().unwrap_or("absent");
        faults.extend(refuse_unless(
            !name.trim().is_empty(),
            "name",
            "what people call this node, or left out",
            &format!("{name:?}"),
        ));
    }

    fn check_timers(&self, faults: &mut Vec<Fault>) {
        let timers = [
            ("devices.probe", self.devices.probe),
            ("devices.report", self.devices.report),
            ("devices.release_grace", self.devices.release_grace),
            ("worker.save_grace", self.worker.save_grace),
            ("worker.discard_grace", self.worker.discard_grace),
            ("worker.start_grace", self.worker.start_grace),
            ("worker.stall_after", self.worker.stall_after),
            ("worker.poll", self.worker.poll),
            ("worker.memory_poll", self.worker.memory_poll),
            ("worker.progress", self.worker.progress),
            ("link.connect_timeout", self.link.connect_timeout),
            ("link.keep_alive", self.link.keep_alive),
            ("link.idle_timeout", self.link.idle_timeout),
            ("link.backoff_first", self.link.backoff_first),
            ("link.backoff_longest", self.link.backoff_longest),
            ("link.report_retry", self.link.report_retry),
        ];
        for (key, timer) in timers {
            let fits = Duration::from_millis(1) <= timer && timer <= Duration::from_secs(86_400);
            faults.extend(refuse_unless(fits, key, "from 1ms to 1day", &humantime::format_duration(timer)));
        }
    }
}

pub(super) fn refuse_unless(holds: bool, key: &str, expected: &str, found: &dyn std::fmt::Display) -> Option<Fault> {
    let message = || format!("must be {expected}, found {found}");
    (!holds).then(|| Fault { line: None, key: key.to_owned(), message: message() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Worker;

    #[test]
    fn a_value_out_of_range_is_named_with_what_would_do() {
        for (text, key) in [
            ("[worker]\nmemory_slack = 0.5", "worker.memory_slack"),
            ("[worker]\npoll = \"0s\"", "worker.poll"),
            ("[worker]\nmemory_limit = \"0\"", "worker.memory_limit: must be at least 64 MiB"),
            ("[worker]\nmemory_limit = 4096", "worker.memory_limit: must be at least 64 MiB"),
            ("[worker.env]\n\"A=B\" = \"1\"", "worker.env: must be variables with a name, found \"A=B\""),
            ("[worker.env]\nA = \"\\u0000\"", "worker.env: must be values without a zero byte"),
            ("[cache]\nbudget = 0", "cache.budget: must be at least 16 MiB"),
            ("[devices]\nburn_in = []", "devices.burn_in: must be a program and its arguments"),
            ("[[devices.fake]]\nid = \"a\"\nname = \"x\"\nmemory = 0", "devices.fake: must be devices with memory"),
            ("data_dir = \"agent\"", "data_dir: must be an absolute path, found `agent`"),
            ("coordinator = \"lorikeet.example\"", "coordinator: must be host:port"),
            ("coordinator = \"lorikeet.example:0\"", "coordinator: must be host:port"),
            ("coordinator = \"fd00::7:7171\"", "coordinator: must be host:port"),
            ("name = \" \"", "name: must be what people call this node"),
            ("[link]\nidle_timeout = \"1s\"", "link.idle_timeout"),
            ("[cache]\nparallel = 0", "cache.parallel"),
            ("[share]\nbandwidth = \"1 MiB\"", "share.bandwidth"),
            ("[share]\naddress = \"192.0.2.7:7172\"", "share.address"),
            ("[share]\nlisten = \"0.0.0.0:7172\"\naddress = \"0.0.0.0:7172\"", "share.address"),
            ("[share]\nlisten = \"0.0.0.0:7172\"\naddress = \"224.0.0.1:7172\"", "share.address"),
            (
                "[[devices.fake]]\nid = \"a\"\nname = \"x\"\nmemory = 1\n[[devices.fake]]\nid = \"a\"\nname = \"x\"\nmemory = 1",
                "devices.fake",
            ),
        ] {
            let error = toml::from_str::<Config>(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn numbers_with_which_no_worker_runs_are_refused_by_name() {
        for (worker, expected) in [
            (Worker { memory_slack: 1e300, ..Worker::default() }, "worker.memory_slack"),
            (Worker { memory_slack: f64::NAN, ..Worker::default() }, "worker.memory_slack"),
            (Worker { threads: Some(99_999_999), ..Worker::default() }, "worker.threads"),
        ] {
            let error = Config { worker, ..Config::default() }.check().unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn labels_that_no_coordinator_listens_to_are_refused_by_name() {
        let with = |labels: Vec<(String, String)>| Config { labels: labels.into_iter().collect(), ..Config::default() };
        let many = |count: usize| with((0..count).map(|number| (number.to_string(), String::new())).collect());
        let long = |bytes: usize| with(vec![("rack".into(), "b".repeat(bytes))]);
        many(LABELS).check().unwrap();
        long(WORD).check().unwrap();
        let error = many(LABELS + 1).check().unwrap_err().to_string();
        assert!(error.contains("labels: must be at most 64, found 65"), "{error}");
        let error = long(WORD + 1).check().unwrap_err().to_string();
        assert!(error.contains("labels.rack: must be at most 256 bytes"), "{error}");
        let error = with(vec![(String::new(), "b4".into())]).check().unwrap_err().to_string();
        assert!(error.contains("labels: must be labels with a key each, found \"\" = \"b4\""), "{error}");
    }
}
