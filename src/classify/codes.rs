//! The tables against `tests/codes.tsv`: every row is stated there, and nothing else.

use std::{collections::HashSet, ptr};

use crate::classify::{Severity, mysql, row::Row, sqlite, sqlstate};

const CODES: &str = include_str!("../../tests/codes.tsv");

/// The file's lines as database, code, severity, routine and note.
fn lines() -> impl Iterator<Item = [&'static str; 5]> {
    CODES.lines().skip(1).map(|line| {
        let columns: Vec<_> = line.split('\t').collect();
        [columns[0], columns[1], columns[2], columns[3], columns[9]]
    })
}

/// Asserts that every row decides some line of the database, and that every line of it is decided by a row,
/// unless its note begins with `unlisted`.
fn assert_stated<C: std::fmt::Debug>(
    database: &str,
    table: &'static [Row<C>],
    row: impl Fn([&'static str; 5]) -> &'static Row<C>,
) {
    let mut stated = HashSet::new();
    for line in lines().filter(|line| line[0] == database) {
        let row = row(line);
        let listed = table.iter().any(|listed| ptr::eq(listed, row));
        assert_eq!(listed, !line[4].starts_with("unlisted"), "{line:?}");
        stated.insert(ptr::from_ref(row));
    }
    for row in table {
        assert!(
            stated.contains(&ptr::from_ref(row)),
            "{database} {:?} is not in codes.tsv",
            row.code
        );
    }
}

#[test]
fn every_row_for_postgres_is_stated_and_every_line_has_a_row() {
    assert_stated(
        "postgres",
        sqlstate::TABLE,
        |[_, code, severity, routine, _]| {
            let routine = (routine != "-").then_some(routine);
            sqlstate::row(code, Severity::parse(severity), routine)
        },
    );
}

#[test]
fn every_row_for_mysql_is_stated_and_every_line_has_a_row() {
    assert_stated("mysql", mysql::TABLE, |line| {
        mysql::row(line[1].parse().expect("a number"))
    });
}

#[test]
fn every_row_for_sqlite_is_stated_and_every_line_has_a_row() {
    assert_stated("sqlite", sqlite::TABLE, |line| {
        sqlite::row(line[1].parse().expect("a number"))
    });
}
