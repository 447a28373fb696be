//! From a request's headers to whose request it is.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use hybrid_core::ErrorKind;

use super::Front;
use crate::storefront::{
    error::ApiError,
    identity::{Principal, is_key},
};

/// What a credential may have at most, in bytes: a token with many claims has a few thousand.
const TOKEN_BYTES: usize = 16 * 1024;

/// Proof that somebody was asked who they are. Only this module makes one, so nothing that needs one can be reached without it.
#[derive(Clone, Debug)]
pub(crate) struct Identified(Arc<Principal>);

/// Why a request is let in nowhere.
pub(crate) type Refused = Box<ApiError>;

impl Identified {
    pub(crate) fn principal(&self) -> &Arc<Principal> {
        &self.0
    }
}

pub(super) async fn identify(front: &Front, headers: &HeaderMap, query: Option<&str>) -> Result<Identified, Refused> {
    if front.ports.authenticators.is_empty() {
        return Ok(Identified(Arc::clone(&front.anyone)));
    }
    if query.is_some_and(carries_credentials) {
        return Err(Box::new(ApiError::invalid(
            "credentials_in_url",
            "credentials go into the authorization header, never into the URL, which logs and proxies keep; replace this key",
        )));
    }
    let token = bearer(headers)?;
    for authenticator in &front.ports.authenticators {
        match authenticator.authenticate(token).await {
            Ok(Some(principal)) => return Ok(Identified(principal)),
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                tracing::debug!(%error, "a credential does not hold");
                return Err(Box::new(ApiError::unauthenticated("invalid_api_key", error.message().to_owned())));
            }
            Err(error) => return Err(Box::new(ApiError::cannot_authenticate(error))),
        }
    }
    Err(Box::new(ApiError::unauthenticated("invalid_api_key", "the credentials are not known here")))
}

/// The one token of the one `authorization` header.
fn bearer(headers: &HeaderMap) -> Result<&str, Refused> {
    let refuse = |message: &'static str| Box::new(ApiError::unauthenticated("missing_credentials", message));
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or_else(|| refuse("send an API key or a token as \"authorization: Bearer …\""))?;
    if values.next().is_some() {
        return Err(refuse("send one authorization header; there are several"));
    }
    let token = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim_matches(' '))
        .filter(|token| {
            !token.is_empty() && token.len() <= TOKEN_BYTES && token.bytes().all(|byte| byte.is_ascii_graphic())
        });
    token.ok_or_else(|| refuse("the authorization header must be \"Bearer\" and one token of at most 16 KiB"))
}

/// Whether a query names a credential, as clients do that were set up wrongly.
fn carries_credentials(query: &str) -> bool {
    query.split('&').any(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        matches!(name.as_str(), "key" | "apikey" | "xapikey" | "token" | "accesstoken" | "bearer" | "authorization")
            || is_key(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bearer_token_is_taken_and_nothing_else() {
        let token = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("authorization", value.parse().unwrap());
            }
            bearer(&headers).ok().map(str::to_owned)
        };
        assert_eq!(token(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(token(&["bearer  abc "]).as_deref(), Some("abc"));
        let long = format!("Bearer {}", "x".repeat(TOKEN_BYTES + 1));
        for bad in [&[][..], &[""], &["Bearer"], &["Bearer "], &["Basic abc"], &["abc"], &["Bearer a b"], &[&long]] {
            assert_eq!(token(bad), None, "{bad:?}");
        }
        assert_eq!(token(&["Bearer a", "Bearer a"]), None);
    }

    #[test]
    fn credentials_in_a_query_are_noticed() {
        let key = format!("q=hk_{}_{}", "a".repeat(16), "7".repeat(52));
        for bad in ["api_key=x", "a=1&access_token=x", "API-KEY=x", "key", &key] {
            assert!(carries_credentials(bad), "{bad}");
        }
        // The name of a record may begin as a key does.
        for good in ["", "limit=3", "monkey=1", "after=tokens", "after=hk_order_7"] {
            assert!(!carries_credentials(good), "{good}");
        }
    }
}
