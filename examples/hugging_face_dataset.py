"""Hugging Face datasets: a column of prompts becomes a column of answers. pip install 'tokenyard[datasets]'"""

# pyright: reportMissingImports=false

from datasets import Dataset

from tokenyard.integrations import map_dataset

dataset = Dataset.from_dict({"question": ["What is 2 + 2?", "What is 3 + 3?"]})
print(map_dataset(dataset, "question", batch="sums", max_tokens=8).to_list())
