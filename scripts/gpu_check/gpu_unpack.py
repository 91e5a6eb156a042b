"""Write the small model's weights from the GGUF file that gpu_pack.py packed, and compare them with the packed digest.

python3 scripts/gpu_check/gpu_unpack.py
"""

import hashlib
import sys
from pathlib import Path

from gpu_pack import GGUF, GPU

WEIGHTS = "model.safetensors"


def main() -> int:
    from prepare import save_model  # recipes/smollm2

    (gguf,) = GGUF.glob("*.gguf")
    model = GPU.small_base
    assert model is not None
    config = (model / "config.json").read_bytes()
    save_model(gguf, model)
    (model / "config.json").write_bytes(config)  # as another version of transformers wrote it
    with (model / WEIGHTS).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    expected = (model / f"{WEIGHTS}.sha256").read_text()
    if found != expected:
        print(f"Error: {model / WEIGHTS} has the SHA-256 {found}, expected {expected}", file=sys.stderr)
        return 1
    print(f"{model} is as it was packed.")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "smollm2"))  # prepare.py
    sys.exit(main())
