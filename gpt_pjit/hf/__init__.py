"""The way out and in: weights in the form that Hugging Face transformers reads, and from it.

One table gives every parameter its name and layout there (`names.py`), both ways; `configs.py` does
the same for what a model is. `exporting.py` writes a folder with weights (`tensors.py`), tokenizer
(`tokenizer_files.py`) and model card (`card.py`); `importing.py` makes a workdir of such a folder.
An export has one array of the model in memory at a time, all layers of a kind; an import the model
once, in float32. Neither torch nor transformers is needed.
`python -m gpt_pjit.hf` is its command line.
"""

from gpt_pjit.hf.exporting import Export as Export, export as export
from gpt_pjit.hf.importing import import_model as import_model
