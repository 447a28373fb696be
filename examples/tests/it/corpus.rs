//! The bakery's messages keep what their README says.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use hybrid_examples::data::{Decided, LABELS};
use hybrid_local::evaluation::GoldenSet;

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/bakery"))
}

fn training() -> Vec<(&'static str, Vec<Decided>)> {
    ["first", "more", "honest", "wrong"]
        .map(|name| (name, Decided::read(&folder().join(format!("{name}.jsonl"))).unwrap()))
        .into()
}

fn golden() -> Vec<(String, String)> {
    let bytes = std::fs::read(folder().join("golden.jsonl")).unwrap();
    let set = GoldenSet::from_jsonl("golden", bytes).unwrap();
    let field = |value: &serde_json::Value, name: &str| value[name].as_str().unwrap().to_owned();
    set.cases().iter().map(|case| (field(&case.input, "text"), field(&case.expected, "label"))).collect()
}

/// The four-character pieces of a text, without punctuation and capitals.
fn pieces(text: &str) -> BTreeSet<String> {
    let plain: String =
        text.to_lowercase().chars().map(|char| if char.is_alphanumeric() { char } else { ' ' }).collect();
    let chars: Vec<char> = plain.split_whitespace().collect::<Vec<_>>().join(" ").chars().collect();
    chars.windows(4.min(chars.len().max(1))).map(|window| window.iter().collect()).collect()
}

#[test]
fn each_file_has_the_judgments_it_is_said_to_have() {
    let counts: Vec<_> = training().iter().map(|(name, decided)| (*name, decided.len())).collect();
    assert_eq!(counts, [("first", 120), ("more", 600), ("honest", 60), ("wrong", 150)]);
    let mut golden_labels = BTreeMap::new();
    golden().into_iter().for_each(|(_, label)| *golden_labels.entry(label).or_insert(0) += 1);
    assert_eq!(golden_labels.values().sum::<i32>(), 400);
    assert!(golden_labels.values().all(|&count| count >= 40), "{golden_labels:?}");
    assert_eq!(golden_labels.keys().collect::<Vec<_>>(), LABELS.iter().collect::<Vec<_>>());
}

#[test]
fn all_messages_differ_and_are_in_two_languages() {
    let texts: Vec<String> = training()
        .into_iter()
        .flat_map(|(_, decided)| decided)
        .map(|one| one.text)
        .chain(golden().into_iter().map(|(text, _)| text))
        .collect();
    assert!(texts.len() >= 1_150);
    assert_eq!(texts.iter().collect::<BTreeSet<_>>().len(), texts.len());
    for (name, decided) in training() {
        let languages: BTreeSet<_> = decided.iter().map(|one| one.language.as_str()).collect();
        assert_eq!(languages, BTreeSet::from(["de", "en"]), "{name}");
        assert!(decided.iter().all(|one| LABELS.contains(&one.label.as_str())), "{name}");
    }
}

#[test]
fn no_training_file_contains_a_golden_message_or_one_nearly_like_it() {
    let golden: Vec<_> = golden().into_iter().map(|(text, _)| (pieces(&text), text)).collect();
    for (name, decided) in training() {
        for one in decided {
            let mine = pieces(&one.text);
            for (theirs, text) in &golden {
                let shared = mine.intersection(theirs).count();
                let likeness = shared as f64 / (mine.len() + theirs.len() - shared) as f64;
                assert!(likeness < 0.5, "{name}: {:?} is like {text:?} ({likeness:.2})", one.text);
            }
        }
    }
}
