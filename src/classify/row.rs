//! One row of a table of codes, and what it means in each phase.

use crate::{
    classify::{DbVerdict, Fate, Heal, Phase, Severity},
    kind::Kind,
};

/// What a code means, and why.
pub(super) struct Row<C> {
    pub(super) code: C,
    means: Means,
    why: &'static str,
    heal: Heal,
    fatal: bool,
    routine: Option<&'static str>,
}

impl<C> Row<C> {
    pub(super) const fn new(code: C, means: Means, why: &'static str) -> Self {
        Self {
            code,
            means,
            why,
            heal: Heal::Nothing,
            fatal: false,
            routine: None,
        }
    }

    /// Adds that the cached statements are to be cleared.
    pub(super) const fn clear_statements(mut self) -> Self {
        self.heal = Heal::ClearStatements;
        self
    }

    /// The row speaks only of the code sent as FATAL, and knows what that means.
    pub(super) const fn fatal(mut self) -> Self {
        self.fatal = true;
        self
    }

    /// The row speaks only of the code raised in this routine of the server.
    pub(super) const fn routine(mut self, routine: &'static str) -> Self {
        self.routine = Some(routine);
        self
    }

    /// Whether the row speaks of its code under these circumstances.
    pub(super) fn applies(&self, severity: Severity, routine: Option<&str>) -> bool {
        (!self.fatal || severity == Severity::Fatal)
            && (self.routine.is_none() || self.routine == routine)
    }

    /// What the row says. A session that ended over a code of which the row does not expect it was lost.
    pub(super) fn verdict(&self, severity: Severity, phase: Phase) -> DbVerdict {
        let survives = severity == Severity::Error;
        let means = if survives || self.fatal || phase == Phase::Connect {
            self.means
        } else {
            LOST.means
        };
        let kind = means.kind(phase);
        let unwell = matches!(kind, Kind::Unavailable | Kind::Ambiguous | Kind::Broken);
        DbVerdict {
            kind,
            fate: if survives && phase != Phase::Connect && !unwell {
                Fate::Keep
            } else {
                Fate::Discard
            },
            heal: self.heal,
            why: self.why,
        }
    }
}

/// How the kind depends on the phase.
#[derive(Clone, Copy)]
pub(super) enum Means {
    /// The same in every phase: where the error is the answer to a COMMIT, it says that there was none.
    Always(Kind),
    /// This at connect; later it is about the statement, and `Invalid`.
    AtConnect(Kind),
    /// This, but `Invalid` inside a transaction, where the fault is an earlier one.
    OutsideTransaction(Kind),
    /// This as long as no COMMIT was sent; then `Ambiguous`.
    BeforeCommit(Kind),
    /// This where nothing can have been committed; `Ambiguous` for a COMMIT, and for a statement that
    /// commits by itself.
    Uncommitted(Kind),
}

impl Means {
    fn kind(self, phase: Phase) -> Kind {
        match (self, phase) {
            (Self::AtConnect(kind), Phase::Connect) => kind,
            (Self::AtConnect(_), _) => Kind::Invalid,
            (Self::OutsideTransaction(_), Phase::Transaction | Phase::Commit) => Kind::Invalid,
            (Self::BeforeCommit(_), Phase::Commit) => Kind::Ambiguous,
            (Self::Uncommitted(_), Phase::Statement | Phase::Commit) => Kind::Ambiguous,
            (
                Self::Always(kind)
                | Self::OutsideTransaction(kind)
                | Self::BeforeCommit(kind)
                | Self::Uncommitted(kind),
                _,
            ) => kind,
        }
    }
}

/// A connection that is gone.
pub(super) const LOST: Row<()> = Row::new(
    (),
    Means::Uncommitted(Kind::Unavailable),
    "the connection was lost: what was not committed is rolled back, and what may have been is not known",
);

/// The answer of a server that stays: whatever it complains of, it is well, and a repeat would be in vain.
pub(super) const UNLISTED: &str =
    "no table lists it: the server answered and stays, so it is taken for the call's own fault";
