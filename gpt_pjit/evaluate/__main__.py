"""`python -m gpt_pjit.evaluate`, which is `gpt_pjit evaluate`."""

from gpt_pjit.commandline import run_command

if __name__ == "__main__":
    run_command("gpt_pjit.evaluate.command", prog="gpt_pjit evaluate")
