use hybrid_core::{Error, Result};

use super::Storefront;

/// How a function's answers travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answers {
    /// Whole, as an API Gateway HTTP API takes them: at most 6 MB, and a stream arrives when it has ended.
    #[default]
    Whole,
    /// As they come, for a function URL with the invoke mode `RESPONSE_STREAM`.
    Streamed,
}

/// What the Lambda service sets for each function; without it this is no function.
const RUNTIME: [&str; 4] = [
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_VERSION",
];

impl Storefront {
    /// Serves as an AWS Lambda function behind an API Gateway HTTP API (payload format 2.0) or a function URL, until the service ends the process.
    ///
    /// A function runs only while it answers. So let nothing depend on a task beside the requests: take a backend that loads on demand and a
    /// judgment sink that says yes once the judgment is in the bucket. Of [`StorefrontLimits`](super::StorefrontLimits) those kept by
    /// [`serve`](Self::serve) are the gateway's business here.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) outside of Lambda, naming the variable that is missing;
    /// [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if the runtime API fails.
    pub async fn serve_lambda(&self, answers: Answers) -> Result<()> {
        for variable in RUNTIME {
            if std::env::var_os(variable).is_none() {
                return Err(Error::invalid(
                    "serve on Lambda",
                    "the environment is not that of a Lambda function; deploy it, or serve on a listener",
                )
                .with("missing variable", variable));
            }
        }
        let router = self.router();
        let ended = match answers {
            Answers::Whole => lambda_http::run(router).await,
            Answers::Streamed => lambda_http::run_with_streaming_response(router).await,
        };
        ended.map_err(|error| Error::unavailable("serve on Lambda", "the runtime API failed").with_source(error))
    }
}
