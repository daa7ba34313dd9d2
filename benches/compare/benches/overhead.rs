//! What a call costs: `steadfast`, whole and in parts, beside what users would otherwise take.
//!
//! `cargo bench --bench overhead`, and with `-- --quick` in under a minute. Nanoseconds hold only beside each other: the figure is the ratio, the median
//! of the ratios of neighbouring blocks. The last line starts with `result:`; everything is in `overhead.json` in the target folder besides.

#[path = "overhead/rounds.rs"]
mod rounds;

use std::{
    collections::HashMap,
    error::Error,
    fmt::Write as _,
    fs, io,
    path::Path as FilePath,
    process::Command,
    time::{Duration, Instant},
};

use self::rounds::{Median, Rounds, Threads, Times, per_call};
use candidates::{
    Candidate, Path, Rank, SEATBELT, SERVICE, SHIELD, Settings, TOWER_RESILIENCE, YARDSTICK,
};

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::read(std::env::args().skip(1))?;
    let began = Instant::now();
    let allocations = allocations()?;
    let bench = Bench::new(&options)?;
    let mut tables = Vec::new();
    let groups = groups(&options);
    for group in groups.iter().filter(|group| options.runs(group)) {
        let table = bench.table(group);
        table.print(&allocations);
        tables.push(table);
    }
    if options.only.is_some() {
        return Ok(());
    }
    bench.assert_cut_off()?;
    let json = FilePath::new(env!("CARGO_TARGET_TMPDIR")).join("overhead.json");
    fs::write(&json, to_json(&tables, &allocations))?;
    let (seconds, misses) = (began.elapsed().as_secs_f64(), bench.threads.misses());
    println!(
        "\n{seconds:.0} s; {misses} blocks were not made by two threads at once; {}",
        json.display()
    );
    println!("{}", result(&tables, &allocations));
    Ok(())
}

struct Options {
    quick: bool,
    /// Only the tables whose title contains it.
    only: Option<String>,
}

impl Options {
    fn read(words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let (mut quick, mut only) = (false, None);
        for word in words {
            match word.as_str() {
                "--quick" => quick = true,
                // Cargo says so to every benchmark.
                "--bench" => {}
                word if word.starts_with('-') => {
                    return Err(format!("{word}? There are: --quick, <part of a title>").into());
                }
                _ => only = Some(word),
            }
        }
        Ok(Self { quick, only })
    }

    fn runs(&self, group: &Group) -> bool {
        let only = self.only.as_ref();
        only.is_none_or(|part| group.title.contains(part))
    }
}

/// Candidates that are measured in turn.
struct Group {
    title: &'static str,
    settings: Settings,
    run: Run,
    shown: fn(&Candidate) -> bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    OneThread,
    /// On two threads at once.
    TwoThreads,
    /// So many tasks on a runtime with two threads.
    Tasks(u32),
}

const READY: &str = "ready, one thread";
const YIELD: &str = "yield, one thread";
const READY_SHARED: &str = "ready, two threads";
const YIELD_SHARED: &str = "yield, two threads";

/// A quick run leaves out the parts where two threads run: it takes long until both have a processor, if others are busy too.
fn groups(options: &Options) -> Vec<Group> {
    use Path::{Failure, Full, Open, Ready, Yield};
    use Run::{OneThread, Tasks, TwoThreads};
    let all: fn(&Candidate) -> bool = |_| true;
    let whole: fn(&Candidate) -> bool = |candidate| candidate.rank == Rank::Whole;
    let shared = if options.quick { whole } else { all };
    let group = |title, path, limit, run, shown| Group {
        title,
        settings: Settings { path, limit },
        run,
        shown,
    };
    vec![
        group(READY, Ready, 1_000, OneThread, all),
        group(YIELD, Yield, 1_000, OneThread, all),
        group(READY_SHARED, Ready, 1_000, TwoThreads, shared),
        group(YIELD_SHARED, Yield, 1_000, TwoThreads, shared),
        group(
            "ready, two threads, limit 20",
            Ready,
            20,
            TwoThreads,
            shared,
        ),
        group("yield, 2 tasks, limit 20", Yield, 20, Tasks(2), whole),
        group("yield, 40 tasks, limit 20", Yield, 20, Tasks(40), whole),
        group("failure, one thread", Failure, 1_000, OneThread, all),
        group("failure, two threads", Failure, 1_000, TwoThreads, shared),
        group("open circuit, one thread", Open, 1_000, OneThread, all),
        group("open circuit, two threads", Open, 1_000, TwoThreads, shared),
        group("full queue, one thread", Full, 1, OneThread, all),
        group("full queue, two threads", Full, 1, TwoThreads, shared),
    ]
}

struct Bench {
    rounds: Rounds,
    threads: Threads,
}

impl Bench {
    fn new(options: &Options) -> io::Result<Self> {
        let (rounds, block, at_most) = if options.quick {
            (61, 400, 4)
        } else {
            (201, 1_000, 60)
        };
        Ok(Self {
            rounds: Rounds {
                rounds,
                block: Duration::from_micros(block),
                at_most: Duration::from_secs(at_most),
            },
            threads: Threads::new()?,
        })
    }

    fn table(&self, group: &Group) -> Table {
        let threads = &self.threads;
        let runtime = match group.run {
            Run::OneThread => threads.one(),
            Run::TwoThreads | Run::Tasks(_) => threads.two(),
        };
        let _entered = runtime.enter();
        let mut candidates = candidates::all(group.settings);
        candidates.retain(group.shown);
        let blocks: Vec<_> = candidates.iter().map(Candidate::block).collect();
        let times = self.rounds.of(candidates.len(), |candidate, calls| {
            let block = &blocks[candidate];
            match group.run {
                Run::OneThread => threads.alone(block, calls),
                Run::TwoThreads => threads.at_once(block, calls),
                Run::Tasks(tasks) => {
                    let each = (calls / tasks).max(1);
                    let took = candidates[candidate].tasks(runtime, tasks, each);
                    per_call(took, each * tasks)
                }
            }
        });
        if matches!(
            group.settings.path,
            Path::Ready | Path::Yield | Path::Failure
        ) {
            candidates.iter().for_each(Candidate::assert_alive);
        }
        Table::new(group, &candidates, &times)
    }

    /// Everything that has a deadline cuts off a call that hangs.
    fn assert_cut_off(&self) -> Result<(), Box<dyn Error>> {
        let runtime = self.threads.two();
        let _entered = runtime.enter();
        let candidates = candidates::all(Settings {
            path: Path::Ready,
            limit: 1_000,
        });
        let hangs: Vec<_> = candidates
            .iter()
            .filter_map(|candidate| Some((candidate.name, candidate.cuts_off()?)))
            .map(|(name, hang)| (name, runtime.spawn(hang)))
            .collect();
        for (name, hang) in hangs {
            assert!(runtime.block_on(hang)?, "{name} lets a call hang");
        }
        Ok(())
    }
}

/// The figures of a group.
struct Table {
    title: &'static str,
    path: Path,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    bytes: usize,
    nanoseconds: Median,
    /// To the first of the group.
    ratio: Median,
    times: Times,
}

impl Table {
    fn new(group: &Group, candidates: &[Candidate], times: &[Times]) -> Self {
        let row = |(candidate, own): (&Candidate, &Times)| Row {
            name: candidate.name,
            bytes: candidate.bytes,
            nanoseconds: Median::of(own.iter().copied()),
            ratio: ratio(own, &times[0]),
            times: own.clone(),
        };
        Self {
            title: group.title,
            path: group.settings.path,
            rows: candidates.iter().zip(times).map(row).collect(),
        }
    }

    fn print(&self, allocations: &Allocations) {
        println!(
            "\n{:<34} | {:>9} | {:>6} | {:>13} | {:>6} | {:>6} | {:>6}",
            self.title, "ns a call", "ratio", "of 95 %", "allocs", "of B", "future"
        );
        for row in &self.rows {
            let (count, bytes) = match allocations.get(&(self.path, row.name)) {
                Some((count, bytes)) => (format!("{count:.0}"), format!("{bytes:.0}")),
                None => Default::default(),
            };
            println!(
                "{:<34} | {:>9.1} | {:>6.3} | {:>5.3} - {:>5.3} | {count:>6} | {bytes:>6} | {:>6}",
                row.name,
                row.nanoseconds.median,
                row.ratio.median,
                row.ratio.low,
                row.ratio.high,
                row.bytes,
            );
        }
    }

    fn row(&self, name: &str) -> &Row {
        let mut rows = self.rows.iter();
        rows.find(|row| row.name == name).expect("it is shown")
    }
}

fn ratio(own: &Times, other: &Times) -> Median {
    Median::of(own.iter().zip(other).map(|(own, other)| own / other))
}

/// How often a successful call allocates, and how many bytes.
type Allocations = HashMap<(Path, &'static str), (f64, f64)>;

/// As another program counts it, whose allocator would be in the way here.
fn allocations() -> Result<Allocations, Box<dyn Error>> {
    let counter = Command::new(env!("CARGO_BIN_EXE_allocations")).output()?;
    if !counter.status.success() {
        return Err(String::from_utf8_lossy(&counter.stderr).into());
    }
    let mut allocations = Allocations::new();
    for line in String::from_utf8(counter.stdout)?.lines() {
        let mut words = line.split('\t');
        let mut word = || words.next().ok_or("a line is too short");
        let path = match word()? {
            "Ready" => Path::Ready,
            "Yield" => Path::Yield,
            other => return Err(other.into()),
        };
        let name = word()?.to_owned().leak();
        allocations.insert((path, name), (word()?.parse()?, word()?.parse()?));
    }
    Ok(allocations)
}

/// The last line: our shield, held against the yardstick, and against two peers.
fn result(tables: &[Table], allocations: &Allocations) -> String {
    let table = |title| {
        let mut tables = tables.iter();
        tables.find(|table| table.title == title).expect("it ran")
    };
    let against = |title, other| {
        let table: &Table = table(title);
        ratio(&table.row(SHIELD).times, &table.row(other).times).median
    };
    let most = [Path::Ready, Path::Yield]
        .into_iter()
        .flat_map(|path| [(path, SHIELD), (path, SERVICE)])
        .map(|ours| allocations[&ours].0)
        .fold(0.0, f64::max);
    format!(
        "result: ready={:.2} yield={:.2} shared_ready={:.2} shared_yield={:.2} seatbelt={:.2} tower_resilience={:.2} allocs={most}",
        against(READY, YARDSTICK),
        against(YIELD, YARDSTICK),
        against(READY_SHARED, YARDSTICK),
        against(YIELD_SHARED, YARDSTICK),
        against(READY, SEATBELT),
        against(READY, TOWER_RESILIENCE),
    )
}

fn to_json(tables: &[Table], allocations: &Allocations) -> String {
    let mut json = String::from("[\n");
    for table in tables {
        for row in &table.rows {
            let (count, _) = allocations.get(&(table.path, row.name)).copied().unzip();
            let count = count.map_or("null".into(), |count: f64| count.to_string());
            let Median { low, median, high } = row.ratio;
            let separator = if json.len() > 2 { ",\n" } else { "" };
            let _ = write!(
                json,
                "{separator}{{\"group\": \"{}\", \"name\": \"{}\", \"ns\": {:.2}, \"ratio\": {median:.4}, \"low\": {low:.4}, \"high\": {high:.4}, \
                 \"allocations\": {count}, \"future\": {}}}",
                table.title, row.name, row.nanoseconds.median, row.bytes,
            );
        }
    }
    json + "\n]\n"
}
