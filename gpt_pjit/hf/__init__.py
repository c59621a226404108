"""Models to and from the format of Hugging Face transformers, without torch or transformers.

`models.py` has the tables: what config.json and the name and layout of each parameter are there,
both ways. `exporting.py` writes a folder of weights, tokenizer (`tokenizer_files.py`) and model
card; `importing.py` makes a workdir of such a folder.
"""

from gpt_pjit.hf.exporting import Export as Export, export as export
from gpt_pjit.hf.importing import import_model as import_model
