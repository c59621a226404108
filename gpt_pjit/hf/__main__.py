"""`python -m gpt_pjit.hf`, which is `gpt_pjit hf`."""

from gpt_pjit.commandline import run_command

if __name__ == "__main__":
    run_command("gpt_pjit.hf.command", prog="gpt_pjit hf")
