"""`python -m gpt_pjit.checkpoint`, which is `gpt_pjit checkpoint`."""

from gpt_pjit.commandline import run_command

if __name__ == "__main__":
    run_command("gpt_pjit.checkpoint.command", prog="gpt_pjit checkpoint")
