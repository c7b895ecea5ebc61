//! Joining: one question, one answer, on the ALPN that needs no certificate.
//!
//! The secret is shown only here and only its hash goes on. The driver judges it and binds it to the public key that signed the
//! request, so that an answer that was lost can be asked for again by the same machine and by no other.

use super::{LinkError, PATIENCE, Shared, tls, wire};
use lorikeet_protocol::{
    id::Hash,
    join::{Identity, JoinAnswer, JoinRequest},
};
use quinn::Connection;
use tokio::time::timeout;

/// What people call a node; longer is cut.
const NAME_CHARACTERS: usize = 100;

pub(super) async fn serve(shared: &Shared, connection: &Connection) -> Result<(), LinkError> {
    let hearing = async {
        let (send, mut receive) = connection.accept_bi().await?;
        let asked = wire::read::<JoinRequest>(&mut receive).await?;
        Ok((send, asked.ok_or(LinkError::Misbehaved("it asked nothing"))?))
    };
    let (mut send, request) = shared.first(hearing).await?;
    let answering = async {
        let answer = answer(shared, connection, request).await.unwrap_or_else(|reason| JoinAnswer::Refused { reason });
        wire::write(&mut send, &answer).await?;
        // Until the answer has arrived: closing at once would lose it.
        let _ = send.finish();
        let _ = send.stopped().await;
        Ok(())
    };
    timeout(PATIENCE, answering).await?
}

/// `Err` is the sentence for the person at the machine.
async fn answer(shared: &Shared, connection: &Connection, request: JoinRequest) -> Result<JoinAnswer, String> {
    let (services, from) = (&shared.services, connection.remote_address());
    if !shared.doormat.hears(from.ip()) {
        tracing::warn!(%from, "joins from this address were refused too often; it is not heard for a while");
        return Err("too many joins from this address were refused; wait a minute, and see that the join string is the right one".into());
    }
    let key = tls::key_of_request(&request.signing_request).map_err(|error| error.to_string());
    let key = key.inspect_err(|_| shared.doormat.refused(from.ip()))?;
    let secret = Hash(*blake3::hash(&request.secret).as_bytes());
    let name: String = request.name.chars().filter(|c| !c.is_control()).take(NAME_CHARACTERS).collect();
    let judged = services.join(secret, key, name, from).await;
    let node = judged.inspect_err(|why| shared.doormat.judged(from.ip(), why)).map_err(|why| why.to_string())?;
    let authorities = services.trust.now();
    let issued = authorities.certify(node, &request.signing_request, services.certificate_ttl);
    let issued = issued.map_err(|error| error.to_string())?;
    let signed_by = authorities.issuing().hash();
    services.record_certificate(node, issued.serial, Some(signed_by)).await.map_err(|refusal| refusal.to_string())?;
    tracing::info!(%node, "a machine joined");
    let ca = authorities.issuing().der().to_vec();
    Ok(JoinAnswer::Joined(Identity { node, certificate: issued.certificate, ca }))
}
