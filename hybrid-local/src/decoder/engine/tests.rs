//! The scheduler a step at a time, on tiny models with random weights.

use std::path::{Path, PathBuf};

use hybrid_core::{BackendProfile, Limits, Locality};
use hybrid_core::{
    CallContext, Clock, ErrorKind, Event, ManualClock, ReplyMeta, RequestId, SeededIds, ServedModel, Task, TenantId,
    Timestamp,
    task::{Chat, ChatDelta, ChatRequest, ChatResponse, Message, Sampling, StopReason},
};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError, unbounded_channel};

use super::{
    scheduler::{LEAST, PROCESSOR},
    *,
};
use crate::{
    Device,
    decoder::{adapter::Adapter, files::ModelFiles, template::Templates, tests::adapters::matrices, tokens::Tokens},
};

const CONTEXT: usize = 2_000;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoder/qwen2")
}

/// A model that takes long conversations, whose caches hold `capacity` tokens.
fn scheduler(capacity: usize) -> Scheduler {
    let ModelFiles { mut config, weights, tokenizer, templates, defaults } = ModelFiles::open(&fixture()).unwrap();
    config.context = CONTEXT;
    let tokens = Tokens::new(tokenizer, config.vocabulary).unwrap();
    let network = Network::read(config, &*weights, Device::cpu().tensors()).unwrap();
    let codec = Codec::new(tokens, Templates::compile(templates).unwrap(), defaults, CONTEXT);
    Scheduler::new(network, Arc::new(codec), capacity)
}

/// An answer on its way.
struct Asked {
    events: UnboundedReceiver<hybrid_core::Result<Event<Chat>>>,
    context: CallContext,
    deltas: Vec<ChatDelta>,
    end: Option<hybrid_core::Result<ReplyMeta>>,
}

impl Asked {
    /// Reads what has come; gives how many deltas.
    fn read(&mut self) -> usize {
        let before = self.deltas.len();
        loop {
            match self.events.try_recv() {
                Ok(Ok(Event::Delta(delta))) => self.deltas.push(delta),
                Ok(Ok(Event::Done(meta))) => self.end = Some(Ok(meta)),
                Ok(Err(error)) => self.end = Some(Err(error)),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return self.deltas.len() - before,
            }
        }
    }

    fn answer(mut self) -> (ChatResponse, ReplyMeta) {
        self.read();
        let meta = self.end.expect("the answer has not ended").unwrap();
        (Chat::fold(self.deltas).unwrap(), meta)
    }
}

fn ask_as(tenant: &str, scheduler: &mut Scheduler, request: ChatRequest) -> Asked {
    let context = CallContext::new(TenantId::new(tenant).unwrap(), RequestId::next(&SeededIds::default()));
    ask_in(context, scheduler, request)
}

fn ask_in(context: CallContext, scheduler: &mut Scheduler, request: ChatRequest) -> Asked {
    ask_with(None, context, scheduler, request)
}

fn ask_with(
    adapter: Option<Arc<Numbered>>,
    context: CallContext,
    scheduler: &mut Scheduler,
    request: ChatRequest,
) -> Asked {
    let seed = request.sampling.seed.unwrap_or_default();
    let prepared = Arc::new(scheduler.codec().prepare(request, context.clock.now()).unwrap());
    let (sender, events) = unbounded_channel();
    let profile = BackendProfile {
        name: "test".to_owned(),
        model: ServedModel::named("test"),
        locality: Locality::Device,
        limits: Limits::default(),
        price: None,
    };
    let started = context.clock.monotonic();
    let asked = Asked { events, context: context.clone(), deltas: Vec::new(), end: None };
    scheduler.add(Job { prepared, seed, adapter, context, profile: Arc::new(profile), started, events: sender });
    asked
}

fn ask(scheduler: &mut Scheduler, request: ChatRequest) -> Asked {
    ask_as("baker", scheduler, request)
}

fn finish(scheduler: &mut Scheduler) {
    while !scheduler.is_idle() {
        scheduler.step();
        scheduler.check();
    }
}

fn alone(request: ChatRequest) -> ChatResponse {
    let mut scheduler = scheduler(CONTEXT);
    let asked = ask(&mut scheduler, request);
    finish(&mut scheduler);
    asked.answer().0
}

/// A request whose prompt has about `words` words.
fn request(words: usize, most: u32) -> ChatRequest {
    let text: Vec<String> = (0..words).map(|i| format!("roll{}", i * 31 % 97)).collect();
    let sampling = Sampling { max_tokens: Some(most), ..Sampling::default() };
    ChatRequest { sampling, ..ChatRequest::user(text.join(" ")) }
}

#[test]
fn answers_beside_others_are_those_alone() {
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut below = |most: u64| random.next_u64() % most;
    let mut scheduler = scheduler(2 * CONTEXT);
    let mut asked = Vec::new();
    let mut most = 0;
    for i in 0..32 {
        let mut request = request(1 + below(60) as usize, 2 + below(30) as u32);
        if i % 8 == 7 {
            request.messages = vec![Message::user(format!("{i} rolls ").repeat(150))];
        }
        if i % 2 == 1 {
            request.sampling.temperature = Some(1.1);
            request.sampling.seed = Some(i);
            request.sampling.n = (i % 6 == 5).then_some(3);
            request.sampling.top_p = (i % 6 == 1).then_some(0.8);
        }
        let tenant = ["baker", "miller", "grocer"][below(3) as usize];
        asked.push((request.clone(), ask_as(tenant, &mut scheduler, request)));
        for _ in 0..below(7) {
            scheduler.step();
            scheduler.check();
            most = most.max(scheduler.running());
        }
    }
    assert!(most > 4, "the test wants answers side by side: {most}");
    finish(&mut scheduler);
    for (request, asked) in asked {
        let (response, meta) = asked.answer();
        assert_eq!(response, alone(request.clone()), "{request:?}");
        let choices = request.sampling.n.unwrap_or(1);
        assert!(meta.usage.output_tokens <= u64::from(choices * request.sampling.max_tokens.unwrap()));
    }
}

#[test]
fn a_long_prompt_does_not_keep_an_answer_waiting() {
    let mut scheduler = scheduler(2 * CONTEXT);
    let mut first = request(3, 60);
    // So that each token is told, be it whole characters or not.
    first.sampling.logprobs = Some(0);
    let mut short = ask(&mut scheduler, first.clone());
    scheduler.step();
    assert!(short.read() > 1, "its start and the first token");
    let mut long = ask(&mut scheduler, request(200, 5));
    let mut passes = 0;
    while long.read() == 0 {
        scheduler.step();
        passes += 1;
        assert!(short.read() > 0 || short.end.is_some(), "no token came in pass {passes}");
    }
    assert!(passes > 5, "{passes}");
    finish(&mut scheduler);
    assert_eq!(short.answer().0.text(), alone(first).text());
    assert_eq!(long.answer().0, alone(request(200, 5)));
}

#[test]
fn portions_are_shared_and_leave_the_answers_their_turn() {
    let portions = |unread: &[usize], turn| scheduler::portions(unread, PROCESSOR, turn);
    assert_eq!(portions(&[1, 1, 0], 3), [1, 1, 0]);
    assert_eq!(portions(&[1_000], 0), [PROCESSOR.alone]);
    assert_eq!(portions(&[1_000, 1], 0), [PROCESSOR.beside, 1]);
    assert_eq!(portions(&[1_000, 20, 1_000], 0), [118, 20, 118], "what is nearest to its end comes first");
    for turn in 0..9 {
        let many = portions(&[900; 9], turn);
        assert_eq!((many.iter().sum::<usize>(), many[0], many[1..].iter().min()), (PROCESSOR.alone, 128, Some(&16)));
        let beside = portions(&[900, 900, 900, 900, 900, 1], turn);
        assert_eq!((beside.iter().sum::<usize>(), beside[0]), (PROCESSOR.beside + 1, 32), "{turn}: {beside:?}");
        assert_eq!(beside.iter().filter(|portion| **portion == LEAST).count(), 2, "{turn}: {beside:?}");
        assert_eq!(beside[1 + (turn + 3) % 4], 0, "whose share is left out changes");
    }
}

#[test]
fn what_does_not_fit_waits_in_order_and_tenants_take_turns() {
    let mut scheduler = scheduler(CONTEXT);
    // Each may fill the context, so that only one fits.
    let open = |text: &str| ChatRequest::user(text);
    let mut asked = vec![
        ask_as("baker", &mut scheduler, open("one")),
        ask_as("baker", &mut scheduler, open("two")),
        ask_as("baker", &mut scheduler, open("three")),
        ask_as("miller", &mut scheduler, open("four")),
    ];
    let mut order = Vec::new();
    while !scheduler.is_idle() {
        scheduler.step();
        scheduler.check();
        assert!(scheduler.running() <= 1);
        for (i, asked) in asked.iter_mut().enumerate() {
            if asked.read() > 0 && !order.contains(&i) {
                order.push(i);
            }
        }
    }
    assert_eq!(order, [0, 3, 1, 2]);
    // Short ones are answered side by side in the same memory.
    (0..8).for_each(|_| asked.push(ask(&mut scheduler, request(5, 9))));
    scheduler.step();
    assert_eq!(scheduler.running(), 8);
    finish(&mut scheduler);
    asked.into_iter().for_each(|asked| drop(asked.answer()));
}

#[test]
fn who_does_not_wait_any_more_is_let_go_between_two_passes() {
    let mut scheduler = scheduler(CONTEXT);
    let clock = ManualClock::default();
    let context = |name: &str| {
        let mut context = CallContext::new(TenantId::new(name).unwrap(), RequestId::next(&SeededIds::default()));
        context.clock = Arc::new(clock.clone()) as Arc<dyn Clock>;
        context
    };
    let long = || request(100, 100);
    let unread = ask_in(context("a"), &mut scheduler, long());
    let mut cancelled = ask_in(context("b"), &mut scheduler, request(3, 100));
    let second = std::time::Duration::from_secs(1);
    let mut late = ask_in(context("c").with_timeout(second), &mut scheduler, request(3, 100));
    let mut waiting = ask_in(context("d").with_timeout(second), &mut scheduler, ChatRequest::user("waits"));
    let mut stays = ask_in(context("e"), &mut scheduler, request(3, 20));
    (0..3).for_each(|_| scheduler.step());
    assert_eq!(scheduler.running(), 3, "the fourth does not fit, and the fifth is behind it");
    drop(unread);
    cancelled.context.cancel.cancel();
    clock.advance(second);
    scheduler.step();
    scheduler.check();
    assert_eq!(scheduler.running(), 1, "the fifth is let in at once");
    for (asked, kind) in
        [(&mut cancelled, ErrorKind::Cancelled), (&mut late, ErrorKind::Timeout), (&mut waiting, ErrorKind::Timeout)]
    {
        asked.read();
        assert_eq!(asked.end.take().unwrap().unwrap_err().kind(), kind);
    }
    finish(&mut scheduler);
    stays.read();
    assert!(stays.end.unwrap().is_ok());
}

#[test]
fn several_answers_share_a_prompt_that_is_read_once() {
    let mut drawn = request(80, 12);
    drawn.sampling = Sampling { n: Some(5), temperature: Some(1.3), seed: Some(3), ..drawn.sampling };
    // Side by side, and one after the other where there is no memory for two.
    for capacity in [4 * CONTEXT, CONTEXT] {
        let mut scheduler = scheduler(capacity);
        let mut request = drawn.clone();
        if capacity == CONTEXT {
            request.sampling.max_tokens = Some(1_200);
            request.sampling.stop = vec!["a".to_owned(), "e".to_owned()];
        }
        let asked = ask(&mut scheduler, request.clone());
        let (mut read, mut most) = (0, 0);
        while !scheduler.is_idle() {
            read += scheduler.prompt_tokens_of_next_pass();
            scheduler.step();
            most = most.max(scheduler.running());
            scheduler.check();
        }
        let (response, meta) = asked.answer();
        assert_eq!(most, if capacity == CONTEXT { 1 } else { 5 });
        assert!(read <= meta.usage.input_tokens as usize, "{read} of {:?}", meta.usage);
        assert_eq!(response.choices.len(), 5);
        request.sampling.n = Some(1);
        assert_eq!(response.choices[0], alone(request).choices[0]);
        let texts: std::collections::BTreeSet<String> = response.choices.iter().map(|c| c.message.text()).collect();
        assert!(texts.len() > 3, "{texts:?}");
    }
}

#[test]
fn the_next_turn_is_read_from_where_the_last_one_ended_and_says_the_same() {
    let first = request(60, 30);
    let (mut scheduler, mut other) = (scheduler(CONTEXT), scheduler(CONTEXT));
    let asked = ask(&mut scheduler, first.clone());
    finish(&mut scheduler);
    let (response, meta) = asked.answer();
    assert_eq!(meta.usage.cache_read_tokens, 0);
    let read = meta.usage.input_tokens;
    let second = first.with_message(response.choices[0].message.clone()).with_message(Message::user("and brown ones?"));

    let cold = ask(&mut other, second.clone());
    finish(&mut other);
    let (expected, cold) = cold.answer();
    // Another tenant's words are nothing to start from.
    for (tenant, least) in [("miller", 0), ("baker", read)] {
        let asked = ask_as(tenant, &mut scheduler, second.clone());
        finish(&mut scheduler);
        let (response, meta) = asked.answer();
        assert_eq!(response, expected, "{tenant}");
        assert_eq!(meta.usage.total_input_tokens(), cold.usage.input_tokens);
        let spared = meta.usage.cache_read_tokens;
        assert!(if least == 0 { spared == 0 } else { spared >= least }, "{tenant}: {:?}", meta.usage);
    }
    // The same once more: all but the last token was read.
    let again = ask(&mut scheduler, second);
    finish(&mut scheduler);
    let (response, meta) = again.answer();
    assert_eq!((response, meta.usage.input_tokens), (expected, 1));
}

#[test]
fn what_was_not_used_for_the_longest_time_makes_room() {
    let mut scheduler = scheduler(CONTEXT);
    let prepared = scheduler.codec().prepare(ChatRequest::user("six ".repeat(60)), Timestamp::UNIX_EPOCH).unwrap();
    let mut asked = |text: &str, most| {
        let sampling = Sampling { max_tokens: Some(most), stop: vec![" ".to_owned()], ..Sampling::default() };
        let asked = ask(&mut scheduler, ChatRequest { sampling, ..ChatRequest::user(text.repeat(60)) });
        finish(&mut scheduler);
        asked.answer().1.usage
    };
    let length = asked("one ", 5).total_input_tokens() as usize;
    asked("two ", 5);
    for text in ["one ", "two ", "one "] {
        assert_eq!(asked(text, 5).input_tokens, 1, "{text}");
    }
    // Leaves memory for one of them; the younger stays.
    let other = asked("six ", (CONTEXT - prepared.prompt.len() - length * 3 / 2) as u32);
    assert!(other.cache_read_tokens < 60, "{other:?}");
    assert_eq!(asked("one ", 5).input_tokens, 1);
    assert!(asked("two ", 5).cache_read_tokens < 60);
}

#[test]
fn conversations_that_begin_alike_share_the_beginning() {
    let mut scheduler = scheduler(2 * CONTEXT);
    let system = "Bread is the staff of life. ".repeat(12);
    let question = |text: &str| request(0, 8).with_system(system.clone()).with_message(Message::user(text));
    let mut spared = Vec::new();
    let mut asked = Vec::new();
    for text in ["how much is a loaf of rye bread?", "when do you open on Sundays?", "do you bake cakes?"] {
        let mut request = question(text);
        request.messages.remove(0);
        let one = ask(&mut scheduler, request.clone());
        // The second comes while the first is being answered.
        (0..4).for_each(|_| scheduler.step());
        asked.push((request, one));
    }
    finish(&mut scheduler);
    for (request, asked) in asked {
        let (response, meta) = asked.answer();
        assert_eq!(response, alone(request));
        spared.push(meta.usage.cache_read_tokens);
    }
    assert!(spared[0] == 0 && spared[1] > 60 && spared[2] > 60, "{spared:?}");
}

#[test]
fn answers_with_several_adapters_are_written_side_by_side() {
    let base = ModelFiles::open(&fixture()).unwrap().config;
    let adapter = |number| {
        let adapter = Adapter::on(&matrices(&base, number), Device::cpu().tensors()).unwrap();
        Arc::new(Numbered { number, adapter })
    };
    let worn = [None, Some(adapter(1)), Some(adapter(2))];
    let context = || CallContext::new(TenantId::single(), RequestId::next(&SeededIds::default()));
    let mut scheduler = scheduler(2 * CONTEXT);
    let mut answers = |worn: &[Option<Arc<Numbered>>]| {
        let asked: Vec<Asked> =
            worn.iter().map(|adapter| ask_with(adapter.clone(), context(), &mut scheduler, request(20, 30))).collect();
        finish(&mut scheduler);
        asked.into_iter().map(Asked::answer).collect::<Vec<_>>()
    };
    let together = answers(&worn);
    assert_eq!(together[0].0, alone(request(20, 30)));
    let texts: Vec<String> = together.iter().map(|(response, _)| response.text()).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2], "{texts:?}");
    assert!(together.iter().all(|(_, meta)| meta.usage.cache_read_tokens == 0), "other weights read another thing");
    for (worn, (expected, _)) in worn.iter().zip(&together) {
        let (response, meta) = answers(std::slice::from_ref(worn)).remove(0);
        assert_eq!((&response, meta.usage.input_tokens), (expected, 1));
    }
}

#[test]
fn a_pass_that_fails_fails_its_answers_and_the_next_are_given() {
    let mut scheduler = scheduler(CONTEXT);
    let mut failed = [ask(&mut scheduler, request(5, 50)), ask(&mut scheduler, request(6, 50))];
    scheduler.step();
    scheduler.damage();
    scheduler.step();
    assert!(scheduler.is_idle());
    for asked in &mut failed {
        asked.read();
        let error = asked.end.take().unwrap().unwrap_err();
        assert_eq!((error.kind(), error.context("reason").is_some()), (ErrorKind::Internal, true), "{error}");
    }
    let asked = ask(&mut scheduler, request(5, 50));
    finish(&mut scheduler);
    let (response, meta) = asked.answer();
    assert_eq!(response, alone(request(5, 50)));
    assert_eq!(meta.usage.cache_read_tokens, 0, "nothing of the failed pass is kept");
    assert_eq!(response.choices[0].stop_reason, StopReason::MaxTokens);
}
