//! Users and their tokens.

use super::{Action, Cluster, Now, put};
use crate::{
    access::{Actor, Refusal, Role},
    record::{Receipt, Record, Token, User},
};
use lorikeet_protocol::id::{Hash, TokenId, UnixMillis};

impl Token {
    /// Its row is kept a day longer, so that a request which is repeated is answered as before.
    const KEPT_MILLIS: u64 = 86_400_000;

    /// Whether nobody asks for it any more: it was withdrawn or has expired, a day ago.
    pub(crate) fn is_over(&self, now: UnixMillis) -> bool {
        let ended = self.deleted_at.into_iter().chain(self.expires).min();
        ended.is_some_and(|ended| ended.0.saturating_add(Self::KEPT_MILLIS) <= now.0)
    }

    /// Whether it lets anybody in.
    pub(crate) fn works(&self, now: UnixMillis) -> bool {
        self.deleted_at.is_none() && self.expires.is_none_or(|end| end > now)
    }
}

impl Cluster {
    pub(super) fn authenticate(&self, hash: Hash, now: Now) -> Option<Actor> {
        let token = self.tokens.get(&hash).filter(|token| token.works(now.wall))?;
        let user = self.users.get(&token.owner)?;
        Some(Actor::User { id: user.id, role: user.role, token: token.id })
    }

    pub(super) fn create_user(&mut self, actor: Actor, user: User, out: &mut Vec<Action>) -> Result<Receipt, Refusal> {
        actor.require_admin("add users")?;
        if self.users.values().any(|other| other.email == user.email) {
            return Err(Refusal::conflict(format!("a user with the email {} exists", user.email)));
        }
        out.push(put(Record::User(user.clone())));
        let receipt = Receipt::User(user.id);
        self.users.insert(user.id, user);
        Ok(receipt)
    }

    pub(super) fn create_token(
        &mut self,
        actor: Actor,
        token: Token,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        if !actor.sees(token.owner) || !self.users.contains_key(&token.owner) {
            return Err(Refusal::not_found("user"));
        }
        // Their rows go by themselves; here they would stay until the next start.
        self.tokens.retain(|_, token| !token.is_over(now.wall));
        out.push(put(Record::Token(token.clone())));
        let receipt = Receipt::Token(token.id);
        self.tokens.insert(token.hash, token);
        Ok(receipt)
    }

    pub(super) fn revoke_token(
        &mut self,
        actor: Actor,
        id: TokenId,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Result<Receipt, Refusal> {
        let found = self.tokens.values().find(|token| token.id == id && token.deleted_at.is_none());
        let mut token = actor.find(found, |token| token.owner, "token")?.clone();
        let opens = |token: &Token| token.works(now.wall) && self.is_admins(token);
        if opens(&token) && !self.tokens.values().any(|other| other.id != id && opens(other)) {
            return Err(Refusal::conflict(
                "it is the last token of an administrator that works; make another first: `lorikeet token add NAME`",
            ));
        }
        token.deleted_at = Some(now.wall);
        out.push(put(Record::Token(token.clone())));
        self.tokens.insert(token.hash, token);
        Ok(Receipt::Token(id))
    }

    fn is_admins(&self, token: &Token) -> bool {
        self.users.get(&token.owner).is_some_and(|user| user.role == Role::Admin)
    }
}
