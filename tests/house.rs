//! Who may use whom, and how documentation begins, read from the sources.
//!
//! Leaves, then pure cores, then plumbing, then services.

use std::{
    fs, iter,
    path::{Path, PathBuf},
};

/// What a result means, why we said no, what happened: they use nothing but each other.
const LEAVES: [&str; 4] = ["kind", "error", "event", "held"];

/// What a leaf hands on although it is no leaf.
const HANDED_ON: [(&str, &str); 1] = [("error.rs", "wrap")];

/// Plumbing that is pure, so that cores may use it. Not all of it has to exist.
const PURE_PLUMBING: [&str; 4] = ["fifo", "ring", "shard", "sync"];

/// The folders that know nothing of each other.
const PATTERNS: [&str; 4] = ["breaker", "retry", "limit", "deadline"];

/// The pure cores of each folder. Not all have to exist, but where the folder does, one of them must.
const CORES: [(&str, &[&str]); 7] = [
    ("breaker", &["circuit.rs", "gate.rs", "window.rs"]),
    ("retry", &["schedule.rs", "backoff.rs", "balance.rs"]),
    ("limit", &["gate.rs", "estimate.rs"]),
    (
        "classify",
        &["sqlstate.rs", "mysql.rs", "sqlite.rs", "io.rs"],
    ),
    ("fault", &["plan.rs"]),
    (
        "db",
        &["lease.rs", "usage.rs", "meter.rs", "sizing.rs", "stats.rs"],
    ),
    (
        "http",
        &[
            "deadline_header.rs",
            "retry_after.rs",
            "status.rs",
            "response.rs",
            "method.rs",
        ],
    ),
];

#[test]
fn leaves_use_only_leaves() {
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| source.is_leaf()) {
        violations.extend(source.uses(|module| {
            LEAVES.contains(&module) || HANDED_ON.contains(&(&source.path, module))
        }));
        violations.extend(source.mentions(&["tokio", "tower", "tower_service", "async"]));
    }
    assert_none(&violations);
}

#[test]
fn cores_are_pure() {
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| source.is_core()) {
        violations.extend(source.uses(|module| {
            LEAVES.contains(&module) || PURE_PLUMBING.contains(&module) || module == source.module()
        }));
        let impure = ["tokio", "tower", "tower_service", "tower_layer", "async"];
        violations.extend(source.mentions(&impure));
    }
    assert_none(&violations);
}

#[test]
fn every_folder_has_a_core() {
    let sources = sources();
    for (folder, cores) in CORES {
        let mut files = sources.iter().filter(|source| source.module() == folder);
        // A folder of only `mod.rs` is a beginning.
        let begun = files.clone().any(|source| !source.path.ends_with("mod.rs"));
        let has_core = files.any(|source| source.is_core());
        assert!(has_core || !begun, "src/{folder} has none of {cores:?}");
    }
}

#[test]
fn no_pattern_uses_another() {
    let mut violations = Vec::new();
    for source in &sources() {
        if PATTERNS.contains(&source.module()) {
            let module = source.module();
            violations.extend(source.uses(|used| used == module || !PATTERNS.contains(&used)));
        }
    }
    assert_none(&violations);
}

#[test]
fn a_path_names_the_module() {
    let sources = sources();
    let modules: Vec<_> = sources.iter().map(Source::module).collect();
    let mut violations = Vec::new();
    for source in &sources {
        // `crate::Breaker` would go round by the root, where nobody sees whose it is.
        violations.extend(source.uses(|used| modules.contains(&used)));
    }
    assert_none(&violations);
}

#[test]
fn one_file_reads_the_clock() {
    let mut violations = Vec::new();
    for source in sources().iter().filter(|source| source.path != "time.rs") {
        for read in ["Instant::now", "SystemTime::now"] {
            violations.extend(source.finds(read, "reads the clock"));
        }
        for (at, first) in source.paths("tokio::") {
            if first == "time" {
                violations.push(source.violation(at, "uses tokio's clock"));
            }
        }
    }
    assert_none(&violations);
}

#[test]
fn documentation_begins_with_at_most_fifteen_words() {
    let (mut pages, mut violations) = (0, Vec::new());
    for (path, text) in texts() {
        for page in pages_of(&text) {
            pages += 1;
            let words = words_of(&page.first).len();
            if words > 15 {
                violations.push(format!("src/{path}:{}: {words} words", page.line));
            }
        }
    }
    assert!(pages > 200, "only {pages} pages were found");
    assert_none(&violations);
}

#[test]
fn the_words_of_a_page_are_those_of_its_first_sentence() {
    let text = r##"
//! A module of
//! `a.b()`: the rest.
#![cfg_attr(x, doc = "..")]
//! No page of its own.

/// One two.
///
/// Three.
#[derive(Clone)]
#[rustfmt::skip]
pub struct A {
    /// Private, so nobody sees how long it is.
    a: u32,
    /// Four five
    /// six; seven.
    pub b: u32,
}
/// Of the crate.
pub(crate) fn c() {}
pub enum D {
    /// Eight.
    E,
}
pub trait F {
    /// Nine ten.
    fn g(&self);
}
"##;
    let pages = pages_of(text);
    let found: Vec<_> = pages
        .iter()
        .map(|page| (page.line, words_of(&page.first).join(" ")))
        .collect();
    let expected = [
        (2, "A module of `a.b()`"),
        (7, "One two"),
        (15, "Four five six"),
        (22, "Eight"),
        (26, "Nine ten"),
    ];
    assert_eq!(found, expected.map(|(line, words)| (line, words.into())));
}

#[test]
fn the_reader_sees_what_it_must_and_nothing_else() {
    let text = r##"
//! See [`Retry`](crate::retry).
use crate::{error::{Refusal, ConfigError}, kind::Kind,
    limit};
const A: &str = "crate::fault"; const B: char = '"'; /* crate::db */
const C: &str = r#"crate::"http"#;
fn f<'a>() -> crate::shield::Shield<'a> {}
use tokio::{sync::watch, time};
#[cfg(test)]
mod tests { use crate::breaker; }
"##;
    let source = Source {
        path: "x.rs".into(),
        code: code_of(text),
    };
    let used: Vec<_> = source.paths("crate::").collect();
    let used: Vec<_> = used
        .iter()
        .map(|(at, path)| (source.line(*at), *path))
        .collect();
    let expected = [(3, "error"), (3, "kind"), (4, "limit"), (7, "shield")];
    assert_eq!(used, expected);
    let tokio: Vec<_> = source.paths("tokio::").map(|(_, path)| path).collect();
    assert_eq!(tokio, ["sync", "time"]);
    assert_eq!(source.mentions(&["tokio", "tests"]).len(), 1);
}

/// A file under `src/`, its comments, strings and test modules blanked.
struct Source {
    /// Relative to `src/`, with `/`.
    path: String,
    code: String,
}

impl Source {
    /// The module at the crate's root that it belongs to.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or(&self.path);
        first.trim_end_matches(".rs")
    }

    fn is_leaf(&self) -> bool {
        LEAVES.iter().any(|leaf| self.path == format!("{leaf}.rs"))
    }

    fn is_core(&self) -> bool {
        let listed = CORES.iter().any(|(folder, cores)| {
            let file = self
                .path
                .strip_prefix(folder)
                .and_then(|rest| rest.strip_prefix('/'));
            file.is_some_and(|file| cores.contains(&file))
        });
        listed
            || PURE_PLUMBING
                .iter()
                .any(|module| self.path == format!("{module}.rs"))
    }

    /// The modules of ours that it uses and may not.
    fn uses(&self, may_use: impl Fn(&str) -> bool) -> Vec<String> {
        let used = self.paths("crate::").filter(|(_, module)| !may_use(module));
        used.map(|(at, module)| self.violation(at, &format!("uses crate::{module}")))
            .collect()
    }

    fn mentions(&self, words: &[&str]) -> Vec<String> {
        let found = words
            .iter()
            .map(|word| self.finds(word, &format!("mentions {word}")));
        found.flatten().collect()
    }

    fn finds(&self, word: &str, what: &str) -> Vec<String> {
        let found = self.places(word).filter(|at| {
            let after = self.code[at + word.len()..].chars().next();
            !after.is_some_and(is_word)
        });
        found.map(|at| self.violation(at, what)).collect()
    }

    /// Where `word` begins, and no longer word ends with it.
    fn places(&self, word: &str) -> impl Iterator<Item = usize> {
        let found = self.code.match_indices(word).map(|(at, _)| at);
        found.filter(|at| !self.code[..*at].chars().next_back().is_some_and(is_word))
    }

    /// The first segments of all paths that begin with `root`, groups opened: `root::{a::b, c}` is `a` and `c`.
    fn paths(&self, root: &str) -> impl Iterator<Item = (usize, &str)> {
        self.places(root)
            .flat_map(move |at| {
                let begin = at + root.len();
                if self.code[begin..].starts_with('{') {
                    self.group(begin + 1)
                } else {
                    vec![begin]
                }
            })
            .map(|at| (at, word_at(&self.code[at..])))
    }

    /// Where the members of a group begin; `begin` is behind its brace.
    fn group(&self, begin: usize) -> Vec<usize> {
        let mut members = Vec::new();
        let (mut depth, mut expects) = (0, true);
        for (offset, letter) in self.code[begin..].char_indices() {
            match letter {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => expects = true,
                letter if expects && is_word(letter) => {
                    members.push(begin + offset);
                    expects = false;
                }
                _ => {}
            }
        }
        members
    }

    fn line(&self, at: usize) -> usize {
        1 + self.code[..at].matches('\n').count()
    }

    fn violation(&self, at: usize, what: &str) -> String {
        format!("src/{}:{}: {what}", self.path, self.line(at))
    }
}

/// The first paragraph of what is written about a module or a `pub` item, and the line where it begins.
struct Page {
    line: usize,
    first: String,
}

/// The pages of a file: of its modules, its `pub` items, and what those name without `pub` (variants, methods of traits).
fn pages_of(text: &str) -> Vec<Page> {
    let lines: Vec<&str> = text.lines().collect();
    let mut pages = Vec::new();
    // How far the `pub enum` or `pub trait` is indented that is open.
    let mut names: Option<usize> = None;
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at].trim_start();
        let indent = lines[at].len() - line.len();
        let Some(mark) = ["//!", "///"]
            .into_iter()
            .find(|mark| line.starts_with(mark))
        else {
            if line.starts_with("pub enum ") || line.starts_with("pub trait ") {
                names = Some(indent);
            } else if line.starts_with('}') && names == Some(indent) {
                names = None;
            }
            at += 1;
            continue;
        };
        let begin = at;
        let block = lines[at..]
            .iter()
            .map_while(|line| line.trim_start().strip_prefix(mark));
        let block: Vec<&str> = block.map(str::trim).collect();
        at += block.len();
        let item = lines[at..].iter().map(|line| line.trim_start());
        let item = item
            .clone()
            .find(|line| !line.starts_with("#["))
            .unwrap_or_default();
        // What goes on behind an attribute is no beginning.
        let begins = begin == 0 || !lines[begin - 1].ends_with(']');
        let named = names.is_some_and(|outer| indent == outer + 4);
        if begins && (mark == "//!" || item.starts_with("pub ") || named) {
            let first = block.into_iter().take_while(|line| !line.is_empty());
            let first = first.collect::<Vec<_>>().join(" ");
            pages.push(Page {
                line: begin + 1,
                first,
            });
        }
    }
    pages
}

/// The words up to the first full stop, colon or semicolon.
fn words_of(paragraph: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for word in paragraph.split_whitespace() {
        let bare = word.trim_end_matches(['.', ':', ';']);
        words.push(bare);
        if bare != word {
            break;
        }
    }
    words
}

fn assert_none(violations: &[String]) {
    assert!(
        violations.is_empty(),
        "not allowed:\n{}",
        violations.join("\n")
    );
}

/// All files but those that are test modules, with their text.
fn texts() -> Vec<(String, String)> {
    let root = root();
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let texts = files.iter().filter_map(|file| {
        let path = read(&root, file)?.path;
        Some((path, fs::read_to_string(file).expect("a readable source")))
    });
    texts.collect()
}

/// All of them; no test may pass because it found none.
fn sources() -> Vec<Source> {
    let root = root();
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let sources: Vec<_> = files.iter().filter_map(|file| read(&root, file)).collect();
    assert!(!sources.is_empty(), "no sources under {}", root.display());
    for leaf in LEAVES {
        let found = sources
            .iter()
            .any(|source| source.path == format!("{leaf}.rs"));
        assert!(found, "src/{leaf}.rs is gone");
    }
    sources
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// `None` for a file that is a test module.
fn read(root: &Path, file: &Path) -> Option<Source> {
    let relative = file.strip_prefix(root).expect("found under it");
    let path = relative.to_str().expect("a plain name").replace('\\', "/");
    let tests = ["tests.rs", "testing.rs", "model.rs"];
    if tests.iter().any(|name| path.ends_with(name)) {
        return None;
    }
    let text = fs::read_to_string(file).expect("a readable source");
    Some(Source {
        path,
        code: code_of(&text),
    })
}

/// The text up to its test modules; comments and strings are blanks, lines stay where they are.
fn code_of(text: &str) -> String {
    let mut code = blanked(text);
    let mut begin = 0;
    for line in code.split_inclusive('\n') {
        let rest = &code[begin + line.len()..];
        let is_test = line.starts_with("#[cfg(test") || line.starts_with("#[cfg(all(test");
        let item = rest.lines().find(|line| !line.starts_with("#["));
        if is_test && item.is_some_and(|item| item.starts_with("mod ")) {
            break;
        }
        begin += line.len();
    }
    code.truncate(begin);
    code
}

fn blanked(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let blank = blank(rest, code.chars().next_back());
        if blank == 0 {
            code.push(letter);
            rest = &rest[letter.len_utf8()..];
        } else {
            let (gone, behind) = rest.split_at(blank);
            code.extend(
                gone.chars()
                    .map(|letter| if letter == '\n' { '\n' } else { ' ' }),
            );
            rest = behind;
        }
    }
    code
}

/// How many bytes at the front of `rest` are a comment, a string or a character.
fn blank(rest: &str, before: Option<char>) -> usize {
    let to = |end: &str, from: usize| {
        rest[from..]
            .find(end)
            .map_or(rest.len(), |at| from + at + end.len())
    };
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return to("*/", 2);
    }
    if let Some(raw) = rest
        .strip_prefix('r')
        .filter(|_| !before.is_some_and(is_word))
    {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end: String = iter::once('"').chain(iter::repeat_n('#', hashes)).collect();
            return to(&end, hashes + 2);
        }
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    let mut letters = rest.chars();
    match (letters.next(), letters.next(), letters.next()) {
        (Some('\''), Some('\\'), _) => quoted(rest, '\''),
        (Some('\''), Some(letter), Some('\'')) => 2 + letter.len_utf8(),
        _ => 0,
    }
}

/// How long the text in quotes at the front of `rest` is.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in rest.char_indices().skip(1) {
        if !escaped && letter == quote {
            return at + 1;
        }
        escaped = !escaped && letter == '\\';
    }
    rest.len()
}

fn word_at(text: &str) -> &str {
    let end = text.find(|letter| !is_word(letter)).unwrap_or(text.len());
    &text[..end]
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}
