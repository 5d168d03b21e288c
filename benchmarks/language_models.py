"""What the benchmarks of Experiment 4 measure on: a model of GPT-2 small's shape, sentences like those of agreement.

Fresh weights and random tokens: time does not depend on what they hold, but on which sentences begin alike.
"""

import functools
import sys

import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from interp.models.examples import Answer, Examples

QUICK = "--quick" in sys.argv  # a tiny model and few sentences, to see whether a benchmark runs
SHAPE = {"n_layer": 3, "n_embd": 48, "n_head": 4, "vocab_size": 1000} if QUICK else {}  # none: GPT-2 small's
LAYERS, MIDDLE_LAYER = (3, 1) if QUICK else (12, 6)
EXAMPLES, BATCH = (100, 40) if QUICK else (2000, 500)
# a sentence, slot by slot: among how many phrases there is to choose, and of how many tokens each of them is
SLOTS = ((1, 1), (38, 1), (8, 3), (1, 1), (20, 2), (7, 2), (1, 1), (20, 1))
RIGHT, WRONG = 1, 2  # the tokens whose logits are compared


@functools.cache
def build_gpt2_small() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(**SHAPE, bos_token_id=None, eos_token_id=None)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def draw_sentences(count: int) -> Examples:
    """Rows of twelve tokens, which begin alike as often as sentences of so small a grammar do; labels of two classes.

    Probed and answered at their last token.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = SHAPE.get("vocab_size", 50257)
    lexicon = [torch.randint(vocabulary, slot, generator=generator) for slot in SLOTS]  # (phrases, tokens) each
    phrases = [words[torch.randint(len(words), (count,), generator=generator)] for words in lexicon]
    tokens = torch.cat(phrases, dim=1)
    last = torch.full((count,), tokens.shape[1] - 1)
    return Examples(tokens, last, last, {"labels": torch.randint(2, (count,), generator=generator)},
                    Answer(torch.full_like(last, RIGHT), torch.full_like(last, WRONG)))
