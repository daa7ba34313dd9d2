//! What every listed code means in every phase: `codes.tsv` against the tables.

use std::fs;

use steadfast::{
    Kind,
    classify::{self, DbVerdict, Fate, Heal, Phase, Severity},
};

#[test]
fn every_line_of_the_file_holds() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/codes.tsv");
    let file = fs::read_to_string(path).expect("codes.tsv is part of the repository");
    let mut lines = 0;
    let mut wrong = Vec::new();
    for (index, line) in file.lines().enumerate().skip(1) {
        lines += 1;
        let columns: Vec<&str> = line.split('\t').collect();
        let [
            database,
            code,
            severity,
            routine,
            phase,
            kind,
            fate,
            heal,
            evidence,
            note,
        ] = columns[..]
        else {
            wrong.push(format!("line {}: not ten columns: {line}", index + 1));
            continue;
        };
        let verdict = judge(database, code, severity, routine, phase);
        let said = (verdict.kind.as_str(), fate_of(verdict), heal_of(verdict));
        if said != (kind, fate, heal) {
            wrong.push(format!("line {}: {line}\n    but {said:?}", index + 1));
        }
        if !["provoked", "documented"].contains(&evidence) || note.is_empty() {
            wrong.push(format!("line {}: no evidence: {line}", index + 1));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(lines >= 300, "only {lines} lines");
}

#[test]
fn a_line_is_stated_once() {
    let mut keys: Vec<_> = include_str!("codes.tsv")
        .lines()
        .map(|line| line.split('\t').take(5).collect::<Vec<_>>())
        .collect();
    let lines = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), lines);
}

#[test]
fn a_terminated_statement_is_undone_only_if_the_backend_checked_for_it() {
    let terminated = |routine, phase| kind("57P01", Severity::Fatal, routine, phase);
    let checked = Some("ProcessInterrupts");
    assert_eq!(terminated(checked, Phase::Statement), Kind::Unavailable);
    assert_eq!(terminated(None, Phase::Statement), Kind::Ambiguous);
    assert_eq!(terminated(Some("other"), Phase::Statement), Kind::Ambiguous);
    assert_eq!(terminated(None, Phase::Transaction), Kind::Unavailable);
    assert_eq!(terminated(checked, Phase::Commit), Kind::Ambiguous);
    let error = kind("57P01", Severity::Error, checked, Phase::Statement);
    assert_eq!(error, Kind::Ambiguous);
}

#[test]
fn what_the_server_calls_unknown_is_ambiguous_even_in_a_transaction() {
    for code in ["08007", "40003"] {
        let kind = kind(code, Severity::Error, None, Phase::Transaction);
        assert_eq!(kind, Kind::Ambiguous, "{code}");
    }
}

#[test]
fn an_outdated_cached_statement_is_cleared_and_repeated() {
    let routine = Some("RevalidateCachedQuery");
    let outdated = classify::postgres("0A000", Severity::Error, routine, Phase::Statement);
    assert_eq!(outdated.kind, Kind::Conflict);
    assert_eq!(outdated.fate, Fate::Keep);
    assert_eq!(outdated.heal, Heal::ClearStatements);

    let unsupported = classify::postgres("0A000", Severity::Error, None, Phase::Statement);
    assert_eq!(unsupported.kind, Kind::Invalid);
    assert_eq!(unsupported.heal, Heal::Nothing);
}

#[test]
fn a_conflict_that_the_server_found_at_commit_has_rolled_back() {
    for code in ["40001", "40P01"] {
        let kind = kind(code, Severity::Error, None, Phase::Commit);
        assert_eq!(kind, Kind::Conflict, "{code}");
    }
    assert_eq!(classify::mysql(1213, Phase::Commit).kind, Kind::Conflict);
    assert_eq!(classify::sqlite(5, Phase::Commit).kind, Kind::Conflict);
}

#[test]
fn a_deadlock_and_a_lock_timeout_keep_the_connection_in_mysql() {
    for number in [1213, 1205] {
        let verdict = classify::mysql(number, Phase::Transaction);
        assert_eq!(verdict.kind, Kind::Conflict, "{number}");
        assert_eq!(verdict.fate, Fate::Keep, "{number}");
    }
}

#[test]
fn an_overtaken_snapshot_is_a_conflict_for_its_transaction() {
    let verdict = classify::sqlite(517, Phase::Transaction);
    assert_eq!((verdict.kind, verdict.fate), (Kind::Conflict, Fate::Keep));
}

#[test]
fn an_unlisted_extended_code_is_judged_by_its_primary_code() {
    // SQLITE_IOERR_CORRUPTFS and a code that is not there yet.
    assert_eq!(classify::sqlite(8458, Phase::Commit).kind, Kind::Ambiguous);
    assert_eq!(
        classify::sqlite(5 | 99 << 8, Phase::Statement).kind,
        Kind::Conflict
    );
}

#[test]
fn a_session_that_ended_is_discarded_whatever_the_code() {
    for code in ["57014", "40001", "23505", "53300", "ZZ999", ""] {
        for severity in [Severity::Fatal, Severity::Panic] {
            for phase in Phase::ALL {
                let verdict = classify::postgres(code, severity, None, phase);
                assert_eq!(verdict.fate, Fate::Discard, "{code} {severity:?} {phase:?}");
            }
        }
    }
}

#[test]
fn an_unlisted_code_is_the_callers_fault_unless_it_ended_the_session() {
    let unlisted = |severity| kind("ZZ999", severity, None, Phase::Statement);
    assert_eq!(unlisted(Severity::Error), Kind::Invalid);
    assert_eq!(unlisted(Severity::Fatal), Kind::Ambiguous);
    assert_eq!(classify::mysql(0, Phase::Statement).kind, Kind::Invalid);
    assert_eq!(classify::sqlite(-1, Phase::Statement).kind, Kind::Invalid);
}

#[test]
fn an_unlisted_code_is_judged_by_its_class() {
    let class = |code| kind(code, Severity::Error, None, Phase::Statement);
    assert_eq!(class("08ZZZ"), Kind::Ambiguous);
    assert_eq!(class("53ZZZ"), Kind::Overloaded);
    assert_eq!(class("58ZZZ"), Kind::Unavailable);
    assert_eq!(class("42ZZZ"), Kind::Invalid);
}

#[test]
fn a_full_pooler_is_believed_only_when_it_ends_the_session() {
    let pooler = |message, severity| {
        classify::pooler(message, severity, Phase::Statement).map(|verdict| verdict.kind)
    };
    let full = Some(Kind::Overloaded);
    assert_eq!(pooler("query_wait_timeout", Severity::Fatal), full);
    assert_eq!(pooler("query_wait_timeout", Severity::Error), None);
    assert_eq!(
        pooler("MaxClientsInSessionMode: max clients", Severity::Fatal),
        full
    );
    assert_eq!(
        pooler(
            "relation \"query_wait_timeout\" is not there",
            Severity::Fatal
        ),
        None
    );
}

#[test]
fn a_lost_connection_is_ambiguous_only_where_something_may_have_been_committed() {
    let lost = Phase::ALL.map(|phase| classify::lost(phase).kind);
    let [unavailable, ambiguous] = [Kind::Unavailable, Kind::Ambiguous];
    assert_eq!(lost, [unavailable, ambiguous, unavailable, ambiguous]);
}

fn kind(code: &str, severity: Severity, routine: Option<&str>, phase: Phase) -> Kind {
    classify::postgres(code, severity, routine, phase).kind
}

fn judge(database: &str, code: &str, severity: &str, routine: &str, phase: &str) -> DbVerdict {
    let phase = match phase {
        "connect" => Phase::Connect,
        "statement" => Phase::Statement,
        "transaction" => Phase::Transaction,
        "commit" => Phase::Commit,
        other => panic!("no phase: {other}"),
    };
    match database {
        "postgres" => {
            let routine = (routine != "-").then_some(routine);
            classify::postgres(code, Severity::parse(severity), routine, phase)
        }
        "mysql" => classify::mysql(code.parse().expect("a number"), phase),
        "sqlite" => classify::sqlite(code.parse().expect("a number"), phase),
        other => panic!("no database: {other}"),
    }
}

fn fate_of(verdict: DbVerdict) -> &'static str {
    match verdict.fate {
        Fate::Keep => "keep",
        Fate::Discard => "discard",
    }
}

fn heal_of(verdict: DbVerdict) -> &'static str {
    match verdict.heal {
        Heal::Nothing => "-",
        Heal::ClearStatements => "clear statements",
    }
}
