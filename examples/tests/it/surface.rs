//! The whole surface, as programs: keys, limits, an audit, files, orders for the kitchen, and chat by a server of one's own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use hybrid_cloud::testkit::openai::{Answer, OpenAiServer, chat_completion};
use reqwest::{Client, multipart};
use serde_json::{Value, json};

use crate::app::{self, Running, answer, until};

/// Makes a key for each of the tenants, and their list.
fn keys(folder: &Path, tenants: [&str; 2]) -> (PathBuf, [String; 2]) {
    let mut records = Vec::new();
    let keys = tenants.map(|tenant| {
        let made = Command::new(env!("CARGO_BIN_EXE_apikey")).args(["--tenant", tenant, "--subject", "shop"]).output();
        let made = made.unwrap();
        records.push(serde_json::from_slice::<Value>(&made.stdout).unwrap());
        String::from_utf8(made.stderr).unwrap().trim().to_owned()
    });
    let list = folder.join("keys.json");
    std::fs::write(&list, json!({ "format": "hybrid.api-keys/1", "keys": records }).to_string()).unwrap();
    (list, keys)
}

fn audited(arguments: &[&str]) -> String {
    let verified = Command::new(env!("CARGO_BIN_EXE_audit")).args(arguments).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&verified.stdout), String::from_utf8_lossy(&verified.stderr));
    assert!(verified.status.success(), "{said}{errors}");
    said.into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_customer_with_a_key_chats_and_orders_work_and_everything_is_audited() {
    let folder = tempfile::tempdir().unwrap();
    app::summary(&app::quickstart(folder.path()).output().unwrap());
    let site = folder.path().to_str().unwrap();
    let (list, [bakery, florist]) = keys(folder.path(), ["bakery", "florist"]);
    let chat = OpenAiServer::start().await.unwrap();
    chat.answer(Answer::json(200, &chat_completion("baker-1", "We open at six.")));
    let chat_url = format!("openai+{}#baker-1", chat.base_url());

    let flags = [
        ["--site", site],
        ["--name", "market-hall"],
        ["--listen", "127.0.0.1:0"],
        ["--api-keys", list.to_str().unwrap()],
        ["--requests-per-minute", "1000"],
        ["--money-per-day", "5.00 USD"],
        ["--chat", &chat_url],
    ];
    let flags: Vec<_> = flags.concat().into_iter().chain(["--audit", "--jobs"]).collect();
    let mut storefront = Running::start(env!("CARGO_BIN_EXE_storefront"), &flags);
    let root = storefront.line();
    let at = |path: &str| format!("{root}/v1{path}");
    let client = Client::new();
    assert_eq!(client.get(at("/models")).send().await.unwrap().status(), 401);

    let ask = json!({ "model": "baker-1", "messages": [{ "role": "user", "content": "When do you open?" }] });
    let (status, said) = answer(client.post(at("/chat/completions")).bearer_auth(&bakery).json(&ask)).await;
    assert_eq!((status, &said["choices"][0]["message"]["content"]), (200, &json!("We open at six.")), "{said}");

    // The kitchen is away: the order is taken, and waits.
    let lines = "Two rye loaves for Saturday, please\n\nAre you open on Sundays?\n".repeat(400);
    let form = multipart::Form::new()
        .text("purpose", "batch")
        .part("file", multipart::Part::text(lines).file_name("mail.txt"));
    let (status, file) = answer(client.post(at("/files")).bearer_auth(&bakery).multipart(form)).await;
    assert_eq!((status, &file["filename"]), (200, &json!("mail.txt")), "{file}");
    let order = json!({ "kind": "label", "payload": { "model": "bakery" }, "input_file_id": file["id"] });
    let (status, job) = answer(client.post(at("/jobs")).bearer_auth(&bakery).json(&order)).await;
    assert_eq!((status, &job["status"]), (202, &json!("queued")), "{job}");
    let (status, _) = answer(client.post(at("/jobs")).bearer_auth(&florist).json(&order)).await;
    assert_eq!(status, 404, "another's file");

    let kitchen = Running::start(env!("CARGO_BIN_EXE_kitchen"), &["--site", site, "--device", "cpu"]);
    let path = at(&format!("/jobs/{}", job["id"].as_str().unwrap()));
    let job = until("the job ends", async || {
        let (status, job) = answer(client.get(&path).bearer_auth(&bakery)).await;
        assert_eq!(status, 200, "{job}");
        (job["status"] != "queued").then_some(job)
    })
    .await;
    assert_eq!((&job["status"], &job["output"]["version"]), (&json!("succeeded"), &json!(2)), "{job}");
    let counted: u64 = job["output"]["labels"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(counted, 800);
    assert!(!job.to_string().contains(site), "the kitchen's folder is nobody's business: {job}");
    assert_eq!(answer(client.get(&path).bearer_auth(&florist)).await.0, 404);

    let output = at(&format!("/files/{}/content", job["output"]["output_file_id"].as_str().unwrap()));
    let answers = client.get(&output).bearer_auth(&bakery).send().await.unwrap().text().await.unwrap();
    let first: Value = serde_json::from_str(answers.lines().next().unwrap()).unwrap();
    assert_eq!((answers.lines().count(), &first["text"]), (800, &json!("Two rye loaves for Saturday, please")));
    assert_eq!(client.get(&output).bearer_auth(&florist).send().await.unwrap().status(), 404);
    kitchen.stop();
    storefront.stop();

    // What was done is in the audit, here and in the bucket.
    let audit = folder.path().join("storefront/audit");
    let here = audited(&["--folder", audit.to_str().unwrap(), "--at-least", "8"]);
    let there = audited(&["--writer", "market-hall", "--site", site]);
    assert!(here.contains("are whole"), "{here}");
    // The folder has one segment more: the one that the next start would write to.
    let entries = |said: &str| said.split(" in ").next().unwrap().to_owned();
    assert_eq!(entries(&here), entries(&there), "everything was shipped when it stopped");
}

#[tokio::test]
async fn a_customer_keeps_documents_and_records_over_a_restart_until_they_are_removed() {
    keeps_documents_and_records(&[], &[]).await;
}

/// The same with more flags, in an environment that has more.
pub(crate) async fn keeps_documents_and_records(more: &[&str], environment: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let model = OpenAiServer::start().await.unwrap();
    // Embeds a text by its first letter.
    model.answer_with(|request| {
        let texts: Vec<String> = serde_json::from_value(request.json()["input"].clone()).unwrap();
        let vector = |text: &str| if text.to_lowercase().starts_with('w') { [1.0, 0.1] } else { [0.1, 1.0] };
        let data = texts.iter().enumerate();
        let data: Vec<_> =
            data.map(|(i, text)| json!({ "object": "embedding", "index": i, "embedding": vector(text) })).collect();
        let usage = json!({ "prompt_tokens": 3, "total_tokens": 3 });
        Answer::json(200, &json!({ "object": "list", "data": data, "model": "nomic", "usage": usage }))
    });
    let (list, [bakery, florist]) = keys(folder.path(), ["bakery", "florist"]);
    let (site, embed) = (folder.path().to_str().unwrap(), format!("letters=openai+{}#nomic", model.base_url()));
    let flags = ["--site", site, "--listen", "127.0.0.1:0", "--api-keys", list.to_str().unwrap(), "--records"];
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_storefront"));
        command.args(flags).args(["--embed", &embed, "--documents", "2"]).args(more);
        Running::with(command.envs(environment.iter().copied()))
    };
    let client = Client::new();
    let mut storefront = start();
    let root = storefront.line();

    let documents = json!({ "documents": [
        { "id": "faq/1", "text": "We open at six.", "metadata": { "language": "en" } },
        { "id": "faq/2", "text": "Rye is out." },
    ]});
    let (status, kept) = answer(client.post(format!("{root}/v1/vectors")).bearer_auth(&bakery).json(&documents)).await;
    assert_eq!((status, &kept["usage"]["total_tokens"]), (200, &json!(3)), "{kept}");
    let nearest = async |root: &str, key: &str| {
        let ask = json!({ "text": "When do you open?", "k": 1 });
        answer(client.post(format!("{root}/v1/vectors/query")).bearer_auth(key).json(&ask)).await.1["data"].take()
    };
    assert_eq!(nearest(&root, &bakery).await[0]["metadata"]["text"], "We open at six.");
    assert_eq!(nearest(&root, &florist).await, json!([]));
    let review = json!({ "key": "42", "value": { "text": "Two rye loaves", "label": "order" } });
    let put = client.post(format!("{root}/v1/records/reviews")).bearer_auth(&bakery).json(&review);
    assert_eq!(answer(put).await.0, 200);
    // A key that does not name it has no business with all of a tenant's records.
    assert_eq!(answer(client.get(format!("{root}/v1/records")).bearer_auth(&bakery)).await.0, 403);
    storefront.stop();

    let mut storefront = start();
    let root = storefront.line();
    let record = format!("{root}/v1/records/reviews/42");
    let (_, found) = answer(client.get(&record).bearer_auth(&bakery)).await;
    assert_eq!(found["value"]["label"], "order", "{found}");
    assert_eq!(nearest(&root, &bakery).await[0]["id"], "faq/1");
    let gone = client.post(format!("{root}/v1/vectors/delete")).bearer_auth(&bakery).json(&json!({ "ids": ["faq/1"] }));
    assert_eq!(answer(gone).await.0, 200);
    assert_eq!(nearest(&root, &bakery).await[0]["id"], "faq/2");
    assert_eq!(answer(client.delete(&record).bearer_auth(&bakery)).await.0, 200);
    assert_eq!(answer(client.get(&record).bearer_auth(&bakery)).await.0, 404);
    storefront.stop();
}

#[tokio::test]
async fn a_storefront_without_flags_offers_the_model_and_judgments_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut storefront = Running::start(
        env!("CARGO_BIN_EXE_storefront"),
        &["--site", folder.path().to_str().unwrap(), "--listen", "127.0.0.1:0"],
    );
    let root = storefront.line();
    let document: Value = reqwest::get(format!("{root}/openapi.json")).await.unwrap().json().await.unwrap();
    let mut paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
    paths.sort();
    let expected =
        ["/healthz", "/openapi.json", "/readyz", "/v1/classify", "/v1/judgments", "/v1/models", "/v1/models/{id}"];
    assert_eq!(paths, expected);
    storefront.stop();
}

#[tokio::test]
async fn batches_may_be_ordered_where_they_are_offered_and_no_other_kind() {
    let folder = tempfile::tempdir().unwrap();
    let site = folder.path().to_str().unwrap();
    let flags = ["--site", site, "--listen", "127.0.0.1:0", "--jobs", "--offer", "enrich"];
    let mut storefront = Running::start(env!("CARGO_BIN_EXE_storefront"), &flags);
    let root = storefront.line();
    let client = Client::new();
    for (kind, taken) in [("enrich", 202), ("label", 202), ("summarise", 400), ("embed", 400), ("train", 400)] {
        let (status, said) = answer(client.post(format!("{root}/v1/jobs")).json(&json!({ "kind": kind }))).await;
        assert_eq!(status, taken, "{kind}: {said}");
        assert!(taken == 202 || said.to_string().contains("enrich"), "{said}");
    }
    storefront.stop();
}

#[test]
fn a_flag_that_cannot_be_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let site = folder.path().to_str().unwrap();
    for (flag, value, said) in [
        ("--api-keys", "/nowhere/keys.json", "/nowhere/keys.json"),
        ("--chat", "http://localhost:1234/v1", "openai+http"),
        ("--money-per-day", "5", "5.00 USD"),
        ("--offer", "train", "enrich"),
        // It goes into the kitchen's own index, where customers neither find nor remove anything.
        ("--offer", "embed", "enrich"),
    ] {
        let arguments = ["--site", site, "--listen", "127.0.0.1:0", flag, value];
        let refused = Command::new(env!("CARGO_BIN_EXE_storefront")).args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && errors.contains(said), "{flag}: {errors}");
    }
}
