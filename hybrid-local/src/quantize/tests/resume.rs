//! Runs that were cut off.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hybrid_core::{ErrorKind, ProgressEvent, ProgressFn};

use super::*;

#[test]
fn a_run_that_was_cut_off_goes_on_and_ends_with_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = wide("llama", 2);
    let (whole, file) = (scratch.path().join("whole.gguf"), scratch.path().join("cut.gguf"));
    let (name, mix) = ("bakery", Mix::Q5KM);
    let quantizer = Quantizer::new(mix).named(name);
    let expected = quantizer.write(folder.path(), &whole, &NoProgress, &Cancellation::new()).unwrap();
    for stop_at in [1, 5, 12] {
        let (cancel, seen) = (Cancellation::new(), Arc::new(AtomicUsize::new(0)));
        let (token, count) = (cancel.clone(), seen.clone());
        let stop = ProgressFn(move |_: ProgressEvent| {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == stop_at {
                token.cancel();
            }
        });
        let error = quantizer.write(folder.path(), &file, &stop, &cancel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert!(!file.exists() && scratch.path().join("cut.gguf.part").exists());
        let made = quantizer.write(folder.path(), &file, &NoProgress, &Cancellation::new()).unwrap();
        assert_eq!((made.digest, fs::read(&file).unwrap()), (expected.digest, fs::read(&whole).unwrap()));
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2, "nothing is left beside");
        fs::remove_file(&file).unwrap();
    }
}

/// The child of the next test: writes a line for each piece of progress, and waits for an answer.
#[test]
#[ignore = "run by the test of a process that is killed"]
fn child() {
    let Ok(paths) = std::env::var("HYBRID_QUANTIZE") else { return };
    let (folder, file) = paths.split_once(':').unwrap();
    let lines = ProgressFn(|event: ProgressEvent| {
        println!("written: {}", event.done);
        std::io::stdin().lines().next();
    });
    Quantizer::new(Mix::Q4KM).write(folder.as_ref(), file.as_ref(), &lines, &Cancellation::new()).unwrap();
    println!("done");
}

#[test]
fn a_process_that_is_killed_leaves_what_another_ends_with_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = wide("llama", 2);
    // A tensor that is larger than what is written between two points to go on from.
    change(folder.path(), |_| ());
    let (whole, file) = (scratch.path().join("whole.gguf"), scratch.path().join("killed.gguf"));
    make(Mix::Q4KM, folder.path(), &whole).unwrap();
    for kill_at in [2usize, 9, 17] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["quantize::tests::resume::child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env("HYBRID_QUANTIZE", format!("{}:{}", folder.path().display(), file.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut seen = 0;
        for _ in lines.filter(|line| line.contains("written: ")) {
            seen += 1;
            if seen == kill_at {
                break;
            }
            writeln!(input).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen == kill_at && !file.exists(), "the child came to {seen}");
    }
    make(Mix::Q4KM, folder.path(), &file).unwrap();
    assert_eq!(fs::read(&file).unwrap(), fs::read(&whole).unwrap());
}

#[test]
fn what_another_plan_has_left_is_not_gone_on_with() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = wide("qwen2", 2);
    let file = scratch.path().join("tiny.gguf");
    let position = |tensors: usize, plan: &str| json!({"plan": plan, "tensors": tensors}).to_string();
    let part = scratch.path().join("tiny.gguf.part");
    let expected = make(Mix::Q8_0, folder.path(), &file).unwrap();
    for left in [position(3, &"0".repeat(64)), position(1 << 40, "x"), "no record".to_owned(), String::new()] {
        fs::write(&part, vec![7; 1 << 20]).unwrap();
        fs::write(scratch.path().join("tiny.gguf.part.progress"), left).unwrap();
        assert_eq!(make(Mix::Q8_0, folder.path(), &file).unwrap(), expected);
    }
    // A record that promises more than the file has.
    let cancel = Cancellation::new();
    let token = cancel.clone();
    let stop = ProgressFn(move |event: ProgressEvent| {
        if event.done > 100_000 {
            token.cancel()
        }
    });
    Quantizer::new(Mix::Q8_0).write(folder.path(), &file, &stop, &cancel).unwrap_err();
    let other = fs::File::open(&part).unwrap();
    other.lock().unwrap();
    assert_eq!(make(Mix::Q8_0, folder.path(), &file).unwrap_err().kind(), ErrorKind::Unavailable);
    other.unlock().unwrap();
    fs::write(&part, [1; 10]).unwrap();
    assert_eq!(make(Mix::Q8_0, folder.path(), &file).unwrap(), expected);
}
