//! What servers say of an error: every code has a meaning, which never makes a failure a success, nor a session that has ended one that goes on.
#![no_main]

use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use steadfast::{
    Kind,
    classify::{DbVerdict, Fate, Phase, Severity, lost, mysql, pooler, postgres, sqlite},
};

#[derive(Arbitrary, Debug)]
struct Input {
    code: String,
    severity: Word,
    routine: Option<Word>,
    message: String,
    number: i32,
}

#[derive(Arbitrary, Debug)]
enum Word {
    Any(String),
    Fatal,
    Panic,
    ProcessInterrupts,
    RevalidateCachedQuery,
}

impl Word {
    fn as_str(&self) -> &str {
        match self {
            Self::Any(word) => word,
            Self::Fatal => "FATAL",
            Self::Panic => "PANIC",
            Self::ProcessInterrupts => "ProcessInterrupts",
            Self::RevalidateCachedQuery => "RevalidateCachedQuery",
        }
    }
}

fuzz_target!(|input: Input| {
    let severity = Severity::parse(input.severity.as_str());
    let routine = input.routine.as_ref().map(Word::as_str);
    for phase in Phase::ALL {
        let verdict = postgres(&input.code, severity, routine, phase);
        is_failure(verdict);
        if severity != Severity::Error {
            assert_eq!(verdict.fate, Fate::Discard, "{verdict:?}");
        }
        // A code that nobody has heard of, and the session over: it is as if it had been lost.
        let is_known = input
            .code
            .bytes()
            .take(2)
            .all(|byte| byte.is_ascii_alphanumeric());
        if severity != Severity::Error && !is_known && phase != Phase::Connect {
            assert_eq!(verdict.kind, lost(phase).kind, "{verdict:?}");
        }
        // No class has a code that is longer, so more letters change nothing.
        let longer = postgres(&format!("{}?", input.code), severity, routine, phase);
        assert!(
            input.code.len() < 5 || longer == verdict,
            "{verdict:?} {longer:?}"
        );

        match pooler(&input.message, severity, phase) {
            Some(verdict) => {
                is_failure(verdict);
                assert_eq!((severity, verdict.fate), (Severity::Fatal, Fate::Discard));
            }
            None => {}
        }
        is_failure(mysql(input.number as u16, phase));
        is_failure(sqlite(input.number, phase));
    }
});

fn is_failure(verdict: DbVerdict) {
    assert!(
        !matches!(
            verdict.kind,
            Kind::Success | Kind::Ignored | Kind::Saturated
        ),
        "{verdict:?}"
    );
    assert!(!verdict.why.is_empty(), "{verdict:?}");
}
