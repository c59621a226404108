"""`python -m gpt_pjit.plan`, which is `gpt_pjit plan`."""

from gpt_pjit.commandline import run_command

if __name__ == "__main__":
    run_command("gpt_pjit.plan.command", prog="gpt_pjit plan")
