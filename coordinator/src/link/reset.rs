//! What a coordinator says to connections that it does not know: that they are over.
//!
//! A coordinator that was killed leaves agents that still believe in its connections and would do so until they have been silent
//! for `IDLE`. QUIC's stateless reset (RFC 9000, section 10.3) ends them at their next packet instead. It takes two things that
//! outlive the process: the key from which the tokens are made, here drawn from the CA's, and connection ids that the next
//! coordinator takes for possible ones.

use super::tls::Authority;
use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig,
    crypto::{CryptoError, HmacKey},
};
use std::{sync::Arc, time::Duration};

/// Between two resets, of all that are sent: a thousand agents learn within a second that their coordinator was restarted, and
/// an answer is always shorter than what it answers.
const INTERVAL: Duration = Duration::from_millis(1);
/// Long enough that nobody guesses one, short enough for every packet to carry.
const ID_BYTES: usize = 8;

/// The endpoint's configuration, the same after every restart under this CA. After a rotation was finished the next start has another:
/// once, agents find out by the silence.
pub(super) fn endpoint_config(authority: &Authority) -> EndpointConfig {
    let mut config =
        EndpointConfig::new(Arc::new(ResetKey(authority.derive_key("lorikeet 2026 QUIC stateless reset"))));
    config.cid_generator(|| Box::new(AnyId)).min_reset_interval(INTERVAL);
    config
}

/// BLAKE3 in its keyed mode, which is a MAC.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Compared in constant time.
        (blake3::keyed_hash(&self.0, data) == *signature).then_some(()).ok_or(CryptoError)
    }
}

/// Random ids. quinn's own carry a proof of their process, and a packet without it is dropped and not answered.
struct AnyId;

impl ConnectionIdGenerator for AnyId {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; ID_BYTES];
        getrandom::fill(&mut bytes).expect("the system gives random bytes, as it did for the CA");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
