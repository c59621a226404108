"""`python -m gpt_pjit.report`, which is `gpt_pjit report`."""

from gpt_pjit.commandline import run_command

if __name__ == "__main__":
    run_command("gpt_pjit.report.command", prog="gpt_pjit report")
