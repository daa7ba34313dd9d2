//! The header of each example says what a copy of it needs. `./copies` compiles the copies; this finds the mistakes that are cheap to find.

use std::{
    collections::BTreeMap,
    fs, iter,
    path::{Path, PathBuf},
};

#[test]
fn every_example_says_how_it_is_run() {
    for example in examples() {
        let name = &example.name;
        let (command, features) = match example.steadfast_features() {
            Some(features) => {
                let features = features.replace("\", \"", ",");
                (example.command(), format!(" --features {features}"))
            }
            None => (example.command(), String::new()),
        };
        let line = format!("//! Run it: `cargo {command} --example {name}{features}`");
        assert!(example.text.contains(&line), "{name} has no line {line}");
    }
}

#[test]
fn cargo_knows_the_features_that_an_example_needs() {
    let manifest = manifest();
    for example in examples() {
        let name = &example.name;
        let entry = format!("[[example]]\nname = \"{name}\"\n");
        let entry = manifest.split_once(&entry).map(|(_, rest)| rest);
        let entry = entry.and_then(|rest| {
            let mut lines = rest.lines().take_while(|line| !line.is_empty());
            lines.find(|line| line.starts_with("required-features"))
        });
        let expected = example
            .steadfast_features()
            .map(|features| format!("required-features = [\"{features}\"]"));
        assert_eq!(entry, expected.as_deref(), "{name}");
    }
}

#[test]
fn an_example_states_the_crates_that_it_uses_and_no_other() {
    for example in examples() {
        let dependencies = example.dependencies();
        let is_ours = dependencies.contains_key("steadfast");
        assert!(is_ours != example.is_before, "{}", example.name);
        for name in [
            "axum",
            "reqwest",
            "serde",
            "sqlx",
            "steadfast",
            "tempfile",
            "thiserror",
            "tokio",
            "tower",
        ] {
            let is_used = example.code().contains(&format!("{name}::"));
            let is_stated = dependencies.contains_key(name);
            assert_eq!(is_used, is_stated, "{name} in {}", example.name);
        }
    }
}

#[test]
fn an_example_asks_for_the_versions_that_it_was_tested_with() {
    let manifest = manifest();
    let (_, tested) = manifest
        .split_once("[dependencies]\n")
        .expect("a list of dependencies");
    for example in examples() {
        for (name, line) in example.dependencies() {
            let expected = if name == "steadfast" {
                OUR_VERSION
            } else {
                let begin = format!("{name} = ");
                let line = tested.lines().find(|line| line.starts_with(&begin));
                version(line.expect("a dependency of ours"))
            };
            // `2` for `2.0.18`: whoever copies it gets the newest.
            let asked = format!("{}.", version(line));
            let is_tested = format!("{expected}.").starts_with(&asked);
            assert!(is_tested, "{line}, not {expected}, in {}", example.name);
        }
    }
}

const OUR_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION_MAJOR"),
    ".",
    env!("CARGO_PKG_VERSION_MINOR")
);

struct Example {
    name: String,
    file: PathBuf,
    text: String,
    /// Whether it shows what another one was before it used us.
    is_before: bool,
}

impl Example {
    /// The dependencies of its header: name and line.
    fn dependencies(&self) -> BTreeMap<&str, &str> {
        let begin = "//! ```toml\n//! [dependencies]\n";
        let (_, rest) = self
            .text
            .split_once(begin)
            .unwrap_or_else(|| panic!("{} has no dependencies in its header", self.name));
        let (lines, _) = rest.split_once("//! ```\n").expect("the block ends");
        let lines = lines.lines().map(|line| line.trim_start_matches("//! "));
        let named = lines.map(|line| (line.split_once(" = ").expect("name = version").0, line));
        named.collect()
    }

    fn steadfast_features(&self) -> Option<&str> {
        let line = self.dependencies().remove("steadfast")?;
        let (_, rest) = line.split_once("features = [\"")?;
        let (features, _) = rest.split_once("\"]").expect("one feature");
        Some(features)
    }

    /// One that consists of tests is run by them.
    fn command(&self) -> &'static str {
        if self.text.contains("#[cfg(test)]") {
            "test"
        } else {
            "run"
        }
    }

    /// Its own, and that of the files which it names by their path.
    fn code(&self) -> String {
        let folder = self.file.parent().expect("a folder");
        let named = self.text.split("#[path = \"").skip(1).map(|rest| {
            let (path, _) = rest.split_once('"').expect("the path ends");
            fs::read_to_string(folder.join(path)).expect("a readable file")
        });
        let texts: Vec<_> = iter::once(self.text.clone()).chain(named).collect();
        let lines = texts
            .iter()
            .flat_map(|text| text.lines())
            .map(str::trim_start);
        let code = lines.filter(|line| !line.starts_with("//"));
        code.collect::<Vec<_>>().join("\n")
    }
}

/// All of them; no test may pass because it found none.
fn examples() -> Vec<Example> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let examples: Vec<_> = files(&folder)
        .into_iter()
        .flat_map(|path| {
            // In a folder of its own `main.rs` is the example, and has the folder's name.
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .map(|file| {
            let path = file.strip_prefix(&folder).expect("found in it");
            let name = path.with_extension("").to_string_lossy().replace('/', "_");
            let name = name.trim_end_matches("_main").to_owned();
            Example {
                is_before: name.ends_with("_before"),
                name,
                text: fs::read_to_string(&file).expect("a readable example"),
                file,
            }
        })
        .collect();
    let quickstart = examples.iter().any(|e| e.name == "quickstart");
    assert!(quickstart, "no quickstart in {}", folder.display());
    examples
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of examples");
    let paths = entries.map(|entry| entry.expect("an entry of it").path());
    paths.collect()
}

fn manifest() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    fs::read_to_string(file).expect("our own manifest")
}

/// The first version in a line: `name = "1"` or `name = { version = "1", .. }`.
fn version(line: &str) -> &str {
    let mut parts = line.split('"');
    parts.nth(1).expect("a version in quotes")
}
