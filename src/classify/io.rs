//! `std::io::Error`, by its kind.

use std::io;

use crate::kind::{Classify, Kind, Verdict};

/// The classifier for [`io::Error`], which goes by its `io::ErrorKind`.
///
/// It tells what surely came before anything was sent from what may have acted.
///
/// | `io::ErrorKind` | kind |
/// |---|---|
/// | `ConnectionRefused`, `AddrNotAvailable`, `AddrInUse` | [`Unavailable`](Kind::Unavailable) |
/// | `ResourceBusy`, `ExecutableFileBusy`, `Deadlock` | [`Conflict`](Kind::Conflict) |
/// | `NotFound`, `AlreadyExists`, `InvalidInput`, `Unsupported`, .. | [`Invalid`](Kind::Invalid) |
/// | `PermissionDenied`, `ReadOnlyFilesystem`, `StorageFull`, `QuotaExceeded` | [`Broken`](Kind::Broken) |
/// | every other | [`Ambiguous`](Kind::Ambiguous) |
///
/// The others are above all `ConnectionReset`, `BrokenPipe`, `UnexpectedEof`, `TimedOut` and `WouldBlock` (a
/// read timeout of `std`). `HostUnreachable` and `NetworkUnreachable` are among them: on a connection that was
/// open, they are how the system reports that its last packets were not answered.
///
/// ```
/// use std::io;
/// use steadfast::{Classify, Kind, classify::Io};
///
/// let refused: Result<(), _> = Err(io::Error::from(io::ErrorKind::ConnectionRefused));
/// assert_eq!(Io.classify(refused.as_ref()).kind, Kind::Unavailable);
///
/// let reset: Result<(), _> = Err(io::Error::from(io::ErrorKind::ConnectionReset));
/// assert_eq!(Io.classify(reset.as_ref()).kind, Kind::Ambiguous);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Io;

impl<T> Classify<T, io::Error> for Io {
    fn classify(&self, result: Result<&T, &io::Error>) -> Verdict {
        match result {
            Ok(_) => Kind::Success.into(),
            Err(error) => kind(error.kind()).into(),
        }
    }
}

fn kind(error: io::ErrorKind) -> Kind {
    use io::ErrorKind as E;
    match error {
        // Nobody listens, or we found no address of our own: nothing was sent.
        E::ConnectionRefused | E::AddrNotAvailable | E::AddrInUse => Kind::Unavailable,
        // The system gave it to a rival and did nothing for us.
        E::ResourceBusy | E::ExecutableFileBusy | E::Deadlock => Kind::Conflict,
        // The system looked at what was asked and said no.
        E::NotFound
        | E::AlreadyExists
        | E::NotADirectory
        | E::IsADirectory
        | E::DirectoryNotEmpty
        | E::NotSeekable
        | E::FileTooLarge
        | E::CrossesDevices
        | E::TooManyLinks
        | E::InvalidFilename
        | E::ArgumentListTooLong
        | E::InvalidInput
        | E::Unsupported => Kind::Invalid,
        // It needs somebody's hand.
        E::PermissionDenied | E::ReadOnlyFilesystem | E::StorageFull | E::QuotaExceeded => {
            Kind::Broken
        }
        // The peer may have read all of it: reset, closed, silent, garbled, unreachable since.
        _ => Kind::Ambiguous,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_before_anything_was_sent_is_unavailable() {
        for error in [
            io::ErrorKind::ConnectionRefused,
            io::ErrorKind::AddrNotAvailable,
        ] {
            assert_eq!(kind(error), Kind::Unavailable, "{error:?}");
        }
    }

    #[test]
    fn what_the_system_gave_to_a_rival_is_a_conflict() {
        for error in [
            io::ErrorKind::ResourceBusy,
            io::ErrorKind::ExecutableFileBusy,
            io::ErrorKind::Deadlock,
        ] {
            assert_eq!(kind(error), Kind::Conflict, "{error:?}");
        }
    }

    #[test]
    fn what_the_peer_may_have_read_is_ambiguous() {
        for error in [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionAborted,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::TimedOut,
            io::ErrorKind::WouldBlock,
            io::ErrorKind::WriteZero,
            io::ErrorKind::InvalidData,
            io::ErrorKind::Other,
        ] {
            assert_eq!(kind(error), Kind::Ambiguous, "{error:?}");
        }
    }

    /// A peer that vanished from an open connection is reported so too, after it may have read the call.
    #[test]
    fn unreachable_does_not_prove_that_nothing_was_sent() {
        assert_eq!(kind(io::ErrorKind::HostUnreachable), Kind::Ambiguous);
        assert_eq!(kind(io::ErrorKind::NetworkUnreachable), Kind::Ambiguous);
    }

    #[test]
    fn a_missing_permission_is_not_the_callers_fault() {
        assert_eq!(kind(io::ErrorKind::PermissionDenied), Kind::Broken);
        assert_eq!(kind(io::ErrorKind::NotFound), Kind::Invalid);
    }
}
