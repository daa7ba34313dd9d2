//! The models of overload, for steadfast and for the stacks that users would otherwise take: tables, and goodput curves as SVG.

mod amplification;
mod chart;
mod defaults;
mod model;
mod stacks;

#[path = "../../../tests/support/overload.rs"]
#[allow(
    dead_code,
    reason = "shared with the tests, which use other parts of it"
)]
mod overload;

use std::{
    error::Error,
    fs,
    num::NonZero,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use crate::{
    chart::{Chart, Curve, Style},
    model::{Model, Outcome},
    overload::Clock,
    stacks::Stack,
};

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::read(std::env::args().skip(1))?;
    let (models, stacks) = (Model::all(options.quick), Stack::all());
    if options.defaults {
        defaults::print(&models, options.seeds);
        amplification::print(options.seeds);
        return Ok(());
    }
    let began = Instant::now();
    let outcomes = run(&models, &stacks, &options);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/overload");
    fs::create_dir_all(&folder)?;
    for (model, rows) in models.iter().zip(&outcomes) {
        table(model, &stacks, rows);
        if !options.quick {
            let svg = draw(model, &stacks, rows).svg();
            fs::write(folder.join(format!("{}.svg", model.name)), svg)?;
        }
    }
    eprintln!("{:.0} s", began.elapsed().as_secs_f64());
    println!("{}", result(&models, &stacks, &outcomes));
    Ok(())
}

struct Options {
    seeds: u64,
    /// The days in real time take real time, all at once: fewer of them.
    seeds_in_real_time: u64,
    quick: bool,
    /// Only how our defaults were chosen.
    defaults: bool,
}

impl Options {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let (mut seeds, mut quick, mut defaults) = (None, false, false);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--quick" => quick = true,
                "--defaults" => defaults = true,
                "--seeds" => {
                    let number = words.next().ok_or("--seeds wants a number")?;
                    seeds = Some(number.parse::<NonZero<u64>>()?.get());
                }
                _ => {
                    return Err(
                        format!("{word}? There are: --seeds <n>, --quick, --defaults").into(),
                    );
                }
            }
        }
        let seeds = seeds.unwrap_or(if quick { 3 } else { 20 });
        Ok(Self {
            seeds,
            seeds_in_real_time: seeds.min(if quick { 1 } else { 3 }),
            quick,
            defaults,
        })
    }

    fn seeds(&self, clock: Clock) -> u64 {
        match clock {
            Clock::Virtual => self.seeds,
            Clock::Real => self.seeds_in_real_time,
        }
    }
}

/// The outcomes of each model, of each stack, of each seed.
type Outcomes = Vec<Vec<Vec<Outcome>>>;

/// One day: the indices of model and stack, and the seed.
type Job = (usize, usize, u64);

fn run(models: &[Model], stacks: &[Stack], options: &Options) -> Outcomes {
    let jobs = |clock| -> Vec<Job> {
        let mut jobs = Vec::new();
        for model in 0..models.len() {
            for (stack, _) in stacks
                .iter()
                .enumerate()
                .filter(|(_, stack)| stack.clock == clock)
            {
                jobs.extend((0..options.seeds(clock)).map(|seed| (model, stack, seed)));
            }
        }
        jobs
    };
    let one = |(model, stack, seed): Job| {
        models[model].run(stacks[stack].make, stacks[stack].clock, seed)
    };
    let mut outcomes: Outcomes = Vec::new();
    outcomes.resize_with(models.len(), || stacks.iter().map(|_| Vec::new()).collect());

    let virtual_days = jobs(Clock::Virtual);
    eprintln!("{} days in virtual time", virtual_days.len());
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    for ((model, stack, _), outcome) in in_parallel(&virtual_days, threads, one) {
        outcomes[model][stack].push(outcome);
    }
    // They mostly sleep, and the processors have nothing else to do now.
    let real_days = jobs(Clock::Real);
    let longest = models
        .iter()
        .map(|model| model.day.seconds)
        .max()
        .unwrap_or(0);
    eprintln!(
        "{} days in real time, side by side: {longest} s",
        real_days.len()
    );
    for ((model, stack, _), outcome) in in_parallel(&real_days, real_days.len(), one) {
        outcomes[model][stack].push(outcome);
    }
    outcomes
}

fn in_parallel(
    jobs: &[Job],
    threads: usize,
    one: impl Fn(Job) -> Outcome + Sync,
) -> Vec<(Job, Outcome)> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = one(job);
                    done.lock().expect("no day panics").push((job, outcome));
                }
            });
        }
    });
    done.into_inner().expect("no day panics")
}

fn table(model: &Model, stacks: &[Stack], rows: &[Vec<Outcome>]) {
    println!("\n{}", model.title);
    println!(
        "residual capacity: {}; figures are the worst of the seeds",
        model.residual_is
    );
    println!(
        "{:<21} | {:>16} | {:>15} | {:>14} | {:>14} | mode",
        "stack", "during, % of", "recovered after", "load on the db", "last 30 s, % of",
    );
    println!(
        "{:<21} | {:>16} | {:>15} | {:>14} | {:>15} |",
        "", "residual cap.", "s", "÷ offered", "offered",
    );
    for (stack, outcomes) in stacks.iter().zip(rows) {
        let mode = match stack.clock {
            Clock::Virtual => "virtual",
            Clock::Real => "real",
        };
        println!(
            "{:<21} | {:>16.0} | {:>15} | {:>14.2} | {:>15.0} | {mode}, {} seeds",
            stack.name,
            100.0 * worst(outcomes, |outcome| outcome.during, f64::min),
            seconds(recovered(outcomes)),
            worst(outcomes, |outcome| outcome.load, f64::max),
            100.0 * worst(outcomes, |outcome| outcome.late, f64::min),
            outcomes.len(),
        );
    }
}

fn worst(outcomes: &[Outcome], figure: fn(&Outcome) -> f64, worse: fn(f64, f64) -> f64) -> f64 {
    outcomes
        .iter()
        .map(figure)
        .reduce(worse)
        .expect("a stack has a seed")
}

/// After how long all were back; `None`: one of them never was.
fn recovered(outcomes: &[Outcome]) -> Option<usize> {
    let mut longest = 0;
    for outcome in outcomes {
        longest = longest.max(outcome.recovered?);
    }
    Some(longest)
}

fn seconds(recovered: Option<usize>) -> String {
    recovered.map_or("never".into(), |seconds| seconds.to_string())
}

/// The last line: our figures in virtual time, and in how many models no peer was back before us in its mode.
fn result(models: &[Model], stacks: &[Stack], outcomes: &Outcomes) -> String {
    let mut line = String::from("result:");
    let mut firsts = 0;
    for (model, rows) in models.iter().zip(outcomes) {
        let figure = |is_ours: bool, clock| {
            let stacks = stacks.iter().zip(rows);
            let those =
                stacks.filter(move |(stack, _)| stack.is_ours == is_ours && stack.clock == clock);
            those.filter_map(|(_, outcomes)| recovered(outcomes)).min()
        };
        let is_first = |clock| {
            let ours = figure(true, clock);
            ours.is_some_and(|ours| figure(false, clock).is_none_or(|peers| ours <= peers))
        };
        firsts += usize::from(is_first(Clock::Virtual) && is_first(Clock::Real));
        let ours = seconds(figure(true, Clock::Virtual));
        line += &format!(" {}_recover={ours}", model.name);
    }
    format!("{line} first_in={firsts}/{}", models.len())
}

fn draw<'a>(model: &'a Model, stacks: &[Stack], rows: &[Vec<Outcome>]) -> Chart<'a> {
    let mean = |outcomes: &[Outcome], counts: fn(&Outcome) -> &[u32]| -> Vec<f64> {
        let second = |second| {
            let sum: u32 = outcomes.iter().map(|outcome| counts(outcome)[second]).sum();
            f64::from(sum) / outcomes.len() as f64
        };
        (0..model.day.seconds as usize).map(second).collect()
    };
    let curve = |(stack, outcomes): (&Stack, &Vec<Outcome>)| Curve {
        name: match stack.clock {
            Clock::Real if !stack.is_ours => format!("{}, real time", stack.name),
            _ => stack.name.into(),
        },
        color: stack.color,
        style: match (stack.is_ours, stack.clock) {
            (true, Clock::Virtual) => Style::Bold,
            (true, Clock::Real) => Style::Dashed,
            (false, _) if stack.covers_another => Style::Dotted,
            (false, _) => Style::Plain,
        },
        goodput: mean(outcomes, |outcome| &outcome.record.goodput),
    };
    let seeds = |clock| {
        let mut those = stacks
            .iter()
            .zip(rows)
            .filter(|(stack, _)| stack.clock == clock);
        those.next().map_or(0, |(_, outcomes)| outcomes.len())
    };
    Chart {
        title: model.title,
        subtitle: format!(
            "Mean of {} seeds in virtual time, of {} in real time, in buckets of 1 s. A dotted line lets show what it covers.",
            seeds(Clock::Virtual),
            seeds(Clock::Real)
        ),
        trigger: model.trigger,
        offered: mean(&rows[0], |outcome| &outcome.record.offered),
        curves: stacks.iter().zip(rows).rev().map(curve).collect(),
    }
}
