//! The bridge from an error that a real database gave to the line of `codes.tsv` about it.

use std::{
    collections::BTreeMap,
    env,
    fmt::Display,
    fs::OpenOptions,
    io::{self, Write},
};

use sqlx::{AssertSqlSafe, Executor};
use steadfast::classify::{self, Fate, Heal, Phase};

/// Runs statements, and to their end if they read.
pub async fn execute<C>(connection: &mut C, sql: &str) -> Result<(), sqlx::Error>
where
    for<'c> &'c mut C: Executor<'c>,
{
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .map(drop)
}

/// Runs what must fail as a statement that commits by itself, and in a transaction; the session goes on after both.
pub async fn assert_in_both_phases<C>(ours: &mut C, code: impl Display, statement: &str)
where
    for<'c> &'c mut C: Executor<'c>,
{
    let error = execute(ours, statement).await.expect_err(statement);
    provoked(&code, &error, Phase::Statement);
    execute(ours, "BEGIN").await.unwrap();
    let error = execute(ours, statement).await.expect_err(statement);
    provoked(&code, &error, Phase::Transaction);
    execute(ours, "ROLLBACK").await.unwrap();
}

/// Asserts that it is this code, and that the file has a line about it, which says of this phase what the tables say, and that it was provoked.
///
/// `./test` collects the lines of all tests and requires that none is missing.
pub fn provoked(code: impl Display, error: &sqlx::Error, phase: Phase) {
    let said = Said::by(error);
    assert_eq!(said.code, code.to_string(), "{error:?}");
    let line = said.line(phase);
    let line = line.unwrap_or_else(|| panic!("codes.tsv has no line for {said:?} in {phase:?}"));
    let verdict = classify::database(error, phase);
    let fate = match verdict.fate {
        Fate::Keep => "keep",
        Fate::Discard => "discard",
    };
    let heal = match verdict.heal {
        Heal::Nothing => "-",
        Heal::ClearStatements => "clear statements",
    };
    assert_eq!(
        line[5..9],
        [verdict.kind.as_str(), fate, heal, "provoked"],
        "{said:?} in {phase:?}"
    );
    record(&line[..5]).expect("what STEADFAST_PROVOKED names is a file that can be written");
}

/// What a database said.
#[derive(Debug)]
struct Said {
    database: &'static str,
    code: String,
    severity: &'static str,
    routine: Option<String>,
}

impl Said {
    fn by(error: &sqlx::Error) -> Self {
        let said = error.as_database_error();
        let said = said.unwrap_or_else(|| panic!("the database has not said it: {error:?}"));
        #[cfg(feature = "postgres")]
        if let Some(said) = said.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
            return Self {
                database: "postgres",
                code: said.code().to_owned(),
                severity: match said.severity() {
                    sqlx::postgres::PgSeverity::Panic => "PANIC",
                    sqlx::postgres::PgSeverity::Fatal => "FATAL",
                    _ => "ERROR",
                },
                routine: said.routine().map(str::to_owned),
            };
        }
        #[cfg(feature = "mysql")]
        if let Some(said) = said.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
            return Self {
                database: "mysql",
                code: said.number().to_string(),
                severity: "-",
                routine: None,
            };
        }
        Self {
            database: "sqlite",
            code: said.code().expect("SQLite gives a code").into_owned(),
            severity: "-",
            routine: None,
        }
    }

    /// A line that names the server's routine goes before the line that names none.
    fn line(&self, phase: Phase) -> Option<Vec<&'static str>> {
        let phase = match phase {
            Phase::Connect => "connect",
            Phase::Statement => "statement",
            Phase::Transaction => "transaction",
            Phase::Commit => "commit",
        };
        let lines = include_str!("../codes.tsv").lines().skip(1);
        let mut by_routine: BTreeMap<&str, Vec<&str>> = lines
            .map(|line| line.split('\t').collect::<Vec<_>>())
            .filter(|line| {
                line[..3] == [self.database, &self.code, self.severity] && line[4] == phase
            })
            .map(|line| (line[3], line))
            .collect();
        let routine = self.routine.as_deref();
        let of_routine = routine.and_then(|routine| by_routine.remove(routine));
        of_routine.or_else(|| by_routine.remove("-"))
    }
}

/// Adds the line to the file in which `./test` collects what was provoked.
fn record(line: &[&str]) -> io::Result<()> {
    let Some(path) = env::var_os("STEADFAST_PROVOKED") else {
        return Ok(());
    };
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{}\n", line.join("\t")).as_bytes())
}
