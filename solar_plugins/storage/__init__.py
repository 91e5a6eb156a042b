"""File formats and atomic writes: safetensors, untrusted JSON and YAML, files and directories, content hashes."""
