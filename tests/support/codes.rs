//! The bridge from an error that a real server gave to the line of `codes.tsv` about it.

use std::collections::BTreeMap;

use steadfast::classify::{DbVerdict, Fate, Heal, Phase};

/// What a server said.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    pub database: &'static str,
    pub code: &'a str,
    /// `-` where there is none.
    pub severity: &'a str,
    pub routine: Option<&'a str>,
}

/// Asserts that the file has a line about it, which says so of this phase, and says that it was provoked.
pub fn assert_provoked(said: Said<'_>, phase: Phase, verdict: DbVerdict) {
    let lines = include_str!("../codes.tsv").lines().skip(1);
    // By the routine of the server: a line that names one goes before the line that names none.
    let lines: BTreeMap<&str, Vec<&str>> = lines
        .map(|line| line.split('\t').collect::<Vec<_>>())
        .filter(|line| {
            line[..3] == [said.database, said.code, said.severity] && line[4] == name_of(phase)
        })
        .map(|line| (line[3], line))
        .collect();
    let line = said
        .routine
        .and_then(|routine| lines.get(routine))
        .or_else(|| lines.get("-"));
    let line = line.unwrap_or_else(|| panic!("codes.tsv has no line for {said:?} in {phase:?}"));
    let fate = match verdict.fate {
        Fate::Keep => "keep",
        Fate::Discard => "discard",
    };
    let heal = match verdict.heal {
        Heal::Nothing => "-",
        Heal::ClearStatements => "clear statements",
    };
    assert_eq!(
        line[5..8],
        [verdict.kind.as_str(), fate, heal],
        "{said:?} in {phase:?}"
    );
    assert_eq!(line[8], "provoked", "{said:?} in {phase:?}");
}

fn name_of(phase: Phase) -> &'static str {
    match phase {
        Phase::Connect => "connect",
        Phase::Statement => "statement",
        Phase::Transaction => "transaction",
        Phase::Commit => "commit",
    }
}
