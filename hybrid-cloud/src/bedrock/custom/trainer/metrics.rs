//! What Bedrock reports of a training: two tables in the output folder, and the job's own figures where a table is missing.

use std::collections::BTreeMap;

use aws_sdk_bedrock::operation::get_model_customization_job::GetModelCustomizationJobOutput;
use futures_util::TryStreamExt;
use hybrid_core::{Key, Result, Staging};

/// As the Bedrock user guide has them below `model-customization-job-<id>/`: rows of `step_number`, `epoch_number`, a loss and `perplexity`.
const TRAINING: &str = "/training_artifacts/step_wise_training_metrics.csv";
const VALIDATION: &str = "/validation_artifacts/post_fine_tuning_validation/validation_metrics.csv";

/// The figures of a job, by the names that all trainers of this crate family use.
///
/// # Errors
/// Those of the staging place.
pub(super) async fn read(
    staging: &dyn Staging,
    output: &Key,
    job: &GetModelCustomizationJobOutput,
) -> Result<BTreeMap<String, f64>> {
    let mut metrics = BTreeMap::new();
    let mut insert = |name: &str, value: Option<f64>| {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            metrics.insert(name.to_owned(), value);
        }
    };
    insert("train_loss", job.training_metrics().and_then(|metrics| metrics.training_loss()).map(f64::from));
    let valid = job.validation_metrics().first().and_then(|metrics| metrics.validation_loss());
    insert("valid_loss", valid.map(f64::from));
    if let Some(ended) = job.end_time() {
        insert("seconds", Some(ended.as_secs_f64() - job.creation_time().as_secs_f64()));
    }
    let id = job.job_arn().rsplit('/').next().unwrap_or_default();
    let files: Vec<_> = staging.list(output).try_collect().await?;
    for (table, loss, name) in [(TRAINING, "training_loss", "train"), (VALIDATION, "validation_loss", "valid")] {
        let is_ours = |file: &str| file.ends_with(table) && file[..file.len() - table.len()].ends_with(id);
        let Some(file) = files.iter().find(|file| is_ours(file.name.as_str())) else { continue };
        let last = last_row(&String::from_utf8_lossy(&staging.read_file(output, &file.name).await?));
        insert(&format!("{name}_loss"), last.get(loss).copied());
        insert(&format!("{name}_perplexity"), last.get("perplexity").copied());
        if name == "train" {
            // Bedrock counts from 0.
            insert("steps", last.get("step_number").map(|step| step + 1.0));
        }
    }
    Ok(metrics)
}

/// The numbers of the last row, by their columns.
fn last_row(table: &str) -> BTreeMap<String, f64> {
    let mut rows = table.lines().map(str::trim).filter(|row| !row.is_empty());
    let (Some(columns), Some(last)) = (rows.next(), rows.next_back()) else { return BTreeMap::new() };
    let cells = |row: &str| row.split(',').map(|cell| cell.trim().trim_matches('"').to_owned()).collect::<Vec<_>>();
    let numbers = cells(columns).into_iter().zip(cells(last));
    numbers.filter_map(|(column, cell)| Some((column, cell.parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_counts_whatever_columns_there_are() {
        let table =
            "step_number,epoch_number,training_loss,perplexity,note\r\n0,0,2.5,12.18,a\r\n1,0,1.25,3.49,b\r\n\r\n";
        let last = last_row(table);
        assert_eq!(last["step_number"], 1.0);
        assert_eq!(last["training_loss"], 1.25);
        assert_eq!(last.len(), 4);
        for table in ["", "step_number,training_loss\n"] {
            assert!(last_row(table).is_empty());
        }
    }
}
