//! Who is compared by what a call costs: `steadfast`, whole and in parts, and the stacks and parts that users would otherwise take.

pub mod candidate;
pub mod inner;
mod ours;
mod peers;

use std::time::Duration;

pub use self::candidate::{Candidate, Path, Rank};

/// What all candidates share.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What their calls meet.
    pub path: Path,
    /// The calls in flight.
    pub limit: usize,
}

/// All candidates that know the path, the one they are held against first. They need a tokio runtime around them.
pub fn all(settings: Settings) -> Vec<Candidate> {
    let mut all = peers::all(settings);
    all.extend(ours::all(settings));
    all.retain(Candidate::prepare);
    if settings.path == Path::Open {
        // What is refused is held against what passes.
        let mut closed = ours::all(Settings {
            path: Path::Ready,
            ..settings
        });
        closed.retain(|ours| ours.name == SHIELD);
        closed.append(&mut all);
        all = closed;
        all[0].name = CLOSED;
    }
    all
}

/// The closed shield among open circuits.
const CLOSED: &str = "shield.run, closed";
/// The name of the candidate that all are held against.
pub const YARDSTICK: &str = "tower: timeout, retry, limit";
/// Ours, called with a closure.
pub const SHIELD: &str = "shield.run";
/// Ours as a service.
pub const SERVICE: &str = "shield as a service";
/// The closest to ours in what it does.
pub const SEATBELT: &str = "seatbelt: retry, breaker, timeout";
/// Its four layers.
pub const TOWER_RESILIENCE: &str = "tower-resilience: four layers";

/// The time that a call has in all, and an attempt.
const WHOLE: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(3);

/// Nothing is forgotten, and no circuit closes by itself, while the benchmark runs.
const HOUR: Duration = Duration::from_secs(3_600);
