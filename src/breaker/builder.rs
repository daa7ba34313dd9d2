use std::{num::NonZeroU32, time::Duration};

use super::{
    Breaker, Shared,
    circuit::{Rules, Slow},
};
use crate::{
    error::ConfigError,
    event::{Name, Observer, Reporter},
    owner::Owners,
};

/// What happens to a call that finds the circuit open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenOpen {
    /// It is refused at once.
    Refuse,
    /// It waits until a probe succeeds or its deadline comes; when the queue is full, it is refused.
    Wait {
        /// How many calls may wait.
        queue: usize,
    },
}

/// The settings of a [`Breaker`]; their defaults stand in the [module](super).
///
/// ```
/// use std::time::Duration;
/// use steadfast::Breaker;
///
/// let breaker = Breaker::builder()
///     .name("orders")
///     .failure_rate(0.3)
///     .slow_calls(Duration::from_secs(1), 0.8)
///     .build()?;
/// # Ok::<(), steadfast::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct Builder {
    rules: Rules,
    consecutive: Option<u32>,
    max_open_for: Option<Duration>,
    attempt_deadline: Option<Duration>,
    when_open: WhenOpen,
    reporter: Reporter,
}

impl Builder {
    /// Opens after `failures` in a row, whatever the rate.
    pub(super) fn only_consecutive(failures: u32) -> Self {
        let mut builder = Self::default().consecutive(failures);
        builder.rules.failure_rate = None;
        builder
    }

    /// Its name in events.
    pub fn name(mut self, name: impl Into<Name>) -> Self {
        self.reporter.rename(name.into());
        self
    }

    /// The share of failed calls in the window that opens the circuit.
    ///
    /// Over 0, at most 1.
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.rules.failure_rate = Some(rate);
        self
    }

    /// The number of calls in the window from which on rates are judged.
    pub fn minimum_calls(mut self, calls: u32) -> Self {
        self.rules.minimum_calls = calls;
        self
    }

    /// How far back results count.
    pub fn window(mut self, window: Duration) -> Self {
        self.rules.window = window;
        self
    }

    /// The number of failures in a row that opens the circuit, whatever the rate.
    pub fn consecutive(mut self, failures: u32) -> Self {
        self.consecutive = Some(failures);
        self
    }

    /// The share of slow calls in the window that opens the circuit.
    ///
    /// A call is slow if it takes `after` or longer; a `rate` of 0.8 opens the circuit when 80 % of the calls are.
    pub fn slow_calls(mut self, after: Duration, rate: f64) -> Self {
        self.rules.slow = Some(Slow { after, rate });
        self
    }

    /// How long the circuit stays open the first time.
    ///
    /// Chance shortens it by up to a fifth, so that not all instances probe at the same moment. It doubles with each failed round of probes,
    /// up to [`max_open_for`](Self::max_open_for).
    pub fn open_for(mut self, time: Duration) -> Self {
        self.rules.open_for = time;
        self
    }

    /// The longest that the circuit stays open.
    ///
    /// The default is 30 s, or `open_for` where that is longer.
    pub fn max_open_for(mut self, time: Duration) -> Self {
        self.max_open_for = Some(time);
        self
    }

    /// The number of probes that may be under way at a time.
    pub fn probes(mut self, probes: u32) -> Self {
        self.rules.probes = probes;
        self
    }

    /// The number of successful probes that closes the circuit.
    pub fn required_successes(mut self, successes: u32) -> Self {
        self.rules.required_successes = successes;
        self
    }

    /// How long one call may take at most.
    ///
    /// It cuts nothing off by itself. A call that was cut off after this time is a failure, whoever cut it off; one that was cut off
    /// earlier says nothing, so that an impatient caller can't open a shared circuit. Times within 3 % of it count as this time. A probe's
    /// slot expires after twice this time. For the calls of a [`Shield`](crate::Shield), the shield's own attempt deadline takes its place.
    pub fn attempt_deadline(mut self, time: Duration) -> Self {
        self.attempt_deadline = Some(time);
        self
    }

    /// What happens to a call that finds the circuit open.
    pub fn when_open(mut self, when_open: WhenOpen) -> Self {
        self.when_open = when_open;
        self
    }

    /// Name and observer at once.
    pub(crate) fn reporter(mut self, reporter: Reporter) -> Self {
        self.reporter = reporter;
        self
    }

    /// Who hears of its events, in place of [`Tracing`](crate::event::Tracing).
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.reporter.observe(observer);
        self
    }

    /// The breaker, closed.
    ///
    /// # Errors
    /// Where a setting is out of range; the error names it, its value and the range.
    pub fn build(self) -> Result<Breaker, ConfigError> {
        const PART: &str = "breaker";
        const LEAST: Duration = Duration::from_millis(1);
        let mut rules = self.rules;
        if let Some(rate) = rules.failure_rate {
            ConfigError::check_rate(PART, "failure_rate", rate)?;
        }
        if let Some(slow) = rules.slow {
            ConfigError::check_rate(PART, "slow_calls rate", slow.rate)?;
            ConfigError::check_time(PART, "slow_calls after", slow.after, LEAST)?;
        }
        let counts = [
            ("minimum_calls", rules.minimum_calls),
            ("probes", rules.probes),
            ("required_successes", rules.required_successes),
            ("consecutive", self.consecutive.unwrap_or(1)),
        ];
        for (setting, count) in counts {
            ConfigError::check_count(PART, setting, count as usize, 1, MOST)?;
        }
        let usual = CONSECUTIVE.max(rules.minimum_calls);
        rules.consecutive = NonZeroU32::new(self.consecutive.unwrap_or(usual));
        ConfigError::check_time(PART, "window", rules.window, 10 * LEAST)?;
        ConfigError::check_time(PART, "open_for", rules.open_for, LEAST)?;
        rules.max_open_for = match self.max_open_for {
            Some(longest) => longest,
            None => rules.max_open_for.max(rules.open_for),
        };
        ConfigError::check_time(PART, "max_open_for", rules.max_open_for, rules.open_for)?;
        if let Some(time) = self.attempt_deadline {
            ConfigError::check_time(PART, "attempt_deadline", time, LEAST)?;
        }
        if let WhenOpen::Wait { queue } = self.when_open {
            ConfigError::check_count(PART, "when_open queue", queue, 1, MOST)?;
        }
        let shared = Shared::new(rules, self.attempt_deadline, self.when_open, self.reporter);
        Ok(Breaker {
            shared: Owners::new(shared),
        })
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            rules: Rules {
                failure_rate: Some(0.5),
                minimum_calls: 20,
                window: Duration::from_secs(10),
                consecutive: None,
                slow: None,
                open_for: Duration::from_millis(500),
                max_open_for: Duration::from_secs(30),
                probes: 1,
                required_successes: 1,
            },
            consecutive: None,
            max_open_for: None,
            attempt_deadline: None,
            when_open: WhenOpen::Refuse,
            reporter: Reporter::new("breaker"),
        }
    }
}

const CONSECUTIVE: u32 = 50;
const MOST: usize = 1_000_000;
