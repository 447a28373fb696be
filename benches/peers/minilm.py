"""onnxruntime beside ours: writes an encoder of random weights, and measures it.

    minilm.py make FOLDER        writes a model of the sizes of all-MiniLM-L6-v2, as sentence-transformers leaves it and as ONNX, unless it is there
    minilm.py run FOLDER THREADS for every line of input a line of JSON: texts a second, and the beginning of the first vector
"""

import json
import os
import sys
import time

TEXTS, TOKENS, SPAN, VOCABULARY = 32, (32, 128), 1.5, 30_522
CLS, SEP = 101, 102


def make(folder):
    whole = os.path.join(folder, "model.onnx")
    if os.path.exists(whole):
        return
    import torch
    from tokenizers import Tokenizer, models, processors
    from transformers import BertConfig, BertModel

    torch.manual_seed(7)
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1_536)
    encoder = BertModel(config, add_pooling_layer=False).eval()
    encoder.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 100, "[CLS]": CLS, "[SEP]": SEP}, unk_token="[UNK]"))
    marks = [("[CLS]", CLS), ("[SEP]", SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    steps = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    with open(os.path.join(folder, "modules.json"), "w") as file:
        json.dump([{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in steps], file)
    os.makedirs(os.path.join(folder, "1_Pooling"), exist_ok=True)
    with open(os.path.join(folder, "1_Pooling", "config.json"), "w") as file:
        json.dump({"pooling_mode_mean_tokens": True}, file)

    class Embedder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids, attention_mask):
            rows = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).float()
            mean = (rows * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=1)

    # Two tensors: of one, the exporter would make one input.
    ids, mask = torch.ones((2, 16), dtype=torch.int64), torch.ones((2, 16), dtype=torch.int64)
    sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    part = f"{whole}.part"
    torch.onnx.export(
        Embedder().eval(), (ids, mask), part, input_names=["input_ids", "attention_mask"], output_names=["embeddings"],
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes}, dynamo=True, external_data=False,
    )
    os.rename(part, whole)


def text(number, tokens):
    return [CLS, *(1_000 + (number * 7_919 + i * 977) % 29_000 for i in range(tokens - 2)), SEP]


def run(folder, threads):
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"), options, providers=["CPUExecutionProvider"])
    for _ in sys.stdin:
        rates, vectors = [], []
        for tokens in TOKENS:
            ids = numpy.array([text(number, tokens) for number in range(TEXTS)], dtype=numpy.int64)
            inputs = {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}
            vectors.append(session.run(None, inputs)[0][0, :8].tolist())
            start, texts = time.perf_counter(), 0
            while time.perf_counter() - start < SPAN:
                texts += len(session.run(None, inputs)[0])
            rates.append(texts / (time.perf_counter() - start))
        print(json.dumps({"rates": rates, "vectors": vectors}), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", folder]:
            make(folder)
        case ["run", folder, threads]:
            run(folder, int(threads))
        case _:
            sys.exit(__doc__)
