//! A model of the worst day: an open loop of callers, and a database that goes on with abandoned work.
//!
//! Everything happens on a grid of one millisecond, the resolution of tokio's timers. Arrivals are Poisson, service times exponential, both rounded to the
//! grid up or down by chance, so that their means are exact. The random numbers are seeded, and so are those of the layers under test, which take theirs
//! from the same generator of the thread. Time is virtual, except for those who can't follow it.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    future::Future,
    rc::Rc,
    time::Duration,
};

use tokio::{
    sync::oneshot,
    task::LocalSet,
    time::{Instant, sleep_until},
};

/// A caller is served well who has an answer within this time of its first arrival.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// The model database.
#[derive(Clone)]
pub struct Database {
    inner: Rc<Inner>,
}

struct Inner {
    start: Instant,
    serves: Serves,
    trigger: Trigger,
    busy: Cell<usize>,
    waiting: RefCell<VecDeque<oneshot::Sender<()>>>,
    running: RefCell<BinaryHeap<Reverse<(u64, u64)>>>,
    answers: RefCell<Vec<Option<oneshot::Sender<()>>>>,
    vacant: RefCell<Vec<usize>>,
    load: RefCell<Vec<u32>>,
    dice: RefCell<fastrand::Rng>,
}

/// How the database serves.
#[derive(Clone, Copy)]
pub enum Serves {
    /// So many workers behind a FIFO, exponential service times, so many calls a second in all.
    Workers { workers: usize, capacity: f64 },
    /// Everybody at once, in `base` seconds and `more` for each call in flight.
    Everybody { base: f64, more: f64 },
}

/// For a while, the database has only this share of its capacity.
#[derive(Clone, Copy)]
pub struct Trigger {
    pub from: f64,
    pub until: f64,
    pub share: f64,
}

impl Trigger {
    pub const NONE: Self = Self {
        from: 0.0,
        until: 0.0,
        share: 1.0,
    };

    fn share_at(&self, seconds: f64) -> f64 {
        if (self.from..self.until).contains(&seconds) {
            self.share
        } else {
            1.0
        }
    }
}

impl Database {
    /// One query. Dropped, it goes on in the database.
    pub async fn query(&self) {
        let _ = self.ask().await;
    }

    /// Begins a query; the answer may be awaited anywhere.
    pub fn ask(&self) -> oneshot::Receiver<()> {
        let (answer, answered) = oneshot::channel();
        self.inner.enter(answer);
        answered
    }

    /// How many queries began in each second.
    pub fn load(&self) -> Vec<u32> {
        self.inner.load.borrow().clone()
    }
}

impl Inner {
    fn now(&self) -> u64 {
        (Instant::now() - self.start).as_millis() as u64
    }

    fn enter(&self, answer: oneshot::Sender<()>) {
        let now = self.now();
        count(&mut self.load.borrow_mut(), now);
        match self.serves {
            Serves::Workers { workers, .. } if self.busy.get() >= workers => {
                self.waiting.borrow_mut().push_back(answer);
            }
            Serves::Workers { .. } | Serves::Everybody { .. } => self.begin(answer, now),
        }
    }

    fn begin(&self, answer: oneshot::Sender<()>, now: u64) {
        self.busy.set(self.busy.get() + 1);
        let share = self.trigger.share_at(now as f64 / 1e3);
        let mut dice = self.dice.borrow_mut();
        let seconds = match self.serves {
            Serves::Workers { workers, capacity } => {
                let mean = workers as f64 / (capacity * share);
                -mean * (1.0 - dice.f64()).ln()
            }
            Serves::Everybody { base, more } => (base + more * self.busy.get() as f64) / share,
        };
        let until = now + on_grid(seconds, &mut dice).max(1);
        let mut answers = self.answers.borrow_mut();
        let index = self.vacant.borrow_mut().pop().unwrap_or_else(|| {
            answers.push(None);
            answers.len() - 1
        });
        answers[index] = Some(answer);
        self.running
            .borrow_mut()
            .push(Reverse((until, index as u64)));
    }

    /// Ends what is due; the next in line begins in its place.
    fn end(&self, now: u64) {
        loop {
            let (ended, due) = match self.running.borrow().peek() {
                Some(&Reverse((until, index))) if until <= now => (until, index as usize),
                _ => return,
            };
            self.running.borrow_mut().pop();
            self.busy.set(self.busy.get() - 1);
            let answer = self.answers.borrow_mut()[due].take();
            self.vacant.borrow_mut().push(due);
            if let Some(answer) = answer {
                // Nobody may be there to hear it any more.
                let _ = answer.send(());
            }
            let next = self.waiting.borrow_mut().pop_front();
            if let Some(next) = next {
                // Not `now`: a real clock may have run ahead, and the database would lose the time.
                self.begin(next, ended);
            }
        }
    }
}

/// The day: who calls, how often, and for how long.
#[derive(Clone, Copy)]
pub struct Day {
    pub serves: Serves,
    pub trigger: Trigger,
    /// Calls per second outside and inside of `spike`.
    pub arrivals: f64,
    pub spike: Spike,
    pub seconds: u64,
}

/// More callers for a while.
#[derive(Clone, Copy)]
pub struct Spike {
    pub from: f64,
    pub until: f64,
    pub arrivals: f64,
}

impl Spike {
    pub const NONE: Self = Self {
        from: 0.0,
        until: 0.0,
        arrivals: 0.0,
    };
}

/// What came of it, second by second.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// Calls that arrived in that second.
    pub offered: Vec<u32>,
    /// Calls that were answered in that second, within their patience.
    pub goodput: Vec<u32>,
    /// Queries that began in that second.
    pub load: Vec<u32>,
}

/// Lives through a day in virtual time: what `make` makes is what one caller does, `Ok` is an answer.
pub fn live<F, Fut, E>(day: Day, seed: u64, make: impl FnOnce() -> F) -> Record
where
    F: Fn(Database) -> Fut + 'static,
    Fut: Future<Output = Result<(), E>>,
{
    live_by(Clock::Virtual, day, seed, make)
}

/// Which time a day takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(dead_code, reason = "a test has no day to spend")]
pub enum Clock {
    /// None: tokio's paused clock goes from event to event.
    Virtual,
    /// As long as it says, for layers that read the system's clock.
    Real,
}

/// [`live`] by another clock.
pub fn live_by<F, Fut, E>(clock: Clock, day: Day, seed: u64, make: impl FnOnce() -> F) -> Record
where
    F: Fn(Database) -> Fut + 'static,
    Fut: Future<Output = Result<(), E>>,
{
    fastrand::seed(seed);
    let mut dice = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9) ^ 0x5eed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(clock == Clock::Virtual)
        .build()
        .expect("a runtime");
    LocalSet::new().block_on(&runtime, async move {
        let start = Instant::now();
        let database = Database {
            inner: Rc::new(Inner {
                start,
                serves: day.serves,
                trigger: day.trigger,
                busy: Cell::new(0),
                waiting: RefCell::default(),
                running: RefCell::default(),
                answers: RefCell::default(),
                vacant: RefCell::default(),
                load: RefCell::default(),
                dice: RefCell::new(dice.fork()),
            }),
        };
        let call = Rc::new(make());
        let record = Rc::new(RefCell::new(Record::default()));
        for now in 0..day.seconds * 1_000 {
            sleep_until(start + Duration::from_millis(now)).await;
            database.inner.end(now);
            let spike = (day.spike.from..day.spike.until).contains(&(now as f64 / 1e3));
            let rate = if spike {
                day.spike.arrivals
            } else {
                day.arrivals
            };
            for _ in 0..poisson(rate / 1e3, &mut dice) {
                count(&mut record.borrow_mut().offered, now);
                let (call, database, record) = (call.clone(), database.clone(), record.clone());
                tokio::task::spawn_local(async move {
                    let arrived = Instant::now();
                    let answer = call(database).await;
                    let ended = Instant::now();
                    if answer.is_ok() && ended - arrived <= PATIENCE {
                        count(
                            &mut record.borrow_mut().goodput,
                            (ended - start).as_millis() as u64,
                        );
                    }
                });
            }
        }
        let mut record = record.take();
        record.load = database.load();
        let seconds = day.seconds as usize;
        for counts in [&mut record.offered, &mut record.goodput, &mut record.load] {
            counts.resize(seconds, 0);
        }
        record
    })
}

/// A look-aside cache in front of the database: full at first, and emptied once.
///
/// A caller wants one key of many, each as likely as the next. Only who is still there when the database answers fills the cache.
#[derive(Clone)]
#[allow(dead_code, reason = "only one of the models has a cache")]
pub struct Cache {
    shelf: Rc<Shelf>,
}

struct Shelf {
    held: RefCell<Vec<bool>>,
    emptied: Instant,
    is_emptied: Cell<bool>,
    dice: RefCell<fastrand::Rng>,
}

#[allow(dead_code, reason = "only one of the models has a cache")]
impl Cache {
    /// So many keys, `emptied` so many seconds from now.
    pub fn new(keys: usize, emptied: f64, seed: u64) -> Self {
        let shelf = Shelf {
            held: RefCell::new(vec![true; keys]),
            emptied: Instant::now() + Duration::from_secs_f64(emptied),
            is_emptied: Cell::new(false),
            dice: RefCell::new(fastrand::Rng::with_seed(seed ^ 0xcac4e)),
        };
        Self {
            shelf: Rc::new(shelf),
        }
    }

    /// One key: at once if it is held, else by `miss`, whose answer is then held.
    pub async fn look_aside<E>(&self, miss: impl Future<Output = Result<(), E>>) -> Result<(), E> {
        let key = self.shelf.pick();
        if !self.shelf.holds(key) {
            miss.await?;
            self.shelf.held.borrow_mut()[key] = true;
        }
        Ok(())
    }
}

impl Shelf {
    fn pick(&self) -> usize {
        let keys = self.held.borrow().len();
        self.dice.borrow_mut().usize(..keys)
    }

    fn holds(&self, key: usize) -> bool {
        if !self.is_emptied.get() && Instant::now() >= self.emptied {
            self.is_emptied.set(true);
            self.held.borrow_mut().fill(false);
        }
        self.held.borrow()[key]
    }
}

impl Record {
    /// How many seconds after `end` the goodput is back at `target` calls a second, and stays there on average over three seconds; `None`: never.
    pub fn recovered_after(&self, end: usize, target: f64) -> Option<usize> {
        let back = |second: usize| {
            let three = &self.goodput[second..(second + 3).min(self.goodput.len())];
            let mean = three.iter().map(|n| f64::from(*n)).sum::<f64>() / three.len() as f64;
            mean >= target
        };
        (end..self.goodput.len() - 2)
            .find(|second| back(*second))
            .map(|second| second - end)
    }

    /// The mean goodput of the seconds from `from` up to `until`.
    pub fn mean_goodput(&self, from: usize, until: usize) -> f64 {
        mean(&self.goodput[from..until])
    }
}

pub fn mean(counts: &[u32]) -> f64 {
    counts.iter().map(|n| f64::from(*n)).sum::<f64>() / counts.len() as f64
}

fn count(counts: &mut Vec<u32>, now: u64) {
    let second = (now / 1_000) as usize;
    if counts.len() <= second {
        counts.resize(second + 1, 0);
    }
    counts[second] += 1;
}

/// Milliseconds, rounded up or down by chance, so that the mean is kept.
fn on_grid(seconds: f64, dice: &mut fastrand::Rng) -> u64 {
    let exact = seconds * 1e3;
    exact as u64 + u64::from(dice.f64() < exact.fract())
}

fn poisson(mean: f64, dice: &mut fastrand::Rng) -> u32 {
    let (limit, mut product, mut events) = ((-mean).exp(), dice.f64(), 0);
    while product > limit {
        product *= dice.f64();
        events += 1;
    }
    events
}
