//! The rules whose absence the simulation has to notice. All are on, always; only a test can take one away.

/// Which rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guards {
    fence: bool,
    commit_first: bool,
    listen_first: bool,
    token_first: bool,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// A word counts only under the current token.
    Fence,
    /// What follows from a batch happens after its rows are durable.
    CommitFirst,
    /// A coordinator that was away listens before it judges anybody.
    ListenFirst,
    /// A token is written before its offer is sent.
    TokenFirst,
}

impl Guard {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Fence, Self::CommitFirst, Self::ListenFirst, Self::TokenFirst];
}

impl Default for Guards {
    fn default() -> Self {
        Self { fence: true, commit_first: true, listen_first: true, token_first: true }
    }
}

impl Guards {
    /// All but one: for the test that shows that the others do not make up for it.
    #[doc(hidden)]
    pub fn all_but(guard: Guard) -> Self {
        let mut guards = Self::default();
        match guard {
            Guard::Fence => guards.fence = false,
            Guard::CommitFirst => guards.commit_first = false,
            Guard::ListenFirst => guards.listen_first = false,
            Guard::TokenFirst => guards.token_first = false,
        }
        guards
    }

    pub(crate) fn fence(self) -> bool {
        self.fence
    }

    pub(crate) fn commit_first(self) -> bool {
        self.commit_first
    }

    pub(crate) fn listen_first(self) -> bool {
        self.listen_first
    }

    pub(crate) fn token_first(self) -> bool {
        self.token_first
    }
}
