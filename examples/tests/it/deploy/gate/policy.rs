//! Whether a policy's statements are about a call.

use serde_json::Value;

use super::call::Call;

impl Call {
    pub(super) fn is_allowed(&self, role: &Value, bucket: &Value) -> bool {
        let matching = |policy: &Value, effect: &str| {
            policy["Statement"]
                .as_array()
                .unwrap()
                .iter()
                .any(|statement| statement["Effect"] == effect && self.matches(statement))
        };
        // The bucket's policy has denials alone, so it is no matter which of the two allows.
        !matching(bucket, "Deny") && !matching(role, "Deny") && matching(role, "Allow")
    }

    fn matches(&self, statement: &Value) -> bool {
        for part in statement.as_object().unwrap().keys() {
            let known = ["Sid", "Effect", "Principal", "Action", "Resource", "NotResource", "Condition"];
            assert!(known.contains(&part.as_str()), "a part of a policy that the gate does not know: {part}");
        }
        let any = |patterns: &Value, value: &str| texts(patterns).iter().any(|pattern| is_like(pattern, value));
        let resource = match (statement.get("Resource"), statement.get("NotResource")) {
            (Some(resources), None) => any(resources, &self.resource),
            (None, Some(others)) => !any(others, &self.resource),
            _ => panic!("{statement}"),
        };
        any(&statement["Action"], &self.action) && resource && self.holds(statement.get("Condition"))
    }

    fn holds(&self, condition: Option<&Value>) -> bool {
        let tests = condition.and_then(Value::as_object).into_iter().flatten();
        tests.into_iter().all(|(operator, keys)| {
            keys.as_object().unwrap().iter().all(|(key, expected)| {
                let (found, expected) = (self.context.get(key.as_str()), expected.as_str().unwrap());
                match operator.as_str() {
                    "Null" => found.is_none() == (expected == "true"),
                    "Bool" | "StringEquals" => found.is_some_and(|found| found == &[expected]),
                    // Also where there is nothing of the kind.
                    "ForAllValues:StringLike" => found.into_iter().flatten().all(|found| is_like(expected, found)),
                    other => panic!("an operator that the gate does not know: {other}"),
                }
            })
        })
    }
}

fn texts(one_or_more: &Value) -> Vec<&str> {
    match one_or_more {
        Value::Array(texts) => texts.iter().map(|text| text.as_str().unwrap()).collect(),
        text => vec![text.as_str().unwrap()],
    }
}

/// Whether `value` is like a pattern in which `*` stands for anything and `?` for one character.
fn is_like(pattern: &str, value: &str) -> bool {
    let Some(first) = pattern.chars().next() else { return value.is_empty() };
    let rest = &pattern[first.len_utf8()..];
    let mut after = value.chars();
    match first {
        '*' => is_like(rest, value) || after.next().is_some() && is_like(pattern, after.as_str()),
        _ => after.next().is_some_and(|next| first == '?' || first == next) && is_like(rest, after.as_str()),
    }
}

#[test]
fn a_pattern_is_matched_as_iam_does() {
    for (pattern, value, matches) in [
        ("t/*/jobs/*/job", "t/a/jobs/1/job", true),
        ("t/*/jobs/*/job", "t/a/jobs/1/result", false),
        ("t/*/files/*", "t/a/files/", true),
        ("sqs:SendMessage", "sqs:SendMessage", true),
        ("sqs:SendMessage", "sqs:SendMessages", false),
        ("s3:*", "s3:GetObject", true),
        ("a*a", "a", false),
        ("*.a.?", "texts.a.t", true),
        ("*.a.?", "texts.a.", false),
        ("*.a.?", "texts.a.b.t", false),
    ] {
        assert_eq!(is_like(pattern, value), matches, "{pattern} {value}");
    }
}
