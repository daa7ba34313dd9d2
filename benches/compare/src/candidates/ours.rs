//! `steadfast`: the shield in three guises, the same parts as single layers, and each part alone.

use std::future::Future;

use steadfast::{
    Breaker, Classify, ConcurrencyLimiter, ConfigError, Deadline, Kind, Retry, Shield, Verdict,
    retry::Budget,
};
use tower::{Layer, ServiceBuilder, util::BoxCloneService};

use super::{
    ATTEMPT, HOUR, SERVICE, SHIELD, Settings, WHOLE,
    candidate::{
        Candidate,
        Has::{self, Breaking, Budgeting, Cutting, Limiting, Refusing},
        Path, Rank, Stack, Tower,
    },
    inner::{Answer, Ask, Inner, Trouble},
};

pub fn all(settings: Settings) -> Vec<Candidate> {
    candidates(settings).expect("the settings are in range")
}

fn candidates(settings: Settings) -> Result<Vec<Candidate>, ConfigError> {
    const ALL: &[Has] = &[Breaking, Budgeting, Limiting, Cutting, Refusing];
    let (whole, part) = (Rank::Whole, Rank::Part);
    Ok(vec![
        candidate(SHIELD, whole, ALL, settings, |parts| {
            Ok(Run(parts.shield()?))
        })?,
        candidate(SERVICE, whole, ALL, settings, |parts| {
            Ok(Tower(parts.shield()?.layer(Inner)))
        })?,
        candidate("shield, BoxCloneService", whole, ALL, settings, |parts| {
            let service = parts.shield()?.layer(Inner);
            Ok(Tower(BoxCloneService::new(service)))
        })?,
        candidate("its parts as layers", whole, ALL, settings, |parts| {
            let layers = ServiceBuilder::new()
                .layer(Deadline::new(WHOLE)?.layer())
                .layer(parts.retry.layer(ByKind))
                .layer(parts.breaker.layer(ByKind))
                .layer(parts.limiter.layer())
                .layer(Deadline::new(ATTEMPT)?.name("attempt").layer());
            Ok(Tower(layers.service(Inner)))
        })?,
        candidate("deadline layer", part, &[Cutting], settings, |_| {
            Ok(Tower(Deadline::new(ATTEMPT)?.layer().layer(Inner)))
        })?,
        candidate("retry layer", part, &[Budgeting], settings, |parts| {
            Ok(Tower(parts.retry.layer(ByKind).layer(Inner)))
        })?,
        candidate("breaker layer", part, &[Breaking], settings, |parts| {
            Ok(Tower(parts.breaker.layer(ByKind).layer(Inner)))
        })?,
        candidate("breaker by hand", part, &[Breaking], settings, |parts| {
            Ok(Admit(parts.breaker.clone()))
        })?,
        candidate(
            "limiter layer",
            part,
            &[Limiting, Refusing],
            settings,
            |parts| Ok(Tower(parts.limiter.layer().layer(Inner))),
        )?,
        candidate(
            "limiter by hand",
            part,
            &[Limiting, Refusing],
            settings,
            |parts| Ok(Acquire(parts.limiter.clone())),
        )?,
    ])
}

fn candidate<S: Stack>(
    name: &'static str,
    rank: Rank,
    has: &'static [Has],
    settings: Settings,
    stack: impl FnOnce(&Parts) -> Result<S, ConfigError>,
) -> Result<Candidate, ConfigError> {
    let parts = Parts::new(settings)?;
    let stack = stack(&parts)?;
    let candidate = Candidate::new(name, rank, has, settings, stack);
    Ok(candidate.check(move |good, failures| parts.check(has, good, failures)))
}

/// The handles behind a candidate.
struct Parts {
    breaker: Breaker,
    trips_at: Trip,
    budget: Budget,
    retry: Retry,
    limiter: ConcurrencyLimiter,
}

/// When the circuit opens.
#[derive(Clone, Copy)]
enum Trip {
    /// Where so great a share of all calls has failed.
    Rate(f64),
    /// Where so many in a row have failed.
    Row(u32),
}

impl Parts {
    fn new(settings: Settings) -> Result<Self, ConfigError> {
        let trips_at = match settings.path {
            Path::Ready | Path::Yield | Path::Full => Trip::Rate(0.01),
            Path::Failure | Path::Open => Trip::Row(150),
        };
        let breaker = Breaker::builder().window(HOUR).open_for(HOUR);
        let breaker = match trips_at {
            Trip::Rate(rate) => breaker.failure_rate(rate).consecutive(1_000_000),
            Trip::Row(failures) => breaker.failure_rate(1.0).consecutive(failures),
        };
        let breaker = match settings.path {
            Path::Failure => breaker,
            // A rate of one, and nothing but failures: it would open before the row is full.
            _ => breaker.minimum_calls(150),
        };
        let budget = Budget::builder().window(HOUR).floor(0.0, 0).build()?;
        let limiter = ConcurrencyLimiter::builder(settings.limit);
        let limiter = match settings.path {
            Path::Full => limiter.queue(0),
            _ => limiter,
        };
        Ok(Self {
            breaker: breaker.build()?,
            trips_at,
            retry: Retry::builder().budget(&budget).build()?,
            budget,
            limiter: limiter.build()?,
        })
    }

    fn shield(&self) -> Result<Shield<ByKind>, ConfigError> {
        Shield::builder(ByKind)
            .deadline(WHOLE)
            .attempt_deadline(ATTEMPT)
            .retry(self.retry.clone())
            .breaker(&self.breaker)
            .limiter(&self.limiter)
            .build()
    }

    /// Budget and breaker have counted each call once, and nobody is left in the limiter.
    fn check(&self, has: &[Has], good: u64, failures: Option<u64>) {
        let stats = self.limiter.stats();
        assert_eq!((stats.in_flight, stats.waiting), (0, 0), "{stats:?}");
        if has.contains(&Budgeting) {
            let paid = (0..).take_while(|_| self.budget.withdraw()).count() as u64;
            assert_eq!(paid, good / 10, "a tenth of the good calls");
        }
        if let Some(failures) = failures {
            let expected = match self.trips_at {
                Trip::Rate(rate) => {
                    let trips = |bad: &u64| {
                        let calls = good + bad;
                        calls >= 150 && *bad as f64 / calls as f64 >= rate
                    };
                    (1..).find(trips).expect("there is a limit")
                }
                Trip::Row(row) => row.into(),
            };
            assert_eq!(failures, expected, "{} good calls", good);
        }
    }
}

/// What the troubles mean.
#[derive(Clone, Copy)]
struct ByKind;

impl Classify<u64, Trouble> for ByKind {
    #[inline]
    fn classify(&self, result: Result<&u64, &Trouble>) -> Verdict {
        match result {
            Ok(_) => Kind::Success.into(),
            Err(_) => Kind::Broken.into(),
        }
    }
}

#[derive(Clone)]
struct Run(Shield<ByKind>);

impl Stack for Run {
    type Error = Trouble;

    #[inline]
    fn call(&mut self, ask: Ask) -> impl Future<Output = Result<u64, Trouble>> + Send {
        self.0.run(move || Answer::to(ask))
    }
}

#[derive(Clone)]
struct Admit(Breaker);

impl Stack for Admit {
    type Error = Trouble;

    #[inline]
    async fn call(&mut self, ask: Ask) -> Result<u64, Trouble> {
        let permit = self.0.admit()?;
        let result = Answer::to(ask).await;
        permit.settle(ByKind.classify(result.as_ref()));
        result
    }
}

#[derive(Clone)]
struct Acquire(ConcurrencyLimiter);

impl Stack for Acquire {
    type Error = Trouble;

    #[inline]
    async fn call(&mut self, ask: Ask) -> Result<u64, Trouble> {
        let _permit = self.0.acquire().await?;
        Answer::to(ask).await
    }
}
