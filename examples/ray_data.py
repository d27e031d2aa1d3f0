"""Ray Data: a stage for `map_batches`; a block that Ray runs again pays nothing twice. pip install 'tokenyard[ray]'"""

# pyright: reportMissingImports=false

import ray.data

from tokenyard.integrations import ColumnStage

dataset = ray.data.from_items([{"question": f"What is {n} + {n}?"} for n in range(100)])
arguments = {"column": "question", "batch": "sums", "max_tokens": 8}
answered = dataset.map_batches(ColumnStage, fn_constructor_kwargs=arguments, concurrency=2, batch_size=50)
print(answered.take(3))
