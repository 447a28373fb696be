use std::collections::{BTreeMap, HashMap};

use hybrid_core::{CallContext, Digest, Error, InferenceBackend, Interval, Progress, Requirements, Result, Task};
use serde::{Deserialize, Serialize};

use super::{
    Baseline, Budgets, Change, Comparison, GoldenSet, GoldenSummary, LabelMetrics, LabelScorer, Measured, Report,
    Scale, Scorer, Slice, SliceBy, SliceComparison,
    decide::{Evidence, promoted_below},
    report::snippet,
    run::{Answers, Asked, Tally},
    scorer::Expected,
    stats::{self, Bootstrap, CONFIDENCE, POWER},
};

/// How an [`Evaluator`] judges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvaluatorOptions {
    /// The level of the tests: how often a candidate that is equally good may be called better, or worse. Above 0, at most 0.5.
    pub alpha: f64,
    /// How many candidates are judged for one place, of which the best is taken; at least 1. To be called better one has to be so at `alpha` divided by
    /// this (Bonferroni), so that the luckiest of several is not taken for the best.
    /// The interval of a first version, which is compared with no other, is not adjusted.
    pub candidates: usize,
    /// The seed of the bootstrap. Right-or-wrong metrics draw no random numbers.
    pub seed: u64,
    /// How often the bootstrap draws the cases again; at least 1000.
    pub resamples: u32,
    /// The fewest cases for a slice to be looked at; at least 1.
    pub min_slice: usize,
    /// The most cases in one request, where task and backend take several; at least 1.
    pub batch: usize,
    /// The most requests at one time; at least 1.
    pub concurrency: usize,
    /// What the candidate may use.
    pub budgets: Budgets,
    /// The most fixes and the most regressions that a report shows; all of them count.
    pub shown: usize,
}

impl Default for EvaluatorOptions {
    fn default() -> Self {
        Self {
            alpha: 0.05,
            candidates: 1,
            seed: 0,
            resamples: 10_000,
            min_slice: 20,
            batch: 64,
            concurrency: 4,
            budgets: Budgets::default(),
            shown: 20,
        }
    }
}

/// The version to be judged.
#[derive(Debug)]
pub struct Contender<'a, T: Task> {
    /// The backend that answers with it.
    pub backend: &'a dyn InferenceBackend<T>,
    /// What it needs, for the memory budget.
    pub requirements: Requirements,
}

impl<'a, T: Task> Contender<'a, T> {
    /// A version that states no requirements.
    pub fn new(backend: &'a dyn InferenceBackend<T>) -> Self {
        Self { backend, requirements: Requirements::default() }
    }
}

/// Judges candidates: asks them all cases of a golden set, compares them with the version in service, and says whether they may replace it.
///
/// ```no_run
/// use hybrid_core::{CallContext, Digest, InferenceBackend, NoProgress, Result, Verdict, task::Classify};
/// use hybrid_local::evaluation::{Contender, Evaluator, EvaluatorOptions, GoldenSet};
///
/// # async fn judge(
/// #     cx: &CallContext, candidate: &dyn InferenceBackend<Classify>, in_service: &dyn InferenceBackend<Classify>, manifest: Digest,
/// # ) -> Result<()> {
/// let golden = GoldenSet::from_jsonl("golden", r#"{"input": {"text": "two rolls, please"}, "expected": {"label": "order"}}"#)?;
/// let evaluator = Evaluator::classify(EvaluatorOptions::default())?;
/// let incumbent = Some((manifest, in_service));
/// let report = evaluator.evaluate(cx, &golden, Contender::new(candidate), incumbent, &NoProgress).await?;
/// if report.record().verdict == Verdict::Promote {
///     println!("{}", report.to_markdown());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Evaluator<S> {
    scorer: S,
    options: EvaluatorOptions,
}

impl Evaluator<LabelScorer> {
    /// An evaluator of classifiers, by accuracy.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn classify(options: EvaluatorOptions) -> Result<Self> {
        Self::new(LabelScorer, options)
    }
}

impl<S> Evaluator<S> {
    /// An evaluator that scores with `scorer`.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names the option out of its range.
    pub fn new(scorer: S, options: EvaluatorOptions) -> Result<Self> {
        let EvaluatorOptions {
            alpha,
            candidates,
            seed: _,
            resamples,
            min_slice,
            batch,
            concurrency,
            budgets: _,
            shown: _,
        } = &options;
        let refuse = |option, range, value: String| {
            Err(Error::invalid("make evaluator", range).with("option", option).with("value", value))
        };
        if !(*alpha > 0.0 && *alpha <= 0.5) {
            return refuse("alpha", "must be above 0 and at most 0.5", alpha.to_string());
        }
        if *resamples < 1000 {
            return refuse("resamples", "must be at least 1000", resamples.to_string());
        }
        let counts =
            [("candidates", candidates), ("min_slice", min_slice), ("batch", batch), ("concurrency", concurrency)];
        for (option, value) in counts {
            if *value == 0 {
                return refuse(option, "must be at least 1", value.to_string());
            }
        }
        Ok(Self { scorer, options })
    }

    /// Asks `candidate`, and the incumbent if there is one, every case of `golden`, and judges.
    ///
    /// `incumbent` is the version in service with the digest of its manifest; without one the candidate is judged as a first version.
    ///
    /// # Behavior
    /// - No case is skipped: a case that cannot be asked or answered ends the evaluation with an error.
    /// - Progress counts cases over both versions, in the stage `evaluate`.
    /// - The comparison itself computes on the caller's thread: well under a second for thousands of cases.
    ///
    /// # Errors
    /// - [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names line and field of a case that the task cannot ask, before anything is asked.
    /// - The kind of a backend's own error, with the version and the case (or first and last case of the request) it failed on.
    /// - [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if a backend changes its model meanwhile, or the incumbent is not the version that its
    ///   digest names.
    ///
    /// # Cancel safety
    /// Nothing is written; dropping the future ends the requests.
    pub async fn evaluate<T: Task>(
        &self,
        cx: &CallContext,
        golden: &GoldenSet,
        candidate: Contender<'_, T>,
        incumbent: Option<(Digest, &dyn InferenceBackend<T>)>,
        progress: &dyn Progress,
    ) -> Result<Report>
    where
        S: Scorer<T>,
    {
        let cases = self.read(golden)?;
        let mut tally =
            Tally { progress, done: 0, total: cases.len() as u64 * if incumbent.is_some() { 2 } else { 1 } };
        let ask = |role, backend, timed| Asked {
            role,
            backend,
            scorer: &self.scorer,
            golden: golden.cases(),
            cases: &cases,
            batch: self.options.batch,
            concurrency: self.options.concurrency,
            timed,
        };
        let Contender { backend, requirements } = candidate;
        let answers =
            ask("candidate", backend, self.options.budgets.latency_p95.is_some()).answer(cx, &mut tally).await?;
        let incumbent = match incumbent {
            None => None,
            Some((manifest, backend)) => {
                let answers = ask("incumbent", backend, false).answer(cx, &mut tally).await?;
                check_manifest(&answers, manifest)?;
                Some((manifest, answers))
            }
        };
        cx.check("evaluate")?;
        Judge { scorer: &self.scorer, options: &self.options, golden, cases: &cases }.report(
            answers,
            requirements,
            incumbent,
        )
    }

    fn read<T: Task>(&self, golden: &GoldenSet) -> Result<Vec<S::Case>>
    where
        S: Scorer<T>,
    {
        let read = |case| {
            let read = self.scorer.read(case)?;
            T::validate(&self.scorer.request(&[&read]))?;
            Ok(read)
        };
        let named = |case: &super::GoldenCase, error: Error| {
            error.with("case", &case.id).with("line", case.line).with("golden set", golden.name())
        };
        golden.cases().iter().map(|case| read(case).map_err(|error| named(case, error))).collect()
    }
}

fn check_manifest(answers: &Answers, manifest: Digest) -> Result<()> {
    match answers.model.manifest {
        Some(found) if found != manifest => Err(Error::unavailable(
            "evaluate",
            "the incumbent is another version by now; judge again against the version in service",
        )
        .with("expected", manifest)
        .with("found", found)),
        _ => Ok(()),
    }
}

/// Turns answers into a report.
struct Judge<'a, T: Task, S: Scorer<T>> {
    scorer: &'a S,
    options: &'a EvaluatorOptions,
    golden: &'a GoldenSet,
    cases: &'a [S::Case],
}

/// Answers with their scores.
struct Scored {
    answers: Answers,
    scores: Vec<f64>,
}

impl<T: Task, S: Scorer<T>> Judge<'_, T, S> {
    fn report(
        &self,
        candidate: Answers,
        requirements: Requirements,
        incumbent: Option<(Digest, Answers)>,
    ) -> Result<Report> {
        let Requirements { memory_bytes } = requirements;
        let over = self.options.budgets.exceeded(&candidate, memory_bytes, self.cases.len() as u64)?;
        let candidate = self.scored(candidate)?;
        let incumbent = incumbent.map(|(manifest, answers)| Ok((manifest, self.scored(answers)?))).transpose()?;

        let all: Vec<usize> = (0..self.cases.len()).collect();
        let baseline = self.baseline();
        let comparison = incumbent.as_ref().map(|(_, incumbent)| self.compare(&candidate.scores, &incumbent.scores));
        let (slices, small_slices) = self.slices(&candidate, incumbent.as_ref().map(|(_, incumbent)| incumbent));
        let score = self.interval(&candidate.scores, &all, 1);
        let evidence = Evidence {
            metric: self.scorer.metric(),
            alpha: self.options.alpha,
            candidates: self.options.candidates,
            over,
            score,
            baseline: &baseline,
            comparison: comparison.as_ref(),
            slices: &slices,
        };
        let (verdict, reason) = evidence.decide();
        let changes = |better| {
            incumbent.as_ref().map_or(Vec::new(), |(_, incumbent)| self.changes(&candidate, incumbent, better))
        };
        let (fixes, regressions) = (changes(true), changes(false));
        let measured = |scored: Scored, manifest: Option<Digest>, score, memory_bytes| Measured {
            manifest: manifest.or(scored.answers.model.manifest),
            score,
            labels: self.label_metrics(&scored.answers),
            latency_p95: scored.answers.latency_p95,
            memory_bytes,
            cost: scored.answers.cost,
            notes: scored.answers.notes,
            model: scored.answers.model,
        };
        Ok(Report {
            verdict,
            reason,
            task: T::NAME.to_owned(),
            metric: self.scorer.metric().to_owned(),
            golden: GoldenSummary {
                name: self.golden.name().to_owned(),
                digest: self.golden.digest(),
                cases: self.cases.len() as u64,
            },
            baseline,
            incumbent: incumbent.map(|(manifest, incumbent)| {
                let score = self.interval(&incumbent.scores, &all, 2);
                measured(incumbent, Some(manifest), score, None)
            }),
            candidate: measured(candidate, None, score, Some(memory_bytes).filter(|&bytes| bytes > 0)),
            comparison,
            slices,
            small_slices,
            fixes,
            regressions,
            options: self.options.clone(),
        })
    }

    fn scored(&self, answers: Answers) -> Result<Scored> {
        let score = |(case, (answer, named)): (&S::Case, (&super::Answer, &super::GoldenCase))| {
            let score = self.scorer.score(case, &answer.text);
            let fits = match self.scorer.scale() {
                Scale::RightWrong => score == 0.0 || score == 1.0,
                Scale::Score => (0.0..=1.0).contains(&score),
            };
            if fits {
                Ok(score)
            } else {
                Err(Error::internal("score answer", "the scorer left its scale")
                    .with("case", &named.id)
                    .with("score", score))
            }
        };
        let scores =
            self.cases.iter().zip(answers.answers.iter().zip(self.golden.cases())).map(score).collect::<Result<_>>()?;
        Ok(Scored { answers, scores })
    }

    /// The score of the most common expected answer, the first in order of text among equals.
    fn baseline(&self) -> Baseline {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for case in self.cases {
            *counts.entry(self.scorer.show(case).expected.text()).or_insert(0) += 1;
        }
        let common =
            counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(a.0))).map_or("", |(answer, _)| answer);
        let scores: Vec<f64> = self.cases.iter().map(|case| self.scorer.score(case, common)).collect();
        Baseline { answer: common.to_owned(), score: stats::mean(&scores) }
    }

    fn bootstrap(&self, stream: u64) -> Bootstrap {
        Bootstrap { seed: self.options.seed, stream, resamples: self.options.resamples }
    }

    /// The mean of `scores` at `indices` with its interval.
    fn interval(&self, scores: &[f64], indices: &[usize], stream: u64) -> Interval {
        let values: Vec<f64> = indices.iter().map(|&index| scores[index]).collect();
        match self.scorer.scale() {
            Scale::RightWrong => stats::wilson(
                values.iter().filter(|&&score| score == 1.0).count() as u64,
                values.len() as u64,
                CONFIDENCE,
            ),
            Scale::Score => self.bootstrap(stream).mean(&values, CONFIDENCE),
        }
    }

    /// All cases.
    fn compare(&self, candidate: &[f64], incumbent: &[f64]) -> Comparison {
        let differences: Vec<f64> =
            candidate.iter().zip(incumbent).map(|(candidate, incumbent)| candidate - incumbent).collect();
        let (fixes, regressions) = count_changes(&differences);
        // What would have shown is what would have been promoted.
        let (n, alpha) = (differences.len() as u64, promoted_below(self.options.alpha, self.options.candidates));
        let (test, difference, p, detectable) = match self.scorer.scale() {
            Scale::RightWrong => {
                let changed = (fixes + regressions) as f64 / n as f64;
                let difference = stats::paired_difference(fixes, regressions, n, CONFIDENCE);
                (
                    "exact McNemar",
                    difference,
                    stats::mcnemar(fixes, regressions),
                    stats::detectable_share(n, changed, alpha, POWER),
                )
            }
            Scale::Score => {
                let paired = self.bootstrap(0).paired(&differences, CONFIDENCE);
                let deviation = libm::sqrt(stats::variance(&differences));
                ("paired bootstrap", paired.difference, paired.p, stats::detectable_mean(n, deviation, alpha, POWER))
            }
        };
        Comparison { test: test.to_owned(), difference, fixes, regressions, p, detectable }
    }

    /// The slices with enough cases, and how many had too few. One that holds every case says nothing new.
    fn slices(&self, candidate: &Scored, incumbent: Option<&Scored>) -> (Vec<Slice>, u64) {
        let mut parts: BTreeMap<(SliceBy, &str), Vec<usize>> = BTreeMap::new();
        for (index, (case, golden)) in self.cases.iter().zip(self.golden.cases()).enumerate() {
            if let Expected::Label(label) = self.scorer.show(case).expected {
                parts.entry((SliceBy::Label, label)).or_default().push(index);
            }
            for (name, value) in &golden.tags {
                parts.entry((SliceBy::Tag(name.clone()), value)).or_default().push(index);
            }
        }
        parts.retain(|_, indices| indices.len() < self.cases.len());
        let all = parts.len();
        parts.retain(|_, indices| indices.len() >= self.options.min_slice);
        let small = (all - parts.len()) as u64;

        // Streams 0 to 2 belong to the whole set.
        let mut slices: Vec<Slice> = parts
            .into_iter()
            .zip((3..).step_by(3))
            .map(|(((by, value), indices), stream)| Slice {
                by,
                value: value.to_owned(),
                cases: indices.len() as u64,
                candidate: self.interval(&candidate.scores, &indices, stream),
                comparison: incumbent.map(|incumbent| self.compare_slice(candidate, incumbent, &indices, stream + 1)),
            })
            .collect();
        let p_values: Vec<f64> =
            slices.iter().filter_map(|slice| slice.comparison.as_ref()).map(|comparison| comparison.p).collect();
        for (comparison, adjusted) in
            slices.iter_mut().filter_map(|slice| slice.comparison.as_mut()).zip(stats::holm(&p_values))
        {
            comparison.adjusted_p = adjusted;
        }
        (slices, small)
    }

    fn compare_slice(&self, candidate: &Scored, incumbent: &Scored, indices: &[usize], stream: u64) -> SliceComparison {
        let differences: Vec<f64> =
            indices.iter().map(|&index| candidate.scores[index] - incumbent.scores[index]).collect();
        let (fixes, regressions) = count_changes(&differences);
        let p = match self.scorer.scale() {
            Scale::RightWrong => stats::mcnemar(fixes, regressions),
            Scale::Score => self.bootstrap(stream).paired(&differences, CONFIDENCE).p,
        };
        SliceComparison {
            incumbent: self.interval(&incumbent.scores, indices, stream + 1),
            fixes,
            regressions,
            p,
            adjusted_p: p,
        }
    }

    fn changes(&self, candidate: &Scored, incumbent: &Scored, better: bool) -> Vec<Change> {
        let mut changed: Vec<(f64, usize)> = (0..self.cases.len())
            .map(|index| (candidate.scores[index] - incumbent.scores[index], index))
            .filter(|(difference, _)| if better { *difference > 0.0 } else { *difference < 0.0 })
            .collect();
        // Stable, so that equal changes stay in the order of the cases.
        changed.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
        let change = |(_, index): (f64, usize)| {
            let shown = self.scorer.show(&self.cases[index]);
            Change {
                id: self.golden.cases()[index].id.clone(),
                input: snippet(shown.input),
                expected: snippet(shown.expected.text()),
                incumbent: snippet(&incumbent.answers.answers[index].text),
                candidate: snippet(&candidate.answers.answers[index].text),
            }
        };
        changed.into_iter().take(self.options.shown).map(change).collect()
    }

    fn label_metrics(&self, answers: &Answers) -> Option<LabelMetrics> {
        let labelled = |(case, answer)| match self.scorer.show(case).expected {
            Expected::Label(label) => Some((label, answer)),
            Expected::Text(_) => None,
        };
        let labelled: Option<Vec<_>> = self.cases.iter().zip(&answers.answers).map(labelled).collect();
        labelled.map(|labelled| LabelMetrics::of(&labelled))
    }
}

/// How many differences are for the candidate, and how many against it.
fn count_changes(differences: &[f64]) -> (u64, u64) {
    let count = |better: fn(f64) -> bool| differences.iter().filter(|&&difference| better(difference)).count() as u64;
    (count(|difference| difference > 0.0), count(|difference| difference < 0.0))
}
