"""Write the blank nano model: its architecture, its character tokenizer and its chat template; no weights.

    python examples/nano/make_blank.py examples/nano/blank

The weights come from `python -m engine.main experiment=nano_base` (see the README beside this file).
"""

import string
import sys
from pathlib import Path

from transformers import Qwen2Config, Qwen2Tokenizer

SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|unknown|>")
CHARACTERS = "\n" + string.digits + string.ascii_letters + string.punctuation + " "

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def character_tokenizer() -> Qwen2Tokenizer:
    """One token a character: every number is spelled out digit by digit, so addition is learnable by a tiny model.

    transformers builds Qwen2's own byte-level tokenizer for a Qwen2 model, whatever class the folder names, so this is
    that class with a vocabulary of single characters and no merges.
    """
    byte_level = {" ": "\u0120", "\n": "\u010a"}  # how byte-level BPE writes the two blanks
    vocabulary = [*SPECIAL_TOKENS, *(byte_level.get(character, character) for character in CHARACTERS)]
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(vocabulary)},
        merges=[],
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>",
        extra_special_tokens=list(SPECIAL_TOKENS[2:5]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def nano_config(tokenizer: Qwen2Tokenizer) -> Qwen2Config:
    """Qwen2's architecture with 0.8 million parameters."""
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=104,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        rms_norm_eps=1e-6,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )


def main(folder: Path) -> None:
    tokenizer = character_tokenizer()
    tokenizer.save_pretrained(folder)
    nano_config(tokenizer).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
