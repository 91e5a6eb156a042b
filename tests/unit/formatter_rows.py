"""A valid row for each built-in formatter."""

from solar_plugins.data.formatters import preference_formatters, sft_formatters, unpaired_formatters

USER, ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}
PAIR = {"chosen": "a", "rejected": "b"}
LISTS = {"chosen": [USER, ANSWER], "rejected": [USER, ANSWER | {"content": "b"}]}
ROWS = {
    "alpaca": {"instruction": "u", "input": "", "output": "a"},
    "alpaca_prompt": {"instruction": "u", "input": "", "output": "a"},
    "openorca": {"question": "u", "response": "a"},
    "metamath": {"query": "u", "response": "a"},
    "messages": {"messages": [USER, ANSWER]},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "preference": {"prompt": "u", **PAIR},
    "orca_dpo_pairs": {"question": "u", **PAIR},
    "ultrafeedback_binarized": LISTS,
    "ultrafeedback_scores": {
        "instruction": "u",
        "completions": [{"response": "a", "overall_score": 9}, {"response": "b", "overall_score": 1}],
    },
    "math_pairs": {"rephrased_question": "u", "rephrased_answer": "a", "original_answer": "b"},
    "sharegpt_pairs": {"conversations": [HUMAN], **PAIR},
    "hh_rlhf": {name: f"\n\nHuman: u\n\nAssistant: {name}" for name in PAIR},
    "unpaired_preference": {"prompt": "u", "completion": "a", "label": True},
}
DESCRIBES = {
    # columns of published sets: tatsu-lab/alpaca, OpenOrca, MetaMathQA, OpenHermes 2.5, UltraFeedback, argilla
    **{"text": "x", "id": "flan.1", "type": "GSM_SV", "original_question": "x", "source": "x", "category": "x"},
    **{"custom_instruction": True, "skip_prompt_formatting": False, "model_name": "x", "language": "en", "views": 3},
    **{"prompt_id": "x", "messages_": [USER], "score": 3.5, "margin": 1, "status": "unchanged"},
    **{"generations": ["x"], "in_gsm8k_train": False, "chosen-model": "x", "correct_answers": ["None"]},
}


def formatters():
    """Every built-in formatter by name."""
    return {**sft_formatters(), **preference_formatters(), **unpaired_formatters()}
