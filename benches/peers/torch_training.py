"""torch and PEFT beside ours: trains a decoder of random weights, and measures it.

    torch_training.py lora|full SIZES THREADS    for every line of input a step: a line of JSON with tokens a second and MiB

SIZES is what `benches/src/training.rs` writes: JSON with `texts`, `tokens`, `vocabulary`, `hidden`, `intermediate`, `layers`, `heads` and `rank`.
"""

import json
import resource
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(kind, sizes, threads):
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=sizes["vocabulary"], hidden_size=sizes["hidden"], intermediate_size=sizes["intermediate"],
        num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"], num_key_value_heads=sizes["heads"],
        max_position_embeddings=2048, tie_word_embeddings=True, attn_implementation="sdpa",
    )
    network = LlamaForCausalLM(config)
    if kind == "lora":
        rank = sizes["rank"]
        network = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=MODULES))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.train()
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)
    ids = torch.randint(3, config.vocab_size, (sizes["texts"], sizes["tokens"]))
    for _ in sys.stdin:
        start = time.perf_counter()
        optimiser.zero_grad()
        loss = network(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        loss.item()
        rate = ids.numel() / (time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024
        print(json.dumps({"tokens": rate, "peak_mib": peak}), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["lora" | "full" as kind, sizes, threads]:
            main(kind, json.loads(sizes), int(threads))
        case _:
            sys.exit(__doc__)
