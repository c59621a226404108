"""`python -m gpt_pjit.partition`, which is `gpt_pjit partition`."""

from gpt_pjit.commandline import run_command

if __name__ == "__main__":
    run_command("gpt_pjit.partition.command", prog="gpt_pjit partition")
