//! What a model's id tells: the family of the model, and where a call of it may be processed.

use hybrid_core::{Error, Locality, Result};

/// A model's id, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelId {
    /// As Bedrock is given it.
    text: String,
    /// The foundation model's id without a profile's prefix, where the id tells it.
    base: Option<String>,
    reach: Reach,
}

/// Where a call may be processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// In the region that is called.
    Here,
    /// In any of these and the one that is called.
    Among(&'static [&'static str]),
    Unknown,
}

/// Destination regions of the geographic inference profiles: every region of the geography, 2026-11.
const GEOGRAPHIES: &[(&str, &[&str])] = &[
    ("us", &["us-east-1", "us-east-2", "us-west-1", "us-west-2"]),
    ("us-gov", &["us-gov-east-1", "us-gov-west-1"]),
    ("ca", &["ca-central-1", "ca-west-1"]),
    (
        "eu",
        &[
            "eu-central-1",
            "eu-central-2",
            "eu-north-1",
            "eu-south-1",
            "eu-south-2",
            "eu-west-1",
            "eu-west-2",
            "eu-west-3",
        ],
    ),
    ("jp", &["ap-northeast-1", "ap-northeast-3"]),
    ("au", &["ap-southeast-2", "ap-southeast-4"]),
];

/// The vendors of foundation models have names of their own; a prefix before one is an inference profile's.
const PROFILES_WITHOUT_TABLE: &[&str] = &["global", "apac", "sa", "me", "af", "mx", "il", "uk", "ch"];

impl ModelId {
    pub(super) fn parse(text: &str, region: &str) -> Result<Self> {
        let refuse = |message: &'static str| Err(Error::invalid("read model id", message).with("model", text));
        let fits = !text.is_empty() && text.len() <= 2048 && text.chars().all(|c| c.is_ascii_graphic());
        if !fits {
            return refuse("expected 1 to 2048 visible ASCII characters");
        }
        let make = |base: Option<&str>, reach| Ok(Self { text: text.to_owned(), base: base.map(str::to_owned), reach });
        if !text.starts_with("arn:") {
            let (base, reach) = profile(text);
            return make(Some(base), reach);
        }
        // arn:partition:service:region:account:kind/id
        let mut parts = text.splitn(6, ':').skip(2);
        let (service, arn_region, resource) = (parts.next(), parts.next(), parts.nth(1).unwrap_or_default());
        if !matches!(service, Some("bedrock" | "sagemaker")) {
            return refuse("expected the ARN of something that Bedrock can call");
        }
        if arn_region != Some(region) {
            return Err(Error::invalid("read model id", "the ARN is of another region than the client's")
                .with("model", text)
                .with("region", region));
        }
        match resource.split_once('/') {
            Some(("foundation-model", id)) => make(Some(id), Reach::Here),
            Some(("inference-profile", id)) => {
                let (base, reach) = profile(id);
                make(Some(base), reach)
            }
            Some((
                "custom-model" | "custom-model-deployment" | "imported-model" | "provisioned-model" | "endpoint",
                _,
            )) => make(None, Reach::Here),
            Some(("application-inference-profile" | "prompt" | "prompt-router" | "default-prompt-router", _)) => {
                make(None, Reach::Unknown)
            }
            _ => refuse("expected the ARN of something that Bedrock can call"),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The foundation model's id, such as `amazon.nova-lite-v1:0`; empty where the id does not tell.
    pub(super) fn base(&self) -> &str {
        self.base.as_deref().unwrap_or_default()
    }

    /// Where a call may be processed, by the regions that the user gave or by the table.
    pub(super) fn locality(&self, given: Option<&[String]>, region: &str) -> Locality {
        let own = |regions: &[&str]| {
            let mut all: Vec<_> = regions.iter().map(|&name| name.to_owned()).collect();
            if !all.iter().any(|name| name == region) {
                all.push(region.to_owned());
            }
            Locality::Regions(all)
        };
        match (given, self.reach) {
            (Some([one]), _) if one == region => Locality::Region(region.to_owned()),
            (Some(given), _) => own(&given.iter().map(String::as_str).collect::<Vec<_>>()),
            (None, Reach::Here) => Locality::Region(region.to_owned()),
            (None, Reach::Among(regions)) => own(regions),
            (None, Reach::Unknown) => Locality::Regions(Vec::new()),
        }
    }
}

/// Splits an inference profile's id into the model's id and where it goes.
fn profile(id: &str) -> (&str, Reach) {
    let Some((prefix, base)) = id.split_once('.') else { return (id, Reach::Here) };
    if let Some((_, regions)) = GEOGRAPHIES.iter().find(|(name, _)| *name == prefix) {
        return (base, Reach::Among(regions));
    }
    // `vendor.model` has one dot before any version's; a profile has its prefix before that. A prefix of tomorrow is not taken for a vendor.
    let unknown_prefix = base.split_once('.').is_some_and(|(vendor, model)| is_name(vendor) && is_name(model));
    if PROFILES_WITHOUT_TABLE.contains(&prefix) || unknown_prefix { (base, Reach::Unknown) } else { (id, Reach::Here) }
}

/// Not a version, as the `2` and the `v3` of `deepseek.v3.2` are.
fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_lowercase()) && chars.next().is_some_and(|c| c.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn locality(id: &str, region: &str) -> Locality {
        ModelId::parse(id, region).unwrap().locality(None, region)
    }

    #[test]
    fn a_call_goes_where_its_id_says() {
        let here = Locality::Region("eu-west-1".into());
        for id in [
            "amazon.nova-lite-v1:0",
            "qwen.qwen3-32b-v1:0",
            "meta.llama3-1-8b-instruct-v1:0",
            "openai.gpt-oss-20b-1:0",
            "deepseek.v3.2",
            "moonshotai.kimi-k2.5",
            "arn:aws:bedrock:eu-west-1::foundation-model/amazon.nova-lite-v1:0",
            "arn:aws:bedrock:eu-west-1:123456789012:imported-model/abcdef123456",
            "arn:aws:bedrock:eu-west-1:123456789012:custom-model-deployment/abcdef123456",
        ] {
            assert_eq!(locality(id, "eu-west-1"), here, "{id}");
        }
        let us = ["us-east-1", "us-east-2", "us-west-1", "us-west-2"].map(str::to_owned).to_vec();
        assert_eq!(locality("us.amazon.nova-lite-v1:0", "us-east-1"), Locality::Regions(us.clone()));
        let arn = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0";
        assert_eq!(locality(arn, "us-east-1"), Locality::Regions(us.clone()));
        let from_canada = [us, vec!["ca-central-1".to_owned()]].concat();
        assert_eq!(locality("us.amazon.nova-lite-v1:0", "ca-central-1"), Locality::Regions(from_canada));
    }

    #[test]
    fn what_may_go_anywhere_is_not_taken_to_stay() {
        for id in [
            "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "apac.amazon.nova-lite-v1:0",
            "tomorrow.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/abc",
            "arn:aws:bedrock:eu-west-1:123456789012:default-prompt-router/anthropic.claude:1",
            "arn:aws:bedrock:eu-west-1:123456789012:prompt/ABCDEFGHIJ:1",
        ] {
            assert_eq!(locality(id, "eu-west-1"), Locality::Regions(vec![]), "{id}");
        }
    }

    #[test]
    fn a_given_list_goes_before_the_table() {
        let id = ModelId::parse("eu.amazon.nova-lite-v1:0", "eu-west-1").unwrap();
        let regions = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let given = regions(&["eu-west-1", "eu-north-1"]);
        assert_eq!(id.locality(Some(&given), "eu-west-1"), Locality::Regions(given.clone()));
        let with_own = regions(&["eu-north-1", "eu-west-1"]);
        assert_eq!(id.locality(Some(&regions(&["eu-north-1"])), "eu-west-1"), Locality::Regions(with_own));
        assert_eq!(id.locality(Some(&regions(&["eu-west-1"])), "eu-west-1"), Locality::Region("eu-west-1".into()));
        assert_eq!(id.base(), "amazon.nova-lite-v1:0");
    }

    #[test]
    fn what_cannot_be_a_model_is_refused() {
        for (id, message) in [
            ("", "visible ASCII"),
            ("amazon nova", "visible ASCII"),
            ("arn:aws:s3:::bucket/key", "something that Bedrock can call"),
            ("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0", "another region"),
            ("arn:aws:bedrock:eu-west-1:123456789012:guardrail/abc", "something that Bedrock can call"),
        ] {
            let error = ModelId::parse(id, "eu-west-1").unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
