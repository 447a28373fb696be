//! Plans beside what files take.

use super::*;
use crate::planner::ModelPlan;

#[test]
fn a_plan_foretells_what_a_file_takes() {
    let scratch = tempfile::tempdir().unwrap();
    let folders = [("qwen3", wide("qwen3", 3)), ("llama", wide("llama", 2)), ("gemma3", wide("gemma3", 2))];
    for (name, folder) in &folders {
        for mix in [Mix::F16, Mix::Q8_0, Mix::Q5KM, Mix::Q4KM] {
            let file = scratch.path().join("tiny.gguf");
            let made = make(mix, folder.path(), &file).unwrap();
            let foretold = ModelPlan::open(folder.path()).unwrap().quantized(mix);
            let found = ModelPlan::open(&file).unwrap();
            // Padding and tensors of positions are not weights.
            let weights: u64 = made.formats.values().sum();
            assert!(weights - foretold.disk_bytes() < 1_000, "{name} {mix}: {weights} {}", foretold.disk_bytes());
            assert_eq!(found.disk_bytes(), foretold.disk_bytes(), "{name} {mix}");
            assert_eq!(found.serving(64, 2), foretold.serving(64, 2), "{name} {mix}");
            // What the loader reckons with before it reads.
            let files = ModelFiles::open(&file).unwrap();
            let loaded: u64 = tensors(&files.config).iter().map(|spec| files.weights.bytes(&spec.name)).sum();
            assert_eq!(found.serving(64, 2).weights.values().sum::<u64>(), loaded, "{name} {mix}");
        }
    }
}

/// What this process has in memory, in bytes, where the system says so.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The tolerance that is stated for the planner: a tenth of what it foretells, and 8 MiB.
#[test]
#[ignore = "measures the memory of the whole process, so it has to run alone"]
fn what_is_foretold_is_what_a_model_takes() {
    let folder = sized("qwen3", 6, 1024);
    let file = folder.path().join("tiny.gguf");
    for mix in [Mix::Q4KM, Mix::Q8_0] {
        make(mix, folder.path(), &file).unwrap();
        let plan = ModelPlan::open(&file).unwrap();
        let foretold = plan.serving(256, 1);
        let Some(before) = resident_bytes() else { return };
        let reading = Reading::open(&file, &crate::Device::cpu(), None, 256).unwrap();
        reading.read(&(0..256).collect::<Vec<u32>>(), |_, _| Ok(())).unwrap();
        let found = resident_bytes().unwrap() - before;
        eprintln!("{mix}: foretold {} bytes, found {found}\n{}", foretold.total(), foretold.to_markdown());
        let tolerance = foretold.total() / 10 + (8 << 20);
        assert!(found.abs_diff(foretold.total()) < tolerance, "{mix}: {found} instead of {}", foretold.total());
        drop(reading);
    }
}
