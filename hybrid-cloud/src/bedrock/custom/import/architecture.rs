//! Which models Bedrock imports, by what their `config.json` says. Source: the Bedrock user guide, "Import a customized model", 2026-11.

use hybrid_core::{Error, Result};
use serde_json::Value;

use super::OPERATION;

const GB: u64 = 1_000_000_000;
/// "128K": what Llama 3.1 has, which Bedrock imports.
const MAX_CONTEXT: u64 = 128 * 1024;

/// One architecture that Bedrock imports.
#[derive(Debug)]
pub(super) struct Architecture {
    /// As in `architectures` of `config.json`.
    name: &'static str,
    sees: bool,
    /// The only region that imports it.
    only_in: Option<&'static str>,
    /// Its weights are MXFP4 as they are published.
    is_mxfp4: bool,
}

const fn text(name: &'static str) -> Architecture {
    Architecture { name, sees: false, only_in: None, is_mxfp4: false }
}

const fn sees(name: &'static str) -> Architecture {
    Architecture { sees: true, ..text(name) }
}

const ARCHITECTURES: &[Architecture] = &[
    text("MistralForCausalLM"),
    text("MixtralForCausalLM"),
    text("T5ForConditionalGeneration"),
    text("LlamaForCausalLM"),
    sees("MllamaForConditionalGeneration"),
    text("GPTBigCodeForCausalLM"),
    text("Qwen2ForCausalLM"),
    sees("Qwen2VLForConditionalGeneration"),
    sees("Qwen2_5_VLForConditionalGeneration"),
    text("Qwen3ForCausalLM"),
    text("Qwen3MoeForCausalLM"),
    Architecture { only_in: Some("us-east-1"), is_mxfp4: true, ..text("GptOssForCausalLM") },
];

impl Architecture {
    /// The architecture that a `config.json` names.
    ///
    /// # Errors
    /// `Unsupported` if Bedrock imports none such in the region, or not in this quantization; `TooLarge` if the context is too long.
    pub(super) fn of(config: &Value, region: &str) -> Result<&'static Self> {
        let names: Vec<_> =
            config["architectures"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let Some(found) = ARCHITECTURES.iter().find(|known| names.contains(&known.name)) else {
            let message = match names.first() {
                None => "config.json names no architecture; export the model as Transformers saves it",
                // The bare network gives vectors, no words.
                Some(name) if name.ends_with("Model") => {
                    "the model has no head that writes text, and Bedrock imports no embedding models; export it with its language-model head"
                }
                Some(_) => "Bedrock does not import this architecture; train from a base of one that it does",
            };
            let known: Vec<_> = ARCHITECTURES.iter().map(|known| known.name).collect();
            return Err(Error::unsupported(OPERATION, message)
                .with("found", names.join(", "))
                .with("known", known.join(", ")));
        };
        if let Some(only) = found.only_in.filter(|only| *only != region) {
            return Err(Error::unsupported(
                OPERATION,
                "this architecture is imported in one region alone; import there",
            )
            .with("architecture", found.name)
            .with("region", region)
            .with("expected", only));
        }
        let quantization = &config["quantization_config"];
        if !quantization.is_null() && !found.is_mxfp4 {
            let method = quantization["quant_method"].as_str().unwrap_or("unknown");
            let message = "the weights are quantized, and Bedrock imports whole numbers of 16 or 32 bits; dequantize before the export";
            return Err(Error::unsupported(OPERATION, message).with("quantization", method));
        }
        check_context(config)?;
        Ok(found)
    }

    /// The most bytes that the weights may have, exclusively.
    pub(super) fn max_bytes(&self) -> u64 {
        if self.sees { 100 * GB } else { 200 * GB }
    }

    /// Whether tensors of this type, as Safetensors spells it, are imported.
    pub(super) fn takes(&self, dtype: &str) -> bool {
        matches!(dtype, "F32" | "F16" | "BF16") || (self.is_mxfp4 && dtype == "U8")
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }
}

fn check_context(config: &Value) -> Result<()> {
    let places = [config, &config["text_config"]];
    let fields = ["max_position_embeddings", "n_positions"];
    let found = places.into_iter().find_map(|place| fields.into_iter().find_map(|field| place[field].as_u64()));
    match found.filter(|context| *context > MAX_CONTEXT) {
        Some(context) => Err(Error::too_large(
            OPERATION,
            "the context is longer than Bedrock imports; lower max_position_embeddings in config.json",
        )
        .with("context", context)
        .with("limit", MAX_CONTEXT)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use hybrid_core::ErrorKind;
    use serde_json::json;

    use super::*;

    fn named(name: &str) -> Value {
        json!({"architectures": [name], "max_position_embeddings": 32_768})
    }

    fn refusal(config: &Value, region: &str) -> (ErrorKind, String) {
        let error = Architecture::of(config, region).unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn what_bedrock_imports_is_let_through() {
        for known in ARCHITECTURES {
            assert_eq!(Architecture::of(&named(known.name), "us-east-1").unwrap().name, known.name);
        }
        let llama = json!({"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 131_072});
        assert!(Architecture::of(&llama, "eu-central-1").is_ok());
        let mllama = json!({"architectures": ["MllamaForConditionalGeneration"], "text_config": {"max_position_embeddings": 131_072}});
        assert_eq!(Architecture::of(&mllama, "us-west-2").unwrap().max_bytes(), 100_000_000_000);
    }

    #[test]
    fn another_architecture_is_refused_with_those_that_are_known() {
        for name in ["GemmaForCausalLM", "Qwen3_5ForCausalLM", "Qwen3VLForConditionalGeneration"] {
            let (kind, text) = refusal(&named(name), "us-east-1");
            assert_eq!(kind, ErrorKind::Unsupported);
            assert!(text.contains(name) && text.contains("LlamaForCausalLM"), "{text}");
        }
        assert!(refusal(&json!({}), "us-east-1").1.contains("names no architecture"));
    }

    #[test]
    fn a_model_that_only_embeds_is_refused() {
        let (kind, text) = refusal(&named("Qwen2Model"), "us-east-1");
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(text.contains("no embedding models"), "{text}");
    }

    #[test]
    fn an_architecture_of_one_region_is_refused_elsewhere() {
        let (kind, text) = refusal(&named("GptOssForCausalLM"), "eu-central-1");
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(text.contains("us-east-1"), "{text}");
    }

    #[test]
    fn quantized_weights_are_refused_but_for_those_published_so() {
        let mut config = named("Qwen2ForCausalLM");
        config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4});
        let (kind, text) = refusal(&config, "us-east-1");
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(text.contains("gptq") && text.contains("dequantize"), "{text}");
        config["architectures"] = json!(["GptOssForCausalLM"]);
        assert!(Architecture::of(&config, "us-east-1").is_ok());
    }

    #[test]
    fn a_context_beyond_the_limit_is_refused_wherever_it_stands() {
        for config in [
            json!({"architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 131_073}),
            json!({"architectures": ["MllamaForConditionalGeneration"], "text_config": {"max_position_embeddings": 262_144}}),
            json!({"architectures": ["T5ForConditionalGeneration"], "n_positions": 200_000}),
        ] {
            let (kind, text) = refusal(&config, "us-east-1");
            assert_eq!(kind, ErrorKind::TooLarge);
            assert!(text.contains("limit: 131072"), "{text}");
        }
    }
}
