"""A model of GPT-2 XL's shape, random and in bfloat16: saved, opened, and two of its layers given to all four methods.

    python benchmarks/bigger_model.py [--quick] [--layers L] [--width D] [--sentences N] [--dtype T] [--checkpoints C]
                                      [--cache-gib G]

Each script runs in a process of its own, by its command line. Of each are printed: seconds of every setting (the first
of a model has its opening and its passes in it), processor seconds by part, which on a shared machine say more, and the
most memory that the process had, pages of mapped files included. docs/scaling.md sets this beside its plan.
"""

import argparse
import importlib
import pkgutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from benchmarks.timing import alone, own_peak_memory
from interp.experiment import main as run_script
from interp.runs.store import RunDirectory
from interp.tasks.grammar import make_table

VOCABULARY, HEAD = 50257, 64
PARTS = {  # what is timed apart, where it is called
    "loading": ["interp.models.loading.load_model"], "opening": ["interp.tasks.study.open_model"],
    "passes": ["interp.models.suffix.Suffix.read_earlier", "interp.models.open_model.OpenModel.activations",
               "interp.models.open_model.OpenModel.final_states"],
    "fitting": ["circuit_probing.find_circuit", "probing.train_probe", "probing.counterfactual_embeddings",
                "amnesic_probing.fit_eraser", "DAS.search_alignment"],
    "forward passes from sites": ["circuit_probing.final_states_from", "probing.in_batches",
                                  "amnesic_probing.in_batches", "DAS.in_batches"]}
PROBES = {"residual_location_list": ["resid_mid", "resid_post"], "lr_list": [0.1], "num_epochs": 20}


def methods(sentences: int) -> dict[str, dict[str, Any]]:
    """The scripts' keys: a circuit takes 90 epochs, as in Experiment 4, a rotation 2, as its step is long."""
    train = sentences * 2 // 3
    return {
        "circuit_probing": {"operation_list": ["attn", "mlp"], "lr_list": [0.001], "batch_size_list": [train // 2],
                            "mask_init_list": [0.0], "num_epochs": 90, "max_temp": 200, "l0_lambda": 1e-7,
                            "num_random_ablations": 1},
        "probing": PROBES | {"batch_size_list": [train // 2], "counterfactual_embeddings": True, "cf_num_epochs": 20},
        "amnesic_probing": PROBES,
        "DAS": {"location_list": ["attn", "mlp"], "n_train": train // 2, "n_val": train // 4,
                "batch_size_list": [train // 4], "epochs": 2}}


def make_model(folder: Path, layers: int, width: int, dtype: str, words: list[str]) -> tuple[float, int]:
    """Save a random model with a tokenizer of some words; seconds, and how many weights it has."""
    start = time.perf_counter()
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=max(1, width // HEAD), vocab_size=VOCABULARY,
                        bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return time.perf_counter() - start, sum(parameter.numel() for parameter in model.parameters())


def timed(called: str, part: str, seconds: dict[str, float], running: list[str]) -> None:
    """Let a function add what it takes to its part, unless another part runs."""
    place, name = called.rsplit(".", 1)
    function = getattr(pkgutil.resolve_name(place), name)

    def run(*arguments, **options):
        if running:
            return function(*arguments, **options)
        running.append(part)
        start = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds[part] = seconds.get(part, 0.0) + time.process_time() - start
            running.clear()

    setattr(pkgutil.resolve_name(place), name, run)


def run_one(script: str, config: Path) -> tuple[dict[str, float], float]:
    """A script's command line, alone in its process: processor seconds by part, MiB at most."""
    seconds, running = dict[str, float](), list[str]()
    for part, functions in PARTS.items():
        for called in functions:
            if called.startswith(("interp.", f"{script}.")):
                timed(called, part, seconds, running)
    start = time.process_time()
    if run_script(importlib.import_module(script).SCRIPT, ["--config", str(config)]):
        raise SystemExit(f"{script} failed")
    return {"all": time.process_time() - start} | seconds, own_peak_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 layers, width 64, to see whether it runs")
    for name, default in (("layers", 48), ("width", 1600), ("sentences", 300), ("checkpoints", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache-gib", type=float, default=2.0)
    options = parser.parse_args()
    layers, width = (2, 64) if options.quick else (options.layers, options.width)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        table = make_table("SV_Agr", 0, 0, mark=False).sample(2 * options.sentences, random_state=0)
        table.to_csv(place / "sentences.csv", index=False)
        words = sorted({word for sentence in table["sentence"] for word in sentence.split()} | {"is", "are"})
        seconds, weights = alone(make_model, place / "model_0", layers, width, options.dtype, words)
        for number in range(1, options.checkpoints):
            (place / f"model_{number}").symlink_to(place / "model_0")
        print(f"{layers} layers, {width} wide, {weights / 1e6:.0f} million weights in {options.dtype}, "
              f"{options.sentences} sentences, {options.checkpoints} checkpoints: saved in {seconds:.0f} s", flush=True)
        shared = {"task": "sentences", "data_path": str(place / "sentences.csv"), "dtype": options.dtype,
                  "model_path": str(place / "model_{checkpoint}"), "checkpoint_list": [*range(options.checkpoints)],
                  "train_size": options.sentences * 2 // 3, "test_size": options.sentences // 3,
                  "target_layer_list": [(layers - 1) // 2, layers - 1], "cache_gib": options.cache_gib}
        for script, keys in methods(options.sentences).items():
            results, config = place / script, place / f"{script}.yaml"
            config.write_text(yaml.safe_dump(shared | keys | {"results_dir": str(results)}))
            seconds, peak = alone(run_one, script, config)
            rows = list(RunDirectory(results).table("results")["seconds"])
            print(f"{script}: settings {', '.join(f'{row:.1f}' for row in rows)} s; processor "
                  f"{', '.join(f'{part} {took:.1f}' for part, took in seconds.items())} s; "
                  f"peak memory {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
