"""`python -m gpt_pjit.doctor`, which is `gpt_pjit doctor`."""

from gpt_pjit.commandline import run_command

if __name__ == "__main__":
    run_command("gpt_pjit.doctor.command", prog="gpt_pjit doctor")
