"""llama.cpp beside ours: writes a model of random weights, and measures it.

    llama.py make FOLDER        writes qwen3-{q4_k_m,q4_0,q8_0}.gguf, of the sizes of Qwen3-0.6B, unless they are there
    llama.py run FILE THREADS STREAMS
                                for every line of input a prompt of 512 tokens and 64 more, or as many prompts and answers of 64 tokens as
                                there are streams: a line of JSON with tokens a second and MiB

Streams are what the slots of llama.cpp's server are, sequences of their own with a token each in every batch, without what the server adds:
no token is drawn, no text is made, and what comes next is known beforehand.
"""

import ctypes
import json
import os
import resource
import string
import sys
import time

import llama_cpp as llama

LAYERS, HIDDEN, INNER, VOCABULARY, HEADS, KEY_HEADS, SIZE = 28, 1024, 3072, 151_936, 16, 8, 128
KINDS = {"q4_k_m": llama.LLAMA_FTYPE_MOSTLY_Q4_K_M, "q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0}
PROMPT, ANSWER, SHORT_PROMPT = 512, 64, 64
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary():
    """Bytes, then pairs of letters, then pairs of pairs; the last ones are special."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens, merges = list(letters.values()), []
    pairs = [a + b for a in letters[32] + string.ascii_letters for b in string.ascii_letters]
    tokens += pairs
    merges += [f"{pair[0]} {pair[1]}" for pair in pairs]
    for a in pairs:
        for b in pairs[len(string.ascii_letters):]:
            if len(tokens) == VOCABULARY - 3:
                return tokens + ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], merges
            tokens.append(a + b)
            merges.append(f"{a} {b}")


def make(folder):
    import gguf
    import numpy

    paths = {kind: os.path.join(folder, f"qwen3-{kind}.gguf") for kind in KINDS}
    if all(map(os.path.exists, paths.values())):
        return
    whole = os.path.join(folder, "whole.gguf")
    writer = gguf.GGUFWriter(whole, "qwen3")
    writer.add_context_length(40_960)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_key_length(SIZE)
    writer.add_value_length(SIZE)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_file_type(llama.LLAMA_FTYPE_MOSTLY_F16)
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (VOCABULARY - 3) + [3] * 3)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(VOCABULARY - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    random = numpy.random.default_rng(7)

    def matrix(name, *shape):
        values = random.standard_normal(shape, dtype=numpy.float32) / numpy.sqrt(shape[-1])
        writer.add_tensor(f"{name}.weight", values.astype(numpy.float16))

    def norm(name, size):
        writer.add_tensor(f"{name}.weight", (1 + 0.1 * random.standard_normal(size)).astype(numpy.float32))

    matrix("token_embd", VOCABULARY, HIDDEN)
    norm("output_norm", HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for name, size in [("attn_norm", HIDDEN), ("ffn_norm", HIDDEN), ("attn_q_norm", SIZE), ("attn_k_norm", SIZE)]:
            norm(block + name, size)
        matrix(block + "attn_q", HEADS * SIZE, HIDDEN)
        matrix(block + "attn_k", KEY_HEADS * SIZE, HIDDEN)
        matrix(block + "attn_v", KEY_HEADS * SIZE, HIDDEN)
        matrix(block + "attn_output", HIDDEN, HEADS * SIZE)
        matrix(block + "ffn_gate", INNER, HIDDEN)
        matrix(block + "ffn_up", INNER, HIDDEN)
        matrix(block + "ffn_down", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for kind, path in paths.items():
        parameters = llama.llama_model_quantize_default_params()
        parameters.ftype = KINDS[kind]
        failed = llama.llama_model_quantize(whole.encode(), f"{path}.part".encode(), ctypes.byref(parameters))
        assert not failed, kind
        os.rename(f"{path}.part", path)
    os.remove(whole)


def run(path, threads, streams):
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    parameters = llama.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 1_024, PROMPT, PROMPT
    parameters.n_threads = parameters.n_threads_batch = threads
    # By default each has a cache of its own, which is the faster way for sequences that have nothing in common.
    parameters.n_seq_max = streams
    context = llama.llama_init_from_model(model, parameters)
    measure = alone if streams == 1 else together
    for number, _ in enumerate(sys.stdin):
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        rates = measure(context, number, streams)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
        print(json.dumps(rates | {"peak_mib": peak}), flush=True)


def alone(context, number, _):
    def decode(tokens):
        # The batch does not keep what it points to.
        array = (llama.llama_token * len(tokens))(*tokens)
        assert not llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens)))
        llama.llama_synchronize(context)

    start = time.perf_counter()
    decode([(7 + number + i * 7_919) % 150_000 for i in range(PROMPT)])
    read = time.perf_counter()
    for i in range(ANSWER):
        decode([i * 977 % 150_000])
    return {"prefill": PROMPT / (read - start), "decode": ANSWER / (time.perf_counter() - read)}


def together(context, number, streams):
    def decode(batch):
        assert not llama.llama_decode(context, batch)
        llama.llama_synchronize(context)

    prompts, step = llama.llama_batch_init(streams * SHORT_PROMPT, 0, 1), llama.llama_batch_init(streams, 0, 1)
    start = time.perf_counter()
    prompts.n_tokens, step.n_tokens = streams * SHORT_PROMPT, streams
    for at in range(prompts.n_tokens):
        stream, position = divmod(at, SHORT_PROMPT)
        prompts.token[at], prompts.pos[at] = (7 + number + at * 7_919) % 150_000, position
        prompts.n_seq_id[at], prompts.seq_id[at][0] = 1, stream
        prompts.logits[at] = position == SHORT_PROMPT - 1
    decode(prompts)
    read = time.perf_counter()
    for stream in range(streams):
        step.n_seq_id[stream], step.seq_id[stream][0], step.logits[stream] = 1, stream, True
    # The first token of each answer comes of what its prompt gave.
    for i in range(1, ANSWER):
        for stream in range(streams):
            step.token[stream], step.pos[stream] = (i * 977 + stream * 7_919) % 150_000, SHORT_PROMPT + i - 1
        decode(step)
    done = time.perf_counter()
    for batch in (prompts, step):
        llama.llama_batch_free(batch)
    return {"prefill": streams * SHORT_PROMPT / (read - start), "decode": streams * ANSWER / (done - start)}


if __name__ == "__main__":
    llama.llama_backend_init()
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    match sys.argv[1:]:
        case ["make", folder]:
            make(folder)
        case ["run", path, threads, streams]:
            run(path, int(threads), int(streams))
        case _:
            sys.exit(__doc__)
