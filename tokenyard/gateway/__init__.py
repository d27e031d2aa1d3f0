"""The OpenAI-compatible gateway: files, batches, chat, completions, embeddings and models over HTTP."""
