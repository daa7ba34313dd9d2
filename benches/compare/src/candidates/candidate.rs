//! One candidate, its type erased: for each block of calls, not for each call.

use std::{
    future::{Future, poll_fn},
    hint::black_box,
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, task::JoinSet, time::timeout};
use tower::{BoxError, Service};

use super::{
    ATTEMPT, Settings,
    inner::{Answer, Ask, GOOD, Trouble, hanging},
};

/// What the calls of a block meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// An answer at the first poll.
    Ready,
    /// An answer at the second poll.
    Yield,
    /// A failure that is not repeated, but for one call in [`GOOD_ONE_IN`].
    Failure,
    /// An open circuit.
    Open,
    /// A queue that is full.
    Full,
}

/// Keeps the circuits closed that count failures in a row, or that open when all calls fail.
const GOOD_ONE_IN: u32 = 50;

/// What a candidate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// A stack.
    Whole,
    /// One layer or handle.
    Part,
}

/// What a candidate does besides calling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    /// It has a circuit breaker.
    Breaking,
    /// It has a retry budget that it lets us look into.
    Budgeting,
    /// It limits the calls in flight.
    Limiting,
    /// It cuts off what hangs.
    Cutting,
    /// Where all slots are taken, it refuses, if it is told so.
    Refusing,
    /// It can't be kept closed under failures.
    OpensUnderFailures,
    /// Where most calls have failed, it takes more than a row of failures to open it.
    ForgetsByTime,
}

/// A way to make calls. A clone shares what limits, counts and refuses.
pub trait Stack: Clone + Send + 'static {
    type Error: Told + Send;

    /// Whether it can be called; always, unless it says otherwise.
    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: Ask) -> impl Future<Output = Result<u64, Self::Error>> + Send;
}

/// An error that tells whether the dependency failed, or the stack refused.
pub trait Told {
    fn is_refusal(&self) -> bool;
}

/// A service as a stack: readied for each call.
#[derive(Clone)]
pub struct Tower<S>(pub S);

impl<S> Stack for Tower<S>
where
    S: Service<Ask, Response = u64> + Clone + Send + 'static,
    S::Error: Told + Send,
    S::Future: Send,
{
    type Error = S::Error;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, ask: Ask) -> impl Future<Output = Result<u64, S::Error>> + Send {
        self.0.call(ask)
    }
}

/// Nothing around the call.
#[derive(Clone)]
pub struct Bare;

impl Stack for Bare {
    type Error = Trouble;

    #[inline]
    fn call(&mut self, ask: Ask) -> impl Future<Output = Result<u64, Trouble>> + Send {
        Answer::to(ask)
    }
}

impl Told for Trouble {
    fn is_refusal(&self) -> bool {
        !matches!(self, Self::Down)
    }
}

impl Told for BoxError {
    fn is_refusal(&self) -> bool {
        self.downcast_ref::<Trouble>().is_none_or(Told::is_refusal)
    }
}

/// One of those that are compared.
pub struct Candidate {
    pub name: &'static str,
    pub rank: Rank,
    /// The size of the future, beside that of the inner one.
    pub bytes: usize,
    settings: Settings,
    has: &'static [Has],
    stack: Arc<dyn Erased>,
    check: Option<Check>,
}

/// What else has to hold after a run; told how many calls were good, and how many failures then tripped the circuit, if it has one.
pub type Check = Box<dyn Fn(u64, Option<u64>)>;

impl Candidate {
    pub fn new(
        name: &'static str,
        rank: Rank,
        has: &'static [Has],
        settings: Settings,
        mut stack: impl Stack,
    ) -> Self {
        let ready = finish(poll_fn(|cx| stack.poll_ready(cx)));
        assert!(ready.is_ok(), "{name} is never ready");
        let bytes = size_of_val(&stack.call(Ask::AtOnce)) - size_of::<Answer>();
        let stack = Arc::new(Shared {
            stack: Mutex::new(stack),
            good: AtomicU64::new(0),
        });
        Self {
            name,
            rank,
            bytes,
            settings,
            has,
            stack,
            check: None,
        }
    }

    pub fn check(mut self, check: impl Fn(u64, Option<u64>) + 'static) -> Self {
        self.check = Some(Box::new(check));
        self
    }

    /// Brings it into the state that its path asks for; `false`: there is no such state.
    pub fn prepare(&self) -> bool {
        match self.settings.path {
            Path::Ready | Path::Yield => true,
            Path::Failure => {
                // So that failures are never all there is.
                self.stack.block(Path::Ready, 1);
                !self.has.contains(&Has::OpensUnderFailures)
            }
            Path::Open => {
                let opens = self.has.contains(&Has::Breaking);
                if opens {
                    self.trip();
                }
                opens
            }
            Path::Full => {
                let refuses = self.has.contains(&Has::Refusing);
                if refuses {
                    // They keep their slots for good.
                    (0..self.settings.limit).for_each(|_| mem::forget(self.hang()));
                }
                refuses
            }
        }
    }

    /// What makes so many calls on its thread and returns the time that they took.
    pub fn block(&self) -> Block {
        let (stack, path) = (self.stack.clone(), self.settings.path);
        Arc::new(move |calls| stack.block(path, calls))
    }

    /// Lets `tasks` on `runtime` make `calls` calls each and returns the time that they took.
    pub fn tasks(&self, runtime: &Runtime, tasks: u32, calls: u32) -> Duration {
        let stack = self.stack.clone();
        runtime.block_on(stack.tasks(self.settings.path, tasks, calls))
    }

    /// Whether a call that hangs is cut off, and not much later than it should be; `None`: nothing says that it should.
    pub fn cuts_off(&self) -> Option<impl Future<Output = bool> + Send + use<>> {
        let hang = self.stack.hang();
        let cuts = self.has.contains(&Has::Cutting);
        cuts.then_some(async { matches!(timeout(2 * ATTEMPT, hang).await, Ok(true)) })
    }

    /// Panics unless what it has was alive in the calls so far and has counted them rightly. Afterwards its circuit is open.
    pub fn assert_alive(&self) {
        if self.has.contains(&Has::Limiting) {
            self.assert_limited();
        }
        self.round_up();
        let slow = self.settings.path == Path::Failure && self.has.contains(&Has::ForgetsByTime);
        let breaks = self.has.contains(&Has::Breaking) && !slow;
        let failures = breaks.then(|| self.trip());
        if let Some(check) = &self.check {
            check(self.stack.good(), failures);
        }
    }

    /// Makes good calls until their number is such that one that was lost shows: a tenth of it is whole, and one more than a multiple of 99 is just
    /// too many for one failure in a hundred. The row of failures begins anew besides.
    fn round_up(&self) {
        const EVERY: u64 = 990;
        const REST: u64 = 100;
        self.stack.block(Path::Ready, 1);
        let more = (EVERY + REST - self.stack.good() % EVERY) % EVERY;
        self.stack.block(Path::Ready, more as u32);
    }

    fn assert_limited(&self) {
        let (name, limit, before) = (self.name, self.settings.limit, hanging());
        let inside = || hanging() - before;
        let held: Vec<_> = (0..limit).map(|_| self.hang()).collect();
        assert_eq!(inside(), limit, "{name}: not all slots were free");
        let beyond = self.hang();
        assert_eq!(inside(), limit, "{name}: one too many");
        drop(beyond);
        drop(held);
        drop(self.hang());
        assert_eq!(inside(), limit + 1, "{name}: a slot was lost");
    }

    /// A call that hangs, polled once.
    fn hang(&self) -> Hang {
        let mut hang = self.stack.hang();
        let _ = hang.as_mut().poll(&mut noop());
        hang
    }

    /// Fails until the circuit opens; returns how many failures that took.
    fn trip(&self) -> u64 {
        // Those that judge by time need some.
        const ENOUGH: Duration = Duration::from_secs(20);
        let began = Instant::now();
        let mut failures = 0;
        while !self.stack.fail() {
            failures += 1;
            let in_time = began.elapsed() < ENOUGH;
            assert!(in_time, "{}: closed after {failures} failures", self.name);
        }
        failures
    }
}

/// Makes so many calls and returns the time that they took.
pub type Block = Arc<dyn Fn(u32) -> Duration + Send + Sync>;

/// A call that hangs; it returns whether it was cut off.
type Hang = Pin<Box<dyn Future<Output = bool> + Send>>;

/// A stack whose type is forgotten.
trait Erased: Send + Sync {
    fn block(&self, path: Path, calls: u32) -> Duration;

    fn tasks(
        self: Arc<Self>,
        path: Path,
        tasks: u32,
        calls: u32,
    ) -> Pin<Box<dyn Future<Output = Duration>>>;

    fn hang(&self) -> Hang;

    /// A call that fails; returns whether it was refused.
    fn fail(&self) -> bool;

    /// How many calls were good so far.
    fn good(&self) -> u64;
}

struct Shared<S> {
    stack: Mutex<S>,
    good: AtomicU64,
}

impl<S: Stack> Shared<S> {
    fn handle(&self) -> S {
        self.stack.lock().expect("no clone panics").clone()
    }
}

impl<S: Stack> Erased for Shared<S> {
    fn block(&self, path: Path, calls: u32) -> Duration {
        let mut stack = self.handle();
        let began = Instant::now();
        let tally = match path {
            Path::Ready => calls_of(&mut stack, calls, |_| Ask::AtOnce),
            Path::Yield => calls_of(&mut stack, calls, |_| Ask::AfterOneWait),
            Path::Failure => calls_of(&mut stack, calls, failure),
            Path::Open | Path::Full => calls_of(&mut stack, calls, |_| Ask::AtOnce),
        };
        let took = began.elapsed();
        tally.assert(path, calls);
        self.good.fetch_add(tally.good(), Ordering::Relaxed);
        took
    }

    fn tasks(
        self: Arc<Self>,
        path: Path,
        tasks: u32,
        calls: u32,
    ) -> Pin<Box<dyn Future<Output = Duration>>> {
        Box::pin(async move {
            let mut set = JoinSet::new();
            let began = Instant::now();
            for _ in 0..tasks {
                let mut stack = self.handle();
                set.spawn(async move {
                    let mut tally = Tally::default();
                    let ask = match path {
                        Path::Yield => Ask::AfterOneWait,
                        _ => Ask::AtOnce,
                    };
                    for _ in 0..calls {
                        tally.add(call(&mut stack, black_box(ask)).await);
                    }
                    tally
                });
            }
            let tallies = set.join_all().await;
            let took = began.elapsed();
            for tally in tallies {
                tally.assert(path, calls);
                self.good.fetch_add(tally.good(), Ordering::Relaxed);
            }
            took
        })
    }

    fn hang(&self) -> Hang {
        let mut stack = self.handle();
        Box::pin(async move {
            let result = call(&mut stack, Ask::Hang).await;
            matches!(result, Err(error) if error.is_refusal())
        })
    }

    fn fail(&self) -> bool {
        let mut stack = self.handle();
        match finish_call(&mut stack, Ask::Fail) {
            Ok(_) => panic!("a failure became a success"),
            Err(error) => error.is_refusal(),
        }
    }

    fn good(&self) -> u64 {
        self.good.load(Ordering::Relaxed)
    }
}

#[inline]
fn failure(call: u32) -> Ask {
    if call.is_multiple_of(GOOD_ONE_IN) {
        Ask::AtOnce
    } else {
        Ask::Fail
    }
}

#[inline]
fn calls_of<S: Stack>(stack: &mut S, calls: u32, ask: impl Fn(u32) -> Ask) -> Tally {
    let mut tally = Tally::default();
    for call in 0..calls {
        tally.add(finish_call(stack, black_box(ask(call))));
    }
    tally
}

#[inline]
fn finish_call<S: Stack>(stack: &mut S, ask: Ask) -> Result<u64, S::Error> {
    finish(poll_fn(|cx| stack.poll_ready(cx)))?;
    finish(stack.call(ask))
}

/// The same in a task.
#[inline]
async fn call<S: Stack>(stack: &mut S, ask: Ask) -> Result<u64, S::Error> {
    poll_fn(|cx| stack.poll_ready(cx)).await?;
    stack.call(ask).await
}

/// How the calls of a block ended. The answers are added up: that shows that each call was made.
#[derive(Default)]
struct Tally {
    answers: u64,
    failed: u64,
    refused: u64,
}

impl Tally {
    #[inline]
    fn add<E: Told>(&mut self, result: Result<u64, E>) {
        match result {
            Ok(answer) => self.answers += answer,
            Err(error) if error.is_refusal() => self.refused += 1,
            Err(_) => self.failed += 1,
        }
    }

    fn assert(&self, path: Path, calls: u32) {
        let calls = u64::from(calls);
        let expected = match path {
            Path::Ready | Path::Yield => (calls, 0, 0),
            Path::Failure => {
                let good = calls.div_ceil(GOOD_ONE_IN.into());
                (good, calls - good, 0)
            }
            Path::Open | Path::Full => (0, 0, calls),
        };
        assert_eq!(
            (self.good(), self.failed, self.refused),
            expected,
            "answers, failures, refusals"
        );
    }

    fn good(&self) -> u64 {
        self.answers / GOOD
    }
}

/// Polls until the end: what waits has asked to be polled again at once, or is woken by another thread.
#[inline]
pub fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut noop()) {
            return output;
        }
    }
}

#[inline]
fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
