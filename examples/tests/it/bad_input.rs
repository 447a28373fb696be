//! What goes wrong is named, with the way out, and nothing is lost.

use std::{fs, path::Path, process::Command};

use hybrid_examples::{locations::Locations, site::Site};

use crate::app;

/// Runs the quickstart, which must fail, and answers with what it says.
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("error: "), "{said}");
    said
}

fn data_with(folder: &Path, file: &str, content: &[u8]) {
    let from = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/bakery"));
    for name in ["first.jsonl", "more.jsonl", "wrong.jsonl", "honest.jsonl", "golden.jsonl"] {
        fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join(file), content).unwrap();
}

fn refused_data(file: &str, content: &[u8]) -> String {
    let (site, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    data_with(data.path(), file, content);
    refused(app::quickstart(site.path()).arg("--data").arg(data.path()))
}

#[test]
fn a_site_that_is_a_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("site");
    fs::write(&file, "x").unwrap();
    assert!(refused(&mut app::quickstart(&file)).contains(&file.display().to_string()));
}

#[tokio::test]
async fn two_quickstarts_in_one_folder_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::open(&Locations::folder(folder.path())).await.unwrap();
    let held = site.lock("storefront").unwrap();
    let said = refused(&mut app::quickstart(folder.path()));
    assert!(said.contains("another process") && said.contains(&folder.path().display().to_string()), "{said}");
    drop(held);
}

#[test]
fn a_file_of_messages_that_does_not_fit_is_named_with_its_line() {
    let said = refused_data("first.jsonl", b"{\"text\":\"a\",\"label\":\"order\",\"language\":\"en\"}\n{\"text\":1}\n");
    assert!(said.contains("first.jsonl") && said.contains("line: 2"), "{said}");
    assert!(refused_data("first.jsonl", b"\xff\xfe").contains("first.jsonl"));
    let said = refused_data("golden.jsonl", b"{\"input\":{\"text\":\"a\"},\"expected\":1}\n");
    assert!(said.contains("golden.jsonl") && said.contains("line: 1"), "{said}");
}

#[test]
fn an_unknown_label_is_refused_by_the_api_that_names_the_known_ones() {
    let said = refused_data("first.jsonl", b"{\"text\":\"a\",\"label\":\"gossip\",\"language\":\"en\"}\n");
    assert!(said.contains("gossip") && said.contains("wholesale"), "{said}");
}

#[test]
fn a_dataset_with_nothing_to_learn_from_fails_the_job_with_the_reason() {
    let said = refused_data("first.jsonl", b"{\"text\":\"one order\",\"label\":\"order\",\"language\":\"en\"}\n");
    assert!(said.contains("label"), "{said}");
    assert!(refused_data("first.jsonl", b"").contains("judgments"), "an empty dataset");
}
