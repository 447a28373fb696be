//! What Bedrock's models cost.

use hybrid_core::{Currency, Money, Price, Result};

/// What models cost per million tokens, on demand, in the standard tier.
///
/// Prices change: replace the built-in table, or add rows before its own, with what your account is billed.
///
/// ```
/// use hybrid_cloud::bedrock::{PriceRow, PriceTable};
///
/// let mut prices = PriceTable::builtin();
/// prices.rows.insert(0, PriceRow::new("amazon.nova-lite-v1:0", "0.05", "0.20").unwrap());
/// assert_eq!(prices.price("amazon.nova-lite-v1:0", "us-east-1").unwrap().output.to_string(), "0.2 USD");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceTable {
    /// When it was read, as `yyyy-mm-dd`.
    pub dated: String,
    /// The models. The first that fits is taken.
    pub rows: Vec<PriceRow>,
}

/// What one model, or several whose ids begin alike, costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriceRow {
    /// The model's id or its beginning up to a `-`, `:` or `.`, such as `amazon.nova-lite`; with or without an inference profile's prefix.
    pub model: String,
    /// The regions where it holds, as the client calls them; empty for all.
    pub regions: Vec<String>,
    /// What it costs.
    pub price: Price,
}

impl PriceRow {
    /// A model's price in US dollars per million input and output tokens, in every region.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if a price is not a decimal number.
    pub fn new(model: impl Into<String>, input: &str, output: &str) -> Result<Self> {
        let usd = |text| Money::new(Currency::USD, text);
        let price = Price {
            input: usd(input)?,
            output: usd(output)?,
            cache_read: None,
            cache_write: None,
            audio_second: None,
            image: None,
        };
        Ok(Self { model: model.into(), regions: Vec::new(), price })
    }

    fn fits(&self, id: &str, region: &str) -> bool {
        let begins = |id: &str| {
            id.strip_prefix(self.model.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', ':', '.']))
        };
        (self.regions.is_empty() || self.regions.iter().any(|name| name == region)) && begins(id)
    }
}

impl PriceTable {
    /// A table without prices: replies then have no cost.
    pub fn empty() -> Self {
        Self { dated: String::new(), rows: Vec::new() }
    }

    /// List prices for well-known models, read on 2026-08-21 from the public price collection `pydantic/genai-prices`.
    ///
    /// Claude costs a tenth more in a region or a geography than by a `global.` profile, in every region. What the others cost is known for
    /// `us-east-1` and the `us.` profiles called there.
    pub fn builtin() -> Self {
        let claude = CLAUDE.iter().flat_map(|&(model, [input, output, read, write])| {
            let row = |model: String, tenths| PriceRow {
                model,
                regions: Vec::new(),
                price: price(
                    input * tenths / 10,
                    output * tenths / 10,
                    Some(read * tenths / 10),
                    Some(write * tenths / 10),
                ),
            };
            [row(format!("global.anthropic.{model}"), 10), row(format!("anthropic.{model}"), 11)]
        });
        let others = OTHERS.iter().map(|&(model, input, output, read)| PriceRow {
            model: model.to_owned(),
            regions: vec!["us-east-1".to_owned()],
            price: price(input, output, read, None),
        });
        Self { dated: "2026-08-21".to_owned(), rows: claude.chain(others).collect() }
    }

    /// What the model of this id costs when it is called in `region`; `None` where the table does not know.
    ///
    /// A row with a profile's prefix is asked before one without, wherever it stands.
    pub fn price(&self, model: &str, region: &str) -> Option<Price> {
        // An ARN's last part is the id of what is called.
        let id = model.rsplit('/').next().unwrap_or(model);
        let without_profile = id.split_once('.').map_or(id, |(_, rest)| rest);
        let find = |id: &str| self.rows.iter().find(|row| row.fits(id, region)).map(|row| row.price.clone());
        find(id).or_else(|| find(without_profile))
    }
}

impl Default for PriceTable {
    fn default() -> Self {
        Self::builtin()
    }
}

/// From hundred-thousandths of a dollar.
fn price(input: i128, output: i128, cache_read: Option<i128>, cache_write: Option<i128>) -> Price {
    let usd = |hundred_thousandths: i128| Money { currency: Currency::USD, pico: hundred_thousandths * 10_000_000 };
    Price {
        input: usd(input),
        output: usd(output),
        cache_read: cache_read.map(usd),
        cache_write: cache_write.map(usd),
        audio_second: None,
        image: None,
    }
}

/// By a `global.` profile: input, output, read from a cache, written to a cache (5 minutes), in 10⁻⁵ dollars per million tokens.
const CLAUDE: &[(&str, [i128; 4])] = &[
    ("claude-haiku-4-5", [100_000, 500_000, 10_000, 125_000]),
    ("claude-sonnet-4-5", [300_000, 1_500_000, 30_000, 375_000]),
    ("claude-sonnet-4-6", [300_000, 1_500_000, 30_000, 375_000]),
    // From 2026-09-01; before it was two thirds of this.
    ("claude-sonnet-5", [300_000, 1_500_000, 30_000, 375_000]),
    ("claude-opus-4-5", [500_000, 2_500_000, 50_000, 625_000]),
    ("claude-opus-4-6", [500_000, 2_500_000, 50_000, 625_000]),
    ("claude-opus-4-7", [500_000, 2_500_000, 50_000, 625_000]),
    ("claude-opus-4-8", [500_000, 2_500_000, 50_000, 625_000]),
    ("claude-opus-5", [500_000, 2_500_000, 50_000, 625_000]),
    ("claude-fable-5", [1_000_000, 5_000_000, 100_000, 1_250_000]),
];

/// In us-east-1: input, output, read from a cache, in 10⁻⁵ dollars per million tokens.
const OTHERS: &[(&str, i128, i128, Option<i128>)] = &[
    ("amazon.nova-micro", 3_500, 14_000, Some(875)),
    ("amazon.nova-lite", 6_000, 24_000, Some(1_500)),
    ("amazon.nova-pro", 80_000, 320_000, Some(20_000)),
    ("amazon.nova-premier", 250_000, 1_250_000, Some(62_500)),
    ("amazon.nova-2-lite", 30_000, 250_000, Some(7_500)),
    ("meta.llama3-1-8b", 22_000, 22_000, None),
    ("meta.llama3-1-70b", 72_000, 72_000, None),
    ("meta.llama3-3-70b", 72_000, 72_000, None),
    ("meta.llama3-2-1b", 10_000, 10_000, None),
    ("meta.llama3-2-3b", 15_000, 15_000, None),
    ("meta.llama3-2-11b", 16_000, 16_000, None),
    ("meta.llama3-2-90b", 72_000, 72_000, None),
    ("meta.llama4-scout", 17_000, 66_000, None),
    ("meta.llama4-maverick", 24_000, 97_000, None),
    ("openai.gpt-oss-20b", 7_000, 30_000, None),
    ("openai.gpt-oss-120b", 15_000, 60_000, None),
    ("qwen.qwen3-32b", 15_000, 60_000, None),
    ("qwen.qwen3-coder-30b", 15_000, 60_000, None),
    ("qwen.qwen3-coder-480b", 45_000, 180_000, None),
    ("mistral.mistral-7b", 15_000, 20_000, None),
    ("mistral.ministral-3-3b", 10_000, 10_000, None),
    ("mistral.ministral-3-8b", 15_000, 15_000, None),
    ("mistral.ministral-3-14b", 20_000, 20_000, None),
    ("mistral.mistral-large-3", 50_000, 150_000, None),
    ("google.gemma-3-4b", 4_000, 8_000, None),
    ("google.gemma-3-12b", 9_000, 29_000, None),
    ("google.gemma-3-27b", 23_000, 38_000, None),
    ("mistral.voxtral-mini-3b", 4_000, 4_000, None),
    ("mistral.voxtral-small-24b", 10_000, 30_000, None),
    ("amazon.titan-embed-text-v2", 2_000, 0, None),
    ("amazon.titan-embed-text-v1", 10_000, 0, None),
    ("cohere.embed-english-v3", 10_000, 0, None),
    ("cohere.embed-multilingual-v3", 10_000, 0, None),
    ("cohere.embed-v4", 12_000, 0, None),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(model: &str, region: &str, expected: Option<[&str; 2]>) {
        let found = PriceTable::builtin().price(model, region).map(|p| [p.input.to_string(), p.output.to_string()]);
        assert_eq!(found, expected.map(|pair| pair.map(|text| format!("{text} USD"))), "{model} in {region}");
    }

    #[test]
    fn models_cost_what_is_listed() {
        check("amazon.nova-lite-v1:0", "us-east-1", Some(["0.06", "0.24"]));
        check("us.amazon.nova-micro-v1:0", "us-east-1", Some(["0.035", "0.14"]));
        check("amazon.nova-lite-v1:0", "eu-west-1", None);
        check("amazon.nova-2-lite-v1:0", "us-east-1", Some(["0.3", "2.5"]));
        check("amazon.titan-embed-text-v2:0", "us-east-1", Some(["0.02", "0"]));
        check("amazon.titan-embed-text-v1", "us-east-1", Some(["0.1", "0"]));
        check("somebody.new-model-v1:0", "us-east-1", None);
        check("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0", "us-east-1", Some(["0.8", "3.2"]));
    }

    #[test]
    fn claude_costs_a_tenth_more_where_its_place_is_chosen() {
        check("global.anthropic.claude-sonnet-4-6", "ap-south-1", Some(["3", "15"]));
        check("eu.anthropic.claude-sonnet-4-6", "eu-west-1", Some(["3.3", "16.5"]));
        check("anthropic.claude-haiku-4-5-20251001-v1:0", "us-east-1", Some(["1.1", "5.5"]));
        let write = PriceTable::builtin().price("global.anthropic.claude-opus-5", "x").unwrap().cache_write;
        assert_eq!(write.unwrap().to_string(), "6.25 USD");
    }

    #[test]
    fn a_name_that_only_begins_alike_is_another_model() {
        check("amazon.nova-lites", "us-east-1", None);
        check("anthropic.claude-opus-55", "us-east-1", None);
    }
}
