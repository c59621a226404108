"""`python -m gpt_pjit.coordinates`, which is `gpt_pjit coordinates`."""

from gpt_pjit.commandline import run_command

if __name__ == "__main__":
    run_command("gpt_pjit.coordinates.command", prog="gpt_pjit coordinates")
