use axum::{
    Router,
    body::{Body, BodyDataStream},
    middleware,
    response::Response,
};
use futures_util::{StreamExt, stream};
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
    /// The service may freeze the function as soon as an answer is at its end. So the end waits for `at_end`: the place to send telemetry, for a time
    /// that customers can wait. What need not wait for is `|| async {}`.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) outside of Lambda, naming the variable that is missing;
    /// [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if the runtime API fails.
    pub async fn serve_lambda<F>(
        &self,
        answers: Answers,
        at_end: impl Fn() -> F + Clone + Send + Sync + 'static,
    ) -> Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        for variable in RUNTIME {
            if std::env::var_os(variable).is_none() {
                return Err(Error::invalid(
                    "serve on Lambda",
                    "the environment is not that of a Lambda function; deploy it, or serve on a listener",
                )
                .with("missing variable", variable));
            }
        }
        let router = with_end(self.router(), at_end);
        let ended = match answers {
            Answers::Whole => lambda_http::run(router).await,
            Answers::Streamed => lambda_http::run_with_streaming_response(router).await,
        };
        ended.map_err(|error| Error::unavailable("serve on Lambda", "the runtime API failed").with_source(error))
    }
}

/// `router` with answers that end after `at_end`.
fn with_end<F>(router: Router, at_end: impl Fn() -> F + Clone + Send + Sync + 'static) -> Router
where
    F: Future<Output = ()> + Send + 'static,
{
    router.layer(middleware::map_response(move |answer: Response| {
        let at_end = at_end.clone();
        async move { answer.map(|body| Body::from_stream(ending(body.into_data_stream(), at_end))) }
    }))
}

fn ending<F: Future<Output = ()>>(
    body: BodyDataStream,
    at_end: impl Fn() -> F,
) -> impl futures_util::Stream<Item = std::result::Result<axum::body::Bytes, axum::Error>> {
    stream::unfold(Some((body, at_end)), async |left| {
        let (mut body, at_end) = left?;
        match body.next().await {
            Some(piece) => Some((piece, Some((body, at_end)))),
            None => {
                // Its own end is what there is to tell of.
                drop(body);
                at_end().await;
                None
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use axum::{http::Request, routing::get};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    struct Gone(Arc<AtomicBool>);

    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn an_answer_ends_once_all_that_made_it_is_gone_and_told_of() {
        let (gone, told) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let handler = {
            let gone = Arc::clone(&gone);
            async move || {
                let held = Gone(gone);
                let pieces = ["two ", "loaves"].map(Ok::<_, std::convert::Infallible>);
                Body::from_stream(stream::iter(pieces).inspect(move |_| _ = &held))
            }
        };
        let (was_gone, counted) = (Arc::clone(&gone), Arc::clone(&told));
        let router = with_end(Router::new().route("/", get(handler)), move || {
            let (was_gone, counted) = (Arc::clone(&was_gone), Arc::clone(&counted));
            async move {
                tokio::task::yield_now().await;
                assert!(was_gone.load(Ordering::SeqCst));
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let answer = router.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(told.load(Ordering::SeqCst), 0);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "two loaves");
        assert_eq!(told.load(Ordering::SeqCst), 1);
    }
}
