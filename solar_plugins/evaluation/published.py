"""The paper's H6: its six tasks as lm_eval knows them, and the scores that were published. Data, no code.

Source: Kim et al. 2023, "SOLAR 10.7B", arXiv:2312.15166 v2, the table of results and the ablations of SFT, DPO and
merging. H6 is the plain mean of the six scores. The names are those of lm_eval 0.4.11.
"""

from __future__ import annotations

from typing import NamedTuple


class Task(NamedTuple):
    """One of the six tasks.

    Args:
        label: What tables call it.
        name: What lm_eval calls it, and a recipe's ``lm_eval_tasks``.
        shots: Examples in the prompt, as in the paper.
        metric: The key of the score in lm_eval's results: metric and filter.
        examples: Size of the test set, on which the published scores stand.
    """

    label: str
    name: str
    shots: int
    metric: str
    examples: int

    @property
    def error_metric(self) -> str:
        """The key of the score's standard error.

        >>> TASKS[0].error_metric
        'acc_norm_stderr,none'
        """
        metric, _, filtered = self.metric.partition(",")
        return f"{metric}_stderr,{filtered}"


TASKS = (
    Task("ARC", "arc_challenge", 25, "acc_norm,none", 1172),
    Task("HellaSwag", "hellaswag", 10, "acc_norm,none", 10042),
    Task("MMLU", "mmlu", 5, "acc,none", 14042),
    Task("TruthfulQA", "truthfulqa_mc2", 0, "acc,none", 817),
    Task("Winogrande", "winogrande", 5, "acc,none", 1267),
    Task("GSM8K", "gsm8k", 5, "exact_match,strict-match", 1319),
)


class PublishedModel(NamedTuple):
    """A row of the paper's table, in percent.

    Args:
        name: The model.
        mean: Its H6 as printed.
        scores: In the order of `TASKS`.
    """

    name: str
    mean: float
    scores: tuple[float, ...]


PUBLISHED_MODELS = (
    PublishedModel("Mistral 7B", 60.97, (59.98, 83.31, 64.16, 42.15, 78.37, 37.83)),
    PublishedModel("SOLAR 10.7B", 66.04, (61.95, 84.60, 65.48, 45.04, 83.66, 55.50)),
    PublishedModel("SOLAR 10.7B-Instruct", 74.20, (71.08, 88.16, 66.21, 71.43, 83.58, 64.75)),
    PublishedModel("Mixtral 8x7B-Instruct", 72.62, (70.22, 87.63, 71.16, 64.58, 81.37, 60.73)),
)


class PublishedStage(NamedTuple):
    """The H6 of one of the models on the way to SOLAR-Instruct, in percent."""

    name: str
    mean: float


PUBLISHED_STAGES = (
    PublishedStage("SFT v3", 70.03),
    PublishedStage("SFT v4", 70.88),
    PublishedStage("average of SFT v3 and v4", 71.11),
    PublishedStage("DPO v3, from that", 73.58),
    PublishedStage("average of two DPO candidates", 74.00),
)

EVALUATION_NOISE = 0.2
"""How far two scores of one model lie apart in the paper: SOLAR-Instruct has 74.20 in one table, 74.00 in another."""
