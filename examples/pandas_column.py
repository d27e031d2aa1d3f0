"""pandas: a column of prompts becomes a column of answers. pip install 'tokenyard[pandas]'"""

# pyright: reportMissingImports=false

import pandas as pd

from tokenyard import Client
from tokenyard.integrations import map_frame

frame = pd.DataFrame({"sku": ["a1", "b2", "c3"], "text": ["A red mug", None, "A blue lamp"]})
with Client() as client:
    print(map_frame(client, frame, "text", ids="sku", system="Translate to French.", max_tokens=32))
