//! What a call of `steadfast` costs as the work grows: calls in the window, waiters, tasks, threads.
//!
//! `cargo bench --bench scale`. Each row should be flat; where it is not, the note says why.

use std::{
    collections::VecDeque,
    future::Future,
    num::NonZero,
    pin::{Pin, pin},
    sync::Barrier,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use candidates::{
    candidate::finish,
    inner::{Answer, Ask, Trouble},
};
use steadfast::{
    Breaker, Classify, ConcurrencyLimiter, ConfigError, Kind, Rejected, Shield, by_error,
    limit::Permit, retry::Budget,
};
use tokio::{
    runtime::{Builder, Runtime},
    task::{JoinSet, yield_now},
    time::sleep,
};

fn main() -> Result<(), ConfigError> {
    let runtime = runtime();
    let _entered = runtime.enter();
    let calls = [10, 100, 1_000, 10_000, 100_000, 1_000_000];
    let many = [1, 10, 100, 1_000, 10_000];
    println!("nanoseconds; the median of {ROUNDS} rounds");
    row("a success; n calls in the window", "", &calls, success)?;
    row("a failure; n calls in the window", "", &calls, failure)?;
    row("a retry, its deposits; n before", "", &calls, retry)?;
    row("n wait; one comes and leaves", "", &many, enqueue)?;
    let cold = "so many waiters are not in the caches";
    row("n wait; any leaves, one comes", cold, &many, cancel)?;
    row("n wait; the first passes, one comes", cold, &many, dequeue)?;
    let cold =
        "so many futures and timers are not in the caches, and a thread keeps 64 idle timers";
    row("n tasks; what a call adds, one wait", cold, &many, tasks)?;
    let shared = "more threads than cores take turns on them";
    row("n threads; a call, no wait", shared, &[1, 2, 4], threads)?;
    Ok(())
}

/// Does something so many times and returns the nanoseconds for each.
type Work = Box<dyn FnMut(u32) -> f64>;

const ROUNDS: usize = 31;

/// Measures the work for each size in turn, again and again.
fn row(
    title: &str,
    note: &str,
    sizes: &[u32],
    work: fn(u32) -> Result<Work, ConfigError>,
) -> Result<(), ConfigError> {
    const REPEATS: u32 = 2_000;
    let works: Result<Vec<Work>, _> = sizes.iter().map(|size| work(*size)).collect();
    let mut works = works?;
    let mut times = vec![Vec::new(); sizes.len()];
    for _ in 0..ROUNDS {
        for (work, times) in works.iter_mut().zip(&mut times) {
            times.push(work(REPEATS));
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let medians: Vec<f64> = times.iter_mut().map(median).collect();
    let most = medians.iter().copied().fold(0.0, f64::max);
    let least = medians.iter().copied().fold(f64::INFINITY, f64::min);
    print!("{title:<35}");
    for (size, median) in sizes.iter().zip(&medians) {
        print!(" | {size:>7}: {median:>5.0}");
    }
    if most < 1.5 * least {
        println!(" | flat");
    } else {
        println!(" | {:.1}-fold: {note}", most / least);
    }
    Ok(())
}

/// Another timer rings sooner than ours, as in any process that does something.
fn runtime() -> Runtime {
    let runtime = Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    runtime.spawn(async {
        loop {
            sleep(Duration::from_millis(10)).await;
        }
    });
    runtime.block_on(yield_now());
    runtime
}

fn timed(mut work: impl FnMut() + 'static) -> Work {
    Box::new(move |repeats| {
        let began = Instant::now();
        (0..repeats).for_each(|_| work());
        per_one(began.elapsed(), repeats)
    })
}

fn per_one(took: Duration, count: u32) -> f64 {
    took.as_nanos() as f64 / f64::from(count)
}

/// A call through a shield whose breaker has seen `n` good calls.
fn success(n: u32) -> Result<Work, ConfigError> {
    let breaker = remembering(n)?;
    let shield = shield(&breaker)?;
    Ok(timed(move || {
        let answer = finish(shield.run(|| Answer::to(Ask::AtOnce)));
        assert!(answer.is_ok());
    }))
}

/// A failure is judged by what the window holds.
fn failure(n: u32) -> Result<Work, ConfigError> {
    let breaker = remembering(n)?;
    Ok(timed(move || {
        let permit = breaker.admit().expect("it does not open");
        permit.settle(Kind::Broken);
    }))
}

/// A breaker that has seen `n` good calls and does not open.
fn remembering(n: u32) -> Result<Breaker, ConfigError> {
    let breaker = Breaker::builder()
        .window(HOUR)
        .failure_rate(1.0)
        .consecutive(1_000_000)
        .build()?;
    for _ in 0..n {
        let permit = breaker.admit().expect("it is closed");
        permit.settle(Kind::Success);
    }
    Ok(breaker)
}

const HOUR: Duration = Duration::from_secs(3_600);

fn shield(
    breaker: &Breaker,
) -> Result<Shield<impl Classify<u64, Trouble> + Clone + Send + Sync + use<>>, ConfigError> {
    Shield::builder(by_error(|_: &Trouble| Kind::Broken))
        .breaker(breaker)
        .limiter(&ConcurrencyLimiter::new(100_000)?)
        .build()
}

/// Ten deposits and the retry that they pay for, from a budget with `n` deposits.
fn retry(n: u32) -> Result<Work, ConfigError> {
    let budget = Budget::builder().window(HOUR).floor(0.0, 0).build()?;
    (0..n).for_each(|_| budget.deposit());
    Ok(timed(move || {
        (0..10).for_each(|_| budget.deposit());
        assert!(budget.withdraw());
    }))
}

/// A limiter without a free slot, and those who wait for it.
struct Line {
    limiter: ConcurrencyLimiter,
    permit: Option<Permit>,
    waiting: VecDeque<Waiter>,
}

type Waiter = Pin<Box<dyn Future<Output = Result<Permit, Rejected>>>>;

impl Line {
    fn of(n: u32) -> Result<Self, ConfigError> {
        let limiter = ConcurrencyLimiter::builder(1)
            .queue(1_000_000)
            .max_wait(HOUR);
        let limiter = limiter.build()?;
        let mut line = Self {
            permit: limiter.try_acquire(),
            limiter,
            waiting: VecDeque::new(),
        };
        (0..n).for_each(|_| line.join());
        Ok(line)
    }

    fn join(&mut self) {
        let limiter = self.limiter.clone();
        let mut waiter: Waiter = Box::pin(async move { limiter.acquire().await });
        assert!(waiter.as_mut().poll(&mut noop()).is_pending());
        self.waiting.push_back(waiter);
    }
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn enqueue(n: u32) -> Result<Work, ConfigError> {
    let line = Line::of(n)?;
    Ok(timed(move || {
        // All of it, else the closure would not keep the permit.
        let line = &line;
        let waiter = pin!(line.limiter.acquire());
        assert!(waiter.poll(&mut noop()).is_pending());
    }))
}

fn cancel(n: u32) -> Result<Work, ConfigError> {
    let mut line = Line::of(n)?;
    let mut random = fastrand::Rng::with_seed(7);
    Ok(timed(move || {
        let any = random.usize(..line.waiting.len());
        drop(line.waiting.swap_remove_back(any));
        line.join();
        assert_eq!(line.waiting.len(), n as usize);
    }))
}

fn dequeue(n: u32) -> Result<Work, ConfigError> {
    let mut line = Line::of(n)?;
    Ok(timed(move || {
        drop(line.permit.take());
        let mut first = line.waiting.pop_front().expect("somebody waits");
        let Poll::Ready(Ok(permit)) = first.as_mut().poll(&mut noop()) else {
            panic!("it is the first one's turn");
        };
        line.permit = Some(permit);
        line.join();
    }))
}

/// `n` tasks call at once; what the same tasks take without a shield is taken off.
fn tasks(n: u32) -> Result<Work, ConfigError> {
    let (runtime, shield) = (runtime(), shield(&Breaker::default())?);
    Ok(Box::new(move |_| {
        let each = (200_000 / ROUNDS as u32 / n).max(4);
        let took = |shielded: bool| {
            let mut set = JoinSet::new();
            let began = Instant::now();
            for _ in 0..n {
                let shield = shield.clone();
                set.spawn_on(
                    async move {
                        for _ in 0..each {
                            let answer = if shielded {
                                shield.run(|| Answer::to(Ask::AfterOneWait)).await
                            } else {
                                Answer::to(Ask::AfterOneWait).await
                            };
                            assert!(answer.is_ok());
                        }
                    },
                    runtime.handle(),
                );
            }
            runtime.block_on(set.join_all());
            per_one(began.elapsed(), n * each)
        };
        took(true) - took(false)
    }))
}

/// `n` threads call at once; so many nanoseconds of each processor for a call.
fn threads(n: u32) -> Result<Work, ConfigError> {
    let shield = shield(&Breaker::default())?;
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let busy = (n as usize).min(processors) as u32;
    Ok(Box::new(move |calls| {
        let calls = 10 * calls;
        let start = Barrier::new(n as usize);
        let call = || {
            start.wait();
            let began = Instant::now();
            for _ in 0..calls {
                let answer = finish(shield.run(|| Answer::to(Ask::AtOnce)));
                assert!(answer.is_ok());
            }
            (began, Instant::now())
        };
        let times = thread::scope(|scope| {
            let threads: Vec<_> = (0..n).map(|_| scope.spawn(call)).collect();
            let times = threads.into_iter().map(|thread| thread.join());
            times
                .map(|time| time.expect("no panic"))
                .collect::<Vec<_>>()
        });
        let began = times.iter().map(|time| time.0).min().expect("a thread");
        let ended = times.iter().map(|time| time.1).max().expect("a thread");
        per_one((ended - began) * busy, n * calls)
    }))
}
