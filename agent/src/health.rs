//! What is wrong with this machine as a node, and what to do: looked at from outside, whether an agent runs here or not. Nothing is
//! changed by looking; the coordinator sees one handshake.

use crate::{
    beneath::{self, For},
    cache, clock,
    config::Config,
    disk, gpu,
    link::{Caller, DialError, IdentityError, LinkError, Timers, chain, identity::Identity},
    places::{LOCK, Places},
    room,
};
use lorikeet_protocol::{ALPN_CONTROL, health::Finding, settings::Fault};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// A certificate that ran out longer ago than this can no longer be renewed.
const RENEWABLE: Duration = Duration::from_secs(90 * 86_400);

/// Looks at everything that the config names.
pub async fn look(config: &Config) -> Vec<Finding> {
    let places = Places::new(&config.data_dir);
    let mut found = vec![data(&config.data_dir), running(&places)];
    found.extend(worker(config));
    found.push(room(config, &places));
    found.extend(devices(config));
    match Identity::load(&places.identity()) {
        Ok(identity) => {
            found.extend(certificate(&identity));
            found.push(coordinator(identity, config).await);
        }
        Err(error @ IdentityError::NotJoined(_)) => {
            let advice =
                "make a join string with `lorikeet node token`, then `lorikeet agent join STRING --config FILE` here";
            found.push(Finding::bad("identity", chain(&error), advice));
        }
        Err(error) => {
            let advice = "run this as the agent's user; if the files are lost, move identity/ aside and join again";
            found.push(Finding::bad("identity", chain(&error), advice));
        }
    }
    found
}

fn data(data: &Path) -> Finding {
    let what = "data directory";
    let Ok(folder) = data.metadata() else {
        return Finding::warning(what, format!("{} is not there", data.display()), "joining makes it");
    };
    let mode = folder.permissions().mode() & 0o777;
    if let Err(error) = disk::check_writable(data) {
        let advice = "run the agent, and this, as the user that owns it";
        return Finding::bad(what, chain(&error), advice);
    }
    if mode & 0o077 != 0 {
        let found = format!("{} is open to others (mode {mode:o})", data.display());
        return Finding::warning(what, found, "users' data lies in it: `chmod 700`");
    }
    Finding::ok(what, format!("{}, closed to others", data.display()))
}

fn running(places: &Places) -> Finding {
    let opened = beneath::open_file(places.data(), Path::new(LOCK), For::Reading);
    let runs = opened.is_ok_and(|file| file.try_lock_shared().is_err());
    Finding::ok("agent", if runs { "it runs" } else { "it does not run" })
}

fn worker(config: &Config) -> Vec<Finding> {
    let faults = config.program_faults();
    if !faults.is_empty() {
        let bad =
            |fault: Fault| Finding::bad("worker", fault, "the agent does not start before the config is put right");
        return faults.into_iter().map(bad).collect();
    }
    let program = config.worker.command.first().map(PathBuf::from).map_or_else(std::env::current_exe, Ok);
    vec![match program {
        Ok(program) => Finding::ok("worker", program.display()),
        Err(_) => Finding::bad("worker", "this program does not find itself", "name it in worker.command"),
    }]
}

fn room(config: &Config, places: &Places) -> Finding {
    if let Some(trouble) = room::trouble(&config.data_dir) {
        return Finding::bad("disk", trouble, "make room: nothing is placed here until there is some");
    }
    let free = room::free(&config.data_dir);
    let used = cache::taken(&places.cache());
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let found = format!("{} free, the cache holds {} of {}", gib(free), gib(used), gib(config.cache.budget));
    if free.saturating_add(used) < config.cache.budget {
        return Finding::warning("disk", found, "cache.budget is more than the disk gives: lower it");
    }
    Finding::ok("disk", found)
}

fn devices(config: &Config) -> Vec<Finding> {
    let seen = gpu::Probe::new(&config.devices).look(clock::wall()).seen;
    if seen.devices.is_empty() {
        let advice = "NVIDIA's driver is missing, or devices.only names others; `nvidia-smi -L` lists them";
        return vec![Finding::bad("devices", "there is none to train on", advice)];
    }
    let of = |device: &lorikeet_protocol::job::Device| match &device.usable {
        Ok(()) => Finding::ok("device", format!("{} ({})", device.name, device.id)),
        Err(why) => {
            let found = format!("{} ({}) is not offered: {why}", device.name, device.id);
            Finding::warning("device", found, "this is what `lorikeet nodes` shows for it")
        }
    };
    seen.devices.iter().map(of).collect()
}

fn certificate(identity: &Identity) -> Vec<Finding> {
    let wall = Duration::from_millis(clock::wall().0);
    let days = |time: Duration| time.as_secs() / 86_400;
    let (what, node) = ("identity", identity.node);
    let Ok((from, to)) = identity.validity() else {
        return vec![Finding::bad(what, "its certificate does not read", "move identity/ aside and join again")];
    };
    let mut found = Vec::new();
    if wall < from {
        let advice = "set this machine's clock; run a time service";
        found.push(Finding::bad("clock", "it is behind the moment this node's certificate begins", advice));
    }
    found.push(if wall < to {
        Finding::ok(what, format!("{node}, certificate for {} more days", days(to - wall)))
    } else if wall < to + RENEWABLE {
        let found = format!("{node}, its certificate ran out {} days ago", days(wall - to));
        Finding::warning(what, found, "the agent renews it as soon as it reaches the coordinator")
    } else {
        let found = format!("{node}, its certificate ran out {} days ago", days(wall - to));
        Finding::bad(what, found, "move identity/ aside and join again")
    });
    found
}

/// One handshake: it proves address, network, both certificates and that this node is not shut out at the door.
async fn coordinator(identity: Identity, config: &Config) -> Finding {
    let what = "coordinator";
    let address = config.coordinator.clone().unwrap_or_else(|| identity.address.clone());
    let caller = match Caller::new(identity, config.coordinator.clone(), Timers::new(&config.link)) {
        Ok(caller) => caller,
        Err(error) => return Finding::bad(what, chain(&error), "UDP sockets are not allowed here"),
    };
    match caller.dial(&[ALPN_CONTROL]).await {
        Ok(connection) => {
            connection.close(0u32.into(), b"only looking");
            caller.part().await;
            Finding::ok(what, format!("{address} answers, and is the one this node joined"))
        }
        Err(error @ LinkError::Dial(DialError::Name { .. })) => Finding::bad(
            what,
            chain(&error),
            "put the name right, or name another with `coordinator` in the agent's config",
        ),
        Err(error @ LinkError::Impostor(_)) => Finding::bad(
            what,
            chain(&error),
            "compare `lorikeet ca show` on the coordinator; if it was set up anew, or its CA rotated while this machine was away, join again",
        ),
        Err(error @ LinkError::CertificateRefused(_)) => Finding::bad(
            what,
            chain(&error),
            "if it was revoked or retired, or its CA was rotated out while this machine was away: move identity/ aside and join again",
        ),
        Err(error) => Finding::bad(
            what,
            chain(&error),
            "is it running, and does a firewall let UDP through to its link port, both ways?",
        ),
    }
}
