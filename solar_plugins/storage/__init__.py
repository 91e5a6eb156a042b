"""Files: safetensors, directories that are whole or absent, the lock, JSON that is not trusted."""
