"""Files like those that lm_eval writes (0.4.11), as small as they can be."""

import json

SUBJECTS = {"mmlu_stem": {"mmlu_anatomy": 135, "mmlu_virology": 166}, "mmlu_other": {"mmlu_sociology": 13741}}
SIZES = {"arc_challenge": 1172, "hellaswag": 10042, "truthfulqa_mc2": 817, "winogrande": 1267, "gsm8k": 1319}
SHOTS = {"arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa_mc2": 0, "winogrande": 5, "gsm8k": 5}
METRICS = {
    "arc_challenge": "acc_norm,none",
    "hellaswag": "acc_norm,none",
    "mmlu": "acc,none",
    "truthfulqa_mc2": "acc,none",
    "winogrande": "acc,none",
    "gsm8k": "exact_match,strict-match",
}


def lm_eval_results(scores, model="outputs/mine", error=0.01):
    """What lm_eval would have written: score by task, in its own unit."""
    content = {"results": {}, "group_subtasks": {}, "n-shot": {}, "n-samples": {}, "model_name": model}
    for task, score in scores.items():
        metric, _, filtered = METRICS[task].partition(",")
        content["results"][task] = {
            "alias": task,
            METRICS[task]: score,
            f"{metric}_stderr,{filtered}": error,
            "other,none": 0.123,
        }
        leaves = (
            {task: SIZES[task]} if task != "mmlu" else {k: n for group in SUBJECTS.values() for k, n in group.items()}
        )
        content["group_subtasks"][task] = list(SUBJECTS) if task == "mmlu" else []
        if task == "mmlu":
            content["group_subtasks"] |= {group: list(subjects) for group, subjects in SUBJECTS.items()}
        content["n-shot"] |= dict.fromkeys(leaves, SHOTS[task])
        content["n-samples"] |= {leaf: {"original": n, "effective": n} for leaf, n in leaves.items()}
    return content


def write_results(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
