//! What was promised, and what was found.

use std::{
    fmt::{self, Write},
    sync::Arc,
    time::Duration,
};

use super::{
    Plan,
    clients::{Kind, Tally},
    rss::Samples,
    servers::Faults,
    verify::Verified,
};
use crate::{statistics::quantile, table::time};

/// A load and what came of it.
#[derive(Debug)]
pub struct Report {
    /// How it was run.
    pub plan: Plan,
    /// What the clients saw.
    pub tally: Arc<Tally>,
    /// The storefront's memory.
    pub memory: Samples,
    /// What is in the bucket.
    pub verified: Verified,
    /// Whether the storefront ended as asked.
    pub stopped: bool,
    /// What went wrong on the wire.
    pub faults: Faults,
}

/// A promise, what was found, and whether it was kept.
type Promise = (&'static str, String, bool);

impl Report {
    /// Whether every promise was kept.
    pub fn is_kept(&self) -> bool {
        self.promises().iter().all(|(_, _, kept)| *kept)
    }

    fn promises(&self) -> Vec<Promise> {
        let (seen, verified) = (self.tally.seen(), &self.verified);
        let answered = |kind| seen.took.get(&kind).map_or(0, Vec::len);
        let answers: usize = [Kind::Chat, Kind::Classify, Kind::Judgment, Kind::Job].map(answered).iter().sum();
        let chats = answered(Kind::Chat);
        let swaps = seen.versions.len().saturating_sub(1);
        let expected = (self.plan.lasts.as_secs_f64() / self.plan.swap_every.as_secs_f64()) as usize;
        // A streamed answer has two entries.
        let entries = answers as u64 + chats as u64;
        let memory = self.memory.after(self.warm_up()).unwrap_or_default();
        let mib = |bytes: u64| bytes as f64 / (1024.0 * 1024.0);
        vec![
            (
                "no answer but 2xx",
                format!("{answers} answers, {} others", seen.broken),
                seen.broken == 0 && answers > 0,
            ),
            (
                "no stream cut short",
                format!("{} of {chats} whole", seen.whole_streams),
                seen.whole_streams == chats as u64 && chats > 0,
            ),
            (
                "no judgment lost",
                format!("{} acknowledged, {} not in the bucket", seen.judgments.len(), verified.lost_judgments.len()),
                verified.lost_judgments.is_empty() && !seen.judgments.is_empty(),
            ),
            (
                "no job lost",
                format!(
                    "{} taken, {} without their result {} after the load",
                    seen.jobs.len(),
                    verified.lost_jobs.len(),
                    time(verified.caught_up)
                ),
                verified.lost_jobs.is_empty() && !seen.jobs.is_empty(),
            ),
            (
                "every call in the audit",
                format!("{} entries here, {} in the bucket, {entries} needed", verified.audited, verified.shipped),
                verified.audited >= entries && verified.shipped == verified.audited,
            ),
            // A swap that two poll intervals and a slow bucket delay may fall into the next one's time.
            ("the model swaps", format!("{swaps} seen by clients, {expected} released"), swaps * 2 >= expected),
            (
                "memory flat",
                format!(
                    "{:.1} to {:.1} MiB, last {:.1}; median {:.1} early, {:.1} late",
                    mib(memory.min),
                    mib(memory.max),
                    mib(memory.last),
                    memory.early / (1024.0 * 1024.0),
                    memory.late / (1024.0 * 1024.0)
                ),
                memory.last > 0 && memory.is_flat(),
            ),
            ("it ends as asked", if self.stopped { "yes" } else { "no" }.to_owned(), self.stopped),
        ]
    }

    /// What memory is not judged by: a fifth of the time, and at most a minute.
    fn warm_up(&self) -> Duration {
        (self.plan.lasts / 5).min(Duration::from_secs(60))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { lasts, clients, rate, cuts, cut_for, share_of_503, swap_every } = &self.plan;
        let Faults { s3_requests, s3_faults, sqs_requests } = self.faults;
        writeln!(
            f,
            "{clients} clients for {lasts:?} at {rate} requests/s; the queue cut off {cuts} times for {cut_for:?}, {:.0} % of the bucket's answers 503 \
             ({s3_faults} of {s3_requests}; {sqs_requests} requests to the queue), another version every {swap_every:?}.\n",
            share_of_503 * 100.0
        )?;
        let mut table = "| promise | found | kept |\n|---|---|---|\n".to_owned();
        for (promise, found, kept) in self.promises() {
            writeln!(table, "| {promise} | {found} | {} |", if kept { "yes" } else { "**no**" })?;
        }
        table += "\n| request | answers | p50 | p99 | slowest |\n|---|---:|---:|---:|---:|\n";
        let seen = self.tally.seen();
        for (kind, took) in &seen.took {
            let mut took = took.clone();
            took.sort_unstable();
            let at = |q| time(quantile(&took, q));
            let name = match kind {
                Kind::Chat => "chat, whole stream",
                Kind::ChatBegins => "chat, first piece",
                Kind::Classify => "classification",
                Kind::Judgment => "judgment",
                Kind::Job => "job taken",
            };
            writeln!(table, "| {name} | {} | {} | {} | {} |", took.len(), at(0.5), at(0.99), at(1.0))?;
        }
        seen.first_broken.iter().try_for_each(|broken| writeln!(table, "\nbroken: {broken}"))?;
        f.write_str(&table)
    }
}
