"""`python -m gpt_pjit.data`, which is `gpt_pjit data`."""

from gpt_pjit.commandline import run_command

if __name__ == "__main__":
    run_command("gpt_pjit.data.command", prog="gpt_pjit data")
