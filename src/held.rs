//! What is known of a connection that is held.

use std::{
    fmt::{self, Write},
    panic::Location,
    time::Duration,
};

use crate::event::Name;

/// A connection that somebody holds: since when, where it was taken, what it does.
///
/// Its text is one line: `held for 31.2s, taken at src/orders.rs:12, operation list-orders, in transaction, idle for 12.0s, last: SELECT 1`. The values
/// that are bound to a statement are not in it.
///
/// ```
/// use steadfast::{Event, Observer};
///
/// struct Page;
///
/// impl Observer for Page {
///     fn on_event(&self, event: &Event<'_>) {
///         if let Event::Leak { name, lease } = event {
///             println!("{name}: {lease}");
///         }
///     }
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseReport {
    /// Which lease it is; the first of a database is 1.
    pub id: u64,
    /// Where it was taken, if that is known.
    pub location: Option<&'static Location<'static>>,
    /// The operation it was taken for.
    pub operation: Option<Name>,
    /// The name of the tracing span in which it was taken.
    pub span: Option<&'static str>,
    /// The text of its last statement, if that is known.
    pub statement: Option<Name>,
    /// How long it has been held.
    pub age: Duration,
    /// What it does.
    pub activity: Activity,
    /// For how long it has done so.
    pub activity_for: Duration,
    /// How many statements it began.
    pub statements: u64,
}

impl LeaseReport {
    /// For how long no statement has run; `None` while one does.
    pub fn idle_for(&self) -> Option<Duration> {
        (!self.activity.is_running()).then_some(self.activity_for)
    }
}

impl fmt::Display for LeaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "held for {}", Seconds(self.age))?;
        if let Some(location) = self.location {
            write!(f, ", taken at {}:{}", location.file(), location.line())?;
        }
        if let Some(operation) = &self.operation {
            write!(f, ", operation {operation}")?;
        }
        if let Some(span) = self.span {
            write!(f, ", span {span}")?;
        }
        let during = Seconds(self.activity_for);
        match self.activity {
            Activity::Idle => write!(f, ", idle for {during}")?,
            Activity::InTransaction => write!(f, ", in transaction, idle for {during}")?,
            Activity::Running => write!(f, ", running for {during}")?,
            Activity::RunningInTransaction => {
                write!(f, ", in transaction, running for {during}")?;
            }
        }
        if let Some(statement) = &self.statement {
            write!(f, ", last: {}", OneLine(statement.as_str()))?;
        }
        Ok(())
    }
}

/// What a held connection does.
///
/// ```
/// use steadfast::event::Activity;
///
/// assert!(!Activity::InTransaction.is_running());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activity {
    /// Nothing.
    #[default]
    Idle,
    /// It runs a statement.
    Running,
    /// It is in a transaction and runs no statement.
    InTransaction,
    /// It is in a transaction and runs a statement.
    RunningInTransaction,
}

impl Activity {
    /// Whether a statement runs.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::RunningInTransaction)
    }
}

/// A duration in seconds with one digit behind the point.
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}s", self.0.as_secs_f64())
    }
}

/// The beginning of a text as a single line, its spaces and control characters being one space each time.
pub(crate) struct OneLine<'a>(pub(crate) &'a str);

/// How many letters of a text are shown.
const SHOWN: usize = 80;

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self
            .0
            .split(|letter: char| letter.is_whitespace() || letter.is_control());
        let words = words.filter(|word| !word.is_empty());
        let mut shown = 0;
        for word in words {
            let space = (shown > 0).then_some(' ');
            for letter in space.into_iter().chain(word.chars()) {
                if shown == SHOWN {
                    return f.write_str("..");
                }
                f.write_char(letter)?;
                shown += 1;
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_report_is_one_line() {
        let location = Location::caller();
        let line = location.line();
        let report = LeaseReport {
            location: Some(location),
            operation: Some(Name::new("list-orders")),
            span: Some("request"),
            statement: Some(Name::new("SELECT *\n    FROM orders\u{1b}[1m")),
            activity: Activity::InTransaction,
            activity_for: 12 * SECOND,
            ..bare()
        };
        assert_eq!(
            report.to_string(),
            format!(
                "held for 31.2s, taken at src/held.rs:{line}, operation list-orders, span request, in transaction, \
                 idle for 12.0s, last: SELECT * FROM orders [1m"
            )
        );
    }

    #[test]
    fn a_report_says_only_what_is_known() {
        for (activity, text) in [
            (Activity::Idle, "held for 31.2s, idle for 4.0s"),
            (Activity::Running, "held for 31.2s, running for 4.0s"),
            (
                Activity::RunningInTransaction,
                "held for 31.2s, in transaction, running for 4.0s",
            ),
        ] {
            let report = LeaseReport { activity, ..bare() };
            assert_eq!(report.to_string(), text);
        }
    }

    #[test]
    fn a_long_statement_is_cut_between_letters() {
        let cut = |text: &str| OneLine(text).to_string();
        assert_eq!(cut(&"ü".repeat(SHOWN)), "ü".repeat(SHOWN));
        let longer = "ü".repeat(SHOWN + 1);
        assert_eq!(cut(&longer), format!("{}..", "ü".repeat(SHOWN)));
        // Nothing follows but space.
        let spaced = format!(" {} \n", "x".repeat(SHOWN));
        assert_eq!(cut(&spaced), "x".repeat(SHOWN));
    }

    #[test]
    fn nobody_is_idle_while_a_statement_runs() {
        assert_eq!(bare().idle_for(), Some(4 * SECOND));
        let running = LeaseReport {
            activity: Activity::Running,
            ..bare()
        };
        assert_eq!(running.idle_for(), None);
    }

    fn bare() -> LeaseReport {
        LeaseReport {
            id: 1,
            location: None,
            operation: None,
            span: None,
            statement: None,
            age: Duration::from_millis(31_200),
            activity: Activity::Idle,
            activity_for: 4 * SECOND,
            statements: 0,
        }
    }
}
