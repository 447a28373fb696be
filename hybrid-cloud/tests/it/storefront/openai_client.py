"""Drives a storefront with the official client. Arguments: the base URLs of an open storefront, of one that asks for a key,
and of one that takes one request a minute."""

import base64
import io
import struct
import sys

import openai
from openai import OpenAI
from pydantic import BaseModel

base_url, locked_url, limited_url = sys.argv[1:4]
client = OpenAI(base_url=base_url, api_key="any", max_retries=0, timeout=20)
hi = [{"role": "user", "content": "hi"}]
weigh = {
    "type": "function",
    "function": {"name": "weigh", "description": "weighs", "parameters": {"type": "object", "properties": {}}},
}


def check(found, expected):
    if found != expected:
        raise AssertionError(f"expected {expected!r}, found {found!r}")


def raises(kind, call, **facts):
    try:
        call()
    except kind as error:
        check(type(error), kind)
        for name, value in facts.items():
            check(getattr(error, name), value)
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


# Chat: whole.
answer = client.chat.completions.create(model="loaf-1", messages=hi, temperature=0.2, seed=7, user="u")
check(answer.choices[0].message.content, "Two loaves.")
check(answer.choices[0].finish_reason, "stop")
check(answer.object, "chat.completion")
check(answer.model, "loaf-1")
check(answer.usage.total_tokens, 0)
check(answer._request_id, answer.id.removeprefix("chatcmpl-"))

# Chat: streamed, plain and through the accumulating helper.
chunks = list(
    client.chat.completions.create(model="loaf-1", messages=hi, stream=True, stream_options={"include_usage": True})
)
check("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), "Two loaves.")
check([c.choices[0].finish_reason for c in chunks if c.choices][-1], "stop")
check(len({c.id for c in chunks}), 1)
check(chunks[-1].choices, [])
check(chunks[-1].usage.prompt_tokens, 0)
with client.chat.completions.stream(model="loaf-1", messages=hi) as stream:
    for event in stream:
        pass
    check(stream.get_final_completion().choices[0].message.content, "Two loaves.")

# Tools: whole, streamed, and their answer sent back.
answer = client.chat.completions.create(model="weigher", messages=hi, tools=[weigh], tool_choice="required")
call = answer.choices[0].message.tool_calls[0]
check((call.id, call.function.name, call.function.arguments), ("c1", "weigh", '{"grams":5}'))
check(answer.choices[0].finish_reason, "tool_calls")
with client.chat.completions.stream(model="weigher", messages=hi, tools=[weigh]) as stream:
    for event in stream:
        pass
    final = stream.get_final_completion().choices[0]
check((final.finish_reason, final.message.tool_calls[0].function.arguments), ("tool_calls", '{"grams":5}'))
history = hi + [
    answer.choices[0].message.model_dump(exclude_none=True),
    {"role": "tool", "tool_call_id": call.id, "content": "5 g"},
]
check(client.chat.completions.create(model="loaf-1", messages=history, tools=[weigh]).choices[0].message.content, "Two loaves.")


# Structured output.
class Order(BaseModel):
    loaves: int


parsed = client.chat.completions.parse(model="structured", messages=hi, response_format=Order)
check(parsed.choices[0].message.parsed, Order(loaves=2))

# Images and files in messages.
png = "data:image/png;base64," + base64.b64encode(b"png").decode()
parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": png, "detail": "low"}}]
check(client.chat.completions.create(model="loaf-1", messages=[{"role": "user", "content": parts}]).choices[0].index, 0)

# Embeddings: the client's own encoding, and numbers.
vectors = client.embeddings.create(model="vectors", input="a").data
check(vectors[0].embedding, [0.5, -1.0])
check(client.embeddings.create(model="vectors", input=["a"], encoding_format="float").data[0].embedding, [0.5, -1.0])
raw = client.embeddings.create(model="vectors", input="a", encoding_format="base64").data[0].embedding
check(list(struct.unpack("<2f", base64.b64decode(raw))), [0.5, -1.0])

# Transcriptions.
def file():
    return ("order.wav", io.BytesIO(b"RIFF"), "audio/wav")


check(client.audio.transcriptions.create(model="ears", file=file()).text, "Two loaves, please.")
verbose = client.audio.transcriptions.create(
    model="ears", file=file(), response_format="verbose_json", timestamp_granularities=["segment"]
)
check((verbose.language, verbose.duration, verbose.segments[1].start), ("en", 2.0, 1.2))
check(client.audio.transcriptions.create(model="ears", file=file(), response_format="text"), "Two loaves, please.\n")
assert client.audio.transcriptions.create(model="ears", file=file(), response_format="srt").startswith("1\n00:00:00,000")
assert client.audio.transcriptions.create(model="ears", file=file(), response_format="vtt").startswith("WEBVTT")
check(client.audio.translations.create(model="ears", file=file()).text, "Two loaves, please.")

# Images.
picture = client.images.generate(model="painter", prompt="two loaves", size="1024x1024", n=1)
check(base64.b64decode(picture.data[0].b64_json), b"\x89PNG")
check(picture.data[0].revised_prompt, "two loaves")

# Responses: whole, streamed, with a tool, parsed.
answer = client.responses.create(model="loaf-1", input="hi", instructions="Be brief.", store=False)
check((answer.output_text, answer.status, answer.usage.total_tokens), ("Two loaves.", "completed", 0))
events = list(client.responses.create(model="loaf-1", input=[{"role": "user", "content": "hi"}], stream=True))
check([e.type for e in events[:2]], ["response.created", "response.in_progress"])
check(events[-1].type, "response.completed")
check([e.sequence_number for e in events], list(range(len(events))))
check("".join(e.delta for e in events if e.type == "response.output_text.delta"), "Two loaves.")
with client.responses.stream(model="weigher", input="hi", tools=[{"type": "function", **weigh["function"], "strict": False}]) as stream:
    for event in stream:
        pass
    final = stream.get_final_response()
check((final.output[0].type, final.output[0].call_id, final.output[0].arguments), ("function_call", "c1", '{"grams":5}'))
check(client.responses.parse(model="structured", input="hi", text_format=Order).output_parsed, Order(loaves=2))

# Models.
listed = client.models.list().data
check([m.id for m in listed], ["loaf-1", "weigher", "structured", "busy", "away", "slow", "broken", "far", "breaks", "vectors", "ears", "painter"])
check(client.models.retrieve("vectors").id, "vectors")


# Files: up, listed page by page, down, named by a job, gone.
lines = b'{"text":"two loaves"}\n' * 300_000
uploads = [client.files.create(file=(f"{n}.jsonl", lines), purpose="batch") for n in range(3)]
check((uploads[0].object, uploads[0].filename, uploads[0].bytes, uploads[0].purpose), ("file", "0.jsonl", len(lines), "batch"))
check([f.id for f in client.files.list(limit=2)], [f.id for f in reversed(uploads)])
check([f.id for f in client.files.list(order="asc", purpose="batch")], [f.id for f in uploads])
check(client.files.list(purpose="vision").data, [])
check(client.files.retrieve(uploads[1].id), uploads[1])
check(client.files.content(uploads[1].id).read(), lines)
with client.files.with_streaming_response.content(uploads[1].id) as download:
    check(b"".join(download.iter_bytes()), lines)
job = client.post("/jobs", body={"kind": "enrich", "input_file_id": uploads[1].id}, cast_to=object)
check(job["status"], "queued")
check(client.files.delete(uploads[1].id).deleted, True)
check(len(client.files.list().data), 2)
short = client.files.create(
    file=("a", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
)
check(short.expires_at - short.created_at, 3600)


# Every class of error that a storefront has.
def ask(model, **more):
    return lambda: client.chat.completions.create(model=model, messages=hi, **more)


raises(openai.BadRequestError, ask("loaf-1", temperature=-1), code="invalid_request", param="temperature")
raises(openai.BadRequestError, ask("loaf-1", functions=[{"name": "f", "parameters": {}}]), code="unsupported", param="functions")
raises(openai.BadRequestError, lambda: client.embeddings.create(model="vectors", input=[1, 2]), param="input")
raises(openai.BadRequestError, lambda: client.responses.create(model="loaf-1", input="hi", previous_response_id="r"), param="previous_response_id")
raises(openai.PermissionDeniedError, ask("far"), code="policy_denied")
raises(openai.NotFoundError, ask("nobody"), code="model_not_found", param="model")
raises(openai.InternalServerError, ask("busy"), code="overloaded", status_code=503)
raises(openai.InternalServerError, ask("away"), code="unavailable", status_code=503)
raises(openai.InternalServerError, ask("slow"), code="timeout", status_code=504)
error = raises(openai.InternalServerError, ask("broken"), code="internal_error", status_code=500)
assert "request id" in error.message and "secret" not in str(error)
large = [{"role": "user", "content": "x" * 2_000_000}]
raises(openai.APIStatusError, lambda: client.chat.completions.create(model="loaf-1", messages=large), status_code=413)
raises(openai.NotFoundError, lambda: client.files.retrieve(uploads[1].id), code="file_not_found")
raises(openai.NotFoundError, lambda: client.files.content(uploads[1].id), code="file_not_found")
raises(openai.BadRequestError, lambda: client.files.create(file=("a", b"x"), purpose="nonsense"), param="purpose")
stranger = OpenAI(base_url=locked_url, api_key="wrong", max_retries=0, timeout=20)
raises(openai.AuthenticationError, lambda: stranger.models.list(), code="invalid_api_key")
limited = OpenAI(base_url=limited_url, api_key="any", max_retries=0, timeout=20)
check(len(limited.models.list().data), 1)
error = raises(openai.RateLimitError, lambda: limited.models.list(), code="rate_limit_exceeded")
check((error.response.headers["retry-after"], error.response.headers["x-should-retry"]), ("60", "true"))
nobody = OpenAI(base_url="http://127.0.0.1:9/v1", api_key="any", max_retries=0, timeout=20)
raises(openai.APIConnectionError, lambda: nobody.models.list())

# What fails before the first piece has its class in a stream too; what fails later raises inside it.
raises(openai.InternalServerError, ask("busy", stream=True), status_code=503)
stream = ask("breaks", stream=True)()
seen = []


def read():
    for chunk in stream:
        seen.append(chunk.choices[0].delta.content)


error = raises(openai.APIError, read, code="unavailable")
check([text for text in seen if text], ["Two "])
failed = [e.type for e in client.responses.create(model="breaks", input="hi", stream=True)]
check((failed[0], failed[-1]), ("response.created", "response.failed"))

print("all checks passed")
