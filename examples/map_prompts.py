"""Three lines: prompts in, answers out, in the same order. Needs TOKENYARD_REDIS_URL and a worker."""

from tokenyard import Client

QUESTIONS = ["What is the capital of France?", "What is the capital of Peru?", "Name a prime number above 100."]

with Client() as client:
    for question, result in zip(QUESTIONS, client.map(QUESTIONS, max_tokens=32), strict=True):
        print(f"{question} {result.text}")
