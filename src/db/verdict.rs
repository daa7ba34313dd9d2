//! A failure with what it means, on its way through the shield.

use crate::{
    classify::DbVerdict,
    error::{Error, Rejected, Wrapped},
    kind::{Classify, Kind, Verdict},
    shield::Shield,
};

/// An error, and what is known of it where it came from: the phase, the connection, the wall that was hit.
#[derive(Debug)]
pub(super) struct Judged<E> {
    pub(super) error: E,
    pub(super) kind: Kind,
}

impl Judged<sqlx::Error> {
    pub(super) fn new(error: sqlx::Error, kind: Kind) -> Self {
        Self { error, kind }
    }

    pub(super) fn by(error: sqlx::Error, verdict: DbVerdict) -> Self {
        Self::new(error, verdict.kind)
    }
}

/// What an attempt fails with: a refusal of ours, or an error that was judged.
pub(super) type Failed<E = sqlx::Error> = Error<Judged<E>>;

impl<E> From<Judged<E>> for Failed<E> {
    fn from(judged: Judged<E>) -> Self {
        Self::Inner(judged)
    }
}

/// The same failure with the user's own type of error.
pub(super) fn into<E: From<sqlx::Error>>(failed: Failed) -> Failed<E> {
    match failed {
        Error::Rejected(rejected) => Error::Rejected(rejected),
        Error::Inner(Judged { error, kind }) => Error::Inner(Judged {
            error: error.into(),
            kind,
        }),
    }
}

/// Reads the judgement that the error carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told;

impl<T, E> Classify<T, Judged<E>> for Told {
    fn classify(&self, result: Result<&T, &Judged<E>>) -> Verdict {
        match result {
            Ok(_) => Kind::Success.into(),
            Err(judged) => judged.kind.into(),
        }
    }
}

/// The stack around the calls of one database.
pub(super) type Guarded = Shield<Wrapped<Told>>;

/// Runs attempts under `shield`, and takes the error out of its judgement.
pub(super) async fn run<T, E, F, Fut>(shield: &Guarded, attempt: F) -> Result<T, E>
where
    E: From<sqlx::Error>,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Failed<E>>>,
{
    shield.run(attempt).await.map_err(|failed| match failed {
        Error::Inner(judged) => judged.error,
        Error::Rejected(rejected) => refusal(rejected).into(),
    })
}

fn refusal(rejected: Rejected) -> sqlx::Error {
    rejected.into()
}
