//! A query that can be run again.

use std::error::Error;

use sqlx::{Execute, SqlSafeStr, SqlStr};

use crate::db::driver::Driver;

/// What a query consists of, taken out of it once and cloned for each attempt.
pub struct Replay<DB: Driver> {
    sql: SqlStr,
    statement: Option<DB::Statement>,
    arguments: Option<DB::Arguments>,
    persistent: bool,
}

impl<DB: Driver> Replay<DB> {
    /// Takes a query apart.
    ///
    /// # Errors
    /// `Encode`, where one of its arguments can't be sent.
    pub(super) fn of<'q>(mut query: impl Execute<'q, DB>) -> Result<Self, sqlx::Error> {
        let statement = query.statement().cloned();
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
        let persistent = query.persistent();
        Ok(Self {
            sql: query.sql(),
            statement,
            arguments,
            persistent,
        })
    }

    /// A text of ours, sent as it is.
    pub(super) fn raw(sql: impl SqlSafeStr) -> Self {
        Self {
            sql: sql.into_sql_str(),
            statement: None,
            arguments: None,
            persistent: false,
        }
    }

    /// It is not to leave a named statement behind on the server.
    pub(super) fn unprepared(mut self) -> Self {
        self.persistent = false;
        self.statement = None;
        self
    }

    /// Whether it is sent as it is, without being prepared.
    pub(super) fn is_text(&self) -> bool {
        self.arguments.is_none()
    }

    /// Whether it may be several statements, of which some may be done when another one fails.
    ///
    /// Only a text without arguments can be. It is not parsed: a semicolon before its end is taken for a separator, even inside a string.
    pub(super) fn may_be_several(&self) -> bool {
        let sql = self.sql.as_str().trim_end();
        let sql = sql.strip_suffix(';').unwrap_or(sql);
        self.is_text() && sql.contains(';')
    }

    pub(super) fn text(&self) -> &SqlStr {
        &self.sql
    }
}

impl<DB: Driver> Clone for Replay<DB> {
    fn clone(&self) -> Self {
        Self {
            sql: self.sql.clone(),
            statement: self.statement.clone(),
            arguments: self.arguments.clone(),
            persistent: self.persistent,
        }
    }
}

impl<DB: Driver> Execute<'static, DB> for Replay<DB> {
    fn sql(self) -> SqlStr {
        self.sql
    }

    fn statement(&self) -> Option<&DB::Statement> {
        self.statement.as_ref()
    }

    fn take_arguments(&mut self) -> Result<Option<DB::Arguments>, Box<dyn Error + Send + Sync>> {
        Ok(self.arguments.take())
    }

    fn persistent(&self) -> bool {
        self.persistent
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use sqlx::{Connection, Executor, Sqlite, SqliteConnection, Statement};

    use super::*;

    fn replay<'q>(query: impl Execute<'q, Sqlite>) -> Replay<Sqlite> {
        Replay::of(query).expect("its arguments can be sent")
    }

    #[test]
    fn a_text_may_be_several_statements_where_a_semicolon_is_not_its_end() {
        for (sql, several) in [
            ("SELECT 1", false),
            ("SELECT 1; \n", false),
            ("DELETE FROM a; DELETE FROM b", true),
            ("DELETE FROM a; DELETE FROM b;", true),
            ("SELECT ';'", true),
        ] {
            let ours: Replay<Sqlite> = Replay::raw(sql);
            assert_eq!(ours.may_be_several(), several, "{sql}");
            let theirs = replay(sqlx::raw_sql(sql));
            assert_eq!(theirs.may_be_several(), several, "{sql}");
        }
    }

    #[test]
    fn a_text_is_sent_as_it_is() {
        let ours: Replay<Sqlite> = Replay::raw("SELECT 1");
        for mut text in [ours, replay(sqlx::raw_sql("SELECT 1"))] {
            assert!(text.is_text());
            assert!(text.take_arguments().is_ok_and(|none| none.is_none()));
            assert_eq!(text.text().as_str(), "SELECT 1");
        }
    }

    #[test]
    fn what_has_arguments_is_one_statement() {
        let query = replay(sqlx::query("SELECT ';', ?").bind(7));
        assert!(!query.is_text());
        assert!(!query.may_be_several());
    }

    #[test]
    fn what_is_run_again_is_the_whole_query() {
        let query = replay(sqlx::query("SELECT ?").bind(7).persistent(true));
        for _ in 0..2 {
            let mut again = query.clone();
            assert!(again.take_arguments().is_ok_and(|some| some.is_some()));
            assert!(again.persistent());
            assert_eq!(again.sql().as_str(), "SELECT ?");
        }
        let short_lived = replay(sqlx::query("SELECT ?").bind(7).persistent(false));
        assert!(!short_lived.clone().persistent());
    }

    #[tokio::test]
    async fn a_prepared_statement_is_named_again_unless_none_may_be() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let sql = sqlx::AssertSqlSafe("SELECT ?").into_sql_str();
        let statement = connection.prepare(sql).await.unwrap();
        let query = replay(statement.query().bind(7));
        assert!(query.clone().statement().is_some() && query.persistent());
        let mut unprepared = query.unprepared();
        assert!(unprepared.statement().is_none() && !unprepared.persistent());
        assert!(unprepared.take_arguments().is_ok_and(|some| some.is_some()));
    }
}
