//! What is lost.

use hybrid_core::ErrorKind;

use super::*;

#[test]
fn a_report_tells_how_far_a_file_is_from_its_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = wide("qwen3", 2);
    let text = "can I get a rye loaf and zwölf Brötchen on Sunday at noon, please? ".repeat(12);
    let compare = |file: &Path| {
        let paths = [folder.path().to_owned(), file.to_owned()];
        let comparison = Comparison::new(crate::Device::cpu()).with_context(100);
        comparison.compare(&paths, &text, &NoProgress, &Cancellation::new()).unwrap()
    };
    let mut last = 0.0;
    for mix in [Mix::F16, Mix::Q8_0, Mix::Q4KM] {
        let file = scratch.path().join(format!("{mix}.gguf"));
        let made = make(mix, folder.path(), &file).unwrap();
        let report = compare(&file);
        eprintln!("{mix}\n{}", report.to_markdown());
        assert_eq!((report.bytes, report.context), (made.bytes, 100));
        assert_eq!(report.original_bytes, fs::metadata(folder.path().join("model.safetensors")).unwrap().len());
        assert!(
            report.predictions > 300
                && report.mean_divergence >= last
                && report.p99_divergence <= report.max_divergence
        );
        last = report.mean_divergence;
        let budget = QualityBudget { mean_divergence: Some(1e-6), ..QualityBudget::default() };
        assert_eq!(budget.check(&report).is_ok(), mix == Mix::F16);
        assert!(mix != Mix::F16 || (report.agreement == 1.0 && report.perplexity_rise().abs() < 1e-5));
    }
    let other = wide("llama", 2);
    let paths = [folder.path().to_owned(), other.path().to_owned()];
    let refused = |paths, text: &str, named: &str| {
        let comparison = Comparison::new(crate::Device::cpu());
        let error = comparison.compare(paths, text, &NoProgress, &Cancellation::new()).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(named), "{error}");
    };
    refused(&paths, &format!("Bro\u{308}tchen {text}"), "tokenizer");
    refused(&[folder.path().to_owned(), folder.path().to_owned()], "ten rolls", "predictions");
}
