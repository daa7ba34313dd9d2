//! The whole stack under faults, drops, panics, forced states and late results at once, on the paused clock.
//!
//! Each seed is a life of its own: a stack with settings of its own, callers who come, wait and leave as they like, and a dependency that does its worst. What must always hold is
//! looked at whenever anything happens. `CHAOS_SEEDS=10000` lives more of them, `CHAOS_SEED=7` that one only.
#![cfg(feature = "tower")]
#![allow(
    clippy::disallowed_methods,
    reason = "the test's own clock is the paused one"
)]

use std::{
    env,
    future::pending,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fastrand::Rng;
use steadfast::{
    Breaker, ConcurrencyLimiter, Deadline, Event, Kind, Observer, Refusal, Rejected, Retry, Shield,
    breaker::{State, WhenOpen},
    by_error, deadline,
    event::Cause,
    limit::{self, Hold},
    retry::{Backoff, Budget},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower::{Service, ServiceBuilder};

#[test]
fn whatever_happens_the_promises_hold() {
    let quiet = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let planned = info.payload().downcast_ref::<&str>() == Some(&PLANNED);
        if !planned {
            quiet(info);
        }
    }));
    let number = |name| env::var(name).ok().and_then(|value| value.parse().ok());
    let seeds: Box<dyn Iterator<Item = u64>> = match number("CHAOS_SEED") {
        Some(seed) => Box::new(seed..=seed),
        None => Box::new(0..number("CHAOS_SEEDS").unwrap_or(200)),
    };
    let mut total = Totals::default();
    for seed in seeds {
        let life = AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            runtime.block_on(live(seed))
        });
        match panic::catch_unwind(life) {
            Ok(seen) => total.add(seen),
            Err(_) => panic!("the seed was {seed}: CHAOS_SEED={seed} lives it again"),
        }
    }
    // A life without these proves nothing.
    assert!(total.is_rich(), "{total:?}");
}

const PLANNED: &str = "planned";
const MS: Duration = Duration::from_millis(1);

/// How often what happened.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    successes: u64,
    retries: u64,
    opened: u64,
    probes: u64,
    shed: u64,
    refused: u64,
    panics: u64,
    dropped: u64,
    hangs: u64,
    holds: u64,
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.successes += other.successes;
        self.retries += other.retries;
        self.opened += other.opened;
        self.probes += other.probes;
        self.shed += other.shed;
        self.refused += other.refused;
        self.panics += other.panics;
        self.dropped += other.dropped;
        self.hangs += other.hangs;
        self.holds += other.holds;
    }

    fn is_rich(&self) -> bool {
        let all = [
            self.successes,
            self.retries,
            self.opened,
            self.probes,
            self.shed,
            self.refused,
            self.panics,
            self.dropped,
            self.hangs,
            self.holds,
        ];
        all.iter().all(|seen| *seen > 0)
    }
}

/// One life.
async fn live(seed: u64) -> Totals {
    // The stack's own chance.
    fastrand::seed(seed);
    let mut rng = Rng::with_seed(seed);
    let world = World::new(&mut rng);
    let stack = Stack::new(&world, &mut rng);
    let mut callers = JoinSet::new();
    for _ in 0..rng.usize(10..60) {
        let (world, stack, rng) = (Arc::clone(&world), stack.clone(), rng.fork());
        callers.spawn(caller(world, stack, rng));
    }
    let mut others = JoinSet::new();
    for _ in 0..rng.usize(0..4) {
        others.spawn(prober(
            Arc::clone(&world),
            stack.breaker.clone(),
            rng.fork(),
        ));
    }
    others.spawn(meddle(
        Arc::clone(&world),
        stack.breaker.clone(),
        rng.fork(),
    ));
    others.spawn(watch(Arc::clone(&world), stack.clone()));
    while let Some(ended) = callers.join_next().await {
        if let Err(failed) = ended {
            // The dependency's planned panics go through to the caller.
            let payload = failed.into_panic();
            if payload.downcast_ref::<&str>() != Some(&PLANNED) {
                panic::resume_unwind(payload);
            }
        }
    }
    world.state().is_over = true;
    while let Some(ended) = others.join_next().await {
        ended.expect("nobody of these panics but over a promise that was broken");
    }
    sleep(HOLD).await;
    world.look(&stack);
    world.all_is_back(&stack);
    stack.breaker.reset();
    let well = stack.shield.run(|| async { Ok::<_, Failed>(()) }).await;
    assert!(well.is_ok(), "after it all: {well:?}");
    world.state().totals
}

/// The settings, and what has happened so far.
struct World {
    limit: usize,
    queue: usize,
    probes: usize,
    required_successes: u32,
    /// How many failures there must have been before the circuit may open.
    least_failures: u64,
    attempt_deadline: Duration,
    when_open: WhenOpen,
    ratio: f64,
    burst: u32,
    started: Instant,
    /// How often each thing happens to an attempt, out of so many in all.
    odds: [u32; FATES],
    state: Mutex<Happened>,
}

#[derive(Default)]
struct Happened {
    /// Attempts under way and holds, each of which needs a slot.
    occupied: usize,
    /// Probes under way in this half-open phase, and when each began.
    probing: Vec<(u64, Instant)>,
    half_open_since: Option<Instant>,
    /// Attempts that have not settled, and when each began.
    running: Vec<(u64, Instant)>,
    /// Counts the transitions, so that a probe knows its phase.
    phase: u64,
    failures_since_closed: u64,
    charged: u64,
    next: u64,
    is_over: bool,
    totals: Totals,
}

impl Happened {
    fn forget_probes(&mut self) {
        self.phase += 1;
        self.probing.clear();
    }
}

const FATES: usize = 8;

impl World {
    fn new(rng: &mut Rng) -> Arc<Self> {
        let wait = WhenOpen::Wait {
            queue: rng.usize(1..20),
        };
        Arc::new(Self {
            limit: rng.usize(1..6),
            queue: rng.usize(0..12),
            probes: rng.usize(1..4),
            required_successes: rng.u32(1..3),
            least_failures: rng.u64(1..8),
            attempt_deadline: rng.u32(10..60) * MS,
            when_open: if rng.bool() { WhenOpen::Refuse } else { wait },
            ratio: 0.1 + 0.4 * rng.f64(),
            burst: rng.u32(1..8),
            started: Instant::now(),
            odds: std::array::from_fn(|fate| rng.u32(if fate == 0 { 3..12 } else { 0..4 })),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, Happened> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an attempt that began then has had the whole of its time.
    fn ran_its_time(&self, began: Instant) -> bool {
        began.elapsed() >= self.attempt_deadline.mul_f64(0.95)
    }

    /// What must hold at every moment.
    fn look(&self, stack: &Stack) {
        let stats = stack.limiter.stats();
        let state = self.state();
        assert!(stats.in_flight <= self.limit, "{stats:?}");
        assert!(stats.waiting <= self.queue, "{stats:?}");
        assert!(state.occupied <= self.limit, "{} at work", state.occupied);
        assert!(
            state.occupied <= stats.in_flight,
            "{} at work, {stats:?}",
            state.occupied
        );
        let now = Instant::now();
        let slot_life = 2 * self.attempt_deadline;
        let unexpired = state
            .probing
            .iter()
            .filter(|(_, since)| now < *since + slot_life);
        let unexpired = unexpired.count();
        assert!(unexpired <= self.probes, "{unexpired} probes");
        if let Some(since) = state.half_open_since {
            // Callers come all the time, each of whom notices a slot that has expired.
            let longest = (self.required_successes + 1) * slot_life + QUIET;
            assert!(now < since + longest, "half-open for {:?}", now - since);
        }
        let earned = state.totals.successes as f64 * self.ratio;
        let saved = f64::from(self.burst) + (now - self.started).as_secs_f64();
        let charged = state.charged as f64;
        assert!(
            charged <= earned + saved + 1e-6,
            "{charged} retries on {earned} + {saved}"
        );
    }

    fn all_is_back(&self, stack: &Stack) {
        let stats = stack.limiter.stats();
        assert_eq!((stats.in_flight, stats.waiting), (0, 0), "{stats:?}");
        assert_eq!(self.state().occupied, 0);
    }
}

/// Writes down what the stack reports.
#[derive(Clone)]
struct Scribe(Arc<World>);

impl Observer for Scribe {
    fn on_event(&self, event: &Event<'_>) {
        let mut state = self.0.state();
        match event {
            Event::Transition {
                from, to, cause, ..
            } => {
                state.forget_probes();
                state.half_open_since = (*to == State::HalfOpen).then(Instant::now);
                if matches!(cause, Cause::FailureRate | Cause::Consecutive) {
                    // Refusals of ours, and calls that were cut short by their callers, are no failures.
                    // One that was cut off may be judged before it is dropped.
                    let cut = |(_, began): &&(u64, Instant)| self.0.ran_its_time(*began);
                    let cut = state.running.iter().filter(cut).count() as u64;
                    let failures = state.failures_since_closed + cut;
                    assert!(
                        failures >= self.0.least_failures,
                        "opened after {failures} failures"
                    );
                    state.totals.opened += 1;
                }
                if *from != *to && matches!(to, State::Closed) {
                    state.failures_since_closed = 0;
                }
            }
            Event::Retry { kind, .. } => {
                state.totals.retries += 1;
                state.charged += u64::from(*kind != Kind::Conflict);
            }
            Event::Refused { rejected, .. } => match rejected {
                Rejected::Overloaded { .. } => state.totals.shed += 1,
                Rejected::CircuitOpen { .. } => state.totals.refused += 1,
                _ => {}
            },
            _ => {}
        }
    }
}

/// The dependency's error, or a refusal of ours.
#[derive(Clone, Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Rejected(#[from] Rejected),
    #[error("{0}")]
    Kind(Kind),
}

impl Refusal for Failed {
    fn rejected(&self) -> Option<&Rejected> {
        match self {
            Self::Rejected(rejected) => Some(rejected),
            Self::Kind(_) => None,
        }
    }
}

fn kind_of(error: &Failed) -> Kind {
    match error {
        Failed::Kind(kind) => *kind,
        Failed::Rejected(_) => Kind::Ignored,
    }
}

type Judge = steadfast::ByError<fn(&Failed) -> Kind>;

/// The same parts as a shield and as single layers.
#[derive(Clone)]
struct Stack {
    breaker: Breaker,
    limiter: ConcurrencyLimiter,
    shield: Shield<Judge>,
    retry: Retry,
}

impl Stack {
    fn new(world: &Arc<World>, rng: &mut Rng) -> Self {
        let limiter = ConcurrencyLimiter::builder(world.limit)
            .queue(world.queue)
            .observer(Scribe(Arc::clone(world)))
            .build()
            .expect("in range");
        let least = u32::try_from(world.least_failures).expect("small");
        let breaker = Breaker::builder()
            .failure_rate(1.0)
            .minimum_calls(least)
            .consecutive(least)
            .window(SECOND)
            .open_for(rng.u32(5..50) * MS)
            .max_open_for(100 * MS)
            .probes(u32::try_from(world.probes).expect("small"))
            .required_successes(world.required_successes)
            .attempt_deadline(world.attempt_deadline)
            .when_open(world.when_open)
            .observer(Scribe(Arc::clone(world)))
            .build()
            .expect("in range");
        let budget = Budget::builder()
            .ratio(world.ratio)
            .floor(1.0, world.burst)
            .build()
            .expect("in range");
        let retry = Retry::builder()
            .idempotent(rng.bool())
            .attempts(rng.u32(1..5))
            .backoff(Backoff::exponential(MS, 20 * MS))
            .budget(&budget)
            .observer(Scribe(Arc::clone(world)))
            .build()
            .expect("in range");
        let judge = by_error(kind_of as fn(&Failed) -> Kind);
        let shield = Shield::builder(judge)
            .deadline(DEADLINE)
            .attempt_deadline(world.attempt_deadline)
            .retry(retry.clone())
            .breaker(&breaker)
            .limiter(&limiter)
            .observer(Scribe(Arc::clone(world)))
            .build()
            .expect("in range");
        Self {
            breaker,
            limiter,
            shield,
            retry,
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_millis(400);

/// The longest that a hold outlives its call.
const HOLD: Duration = Duration::from_millis(80);

/// Callers pause for at most this long.
const QUIET: Duration = Duration::from_millis(500);

/// Somebody who calls again and again, and may leave at any time.
async fn caller(world: Arc<World>, stack: Stack, mut rng: Rng) {
    for _ in 0..rng.usize(1..12) {
        sleep(rng.u32(0..40) * MS).await;
        let impatient = rng.u32(0..4) == 0;
        let patience = if impatient {
            rng.u32(1..30) * MS
        } else {
            SECOND
        };
        let drops = rng.u32(0..5) == 0;
        let call = call(&world, &stack, rng.fork(), rng.bool());
        let call = deadline::scope((Instant::now() + patience).into_std(), call);
        let life = if drops {
            rng.u32(0..50) * MS
        } else {
            2 * SECOND
        };
        match timeout(life, call).await {
            Ok(Ok(())) => world.state().totals.successes += 1,
            Ok(Err(_)) => {}
            Err(_) => {
                assert!(drops, "a call outlived every deadline");
                world.state().totals.dropped += 1;
            }
        }
    }
}

async fn call(
    world: &Arc<World>,
    stack: &Stack,
    mut rng: Rng,
    layered: bool,
) -> Result<(), Failed> {
    if !layered {
        return stack
            .shield
            .run(|| attempt(Arc::clone(world), rng.fork()))
            .await;
    }
    let judge = by_error(kind_of as fn(&Failed) -> Kind);
    let world = Arc::clone(world);
    let within = |time| Deadline::new(time).expect("in range").layer();
    let attempt_deadline = world.attempt_deadline;
    let mut service = ServiceBuilder::new()
        .layer(within(DEADLINE))
        .layer(stack.retry.layer(judge))
        .layer(stack.breaker.layer(judge))
        .layer(stack.limiter.layer())
        .layer(within(attempt_deadline))
        .service_fn(move |()| attempt(Arc::clone(&world), rng.fork()));
    service.call(()).await
}

/// What the dependency makes of one attempt.
async fn attempt(world: Arc<World>, mut rng: Rng) -> Result<(), Failed> {
    let hold = (rng.u32(0..4) == 0).then(limit::hold).flatten();
    let at_work = AtWork::begin(&world);
    let total: u32 = world.odds.iter().sum();
    let mut drawn = rng.u32(0..total);
    let fate = world
        .odds
        .iter()
        .position(|odds| match drawn.checked_sub(*odds) {
            Some(rest) => {
                drawn = rest;
                false
            }
            None => true,
        });
    let fails = |kind| Err(Failed::Kind(kind));
    if rng.bool() {
        sleep(rng.u32(0..20) * MS).await;
    }
    let result = match fate.expect("less than the sum") {
        0 => Ok(()),
        1 => fails(Kind::Unavailable),
        2 => fails(Kind::Conflict),
        3 => fails(Kind::Invalid),
        4 => fails(Kind::Ambiguous),
        5 => fails(Kind::Overloaded),
        6 => {
            at_work.fails();
            world.state().totals.panics += 1;
            panic::panic_any(PLANNED);
        }
        _ => {
            world.state().totals.hangs += 1;
            pending().await
        }
    };
    if let Err(Failed::Kind(Kind::Unavailable | Kind::Ambiguous | Kind::Overloaded)) = &result {
        at_work.fails();
    }
    if let Some(hold) = hold {
        at_work.goes_on(hold, rng.u32(1..70) * MS);
    }
    result
}

/// An attempt that is under way, as the test's own books have it.
struct AtWork {
    world: Arc<World>,
    number: u64,
    settled: std::cell::Cell<bool>,
}

impl AtWork {
    fn begin(world: &Arc<World>) -> Self {
        let mut state = world.state();
        state.occupied += 1;
        state.next += 1;
        let number = state.next;
        state.running.push((number, Instant::now()));
        Self {
            world: Arc::clone(world),
            number,
            settled: false.into(),
        }
    }

    /// It counts as a failure.
    fn fails(&self) {
        self.settled.set(true);
        self.world.state().failures_since_closed += 1;
    }

    /// The dependency goes on for a while after the call is over.
    fn goes_on(&self, hold: Hold, time: Duration) {
        let world = Arc::clone(&self.world);
        {
            let mut state = world.state();
            state.totals.holds += 1;
            state.occupied += 1;
        }
        // The call itself is over in the same poll, so that both together are one slot.
        self.world.state().occupied -= 1;
        tokio::spawn(async move {
            sleep(time).await;
            drop(hold);
        });
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut state = self.world.state();
        state.occupied -= 1;
        let at = state
            .running
            .iter()
            .position(|(number, _)| *number == self.number);
        let (_, began) = state.running.swap_remove(at.expect("it runs until here"));
        if !self.settled.get() && self.world.ran_its_time(began) {
            state.failures_since_closed += 1;
        }
    }
}

/// Somebody who asks the breaker himself, and so knows whether his call is a probe.
async fn prober(world: Arc<World>, breaker: Breaker, mut rng: Rng) {
    while !world.state().is_over {
        sleep(rng.u32(1..30) * MS).await;
        let Ok(permit) = breaker.admit() else {
            continue;
        };
        let probe = format!("{permit:?}").contains("probe: true").then(|| {
            let mut state = world.state();
            state.next += 1;
            state.totals.probes += 1;
            let probe = (state.next, Instant::now());
            state.probing.push(probe);
            (state.phase, probe.0)
        });
        // Some take longer than a slot lives.
        let held = rng.u32(0..200) * MS;
        sleep(held).await;
        let fate = rng.u32(0..3);
        if fate == 1 || fate == 2 && world.ran_its_time(Instant::now() - held) {
            world.state().failures_since_closed += 1;
        }
        if let Some((phase, number)) = probe {
            let mut state = world.state();
            if state.phase == phase {
                state.probing.retain(|(probe, _)| *probe != number);
            }
        }
        match fate {
            0 => permit.settle(Kind::Success),
            1 => permit.settle(Kind::Unavailable),
            _ => drop(permit),
        }
    }
}

/// Somebody who forces the circuit now and then.
async fn meddle(world: Arc<World>, breaker: Breaker, mut rng: Rng) {
    while !world.state().is_over {
        sleep(rng.u32(50..300) * MS).await;
        // What is under way counts for nothing from here on.
        world.state().forget_probes();
        match rng.u32(0..4) {
            0 => breaker.force_open(),
            1 => breaker.force_closed(),
            2 => breaker.observe_only(),
            _ => {}
        }
        sleep(rng.u32(1..40) * MS).await;
        world.state().forget_probes();
        breaker.reset();
    }
}

/// Looks every millisecond.
async fn watch(world: Arc<World>, stack: Stack) {
    while !world.state().is_over {
        world.look(&stack);
        sleep(MS).await;
    }
}
