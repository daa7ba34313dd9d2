use std::collections::BTreeMap;

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{TestCaseResult, TestRunner},
};

use super::*;
use crate::{
    ring::BUCKETS,
    testing::{CAUSES, start},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const LIFE: Duration = Duration::from_secs(6);
const GOOD: Outcome = counted(false, false);
const FAILED: Outcome = counted(true, false);
const SLOW: Outcome = counted(false, true);

const fn counted(bad: bool, slow: bool) -> Outcome {
    Outcome::Counted {
        bad,
        slow,
        retry_after: None,
    }
}

fn rules() -> Rules {
    Rules {
        failure_rate: Some(0.5),
        minimum_calls: 20,
        window: 10 * SECOND,
        consecutive: None,
        slow: None,
        open_for: 500 * MS,
        max_open_for: 30 * SECOND,
        probes: 1,
        required_successes: 1,
    }
}

fn consecutive(failures: u32) -> Rules {
    Rules {
        failure_rate: None,
        consecutive: NonZeroU32::new(failures),
        ..rules()
    }
}

/// A circuit with its clock; nothing is left to chance.
struct Bench {
    circuit: Circuit,
    now: Instant,
    random: u64,
}

impl Bench {
    fn new(rules: Rules) -> Self {
        let now = start();
        let ticks = Ticks::new(rules.window, now);
        Self {
            circuit: Circuit::new(rules, ticks),
            now,
            random: 0,
        }
    }

    /// One that the first failure opened.
    fn open(rules: Rules) -> Self {
        let mut bench = Self::new(Rules {
            consecutive: NonZeroU32::new(1),
            ..rules
        });
        bench.call(FAILED);
        assert_eq!(bench.circuit.state(), State::Open);
        bench
    }

    /// One that was opened and is over its open time.
    fn ripe(rules: Rules) -> Self {
        let open_for = rules.open_for;
        let mut bench = Self::open(rules);
        bench.now += open_for;
        bench
    }

    fn admit(&mut self) -> Result<Ticket, Instant> {
        self.circuit.admit(LIFE, self.random, self.now)
    }

    fn pass(&mut self) -> Ticket {
        self.admit().expect("the circuit lets this call pass")
    }

    fn refusal(&mut self) -> Duration {
        let again = self.admit().expect_err("the circuit refuses this call");
        again - self.now
    }

    fn settle(&mut self, ticket: Ticket, outcome: Outcome) {
        self.circuit.settle(ticket, outcome, self.random, self.now);
    }

    fn call(&mut self, outcome: Outcome) {
        let ticket = self.pass();
        self.settle(ticket, outcome);
    }

    fn calls(&mut self, calls: u32, outcome: Outcome) {
        (0..calls).for_each(|_| self.call(outcome));
    }

    fn state(&self) -> State {
        self.circuit.state()
    }

    fn changes(&mut self) -> Vec<(State, State, Cause)> {
        let next = || self.circuit.next_change();
        std::iter::from_fn(next)
            .map(|change| (change.from, change.to, change.cause))
            .collect()
    }
}

#[test]
fn a_probe_is_due_when_the_open_time_is_over_unless_the_circuit_is_forced() {
    let mut bench = Bench::new(consecutive(1));
    assert!(!bench.circuit.is_due(bench.now), "it is closed");
    bench.call(FAILED);
    bench.now += 499 * MS;
    assert!(!bench.circuit.is_due(bench.now));
    bench.now += MS;
    assert!(bench.circuit.is_due(bench.now));
    bench.circuit.force(Forced::Open);
    assert!(!bench.circuit.is_due(bench.now));
}

#[test]
fn every_turn_begins_another_epoch() {
    let mut bench = Bench::new(consecutive(1));
    let mut epochs = vec![bench.circuit.epoch()];
    assert_eq!(bench.pass().epoch, epochs[0]);
    bench.call(FAILED);
    epochs.push(bench.circuit.epoch());
    bench.now += SECOND;
    let probe = bench.pass();
    epochs.push(bench.circuit.epoch());
    assert_eq!(probe.epoch, epochs[2]);
    bench.settle(probe, GOOD);
    epochs.push(bench.circuit.epoch());
    bench.circuit.reset();
    epochs.push(bench.circuit.epoch());
    assert!(epochs.is_sorted_by(|one, next| one < next), "{epochs:?}");
}

#[test]
fn a_rate_is_judged_from_the_minimum_of_calls_on_and_not_before() {
    let mut bench = Bench::new(rules());
    bench.calls(19, FAILED);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILED);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn a_rate_of_seven_in_a_hundred_is_reached_by_seven_calls_of_a_hundred() {
    // 0.07 * 100.0 is more than 7.0.
    let mut bench = Bench::new(Rules {
        failure_rate: Some(0.07),
        ..rules()
    });
    bench.calls(93, GOOD);
    bench.calls(6, FAILED);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILED);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn it_opens_on_failures_in_a_row_only() {
    let mut bench = Bench::new(consecutive(3));
    bench.calls(2, FAILED);
    bench.circuit.good(1, 0);
    bench.calls(2, FAILED);
    assert_eq!(bench.state(), State::Closed);
    bench.call(FAILED);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn a_shard_that_had_counted_nothing_does_not_end_a_row_of_failures() {
    // A shard is rolled by whoever read its clock; a failure in between has taken its successes already.
    let mut bench = Bench::new(consecutive(3));
    bench.calls(2, FAILED);
    bench.circuit.good(0, 0);
    bench.call(FAILED);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn slow_calls_open_it_by_their_own_rate() {
    let slow = Slow {
        after: SECOND,
        rate: 0.8,
    };
    let mut bench = Bench::new(Rules {
        slow: Some(slow),
        ..rules()
    });
    bench.calls(4, GOOD);
    bench.calls(15, SLOW);
    assert_eq!(bench.state(), State::Closed);
    bench.call(SLOW);
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn the_open_time_doubles_with_failed_rounds_up_to_its_cap_and_begins_anew_after_closing() {
    let mut bench = Bench::open(rules());
    for expected in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
        assert_eq!(bench.refusal(), expected * MS);
        bench.now += expected * MS;
        bench.call(FAILED);
    }
    bench.now += 30 * SECOND;
    bench.call(GOOD);
    bench.call(FAILED);
    assert_eq!(bench.refusal(), 500 * MS);
}

#[test]
fn chance_shortens_the_open_time_by_up_to_a_fifth_also_at_its_cap() {
    for (random, share) in [(0, 100), (u64::MAX / 2, 90), (u64::MAX, 80)] {
        let mut bench = Bench::new(Rules {
            max_open_for: 500 * MS,
            ..consecutive(1)
        });
        bench.random = random;
        bench.call(FAILED);
        assert_eq!(bench.refusal(), share * 5 * MS);
        bench.now += 500 * MS;
        bench.call(FAILED);
        assert_eq!(bench.refusal(), share * 5 * MS, "at the cap");
    }
}

#[test]
fn a_hint_of_the_server_lengthens_the_open_time_up_to_its_cap_and_never_shortens_it() {
    for (hint, expected) in [(100, 500), (4_000, 4_000), (86_400_000, 30_000)] {
        let mut bench = Bench::new(consecutive(1));
        bench.call(Outcome::Counted {
            bad: true,
            slow: false,
            retry_after: Some(hint * MS),
        });
        assert_eq!(bench.refusal(), expected * MS);
    }
}

#[test]
fn a_slot_that_expired_is_a_failed_probe_of_that_moment() {
    let mut bench = Bench::ripe(rules());
    let hung = bench.pass();
    bench.now += LIFE - MS;
    assert_eq!(bench.refusal(), MS);
    bench.now += MS + 400 * MS;
    assert_eq!(bench.refusal(), 600 * MS, "1 s from when it expired");
    bench.now += 600 * MS;
    let probe = bench.pass();
    bench.settle(hung, GOOD);
    assert_eq!(bench.state(), State::HalfOpen);
    assert_eq!(
        bench.refusal(),
        rules().open_for,
        "the late probe freed a slot"
    );
    bench.settle(probe, GOOD);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_neutral_probe_frees_its_slot_and_counts_nothing() {
    let mut bench = Bench::ripe(Rules {
        required_successes: 2,
        ..rules()
    });
    bench.call(GOOD);
    bench.call(Outcome::Neutral);
    assert_eq!(bench.state(), State::HalfOpen);
    bench.call(GOOD);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_slow_probe_has_failed_only_where_slow_calls_are_judged() {
    let slow = Slow {
        after: SECOND,
        rate: 1.0,
    };
    for (slow, expected) in [(None, State::Closed), (Some(slow), State::Open)] {
        let mut bench = Bench::ripe(Rules { slow, ..rules() });
        bench.call(SLOW);
        assert_eq!(bench.state(), expected);
    }
}

#[test]
fn forcing_a_state_frees_the_slots_of_probes_that_count_no_more() {
    // Their tickets were of an older epoch, so that nobody freed the slots: they expired, and opened a healthy circuit.
    let mut bench = Bench::ripe(rules());
    let probe = bench.pass();
    bench.circuit.force(Forced::ObserveOnly);
    bench.settle(probe, GOOD);
    assert_eq!(bench.state(), State::HalfOpen);
    bench.call(GOOD);
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_forced_state_tells_of_nothing_that_it_hides() {
    let mut bench = Bench::ripe(rules());
    let probe = bench.pass();
    bench.changes();
    bench.circuit.force(Forced::Open);
    bench.now += 2 * LIFE;
    bench.settle(probe, FAILED);
    assert_eq!(bench.refusal(), 500 * MS);
    bench.circuit.force(Forced::Closed);
    bench.call(FAILED);
    bench.circuit.reset();
    let expected = [
        (State::HalfOpen, State::ForcedOpen, Cause::Asked),
        (State::ForcedOpen, State::ForcedClosed, Cause::Asked),
        (State::ForcedClosed, State::Closed, Cause::Asked),
    ];
    assert_eq!(bench.changes(), expected);
}

/// What the circuit should do, found out anew at each step from a list of all that happened.
struct Model {
    rules: Rules,
    /// Shares in percent, so that nothing is rounded.
    failure_rate: Option<u64>,
    slow_rate: Option<u64>,
    mode: Mode,
    forced: Option<Forced>,
    /// Counts whatever makes a call that is under way count for nothing.
    era: u32,
    calls: Vec<Call>,
    results: Vec<Answered>,
    /// The failed rounds of probes since the circuit was last closed.
    failed_rounds: u32,
    latest: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Closed,
    /// Until then; times are microseconds.
    Open(u64),
    HalfOpen,
}

/// A call that was let through.
#[derive(Clone, Debug)]
struct Call {
    era: u32,
    way: Way,
    /// None while it is under way.
    end: Option<Outcome>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Usual,
    Probe { expires: u64 },
    Stray,
}

/// A result that came through the closed circuit since it was closed.
#[derive(Clone, Copy, Debug)]
struct Answered {
    tick: u64,
    bad: bool,
    slow: bool,
}

const LIFE_MICROS: u64 = 6_000_000;

impl Model {
    fn state(&self) -> State {
        match (self.forced, self.mode) {
            (Some(Forced::Open), _) => State::ForcedOpen,
            (Some(Forced::Closed), _) => State::ForcedClosed,
            (_, Mode::Closed) => State::Closed,
            (_, Mode::Open(_)) => State::Open,
            (_, Mode::HalfOpen) => State::HalfOpen,
        }
    }

    /// When the probes under way expire.
    fn expiries(&self) -> impl Iterator<Item = u64> {
        let under_way = |call: &&Call| call.era == self.era && call.end.is_none();
        let expiry = |call: &Call| match call.way {
            Way::Probe { expires } => Some(expires),
            Way::Usual | Way::Stray => None,
        };
        self.calls.iter().filter(under_way).filter_map(expiry)
    }

    fn admit(&mut self, shorter: u64, now: u64) -> Result<Way, u64> {
        match self.forced {
            Some(Forced::Open) => return Err(now + micros(self.rules.open_for)),
            Some(Forced::Closed) => return Ok(self.let_through(Way::Stray)),
            _ => {}
        }
        self.expire(shorter, now);
        if let Mode::Open(until) = self.mode
            && until <= now
        {
            self.enter(Mode::HalfOpen);
        }
        let refused = match self.mode {
            Mode::Closed => return Ok(self.let_through(Way::Usual)),
            Mode::Open(until) => until,
            Mode::HalfOpen if self.expiries().count() < self.rules.probes as usize => {
                let expires = now + LIFE_MICROS;
                return Ok(self.let_through(Way::Probe { expires }));
            }
            Mode::HalfOpen => {
                let expiry = self.expiries().min().unwrap();
                expiry.min(now + micros(self.rules.open_for))
            }
        };
        if self.forced.is_some() {
            return Ok(self.let_through(Way::Stray));
        }
        Err(refused)
    }

    fn let_through(&mut self, way: Way) -> Way {
        let era = self.era;
        let end = None;
        self.calls.push(Call { era, way, end });
        way
    }

    fn settle(&mut self, call: usize, outcome: Outcome, shorter: u64, now: u64) {
        self.expire(shorter, now);
        let era = self.era;
        let way = self.calls[call].way;
        if self.calls[call].era != era || self.calls[call].end.is_some() || way == Way::Stray {
            return;
        }
        self.calls[call].end = Some(outcome);
        let Outcome::Counted {
            bad,
            slow,
            retry_after,
        } = outcome
        else {
            return;
        };
        if way == Way::Usual {
            self.usual(bad, slow, retry_after, shorter, now);
        } else if bad || slow && self.rules.slow.is_some() {
            self.failed_rounds += 1;
            self.open(retry_after, shorter, now);
        } else {
            let good = |call: &&Call| {
                let counted = matches!(call.end, Some(Outcome::Counted { .. }));
                call.era == era && counted && matches!(call.way, Way::Probe { .. })
            };
            let successes = self.calls.iter().filter(good).count();
            if successes >= self.rules.required_successes as usize {
                self.forget();
                self.enter(Mode::Closed);
            }
        }
    }

    fn usual(&mut self, bad: bool, slow: bool, hint: Option<Duration>, shorter: u64, now: u64) {
        let tick = now / 1_000_000;
        self.results.push(Answered { tick, bad, slow });
        self.latest = self.latest.max(tick);
        let in_a_row = self.results.iter().rev().take_while(|r| r.bad).count();
        let recent: Vec<_> = self
            .results
            .iter()
            .filter(|r| self.latest - r.tick < BUCKETS as u64)
            .collect();
        let all = recent.len() as u64;
        let enough = all >= u64::from(self.rules.minimum_calls);
        let share = |count: usize, rate: u64| enough && count as u64 * 100 >= rate * all;
        let failures = recent.iter().filter(|r| r.bad).count();
        let crawlers = recent.iter().filter(|r| r.slow).count();
        let row = self
            .rules
            .consecutive
            .is_some_and(|most| in_a_row as u32 >= most.get());
        if bad && (row || self.failure_rate.is_some_and(|rate| share(failures, rate)))
            || slow && self.slow_rate.is_some_and(|rate| share(crawlers, rate))
        {
            self.open(hint, shorter, now);
        }
    }

    fn good(&mut self, calls: u64, tick: u64) {
        let result = Answered {
            tick,
            bad: false,
            slow: false,
        };
        self.results.extend((0..calls).map(|_| result));
        self.latest = self.latest.max(tick);
    }

    fn expire(&mut self, shorter: u64, now: u64) {
        if let Some(expiry) = self.expiries().min()
            && expiry <= now
        {
            self.failed_rounds += 1;
            self.open(None, shorter, expiry);
        }
    }

    /// `shorter` in percent.
    fn open(&mut self, hint: Option<Duration>, shorter: u64, now: u64) {
        let longest = micros(self.rules.max_open_for);
        let mut time = micros(self.rules.open_for);
        (0..self.failed_rounds).for_each(|_| time = (2 * time).min(longest));
        time = time * (100 - shorter) / 100;
        if let Some(hint) = hint {
            time = time.max(micros(hint).min(longest));
        }
        self.enter(Mode::Open(now + time));
    }

    fn enter(&mut self, mode: Mode) {
        self.mode = mode;
        self.era += 1;
    }

    fn force(&mut self, forced: Forced) {
        self.forced = Some(forced);
        self.era += 1;
    }

    fn reset(&mut self) {
        self.forced = None;
        self.forget();
        self.enter(Mode::Closed);
    }

    fn forget(&mut self) {
        self.results.clear();
        self.latest = 0;
        self.failed_rounds = 0;
    }
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

#[derive(Clone, Debug)]
enum Step {
    Admit,
    /// The result of the call that was let through so many calls ago, though it may be settled or expired.
    Settle(usize, Outcome),
    /// Successes that the shards had counted, so many ticks ago.
    Good(u64, u64),
    Wait(Duration),
    Force(Forced),
    Reset,
}

/// A step, how far its clock is behind, and what chance says to it.
type Stepped = (Step, Duration, usize);

/// A word of chance, and by how many percent it shortens the open time.
const CHANCES: [(u64, u64); 3] = [(0, 0), (u64::MAX / 2, 10), (u64::MAX, 20)];

fn steps() -> impl Strategy<Value = Vec<Stepped>> {
    let millis = |range| Strategy::prop_map(range, Duration::from_millis);
    let hint = prop_oneof![
        8 => Just(None),
        1 => millis(0..40_000_u64).prop_map(Some),
    ];
    let counted = (prop::bool::weighted(0.6), prop::bool::weighted(0.2), hint).prop_map(
        |(bad, slow, retry_after)| Outcome::Counted {
            bad,
            slow,
            retry_after,
        },
    );
    let outcome = prop_oneof![1 => Just(Outcome::Neutral), 8 => counted, 3 => Just(GOOD)];
    let ago = prop_oneof![3 => 0..5_usize, 1 => 0..100_usize];
    let forced = prop_oneof![
        1 => Just(Forced::Open),
        1 => Just(Forced::Closed),
        2 => Just(Forced::ObserveOnly),
    ];
    let step = prop_oneof![
        30 => Just(Step::Admit),
        30 => (ago, outcome).prop_map(|(call, end)| Step::Settle(call, end)),
        3 => (0..5_u64, 0..12_u64).prop_map(|(calls, ago)| Step::Good(calls, ago)),
        8 => millis(0..700_u64).prop_map(Step::Wait),
        4 => millis(1_000..9_000_u64).prop_map(Step::Wait),
        1 => millis(20_000..40_000_u64).prop_map(Step::Wait),
        1 => forced.prop_map(Step::Force),
        1 => Just(Step::Reset),
    ];
    let behind = prop_oneof![5 => Just(Duration::ZERO), 1 => millis(1..30_u64)];
    prop::collection::vec((step, behind, 0..CHANCES.len()), 1..250)
}

#[derive(Clone, Debug)]
struct Settings {
    failure_rate: Option<u64>,
    slow_rate: Option<u64>,
    minimum_calls: u32,
    consecutive: Option<NonZeroU32>,
    probes: u32,
    required_successes: u32,
}

fn settings() -> impl Strategy<Value = Settings> {
    let rate = || prop::option::of(prop::sample::select(vec![7_u64, 30, 50, 58, 100]));
    let row = (0..5_u32).prop_map(NonZeroU32::new);
    (rate(), rate(), 1..8_u32, row, 1..4_u32, 1..4_u32).prop_map(
        |(failure_rate, slow_rate, minimum_calls, consecutive, probes, required_successes)| {
            Settings {
                failure_rate,
                slow_rate,
                minimum_calls,
                consecutive,
                probes,
                required_successes,
            }
        },
    )
}

/// How often the circuit came into each state and for each cause, and results of each kind came in.
type Seen = BTreeMap<String, u32>;

/// Lets circuit and model take the same steps, and compares them after each.
fn compare(settings: Settings, steps: Vec<Stepped>, seen: &mut Seen) -> TestCaseResult {
    let mut note = |what: String| *seen.entry(what).or_default() += 1;
    let percent = |rate: u64| rate as f64 / 100.0;
    let rules = Rules {
        failure_rate: settings.failure_rate.map(percent),
        slow: settings.slow_rate.map(|rate| Slow {
            after: SECOND,
            rate: percent(rate),
        }),
        minimum_calls: settings.minimum_calls,
        consecutive: settings.consecutive,
        probes: settings.probes,
        required_successes: settings.required_successes,
        ..rules()
    };
    let start = start();
    let mut circuit = Circuit::new(rules.clone(), Ticks::new(rules.window, start));
    let mut model = Model {
        rules: rules.clone(),
        failure_rate: settings.failure_rate,
        slow_rate: settings.slow_rate,
        mode: Mode::Closed,
        forced: None,
        era: 0,
        calls: Vec::new(),
        results: Vec::new(),
        failed_rounds: 0,
        latest: 0,
    };
    // Both lists go by the model's numbers of the calls.
    let mut tickets: Vec<Ticket> = Vec::new();
    let mut clock = Duration::from_secs(1);
    let mut told = State::Closed;
    for (step, behind, chance) in steps {
        let (random, shorter) = CHANCES[chance];
        let passed = clock - behind;
        let (now, at) = (start + passed, micros(passed));
        let before = circuit.epoch();
        match step {
            Step::Admit => {
                let expected = model.admit(shorter, at);
                match circuit.admit(LIFE, random, now) {
                    Ok(ticket) => {
                        let way = match (ticket == Ticket::STRAY, ticket.is_probe()) {
                            (true, _) => Way::Stray,
                            (false, true) => Way::Probe {
                                expires: at + LIFE_MICROS,
                            },
                            (false, false) => Way::Usual,
                        };
                        prop_assert_eq!(expected, Ok(way));
                        tickets.push(ticket);
                    }
                    Err(again) => prop_assert_eq!(expected, Err(micros(again - start))),
                }
            }
            Step::Settle(_, _) if tickets.is_empty() => {}
            Step::Settle(ago, outcome) => {
                let call = tickets.len() - 1 - ago % tickets.len();
                // A usual call's permit is used up; a probe's duplicate must not matter.
                if model.calls[call].way == Way::Usual && model.calls[call].end.is_some() {
                    continue;
                }
                let late = model.calls[call].era != model.era;
                let twice = model.calls[call].end.is_some();
                note(format!("late: {late}, twice: {twice}"));
                model.settle(call, outcome, shorter, at);
                circuit.settle(tickets[call], outcome, random, now);
                if late {
                    // The epoch ends only by what expired, never by the late result.
                    let expired =
                        circuit.epoch() == before || matches!(circuit.phase, Phase::Open { .. });
                    prop_assert!(expired);
                }
            }
            Step::Good(calls, ago) => {
                if circuit.passes() {
                    let tick = (at / 1_000_000).saturating_sub(ago);
                    model.good(calls, tick);
                    circuit.good(calls, tick);
                }
            }
            Step::Wait(time) => clock += time,
            Step::Force(forced) => {
                model.force(forced);
                circuit.force(forced);
            }
            Step::Reset => {
                model.reset();
                circuit.reset();
            }
        }
        prop_assert_eq!(circuit.state(), model.state());
        prop_assert_eq!(circuit.passes(), model.state() == State::Closed);
        while let Some(change) = circuit.next_change() {
            prop_assert_eq!(change.from, told);
            told = change.to;
            note(format!("to {}", change.to));
            note(format!("because of {}", change.cause.as_str()));
        }
        prop_assert_eq!(told, circuit.state());
        if let Phase::HalfOpen { slots, .. } = &circuit.phase {
            prop_assert!(slots.len() <= rules.probes as usize);
            prop_assert_eq!(slots.len(), model.expiries().count());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn it_equals_a_list_of_all_that_happened(settings in settings(), steps in steps()) {
        compare(settings, steps, &mut Seen::new())?;
    }
}

#[test]
fn the_steps_that_it_is_compared_by_reach_everything() {
    let mut runner = TestRunner::deterministic();
    let mut seen = Seen::new();
    for _ in 0..300 {
        let tree = (settings(), steps()).new_tree(&mut runner).unwrap();
        let (settings, steps) = tree.current();
        compare(settings, steps, &mut seen).unwrap();
    }
    let states = [
        "closed",
        "open",
        "half-open",
        "forced open",
        "forced closed",
    ]
    .map(|state| format!("to {state}"));
    let causes = CAUSES.map(|cause| format!("because of {}", cause.as_str()));
    let results = [
        "late: false, twice: false",
        "late: true, twice: false",
        "late: true, twice: true",
    ]
    .map(String::from);
    for what in states.iter().chain(&causes).chain(&results) {
        let times = seen.get(what).copied().unwrap_or(0);
        assert!(times >= 20, "{what}: {times} times, in {seen:?}");
    }
}
