"""A small GPT-2 with a word-level tokenizer that has learned agreement, for end-to-end tests of the language tasks."""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from interp.tasks.grammar import ANSWERS, make_table

UNKNOWN, END = "[UNK]", "<|endoftext|>"
IGNORED = -100


def word_level_tokenizer(sentences: list[str]) -> PreTrainedTokenizerBase:
    """One token a word: ' is' and 'is' are the same."""
    words = sorted({word for sentence in sentences for word in sentence.split()})
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate([END, UNKNOWN, *words])}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, bos_token=END, eos_token=END,
                                   pad_token=END)


@cache
def completed_sentences(seed: int) -> list[str]:
    """Sentences that end in the word to learn (is, are, a pronoun of either gender), and the same with an echo.

    The echo, the first noun once more in place of the answer, makes attention fetch more than a number:
    otherwise all its updates at that position tell the number, and no circuit tells it better.
    """
    tables = [make_table(name, 4000, seed) for name in ("SV_Agr", "SV_Agr_gen", "Reflexive_An", "Reflexive_An_gen")]
    completed = [f"{row.sentence} {ANSWERS[row.labels]}" if "gender" not in table else row.sentence
                 for table in tables for row in table.itertuples()]
    return completed + [" ".join([*words, words[1]]) for *words, _ in map(str.split, completed)]


def make_language_model(folder: Path, steps: int = 180, batch_size: int = 64, lr: float = 2e-3, seed: int = 0) -> None:
    """Train a two-layer GPT-2 to say the last word of the sentences; save it with its tokenizer."""
    sentences = completed_sentences(seed)
    tokenizer = word_level_tokenizer(sentences)
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=24, n_layer=2, n_head=4, n_embd=64, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
    tokens = tokenizer(sentences)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=50)
    for _ in range(steps):
        batch = [tokens[i] for i in torch.randint(len(tokens), (batch_size,)).tolist()]
        loss = language_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def language_loss(model: GPT2LMHeadModel, batch: list[list[int]]) -> Tensor:
    """Cross-entropy of every next word, and of the last one again, which is the one in question."""
    tokens = pad(batch)
    targets = pad(batch, value=IGNORED)[:, 1:]
    logits = model(tokens[:, :-1], use_cache=False).logits
    last = torch.tensor([len(ids) - 2 for ids in batch])
    rows = torch.arange(len(batch))
    return (F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED)
            + F.cross_entropy(logits[rows, last], targets[rows, last]))


def pad(sequences: list[list[int]], value: int = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True,
                                           padding_value=value)


def last_logits(model: GPT2LMHeadModel, sequences: list[list[int]]) -> Tensor:
    """Logits after sequences of different lengths, (rows, vocabulary); a causal model ignores the padding."""
    last = torch.tensor([len(ids) - 1 for ids in sequences])
    states = model.base_model(pad(sequences), use_cache=False).last_hidden_state[torch.arange(len(last)), last]
    return model.get_output_embeddings()(states)
