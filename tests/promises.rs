//! What is promised has its evidence: `docs/promises.md` names tests that are there, and the README promises nothing that has no place in it.

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn the_tests_that_it_names_are_there() {
    let page = read("docs/promises.md");
    let named = named_tests(&page);
    assert!(named.len() > 100, "only {} were found", named.len());
    let missing: Vec<_> = named
        .into_iter()
        .filter(|(file, name)| !has_test(file, name))
        .map(|(file, name)| format!("{file}::{name}"))
        .collect();
    assert!(missing.is_empty(), "not there: {missing:#?}");
}

#[test]
fn the_programs_that_it_names_are_there() {
    let page = read("docs/promises.md");
    let examples: Vec<_> = page.split("--example ").skip(1).map(first_word).collect();
    assert!(!examples.is_empty());
    for example in examples {
        let manifest = read("Cargo.toml");
        let file = Path::new(ROOT).join(format!("examples/{example}.rs"));
        assert!(file.exists(), "there is no example {example}");
        assert!(manifest.contains(&format!("[[example]]\nname = \"{example}\"")));
    }
    for script in ["./test", "./faults", "./release-check"] {
        assert!(page.contains(&format!("`{script}`")), "{script}");
        assert!(Path::new(ROOT).join(script).exists(), "{script}");
    }
}

#[test]
fn every_promise_says_what_shows_it() {
    let page = read("docs/promises.md");
    for (promise, text) in promises(&page) {
        let evidence = text.lines().filter(|line| line.starts_with("- "));
        assert!(evidence.clone().count() > 0, "{promise} has no evidence");
        for line in evidence {
            assert!(line.contains('`'), "{promise}: nothing is named in {line}");
        }
    }
}

#[test]
fn the_readme_promises_what_has_its_place_and_nothing_else() {
    let readme = read("README.md");
    let page = read("docs/promises.md");
    let linked = links(&readme);
    let there: BTreeSet<_> = promises(&page)
        .into_iter()
        .map(|(promise, _)| promise)
        .filter(|promise| !promise.starts_with("module-"))
        .collect();
    assert_eq!(linked, there, "linked in the README, and there");
    let bare: Vec<_> = bullets(&readme)
        .into_iter()
        .filter(|bullet| links(bullet).is_empty())
        .collect();
    assert!(bare.is_empty(), "without a link to its evidence: {bare:#?}");
}

#[test]
fn every_module_has_its_promises() {
    let page = read("docs/promises.md");
    let there: BTreeSet<_> = promises(&page)
        .into_iter()
        .filter_map(|(promise, _)| promise.strip_prefix("module-"))
        .collect();
    let public = read("src/lib.rs");
    let public = public.lines().filter_map(|line| {
        let name = line.strip_prefix("pub mod ")?.strip_suffix(';')?;
        // Pages, and no code.
        (name != "guide").then(|| name.to_owned())
    });
    let public: Vec<_> = public.collect();
    assert_eq!(there, public.iter().map(String::as_str).collect());
}

#[test]
fn links_from_page_to_page_lead_somewhere() {
    let guide = fs::read_dir(Path::new(ROOT).join("docs/guide")).expect("the guide");
    let guide = guide.map(|page| {
        let name = page.expect("a page").file_name();
        format!("docs/guide/{}", name.to_str().expect("a plain name"))
    });
    let others = ["README.md", "SECURITY.md", "docs/promises.md"].map(String::from);
    let (mut found, mut broken) = (0, Vec::new());
    for page in guide.chain(others) {
        let text = read(&page);
        let folder = Path::new(&page).parent().expect("a folder");
        for target in targets(&text) {
            found += 1;
            let (file, place) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                page.clone()
            } else {
                folder.join(file).to_str().expect("a plain name").to_owned()
            };
            let is_there = Path::new(ROOT).join(&file).exists();
            if !is_there || !(place.is_empty() || anchors(&read(&file)).contains(place)) {
                broken.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(found > 50, "only {found} were found");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_reader_sees_what_is_there_and_nothing_else() {
    let page = "\
# Page
Of `tests/x.rs::not_one` it says nothing, and of `tests/y.rs` neither.
### one
It is.
- so `tests/a.rs::b`, `src/c/d.rs::e_f`
## Others
### module-x
- `./test`
## End
- no promise
";
    let named = [("tests/x.rs", "not_one"), ("tests/a.rs", "b")];
    assert_eq!(named_tests(page)[..2], named);
    assert_eq!(named_tests(page)[2..], [("src/c/d.rs", "e_f")]);
    let found = promises(page);
    let found: Vec<_> = found
        .iter()
        .map(|(promise, text)| (*promise, text.lines().count()))
        .collect();
    assert_eq!(found, [("one", 2), ("module-x", 1)]);
    let readme = "[a](docs/promises.md#a) b\n- c [d](docs/promises.md#d-e)\n```\n- f\n```\n- g\n";
    assert_eq!(links(readme), BTreeSet::from(["a", "d-e"]));
    assert_eq!(bullets(readme).len(), 2);
    assert!(is_test(
        &["#[tokio::test(start_paused = true)]", "async fn a() {"],
        1
    ));
    assert!(is_test(&["#[test]", "", "#[rustfmt::skip]", "fn a("], 3));
    assert!(!is_test(&["#[test]", "fn a() {}", "fn b() {}"], 2));
    assert!(!is_test(&["// #[test]", "fn a() {}"], 1));
}

/// `file::name`, wherever it stands between backticks.
fn named_tests(page: &str) -> Vec<(&str, &str)> {
    let quoted = page.split('`').skip(1).step_by(2);
    let named = quoted.filter_map(|text| {
        text.split_once(".rs::")
            .map(|(file, name)| (text, file, name))
    });
    named
        .map(|(text, file, name)| (&text[..file.len() + ".rs".len()], name))
        .collect()
}

fn has_test(file: &str, name: &str) -> bool {
    let Ok(text) = fs::read_to_string(Path::new(ROOT).join(file)) else {
        return false;
    };
    let lines: Vec<_> = text.lines().collect();
    let begin = format!("fn {name}(");
    (0..lines.len()).any(|at| lines[at].contains(&begin) && is_test(&lines, at))
}

/// Whether one of the attributes above the line makes it a test.
fn is_test(lines: &[&str], at: usize) -> bool {
    let above = lines[..at].iter().rev().map(|line| line.trim());
    let mut attributes = above.take_while(|line| {
        line.is_empty() || ["#[", "//"].iter().any(|begin| line.starts_with(begin))
    });
    attributes.any(|line| {
        ["#[test]", "#[tokio::test"]
            .iter()
            .any(|begin| line.starts_with(begin))
    })
}

/// The headings of the third order, and what stands below each.
fn promises(page: &str) -> Vec<(&str, &str)> {
    let sections = page.split("\n### ").skip(1);
    let sections = sections.map(|section| section.split("\n## ").next().unwrap_or(section));
    sections
        .filter_map(|section| section.split_once('\n'))
        .collect()
}

/// The promises that a text leads to.
fn links(text: &str) -> BTreeSet<&str> {
    let links = text.split("(docs/promises.md#").skip(1);
    links
        .filter_map(|link| Some(link.split_once(')')?.0))
        .collect()
}

/// Where the links of a page lead that stay within the repository.
fn targets(text: &str) -> Vec<&str> {
    let inline = text
        .split("](")
        .skip(1)
        .filter_map(|link| link.split_once(')'));
    let inline = inline.map(|(target, _)| target);
    let below = text.lines().filter(|line| line.starts_with('['));
    let below = below.filter_map(|line| line.split_once("]: "));
    let all = inline.chain(below.map(|(_, target)| target));
    all.filter(|target| !target.contains("://")).collect()
}

/// The names of a page's headings, as GitHub and rustdoc make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let headings = headings.map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let letters = heading.chars().filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            letter => letter
                .is_alphanumeric()
                .then(|| letter.to_ascii_lowercase()),
        });
        letters.collect()
    };
    headings.map(anchor).collect()
}

/// The lines that begin with a dash, outside of code.
fn bullets(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose
        .flat_map(str::lines)
        .filter(|line| line.starts_with("- "))
        .collect()
}

fn first_word(text: &str) -> &str {
    text.split([' ', '`', '\n']).next().unwrap_or(text)
}

fn read(file: &str) -> String {
    let read = fs::read_to_string(Path::new(ROOT).join(file));
    read.unwrap_or_else(|error| panic!("{file}: {error}"))
}

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
