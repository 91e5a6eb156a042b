import json
import re

import pytest
import yaml
from click.testing import CliRunner

from solar_plugins.cli import solar

LONG = {"instruction": "Why?", "output": "word " * 60}
TURNS = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "uavb", strict=True)]


@pytest.fixture
def shown(tmp_path, tokenizer):
    """What the command prints for rows; no test loads Axolotl."""

    def run(rows, formatter, *arguments, **keys):
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokenizer.save_pretrained(tmp_path / "base")
        entry = {"path": str(tmp_path / "r.jsonl"), "type": f"solar_plugins.{formatter}"}
        recipe = {"base_model": str(tmp_path / "base"), "sequence_len": 64, "datasets": [entry], **keys}
        (tmp_path / "r.yml").write_text(yaml.safe_dump(recipe))
        return CliRunner().invoke(solar, ["preview", str(tmp_path / "r.yml"), *arguments])

    return run


def test_rows_show_their_loss_mask_or_why_they_are_dropped(shown):
    rows = [{"instruction": "Why?", "output": " So.\x1b"}, {"instruction": "Why?", "output": ""}, LONG, LONG]
    text = shown(rows, "alpaca", "--rows", "3").stdout
    assert "### User:\nWhy?\n\n### Assistant:\n⟦ So.�</s>⟧" in text
    assert re.search(r"^row 1: \d+ tokens, \d+ in the loss$", text, re.MULTILINE)
    assert "\nrow 2: dropped: output is empty\n" in text
    assert "; dropped: longer than sequence_len 64\n" in text
    assert "row 4" not in text


def test_pairs_and_conversations_with_several_answers(shown):
    text = shown([{"prompt": "u", "chosen": "a", "rejected": "b"}], "preference", rl="dpo").stdout
    assert re.search(r"row 1, chosen: .*⟦a</s>⟧.*row 1, rejected: .*⟦b</s>⟧", text, re.DOTALL)
    text = shown([{"messages": TURNS}], "messages", solar={"data": {"examples_per": "conversation"}}).stdout
    assert "⟦a⟧### User:\nv\n\n### Assistant:\n⟦b</s>⟧" in text


def test_preview_errors(shown):
    assert "type: solar_plugins.NAME" in shown([LONG], "alpaca", datasets=[]).stderr
    assert "nowhere: the tokenizer cannot be read" in shown([LONG], "alpaca", "--tokenizer", "nowhere").stderr
