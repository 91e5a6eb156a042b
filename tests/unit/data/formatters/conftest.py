import pytest
from formatter_rows import formatters

from solar_plugins.data.encoder import make_encoder
from solar_plugins.data.formatters.base import NothingToLearn, RowError
from solar_plugins.data.prepared_datasets import PROBLEM_COLUMN, SOUND_COLUMN, TrainingRecords
from solar_plugins.data.row_encoder import RowEncoder


@pytest.fixture
def records(tokenizer):
    """The text that training uses for a row; a bad row raises its problem."""

    by_name, encoder_of_texts = formatters(), make_encoder(tokenizer, "test")

    def read(name, row):
        encoder = RowEncoder(by_name[name], encoder_of_texts, 512)
        batch = TrainingRecords(encoder).read_batch({column: [value] for column, value in row.items()}, [0])
        if problem := batch[PROBLEM_COLUMN][0]:
            raise (NothingToLearn if batch[SOUND_COLUMN][0] else RowError)("row", problem)
        parts = [batch[column][0] for column in ("prompt", "chosen", "rejected", "completion") if column in batch]
        return "".join(parts) if parts else tokenizer.decode(batch["input_ids"][0])

    return read
