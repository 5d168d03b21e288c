"""The keys for data and models, the same for every method; nothing here loads torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from interp.models.positions import EVERYWHERE, LAST, PROBED
from interp.runs.config import Count, DataFile, ModelSweep, NonEmpty, NonNegative, Seed, Text, Whole, suggestion

SENTENCES, AGREEMENT, REFLEXIVE, SYNTACTIC_NUMBER = "sentences", "agreement", "reflexive", "syntactic_number"
SENTENCE_TASKS = (SENTENCES, AGREEMENT, REFLEXIVE, SYNTACTIC_NUMBER)
TASKS = ("multitask", *SENTENCE_TASKS)  # any other word is an arithmetic task's name
SENTENCE_FILES = ("SV_Agr", "SV_Agr_gen", "Reflexive_An", "Reflexive_An_gen", "Syntactic_Number")  # the paper's
Location = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
Locations = Annotated[NonEmpty[Location], Field(description=(
    "the sites: `resid_mid` after attention, `resid_post` after the MLP, `resid_pre` before both; `attn_out` and "
    "`mlp_out`, what the two add"))]
LABELS = "labels"
DEFAULT_VARIABLE = {SYNTACTIC_NUMBER: "object labels"}  # else `labels`
SEQUENCE_KEYS = ("train_data_path", "test_data_path")
SENTENCE_KEYS = ("data_path", "gen_path", "sentence_prefix", "capitalize", "answer_prefix", "answer_variable",
                 "position_token", "hold_out")


class QuestionConfig(ModelSweep):
    """The keys for data and models, the same for every method."""

    task: Text = Field("arithmetic", description=(
        "`sentences` for your file, `agreement`, `reflexive`, `syntactic_number` for the paper's, "
        "`multitask` for two arithmetic tasks in one model; any other word is an arithmetic task's name"))
    variable: Text | None = Field(None, description=(
        "the column of the variable to look for; for sentences `labels` if left out (`object labels` for "
        "syntactic_number)"))
    train_data_path: DataFile | None = Field(None, description="sequences to train on (of train_algorithmic_models.py)")
    test_data_path: DataFile | None = Field(None, description="sequences to test on")
    data_path: DataFile | None = Field(None, description="the file of sentences that train and test are drawn from")
    gen_path: DataFile | None = Field(None, description="a file of other sentences, to test generalization on")
    train_size: Count = Field(2000, description="how many sentences to train on; not used for sequences")
    test_size: Count = Field(1000, description="how many sentences to test on, of each file")
    data_seed: Seed = Field(0, description="of the draws of sentences, of their sources and of reference examples")
    sentence_prefix: str = Field("", description=(
        "put before each sentence, such as a special token that the model expects there"))
    capitalize: bool = Field(False, description="begin each sentence with a capital letter")
    answer_prefix: str = Field(" ", description=(
        "put between a sentence and its answer: nothing for digits that continue a number, punctuation, Chinese"))
    answer_variable: Text | None = Field(None, description=(
        "the column of sentences that the answer depends on: `labels`, or else `variable`; exchanging it exchanges the "
        "answer, exchanging another does not"))
    random_init: bool = Field(False, description="a control: all weights but the embeddings freshly drawn")
    reinit_embeddings: bool = Field(False, description="a control: the embeddings freshly drawn")
    layer_reinit: bool | Annotated[Whole, Field(ge=-1)] = Field(-1, description=(
        "a control: this layer's block freshly drawn; `true` shuffles the weights of the sublayer that is looked at"))
    target_layer_list: NonEmpty[NonNegative] = Field([0], description="the layers, counted from 0")
    position_list: NonEmpty[Whole | Text] = Field([LAST], description=(
        "which token of a row is looked at: the name of a mark, `first`, `last`, or a number, -1 for the last, of "
        "sequences also from 0 on"))
    position_token: Literal["last", "first"] = Field("last", description=(
        "the token of a marked span that is its position"))

    hold_out: Text | None = Field(None, description=(
        "sentences: a mark; one half of its words, those with the same first four letters counted as one, is left to "
        "the test sentences, the other to the training sentences"))

    sequence_keys: ClassVar[tuple[str, ...]] = SEQUENCE_KEYS  # without effect for sentences
    needs_variable: ClassVar[bool] = True

    @property
    def of_sentences(self) -> bool:
        return self.task in SENTENCE_TASKS

    @property
    def variable_name(self) -> str:
        """The variable to look for."""
        return self.variable or DEFAULT_VARIABLE.get(self.task, LABELS)

    @property
    def variables(self) -> list[str]:
        """All variables to look for; sequences need none if only answers are evaluated."""
        return [self.variable_name] if self.of_sentences or self.variable else []

    @model_validator(mode="before")
    @classmethod
    def one_token(cls, values):
        """DAS's token_range is the position that it spans."""
        if "token_range" not in values:
            return values
        start, _, end = (text := str(values["token_range"])).partition("_")
        if not (start.isdecimal() and end.isdecimal() and int(end) == int(start) + 1):
            raise ValueError(f"the key 'token_range' must span one position in quotes, as \"2_3\" does, not '{text}'")
        return {key: value for key, value in values.items() if key != "token_range"} | {"position_list": [int(start)]}

    @model_validator(mode="after")
    def consistent_task(self):
        meant = suggestion(self.task, TASKS, cutoff=0.7)
        if meant and self.task not in TASKS:
            raise ValueError(f"there is no task '{self.task}'{meant}")
        hint = ("" if self.of_sentences or not self.data_path
                else f"; tasks of sentences are {', '.join(SENTENCE_TASKS)}")
        for key in ("data_path",) if self.of_sentences else SEQUENCE_KEYS:
            if getattr(self, key) is None:
                raise ValueError(f"the key '{key}' is missing, which the task '{self.task}' needs{hint}")
        for key in self.sequence_keys if self.of_sentences else SENTENCE_KEYS:
            if key in type(self).model_fields and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"the key '{key}' has no effect in the task '{self.task}'{hint}; leave it out")
        if self.variable is None and not self.of_sentences and self.needs_variable:
            raise ValueError("the key 'variable' is missing")
        for name in {PROBED, EVERYWHERE} & {*self.position_list}:
            raise ValueError(f"the key 'position_list': '{name}' is no position")
        for position in self.position_list if self.of_sentences else ():
            if not isinstance(position, str) and position >= 0:
                raise ValueError(f"the key 'position_list': {position}: sentences count their tokens from the end, -1 "
                                 "is the last")
        for control in ("random_init", "reinit_embeddings", "layer_reinit"):
            if self.spread and getattr(self, control) not in (False, -1):
                raise ValueError(f"the key '{control}' draws fresh weights, which takes them on one device; leave "
                                 "'spread' out")
        if getattr(self, "save_models", False) and getattr(self, "model_dir", None) is None:
            raise ValueError("save_models needs the key 'model_dir', the folder to save in")
        return self
