//! How much memory a process has.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{task::JoinHandle, time::sleep};

use crate::statistics::median;

/// Looks at a process's resident memory every second.
#[derive(Debug)]
pub struct Sampler {
    task: JoinHandle<()>,
    taken: Arc<Mutex<Vec<(Duration, u64)>>>,
}

/// What a process's resident memory was: when, from the start of the load, and how many bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples(pub Vec<(Duration, u64)>);

/// Memory after the warm-up, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// The least.
    pub min: u64,
    /// The most.
    pub max: u64,
    /// The last.
    pub last: u64,
    /// The median of the first quarter.
    pub early: f64,
    /// The median of the last quarter.
    pub late: f64,
}

impl Sampler {
    /// Begins to look at the process `id`.
    pub fn start(id: u32) -> Self {
        let (begun, taken) = (Instant::now(), Arc::<Mutex<Vec<_>>>::default());
        let samples = Arc::clone(&taken);
        let task = tokio::spawn(async move {
            while let Some(bytes) = resident(id) {
                samples.lock().unwrap_or_else(PoisonError::into_inner).push((begun.elapsed(), bytes));
                sleep(Duration::from_secs(1)).await;
            }
        });
        Self { task, taken }
    }

    /// What was seen.
    pub fn stop(self) -> Samples {
        self.task.abort();
        Samples(self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Samples {
    /// What is left without the first `warm_up`; `None` of nothing.
    pub fn after(&self, warm_up: Duration) -> Option<Memory> {
        let bytes: Vec<_> = self.0.iter().filter(|(at, _)| *at >= warm_up).map(|(_, bytes)| *bytes).collect();
        let quarter = (bytes.len() / 4).max(1);
        let middle = |bytes: &[u64]| median(bytes.iter().map(|&bytes| bytes as f64));
        Some(Memory {
            min: *bytes.iter().min()?,
            max: *bytes.iter().max()?,
            last: *bytes.last()?,
            early: middle(&bytes[..quarter]),
            late: middle(&bytes[bytes.len() - quarter..]),
        })
    }
}

impl Memory {
    /// Whether it did not grow: the last quarter has at most a tenth and 4 MiB more than the first. What leaks with each request shows in that: ten minutes
    /// have tens of thousands.
    pub fn is_flat(&self) -> bool {
        self.late <= self.early * 1.1 + 4.0 * 1024.0 * 1024.0
    }
}

/// `VmRSS` of proc(5), in bytes; `None` where there is no such process, or no such file system.
fn resident(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn memory(bytes: impl Fn(u64) -> u64) -> Memory {
        let samples = Samples((0..400).map(|at| (Duration::from_secs(at), bytes(at))).collect());
        samples.after(Duration::from_secs(40)).unwrap()
    }

    #[test]
    fn memory_that_grows_is_noticed_and_a_warm_up_is_not() {
        assert!(memory(|at| if at < 40 { at * MIB } else { 40 * MIB + at % 3 }).is_flat());
        assert!(!memory(|at| 40 * MIB + at * MIB / 10).is_flat());
        assert_eq!(Samples::default().after(Duration::ZERO), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory() {
        assert!(resident(std::process::id()).unwrap() > MIB);
        assert_eq!(resident(u32::MAX), None);
    }
}
