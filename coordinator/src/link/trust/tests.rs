//! From one CA to the next: who follows whom, and what a crash leaves at every step.

use super::*;
use rustls::client::{WebPkiServerVerifier, danger::ServerCertVerifier};
use rustls_pki_types::ServerName;
use std::fs;

#[test]
fn who_trusts_only_the_older_ca_follows_it_to_the_next_until_it_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let trust = Trust::open(folder.path()).unwrap();
    let old = trust.now().current().certificate().clone();
    let https = vec!["coordinator.example".to_owned()];
    assert!(follows(&old, &trust, &[]));
    trust.begin().unwrap();
    let next = trust.now().issuing().certificate().clone();
    for names in [&[][..], &https] {
        assert!(follows(&old, &trust, names), "the older CA vouches for the next one");
        assert!(follows(&next, &trust, names), "a machine that joins now knows the next one alone");
    }
    // Who pins by hash and is shown no such certificate is told the hash of the one that signs: it comes last.
    let shown = trust.now().server(&[]).unwrap();
    assert!(shown.cert.last() == Some(&next) && !shown.cert.contains(&old));
    trust.finish(trust.now().issuing().hash()).unwrap();
    assert!(follows(&next, &trust, &[]) && !follows(&old, &trust, &[]));
}

#[test]
fn a_rotation_that_is_asked_for_twice_is_one_and_a_finish_of_another_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let trust = Trust::open(folder.path()).unwrap();
    let old = trust.now().current().hash();
    trust.finish(old).unwrap();
    trust.begin().unwrap();
    let next = trust.now().issuing().hash();
    trust.begin().unwrap();
    trust.finish(old).unwrap();
    assert_eq!(hashes(&trust), [next, old]);
    trust.finish(next).unwrap();
    trust.finish(next).unwrap();
    assert_eq!(hashes(&trust), [next]);
    assert_eq!(hashes(&Trust::open(folder.path()).unwrap()), [next]);
    trust.begin().unwrap();
    assert!(!hashes(&trust).contains(&old) && hashes(&trust).contains(&next));
}

#[test]
fn a_rotation_cut_off_at_any_step_is_taken_up_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let open = || Trust::open(folder.path()).unwrap();
    let read = || Authorities::read(folder.path()).unwrap().trusted().map(Authority::hash).collect::<Vec<_>>();
    let old = open().now().current().hash();
    // Begun, but nobody has seen it: the key alone.
    fs::write(at("next.key"), fs::read(at("ca.key")).unwrap()).unwrap();
    assert_eq!((read(), hashes(&open())), (vec![old], vec![old]));
    open().begin().unwrap();
    let next = open().now().issuing().hash();
    assert_eq!(hashes(&open()), [next, old]);
    // Finishing, step by step as `finish` does it.
    fs::copy(at("ca.pem"), at("former.pem")).unwrap();
    assert_eq!((read(), hashes(&open())), (vec![next, old], vec![next, old]));
    fs::rename(at("next.key"), at("ca.key")).unwrap();
    assert_eq!(read(), [next], "looking finds it finished");
    assert!(at("next.pem").exists(), "and changes nothing");
    assert_eq!(hashes(&open()), [next]);
    assert!(!at("next.pem").exists() && Authority::open(folder.path()).unwrap().hash() == next);
}

#[test]
fn a_key_that_was_lost_in_the_middle_is_named_and_nothing_is_made_of_what_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    Trust::open(folder.path()).unwrap().begin().unwrap();
    let before = fs::read(at("ca.pem")).unwrap();
    fs::rename(at("next.key"), at("elsewhere")).unwrap();
    let error = Trust::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("next.pem is not for the key in") && error.contains("ca.key"), "{error}");
    assert_eq!(fs::read(at("ca.pem")).unwrap(), before);
    fs::rename(at("elsewhere"), at("next.key")).unwrap();
    assert_eq!(hashes(&Trust::open(folder.path()).unwrap()).len(), 2);
}

#[test]
fn a_file_that_is_damaged_is_named_with_what_it_should_hold() {
    for (name, bytes, expected) in [
        ("ca.pem", &b"nothing"[..], "a certificate in PEM"),
        ("ca.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "a private key in PEM"),
        ("next.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "next.pem"),
        ("next.key", b"", "a private key in PEM"),
        ("ca.key", b"\xff\xfe", "ca.key"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        Trust::open(folder.path()).unwrap().begin().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = lorikeet_protocol::chain(&Trust::open(folder.path()).unwrap_err());
        assert!(error.contains(&path.display().to_string()) && error.contains(expected), "{name}: {error}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "it is left as it is");
    }
}

#[test]
fn a_ca_does_not_follow_itself() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    Trust::open(folder.path()).unwrap();
    for end in ["pem", "key"] {
        fs::copy(at("ca").with_extension(end), at("next").with_extension(end)).unwrap();
    }
    let error = Trust::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("next.pem") && error.contains("remove"), "{error}");
}

#[test]
fn a_finish_remembers_whom_it_followed_once_and_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let trust = Trust::open(folder.path()).unwrap();
    let read = || fs::read_to_string(folder.path().join("former.pem")).unwrap();
    let mut all = vec![];
    for n in 1..=FORMERS + 2 {
        all.insert(0, trust.now().current().pem().trim_end().to_owned());
        trust.begin().unwrap();
        if n == 2 {
            // One that was cut off after its first step.
            fs::write(folder.path().join("former.pem"), formers(&folder.path().join("former.pem"), &all[0])).unwrap();
        }
        trust.finish(trust.now().issuing().hash()).unwrap();
        assert_eq!(read(), all[..n.min(FORMERS)].join("\n") + "\n");
    }
}

#[test]
fn keys_are_private_and_the_older_one_is_gone_at_the_end() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let trust = Trust::open(folder.path()).unwrap();
    let (old_key, old_pem) = (fs::read(at("ca.key")).unwrap(), fs::read(at("ca.pem")).unwrap());
    trust.begin().unwrap();
    assert_eq!(fs::metadata(at("next.key")).unwrap().permissions().mode() & 0o777, 0o600);
    trust.finish(trust.now().issuing().hash()).unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        assert!(fs::read(entry.unwrap().path()).unwrap() != old_key);
    }
    let former = fs::read(at("former.pem")).unwrap();
    assert_eq!(former.trim_ascii(), old_pem.trim_ascii(), "a backup of before is recognised by it");
    assert_eq!(fs::metadata(at("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn no_file_changes_while_a_backup_copies_them() {
    let folder = tempfile::tempdir().unwrap();
    let trust = Trust::open(folder.path()).unwrap();
    let (one, two) = (trust.hold_still().unwrap(), trust.hold_still().unwrap());
    assert!(matches!(trust.begin(), Err(LinkError::Held)));
    drop((one, two));
    let change = trust.change().unwrap();
    assert!(trust.hold_still().is_none());
    drop(change);
    trust.begin().unwrap();
}

#[test]
fn a_key_is_private_where_a_file_of_before_lies_in_its_way() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let trust = Trust::open(folder.path()).unwrap();
    fs::write(at("next.aside"), "half").unwrap();
    fs::set_permissions(at("next.aside"), fs::Permissions::from_mode(0o644)).unwrap();
    trust.begin().unwrap();
    assert_eq!(fs::metadata(at("next.key")).unwrap().permissions().mode() & 0o777, 0o600);
}

impl Trust {
    /// Begins a rotation of what is in force.
    pub(crate) fn begin(&self) -> Result<(), LinkError> {
        self.change()?.begin(self.now().current().hash())
    }

    pub(crate) fn finish(&self, next: Hash) -> Result<(), LinkError> {
        self.change()?.finish(next)
    }
}

/// Whether somebody who trusts this CA alone believes what the coordinator shows.
fn follows(ca: &CertificateDer<'static>, trust: &Trust, names: &[String]) -> bool {
    let shown = trust.now().server(names).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider()).build().unwrap();
    let name = ServerName::try_from(lorikeet_protocol::COORDINATOR_NAME).unwrap();
    verifier.verify_server_cert(&shown.cert[0], &shown.cert[1..], &name, &[], UnixTime::now()).is_ok()
}

fn hashes(trust: &Trust) -> Vec<Hash> {
    trust.now().trusted().map(Authority::hash).collect()
}
