"""Hugging Face datasets: a stage for `Dataset.map`. pip install 'tokenyard[datasets]'"""

# pyright: reportMissingImports=false

from datasets import Dataset

from tokenyard.integrations import ColumnStage

dataset = Dataset.from_dict({"question": ["What is 2 + 2?", "What is 3 + 3?"]})
stage = ColumnStage("question", batch="sums", max_tokens=8)
print(dataset.map(stage, batched=True, batch_size=1000).to_list())
