"""Models to and from the format of Hugging Face transformers, without torch or transformers.

`models.py` has what both directions share: settings, and the name and layout of each parameter.
"""

from gpt_pjit.hf.exporting import export
from gpt_pjit.hf.importing import import_model
