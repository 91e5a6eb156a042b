"""OpenAI-compatible endpoints: how to reach one, a client that retries, and a file with its answers."""
