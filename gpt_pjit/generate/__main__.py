"""`python -m gpt_pjit.generate`, which is `gpt_pjit generate`."""

from gpt_pjit.commandline import run_command

if __name__ == "__main__":
    run_command("gpt_pjit.generate.command", prog="gpt_pjit generate")
