//! How many instructions a call takes: counted by valgrind, the same in each run, and held against `instructions.txt`.
//!
//! `cargo bench --bench instructions` fails where a figure has grown by more than 5 %; `-- --save` makes the present ones the baseline.
//! Reading the clock counts for little here: valgrind makes a system call of it, and counts none of the kernel's instructions.

use std::{
    collections::HashMap,
    env,
    error::Error,
    fmt::Write as _,
    fs, io,
    path::{Path as FilePath, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use candidates::{Path, SERVICE, SHIELD, Settings, YARDSTICK, candidate::Block};
use tokio::{
    runtime::Builder,
    task::{unconstrained, yield_now},
    time::sleep,
};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let words: Vec<String> = env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => compare(),
        ["--save"] => save(),
        // Under valgrind.
        ["--count", case] => count(Case::named(case)?),
        _ => Err(format!("{words:?}? There is: --save").into()),
    }
}

/// One figure.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    path: Path,
    candidate: &'static str,
}

impl Case {
    fn all() -> Vec<Self> {
        use Path::{Failure, Full, Open, Ready, Yield};
        let case = |name, path, candidate| Self {
            name,
            path,
            candidate,
        };
        vec![
            case("shield.run, ready", Ready, SHIELD),
            case("shield.run, yield", Yield, SHIELD),
            case("shield.run, failure", Failure, SHIELD),
            case("shield.run, open circuit", Open, SHIELD),
            case("shield.run, full queue", Full, SHIELD),
            case("shield as a service, ready", Ready, SERVICE),
            case("shield as a service, yield", Yield, SERVICE),
            case("its parts as layers, ready", Ready, "its parts as layers"),
            case("its parts as layers, yield", Yield, "its parts as layers"),
            case("deadline layer, ready", Ready, "deadline layer"),
            case("deadline layer, yield", Yield, "deadline layer"),
            case("retry layer, ready", Ready, "retry layer"),
            case("retry layer, yield", Yield, "retry layer"),
            case("breaker layer, ready", Ready, "breaker layer"),
            case("breaker layer, yield", Yield, "breaker layer"),
            case("breaker by hand, ready", Ready, "breaker by hand"),
            case("limiter layer, ready", Ready, "limiter layer"),
            case("limiter layer, yield", Yield, "limiter layer"),
            case("limiter by hand, ready", Ready, "limiter by hand"),
            case("tower's yardstick, ready", Ready, YARDSTICK),
            case("tower's yardstick, yield", Yield, YARDSTICK),
            case("no stack, yield", Yield, "no stack"),
        ]
    }

    fn named(name: &str) -> Result<Self, Box<dyn Error>> {
        let mut all = Self::all().into_iter();
        let case = all.find(|case| case.name == name);
        case.ok_or_else(|| format!("there is no case {name}").into())
    }

    fn block(self) -> Block {
        let (path, limit) = (self.path, if self.path == Path::Full { 1 } else { 1_000 });
        let mut candidates = candidates::all(Settings { path, limit });
        candidates.retain(|candidate| candidate.name == self.candidate);
        candidates[0].block()
    }

    /// The instructions of a call, as valgrind counts them.
    fn measure(self) -> Result<f64, Box<dyn Error>> {
        let out = FilePath::new(env!("CARGO_TARGET_TMPDIR")).join("callgrind.out");
        let valgrind = Command::new("valgrind")
            .args(["--tool=callgrind", "--collect-atstart=no"])
            .arg("--toggle-collect=*instructions*measured*")
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(env::current_exe()?)
            .args(["--count", self.name])
            .output();
        let output = match valgrind {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(
                    "valgrind was not found. Install it: sudo apt-get install valgrind".into(),
                );
            }
            output => output?,
        };
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let counted = fs::read_to_string(&out)?;
        let mut totals = counted
            .lines()
            .filter_map(|line| line.strip_prefix("totals: "));
        let total: u64 = totals.next().ok_or("valgrind gave no total")?.parse()?;
        if total == 0 {
            return Err("valgrind has not found the function that is measured".into());
        }
        Ok(total as f64 / f64::from(CALLS))
    }
}

/// A multiple of how seldom the clock is read, and of the pattern of failures.
const CALLS: u32 = 6_400;

/// By how much a figure may grow.
const MOST: f64 = 1.05;

fn compare() -> Result<ExitCode, Box<dyn Error>> {
    let text = fs::read_to_string(baseline())?;
    let before: HashMap<&str, f64> = text
        .lines()
        .filter_map(|line| line.rsplit_once(": "))
        .filter_map(|(name, count)| Some((name, count.parse().ok()?)))
        .collect();
    println!(
        "{:<30} | {:>8} | {:>8} | {:>7}",
        "instructions a call", "before", "now", ""
    );
    let mut grown = 0;
    for case in Case::all() {
        let now = case.measure()?;
        let before = *before.get(case.name).ok_or_else(|| {
            format!(
                "{} is not in instructions.txt: run with -- --save",
                case.name
            )
        })?;
        let change = 100.0 * (now / before - 1.0);
        println!(
            "{:<30} | {before:>8.1} | {now:>8.1} | {change:>+5.1} %",
            case.name
        );
        grown += u32::from(now > before * MOST);
    }
    if grown > 0 {
        println!(
            "{grown} have grown by more than 5 %; if that is meant: cargo bench --bench instructions -- --save"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn save() -> Result<ExitCode, Box<dyn Error>> {
    let mut text = String::from(
        "Instructions of a call, by `cargo bench --bench instructions -- --save`.\n\n",
    );
    for case in Case::all() {
        writeln!(text, "{}: {:.1}", case.name, case.measure()?)?;
    }
    print!("{text}");
    fs::write(baseline(), text)?;
    Ok(ExitCode::SUCCESS)
}

fn baseline() -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join("instructions.txt")
}

fn count(case: Case) -> Result<ExitCode, Box<dyn Error>> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(unconstrained(async {
        // Another timer rings sooner than ours.
        tokio::spawn(sleep(Duration::from_millis(100)));
        for _ in 0..2 {
            yield_now().await;
        }
        let block = case.block();
        // Whatever is bought once is paid for.
        block(CALLS);
        measured(&block);
    }));
    Ok(ExitCode::SUCCESS)
}

/// Valgrind knows it by its name.
#[inline(never)]
fn measured(block: &Block) {
    block(CALLS);
}
