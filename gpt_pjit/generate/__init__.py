"""Text from a model."""

from gpt_pjit.generate.sample import continue_prompt as continue_prompt
