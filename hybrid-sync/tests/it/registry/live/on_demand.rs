//! A live model in a process that runs only while it answers.

use hybrid_sync::live::OnDemand;

use super::*;

fn on_demand(front: &Storefront, live: &LiveModel<Classify>) -> OnDemand<Classify> {
    OnDemand::new(live.clone(), Arc::new(front.clock.clone()), Duration::from_secs(60))
}

async fn asked(backend: &OnDemand<Classify>) -> Result<String> {
    let reply = backend.infer(&context(), ClassifyRequest::one("hello")).await?;
    Ok(reply.response.results[0].label.clone())
}

#[tokio::test]
async fn the_first_request_brings_the_version_and_later_ones_do_not_wait() {
    let front = Storefront::new();
    let live = front.live().await;
    let backend = on_demand(&front, &live);
    assert_eq!(asked(&backend).await.unwrap_err().kind(), ErrorKind::Unavailable);

    let one = front.site.release(1, None).await;
    assert_eq!(asked(&backend).await.unwrap(), "label-1");
    front.site.release(2, Some(one)).await;
    for _ in 0..3 {
        assert_eq!(asked(&backend).await.unwrap(), "label-1", "the interval is not over");
    }
    front.clock.advance(Duration::from_secs(60));
    assert_eq!(asked(&backend).await.unwrap(), "label-1", "the request that has the channel looked at does not wait");
    let mut status = live.watch();
    status.wait_for(|status| status.serving.is_some_and(|serving| serving.version == 2)).await.unwrap();
    assert_eq!(asked(&backend).await.unwrap(), "label-2");
}

#[tokio::test]
async fn requests_that_come_together_load_once() {
    let front = Storefront::new();
    let live = front.live().await;
    let backend = on_demand(&front, &live);
    front.site.release(1, None).await;
    let answers = futures_util::future::join_all((0..20).map(|_| asked(&backend))).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|label| label == "label-1")), "{answers:?}");
    assert_eq!(front.loader.loads.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_that_is_dropped_while_it_loads_spoils_nothing_for_the_next() {
    let front = Storefront::new();
    let live = front.live().await;
    let backend = on_demand(&front, &live);
    front.site.release(1, None).await;
    // The warm-up waits at the gate.
    let gate = front.loader.gate.clone().acquire_owned().await.unwrap();
    let first = tokio::spawn({
        let backend = backend.clone();
        async move { asked(&backend).await }
    });
    eventually(|| front.loader.loads.load(Ordering::SeqCst) == 1).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    drop(gate);
    assert_eq!(asked(&backend).await.unwrap(), "label-1");
}
