//! Somebody has the CA's key and knows a node's id and the serial number of its certificate. The node's own key it has not.

use super::*;
use rcgen::{DnType, ExtendedKeyUsagePurpose, Issuer, SerialNumber};

#[tokio::test]
async fn a_certificate_of_a_stolen_ca_with_a_known_number_gets_neither_session_nor_renewal_nor_bytes() {
    let world = World::new();
    let (identity, key) = world.node(50).await;
    let mut node = world.control((&identity, &key)).await;
    assert!(matches!(node.hello(1).await, ToAgent::Welcome(_)));
    let (thief, stolen) = (new_key(), world.forged(&identity, Duration::from_secs(600)));
    let forged = Identity { certificate: stolen(&thief), ..identity.clone() };
    assert_eq!(world.identify(&forged.certificate).shown.serial, world.identify(&identity.certificate).shown.serial);
    for rotated in [false, true] {
        if rotated {
            world.services.trust.begin().unwrap();
        }
        let mut control = world.control((&forged, &thief)).await;
        assert_eq!(control.hello(1).await, ToAgent::Goodbye(Farewell::Revoked));
        for asked in [&thief, &key] {
            let mut control = world.control((&forged, &thief)).await;
            control.say(FromAgent::Renew(request(asked))).await;
            assert_eq!(control.hear().await, ToAgent::Goodbye(Farewell::Misbehaved));
        }
        let blob = world.dial(ALPN_BLOB, Some((&forged, &thief))).await.unwrap();
        assert_eq!(close_code(&blob).await, CloseCode::Busy as u32);
    }
    // The node itself goes on, with its own key and with no other.
    node.say(FromAgent::Renew(request(&thief))).await;
    node.say(FromAgent::Renew(request(&key))).await;
    let ToAgent::Renewed(certificate) = node.hear().await else { panic!("no certificate") };
    assert_eq!(world.identify(&certificate).shown.key, world.identify(&identity.certificate).shown.key);
    assert!(world.identify(&certificate).shown.is_newest && !world.identify(&identity.certificate).shown.is_newest);
}

#[tokio::test]
async fn a_session_whose_first_certificate_ran_out_meanwhile_is_not_ended_by_a_rotation() {
    let world = World::new();
    let (identity, key) = world.node(51).await;
    let over = CertificateDer::from(world.forged(&identity, Duration::ZERO)(&key));
    assert!(world.identify(&over).expired);
    let trust = &world.services.trust;
    assert!(trust.now().let_in(&over), "its end in time is not trust's to judge");
    trust.begin().unwrap();
    assert!(trust.now().let_in(&over));
    trust.finish(trust.now().issuing().hash()).unwrap();
    assert!(!trust.now().let_in(&over), "who signed it is");
}

impl World {
    /// Certificates for any key with the name and number of this one, of the CA in force; the last moment lies `life` ahead, and two seconds
    /// back for none.
    fn forged(&self, identity: &Identity, life: Duration) -> impl Fn(&KeyPair) -> Vec<u8> + use<> {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join("ca").join(name)).unwrap();
        let ca = self.services.trust.now().current().certificate().clone();
        let issuer = Issuer::from_ca_cert_der(&ca, KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
        let certificate = CertificateDer::from(identity.certificate.clone());
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, identity.node.to_string());
        params.serial_number = Some(SerialNumber::from_slice(parsed.raw_serial()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - Duration::from_secs(60);
        params.not_after = if life.is_zero() { now - Duration::from_secs(2) } else { now + life };
        move |key| params.signed_by(key, &issuer).unwrap().der().to_vec()
    }
}
